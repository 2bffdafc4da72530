"""LoRA matrices as files of their own, with the names that PEFT gives them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _safetensors

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._models import PathLike

_PREFIX = "base_model.model."


def _module(weight: str, names: Mapping[str, str]) -> str:
    """What PEFT calls the layer of a weight."""
    return names.get(weight, weight.removesuffix(".weight"))


def _keys(adapter: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, str]:
    """The names of A and B in the file; those of a table of rows differ, as in PEFT."""
    name = _PREFIX + _module(adapter["weight"], names)
    if _is_lookup(adapter):
        return f"{name}.lora_embedding_A", f"{name}.lora_embedding_B"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def _is_lookup(adapter: Mapping[str, Any]) -> bool:
    return bool((adapter.get("beside") or {}).get("lookup"))


def _is_turned(adapter: Mapping[str, Any]) -> bool:
    """Whether the left matrix is A, turned, and the right one B: PEFT's A is on the side of the layer's input."""
    return bool(adapter["left_first"]) or _is_lookup(adapter)


def _to_peft(adapter: Mapping[str, Any], state: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """PEFT's A is [rank, in...], its B [out, rank]; here they are left and right of the weight as the model holds it."""
    left, right = np.asarray(state[adapter["left"]]), np.asarray(state[adapter["right"]])
    a, b = (left.T, right.T) if _is_turned(adapter) else (right, left)
    shape = adapter["shape"]
    if len(shape) > 2:
        a = a.reshape(a.shape[0], *shape[1:])
        b = b.reshape(*b.shape, *[1] * (len(shape) - 2))
    return [np.ascontiguousarray(a), np.ascontiguousarray(b)]


def _factor(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the product of a layer's matrices by; patterns are ends of its name, as PEFT reads them."""
    def of(pattern: Mapping[str, Any], otherwise: Any) -> Any:
        return next((v for p, v in pattern.items() if re.fullmatch(rf"(?:.*\.)?(?:{p})", module)), otherwise)

    own = of(config.get("rank_pattern") or {}, config.get("r") or rank)
    alpha = of(config.get("alpha_pattern") or {}, config.get("lora_alpha", own))
    return float(alpha) / (math.sqrt(own) if config.get("use_rslora") else own)


def save(
    folder: PathLike, manifest: Mapping[str, Any], state: Mapping[str, npt.NDArray[Any]], names: Mapping[str, str] | None = None,
) -> None:
    """Write the LoRA matrices of a state: ``adapter_model.safetensors`` and ``adapter_config.json``.

    Parameters
    ----------
    folder : path
        Is made where it does not exist.
    manifest : mapping
        That of a model made trainable with LoRA.
    state : mapping of str to array
        The matrices by name.
    names : mapping of str to str, optional
        What PEFT calls the layer of a weight, where that is not the weight's name without ``.weight``.

    Raises
    ------
    ValueError
        The model was made trainable without LoRA.
    """
    adapters = manifest.get("lora") or []
    if not adapters:
        raise ValueError("the model was made trainable without LoRA: it has no adapters")
    names = names or {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for adapter in adapters:
        tensors |= dict(zip(_keys(adapter, names), _to_peft(adapter, state), strict=True))
    _safetensors.write(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    rank = adapters[0]["shapes"][0][1]
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": adapters[0]["scale"] * rank, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True,
        "target_modules": sorted({_module(a["weight"], names) for a in adapters}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: PathLike, manifest: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The LoRA matrices of a folder, by the names of the manifest.

    Parameters
    ----------
    folder : path
        What :func:`save`, or PEFT, has written. Where its ``lora_alpha / r`` is another than that of the model, one matrix is
        scaled, so that the product is the same.
    manifest : mapping
        That of a model made trainable with LoRA of the same weights and rank.
    names : mapping of str to str, optional
        As :func:`save` takes them.

    Returns
    -------
    dict of str to array

    Raises
    ------
    ValueError
        A matrix is missing, has another shape, or belongs to no weight; the folder holds another kind of adapter.
    """
    folder, names = Path(folder), names or {}
    tensors, _ = _safetensors.read(folder / "adapter_model.safetensors")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) if path.is_file() else None
    if config is not None and (config.get("peft_type", "LORA") != "LORA" or config.get("use_dora")):
        raise ValueError(f"{folder} holds no plain LoRA: {'DoRA' if config.get('use_dora') else config['peft_type']}")
    found: dict[str, npt.NDArray[Any]] = {}
    taken: set[str] = set()
    for adapter in manifest.get("lora") or []:
        keys, module = _keys(adapter, names), _module(adapter["weight"], names)
        missing = [key for key in keys if key not in tensors]
        if missing:
            raise ValueError(f"{folder} holds no {missing[0]!r}; it holds {', '.join(sorted(tensors)) or 'nothing'}")
        taken.update(keys)
        a, b = (np.asarray(tensors[key]) for key in keys)
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        pair = [a.T, b.T] if _is_turned(adapter) else [b, a]
        for which, matrix, shape in zip(("left", "right"), pair, adapter["shapes"], strict=True):
            if list(matrix.shape) != list(shape):
                raise ValueError(f"{module}: the {which} matrix is {list(matrix.shape)}, the model takes {list(shape)}")
        ratio = 1.0 if config is None else _factor(config, module, a.shape[0]) / adapter["scale"]
        if ratio != 1.0:
            pair[0] = (pair[0] * np.float64(ratio)).astype(pair[0].dtype)
        for which, matrix in zip(("left", "right"), pair, strict=True):
            found[adapter[which]] = np.ascontiguousarray(matrix)
    rest = sorted(set(tensors) - taken)
    if rest:
        raise ValueError(f"{folder} holds {rest[0]!r}, for which the model was not made trainable")
    return found
