"""What goes wrong, as exceptions: one class a kind, with the place and the remedy as attributes."""

from __future__ import annotations

import re
from typing import Any


class Error(Exception):
    """A command failed. The base of all exceptions of this package.

    Attributes
    ----------
    code : str
        The kind of failure: a stable word such as ``unsupported-operator``.
    node, operator, input, tensor : str or None
        Where in the model it is.
    file : str or None
        The file that it is about, as it was named.
    remedy : str or None
        What to do.
    report : dict
        The whole of what the command says of it.
    """

    code = "failed"

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report: dict[str, Any] = report or {}
        self.code = self.report.get("code", type(self).code)
        self.node: str | None = self.report.get("node")
        self.operator: str | None = self.report.get("operator")
        self.input: str | None = self.report.get("input")
        self.tensor: str | None = self.report.get("tensor")
        self.file: str | None = self.report.get("file")
        self.remedy: str | None = self.report.get("remedy")

    def __reduce__(self) -> tuple[Any, ...]:
        # Processes hand exceptions on with all that they say.
        return type(self), (str(self), self.report)


class UnknownNameError(Error, LookupError):
    """A tensor that the model does not have."""

    code = "unknown-name"


class NoGradientError(Error):
    """An operator between a y and an x has no gradient."""

    code = "unsupported-operator"


class UnsupportedError(Error):
    """Something that the package cannot do, or not for this model."""

    code = "unsupported"


class InvalidModelError(Error, ValueError):
    """What is no ONNX model, or one that contradicts itself."""

    code = "invalid-model"


class InvalidDataError(Error, ValueError):
    """Another file that does not hold what it should: a tensor, a manifest, a state."""

    code = "invalid-data"


class ValidationFailedError(Error):
    """Gradients that differ from finite differences of the model."""

    code = "validation-failed"


class NotValidatedError(Error):
    """Gradients that could not be compared with finite differences."""

    code = "not-validated"


class DifferentError(Error):
    """A model that has lost or changed what another has."""

    code = "different"


class EngineError(Error, RuntimeError):
    """ONNX Runtime has refused a model or a batch, or failed in a node."""

    code = "engine"


class ResourceError(Error):
    """Time or memory ran out."""

    code = "out-of-memory"


class FileError(Error, OSError):
    """A file that cannot be read or written."""

    code = "io"


class UsageError(Error, ValueError):
    """Arguments that do not go together, or have no meaning."""

    code = "usage"


_ALL: tuple[type[Error], ...] = (
    UnknownNameError, NoGradientError, UnsupportedError, InvalidModelError, InvalidDataError, ValidationFailedError,
    NotValidatedError, DifferentError, EngineError, ResourceError, FileError, UsageError,
)
_KINDS: dict[str, type[Error]] = {**{kind.code: kind for kind in _ALL}, "timeout": ResourceError, "engine-crashed": NotValidatedError}


def from_report(exit_code: int, report: dict[str, Any], notes: str) -> Error:
    """The exception for what a command has said.

    Parameters
    ----------
    exit_code : int
        1 where the work failed, 2 for wrong usage.
    report : dict
        The command's JSON; empty where it printed none.
    notes : str
        What it printed beside.

    Returns
    -------
    Error
        Of the class of the report's ``code``.
    """
    error = report.get("error", report)
    error = error if isinstance(error, dict) else {"message": str(error)}
    lines = [line.removeprefix("error: ") for line in notes.splitlines() if line and not line.startswith("warning: ")]
    message = error.get("message") or (lines[0] if lines else f"the command failed with exit code {exit_code}")
    kind = UsageError if exit_code == 2 else _KINDS.get(error.get("code", ""), Error)
    return kind(message, error)


_NODE = re.compile(r"while running (\S+) node\. Name:'([^']*)'")


def from_runtime(error: Exception, model: str) -> EngineError:
    """The exception for what ONNX Runtime has said.

    Parameters
    ----------
    error : Exception
        What it has raised.
    model : str
        Which model it ran, or was to run.

    Returns
    -------
    EngineError
        With the node and operator that the message names.
    """
    report: dict[str, Any] = {"code": EngineError.code}
    found = _NODE.search(str(error))
    if found:
        report |= {"operator": found[1], "node": found[2]}
    if "NOT_IMPLEMENTED" in str(error):
        report["remedy"] = "another execution provider, or a newer ONNX Runtime, may have that operator for these types"
    return EngineError(f"{model}: {error}", report)
