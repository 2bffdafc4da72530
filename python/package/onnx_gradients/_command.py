"""One command of the command line, run inside this process: a model in, a model and a report out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import _models, _native
from .errors import from_report

_native.set_program([sys.executable, "-m", "onnx_gradients"])


def run(arguments: Iterable[object], model: bytes | None = None) -> tuple[dict[str, Any], bytes]:
    """Run a command with ``--json``.

    Parameters
    ----------
    arguments : iterable of object
        The subcommand and its arguments.
    model : bytes, optional
        The model that ``-`` stands for.

    Returns
    -------
    report : dict
        What the command prints.
    model : bytes
        The model that it wrote for ``-o -``; empty without it.

    Raises
    ------
    Error
        The command failed; the class says how.
    """
    subcommand, *rest = (str(a) for a in arguments)
    code, printed, notes, written = _native.run(["onnx-gradients", *subcommand.split(), "--json", *rest], model)
    report = json.loads(printed) if printed.strip() else {}
    if code != 0:
        raise from_report(code, report, notes)
    return report, written


def transform(
    subcommand: str, model: _models.ModelLike, options: Iterable[object], output: _models.PathLike | None, force: bool
) -> tuple[dict[str, Any], Any]:
    """Run a command that turns a model into another.

    Parameters
    ----------
    subcommand : str
        The command.
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model that it takes.
    options : iterable of object
        Its other arguments.
    output : path, optional
        Where to write; without it the new model is returned as the old one was given.
    force : bool
        Whether an existing file is replaced.

    Returns
    -------
    report : dict
        What the command says.
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The new model.
    """
    taken = _models.take(model)
    arguments: list[object] = [subcommand, *options, *option("--force", force)]
    arguments += ["-o", "-" if output is None else output, "--", taken.argument]
    report, written = run(arguments, taken.data)
    return report, taken.give(written) if output is None else Path(output)


def option(name: str, value: object) -> list[object]:
    """The arguments of an option: none for None and False, the name alone for True, the name before each of a list."""
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    values = [value] if isinstance(value, str | int | float | Path) else list(value)  # type: ignore[call-overload]
    # One argument each, so that a value may start with a dash.
    return [f"{name}={v}" for v in values]
