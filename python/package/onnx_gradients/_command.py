"""One command of the command line, run inside this process: a model in, a model and a report out."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _models, _native
from ._options import Deriving, Making
from .errors import from_report

if TYPE_CHECKING:
    import numpy.typing as npt

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
    for key in ("message", "remedy", "warnings") if isinstance(report, dict) else ():
        if report.get(key):
            said = report[key]
            report[key] = [_in_python(line) for line in said] if isinstance(said, list) else _in_python(said)
    if code != 0:
        raise from_report(code, report, _in_python(notes))
    return report, written


_FLAGS = {"force", *(n for kind in (Deriving, Making) for n, said in kind.__annotations__.items() if "bool" in str(said))}


def _in_python(text: str) -> str:
    """What the command line says of its options, said of keywords."""
    def keyword(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        if name == "no_validate":
            return "validate=False"
        return f"{name}=True" if name in _FLAGS else name

    return re.sub(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)", keyword, text)


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
    arguments += [f"--output={'-' if output is None else Path(output)}", "--", taken.argument]
    report, written = run(arguments, taken.data)
    return report, taken.give(written) if output is None else Path(output)


class Scratch:
    """A folder for what a command takes from files; it is made when there is something to write, and goes at the end.

    >>> with Scratch() as scratch:
    ...     path = scratch.path("x.npy")
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def path(self, name: str) -> Path:
        """Where a file of this name can be written; no two calls give the same place."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnx-gradients-")
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        return folder / name

    def array(self, array: npt.ArrayLike) -> Path:
        """A file that holds an array."""
        path = self.path("array.npy")
        np.save(path, np.asarray(array))
        return path

    def model(self, model: _models.ModelLike) -> str:
        """The path of a model, which is written where it has none."""
        taken = _models.take(model)
        if taken.data is None:
            return taken.argument
        path = self.path("model.onnx")
        path.write_bytes(taken.data)
        return str(path)


def option(name: str, value: object) -> list[object]:
    """The arguments of an option: none for None and False, the name alone for True, the name before each of several values,
    and before each NAME=VALUE of a mapping."""
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    if isinstance(value, Mapping):
        value = [f"{key}={v}" for key, v in value.items()]
    values = [value] if isinstance(value, str | int | float | os.PathLike) else list(value)  # type: ignore[call-overload]
    # One argument each, so that a value may start with a dash.
    return [f"{name}={os.fspath(v) if isinstance(v, os.PathLike) else v}" for v in values]


def keywords(given: Mapping[str, Any], known: Iterable[str], function: str, scratch: Scratch) -> list[object]:
    """The arguments of keywords that are called like the options of the command line.

    Parameters
    ----------
    given : mapping of str to object
        The keywords.
    known : iterable of str
        Those that there are.
    function : str
        Whose keywords they are.
    scratch : Scratch
        Where arrays are written that the command reads.

    Raises
    ------
    TypeError
        A keyword that there is not.
    """
    known = set(known)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(f"{function}() has no keyword {unknown[0]!r}")
    arguments: list[object] = []
    for name, value in given.items():
        if name == "validate":
            continue
        if value is not None and name in _SPELT:
            value = {key: _SPELT[name](v, scratch) for key, v in value.items()}
        arguments += option(f"--{name.replace('_', '-')}", value)
    if "validate" in known and not given.get("validate"):
        # What only says how to run the result is checked by the command only where it does.
        arguments = [a for a in arguments if not str(a).startswith(_VALIDATION)]
        arguments.append("--no-validate")
    return arguments


def _shape(sizes: int | str | Iterable[int | str], _: Scratch) -> str:
    return str(sizes) if isinstance(sizes, str | int) else "x".join(str(size) for size in sizes)


def _range(ends: str | Iterable[float], _: Scratch) -> str:
    return ends if isinstance(ends, str) else "..".join(str(float(end)) for end in ends)


def _input(value: Any, scratch: Scratch) -> str:
    return str(Path(value) if isinstance(value, str | os.PathLike) else scratch.array(value))


# How the values of a mapping are written that are no text.
_SPELT: dict[str, Callable[[Any, Scratch], str]] = {"shape": _shape, "range": _range, "input": _input}
_VALIDATION = ("--input=", "--range=", "--time=", "--memory=")
