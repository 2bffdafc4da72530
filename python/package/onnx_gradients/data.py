"""Batches of samples, from arrays, files and iterables: never more than a batch at a time in memory where the source allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from . import _safetensors

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._models import PathLike

Batch: TypeAlias = "Mapping[str, npt.ArrayLike]"
Source: TypeAlias = Union["PathLike", Mapping[str, Any], Iterable["Batch"], Callable[[], Iterable["Batch"]]]


class Arrays:
    """Samples in arrays by name, which may be mapped files: a batch is what is read of them.

    Parameters
    ----------
    arrays : mapping of str to array
        The first axis counts the samples; all have as many.

    Raises
    ------
    ValueError
        Different numbers of samples, or none.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = {name: a if hasattr(a, "shape") else np.asarray(a) for name, a in arrays.items()}
        counts = {name: a.shape[0] if a.shape else 0 for name, a in self.arrays.items()}
        if not counts or len(set(counts.values())) != 1:
            raise ValueError(f"the numbers of samples differ, or there are none: {counts}")
        self.count = next(iter(counts.values()))

    def batches(self, size: int, order: npt.NDArray[np.int64] | None = None) -> Iterator[dict[str, Any]]:
        """The batches of an epoch, in the order of the samples or in that of `order`; the last one may be smaller."""
        order = np.arange(self.count) if order is None else order
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            # A mapped file is read from front to back.
            ascending = np.sort(chosen)
            yield {name: a[ascending] for name, a in self.arrays.items()}

    def split(self, share: float, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The numbers of the samples that are trained on, and of the share of them that is held out."""
        order = rng.permutation(self.count)
        held = int(self.count * share)
        return order[held:], order[:held]


def _read(path: Path) -> Arrays:
    if path.suffix == ".safetensors":
        return Arrays(_safetensors.read(path)[0])
    if path.suffix == ".npz":
        return Arrays(dict(np.load(path)))
    raise ValueError(f"{path}: samples are in .npz or .safetensors files, or in a folder of .npy files or of shards")


def open_source(source: Source) -> Arrays | Callable[[], Iterable[Batch]]:
    """Samples wherever they are.

    Parameters
    ----------
    source : mapping, path, iterable of mappings, or a function that returns one
        Arrays by name; an .npz or .safetensors file; a folder of one .npy file an array, which are mapped into memory; a
        folder of shards, each an .npz or .safetensors file; batches as mappings. An iterator can be gone through only
        once: give a function that makes one for several epochs.

    Returns
    -------
    Arrays, or a function that goes through the batches anew
        The first where samples can be chosen by number.

    Raises
    ------
    ValueError
        A folder or file that holds no samples.
    """
    if isinstance(source, Mapping):
        return Arrays(source)
    if isinstance(source, str | Path) or hasattr(source, "__fspath__"):
        path = Path(source)  # type: ignore[arg-type]
        if not path.is_dir():
            return _read(path)
        mapped = sorted(path.glob("*.npy"))
        if mapped:
            return Arrays({p.stem: np.load(p, mmap_mode="r") for p in mapped})
        shards = sorted([*path.glob("*.npz"), *path.glob("*.safetensors")])
        if not shards:
            raise ValueError(f"{path} holds no .npy files and no shards (.npz, .safetensors)")
        return Shards(shards)
    if callable(source):
        return source
    again: Iterable[Batch] = source
    return lambda: again


class Shards:
    """Samples in several files, which are opened one after the other.

    Parameters
    ----------
    files : iterable of path
        .npz or .safetensors files with the same names of arrays.
    """

    def __init__(self, files: Iterable[PathLike]) -> None:
        self.files = [Path(f) for f in files]

    def __call__(self) -> Iterable[Batch]:
        """One mapping of arrays a file; :func:`rebatched` cuts them."""
        return (_read(file).arrays for file in self.files)


def rebatched(batches: Iterable[Batch], size: int | None) -> Iterator[dict[str, Any]]:
    """Mappings of arrays, those of more than `size` samples cut; None leaves them as they are."""
    for batch in batches:
        if size is None:
            yield dict(batch)
        else:
            yield from Arrays(batch).batches(size)
