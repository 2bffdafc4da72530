"""LoRA matrices as files of their own, with the names that PEFT gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _safetensors

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._models import PathLike

_PREFIX = "base_model.model."


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _to_peft(adapter: Mapping[str, Any], state: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """PEFT's A is [rank, in...], its B [out, rank]; here they are left and right of the weight as the model holds it."""
    left, right = np.asarray(state[adapter["left"]]), np.asarray(state[adapter["right"]])
    if adapter["left_first"]:
        a, b = left.T, right.T
    else:
        a, b = right, left
    shape = adapter["shape"]
    if len(shape) > 2:
        a = a.reshape(a.shape[0], *shape[1:])
        b = b.reshape(*b.shape, *[1] * (len(shape) - 2))
    name = _PREFIX + _module(adapter["weight"])
    return {f"{name}.lora_A.weight": np.ascontiguousarray(a), f"{name}.lora_B.weight": np.ascontiguousarray(b)}


def save(folder: PathLike, manifest: Mapping[str, Any], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the LoRA matrices of a state: ``adapter_model.safetensors`` and ``adapter_config.json``.

    Parameters
    ----------
    folder : path
        Is made where it does not exist.
    manifest : mapping
        That of a model made trainable with LoRA.
    state : mapping of str to array
        The matrices by name.

    Raises
    ------
    ValueError
        The model was made trainable without LoRA.
    """
    adapters = manifest.get("lora") or []
    if not adapters:
        raise ValueError("the model was made trainable without LoRA: it has no adapters")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t for adapter in adapters for name, t in _to_peft(adapter, state).items()}
    _safetensors.write(folder / "adapter_model.safetensors", tensors, {"format": "np"})
    rank = adapters[0]["shapes"][0][1]
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": adapters[0]["scale"] * rank, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "target_modules": sorted({_module(a["weight"]) for a in adapters}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: PathLike, manifest: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The LoRA matrices of a folder, by the names of the manifest.

    Parameters
    ----------
    folder : path
        What :func:`save`, or PEFT, has written.
    manifest : mapping
        That of a model made trainable with LoRA of the same weights and rank.

    Returns
    -------
    dict of str to array

    Raises
    ------
    ValueError
        A matrix is missing, or has another shape.
    """
    tensors, _ = _safetensors.read(Path(folder) / "adapter_model.safetensors")
    found: dict[str, npt.NDArray[Any]] = {}
    for adapter in manifest.get("lora") or []:
        name = _PREFIX + _module(adapter["weight"])
        try:
            a, b = (np.asarray(tensors[f"{name}.lora_{side}.weight"]) for side in "AB")
        except KeyError as error:
            raise ValueError(f"{folder} holds no {error.args[0]!r}") from None
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        pair = (a.T, b.T) if adapter["left_first"] else (b, a)
        for which, matrix, shape in zip(("left", "right"), pair, adapter["shapes"], strict=True):
            if list(matrix.shape) != list(shape):
                raise ValueError(f"{name}: the {which} matrix is {list(matrix.shape)}, the model takes {list(shape)}")
            found[adapter[which]] = np.ascontiguousarray(matrix)
    return found
