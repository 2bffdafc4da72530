"""Safetensors files: a header of JSON, then the bytes of the tensors. Read lazily, written whole beside their place."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._models import PathLike


_TYPES: dict[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}


def dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of a name; bfloat16 is that of ml_dtypes, which comes with onnx."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def read(path: PathLike) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The tensors of a file, mapped into memory, and its metadata.

    Parameters
    ----------
    path : path
        A .safetensors file.

    Returns
    -------
    tensors : dict of str to array
        Read only.
    metadata : dict of str to str

    Raises
    ------
    ValueError
        The file is none of that format.
    """
    mapped = np.memmap(path, np.uint8, "r")
    size = int.from_bytes(mapped[:8].tobytes(), "little")
    if len(mapped) < 8 or size > len(mapped) - 8:
        raise ValueError(f"{path} is no safetensors file")
    header = json.loads(mapped[8 : 8 + size].tobytes())
    metadata = header.pop("__metadata__", {})
    data = mapped[8 + size :]
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        kind = dtype(_TYPES[entry["dtype"]])
        tensors[name] = data[start:end].view(kind).reshape(entry["shape"])
    return tensors, metadata


def write(path: PathLike, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a file, all or nothing.

    Parameters
    ----------
    path : path
        The file, which is replaced where it exists.
    tensors : mapping of str to array
    metadata : mapping of str to str, optional
    """
    names = {kind: name for name, kind in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, offset = [], 0
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor)
        header[name] = {
            "dtype": names[array.dtype.name], "shape": list(np.shape(tensor)), "data_offsets": [offset, offset + array.nbytes],
        }
        arrays.append(array)
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    handle, beside = tempfile.mkstemp(prefix=".onnx-gradients-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in arrays:
                array.tofile(file)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
