"""Models in the forms that Python has for them, in and out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from .errors import UnsupportedError

if TYPE_CHECKING:
    import onnx
    import onnx_ir

PathLike: TypeAlias = Union[str, "os.PathLike[str]"]
ModelLike: TypeAlias = Union[PathLike, bytes, "onnx.ModelProto", "onnx_ir.Model"]


@dataclass(frozen=True)
class Taken:
    """A model as a command takes it."""

    argument: str
    data: bytes | None
    form: str

    def give(self, data: bytes) -> Any:
        """A new model in the form in which this one came; one that came as a path comes back as a ModelProto, or as bytes
        where onnx is not installed."""
        if self.form == "bytes":
            return data
        try:
            import onnx
        except ImportError:
            return data
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
        if self.form == "path":
            # As onnx.load does: where the data lie is said from the folder of the model on.
            onnx.load_external_data_for_model(proto, str(Path(self.argument).parent))
        if self.form == "ir":
            import onnx_ir

            return onnx_ir.serde.deserialize_model(proto)
        return proto


def take(model: ModelLike) -> Taken:
    """What stands for a model on the command line.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        A model. External data of one that is no path are looked for in the current folder.

    Raises
    ------
    TypeError
        It is none of these.
    UnsupportedError
        A ModelProto of more than 2 GB, which protobuf cannot write: such models go by path.
    """
    if isinstance(model, str | os.PathLike):
        return Taken(str(Path(model)), None, "path")
    if isinstance(model, bytes | bytearray | memoryview):
        return Taken("-", bytes(model), "bytes")
    form = "proto"
    if type(model).__module__.split(".")[0] == "onnx_ir":
        import onnx_ir

        model, form = onnx_ir.serde.serialize_model(model), "ir"
    serialize = getattr(model, "SerializeToString", None)
    if serialize is None:
        raise TypeError(f"a model is a path, bytes, an onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}")
    try:
        return Taken("-", serialize(), form)
    except Exception as error:
        remedy = (
            "save it with onnx.save(model, path, save_as_external_data=True), give the path in its place, and an output= path for the result"
        )
        too_large = "a ModelProto of more than 2 GB is more than protobuf can write"
        raise UnsupportedError(f"{too_large} ({error})", {"code": "unsupported", "remedy": remedy}) from error
