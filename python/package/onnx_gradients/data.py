"""Batches of samples, from arrays, files and iterables: never more than a batch at a time in memory where the source allows it."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from . import _safetensors

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._models import PathLike

Batch: TypeAlias = Mapping[str, "npt.ArrayLike"]
Source: TypeAlias = Union[
    "PathLike", Mapping[str, Any], Iterable[Batch], Callable[[], Iterable[Batch]], "Arrays", "Stream"
]


class Arrays:
    """Samples in arrays by name, which may be mapped files: a batch is what is read of them.

    Parameters
    ----------
    arrays : mapping of str to array or path
        The first axis counts the samples; all have as many. A path is that of a .npy file, which is mapped into memory.
    names : collection of str, optional
        The arrays that are wanted; the others are left where they are.

    Raises
    ------
    ValueError
        Different numbers of samples, or none.
    """

    def __init__(self, arrays: Mapping[str, Any], names: Collection[str] | None = None) -> None:
        self.arrays = {name: _array(a) for name, a in arrays.items() if names is None or name in names}
        counts = {name: a.shape[0] if a.shape else 0 for name, a in self.arrays.items()}
        if not counts:
            raise ValueError(f"there are no arrays called {sorted(names or [])}, only {sorted(arrays)}")
        if len(set(counts.values())) != 1:
            raise ValueError(f"the numbers of samples differ: {counts}")
        self.count = next(iter(counts.values()))
        if not self.count:
            raise ValueError(f"there are no samples in {sorted(self.arrays)}")

    def batches(self, size: int | None, order: npt.NDArray[np.int64] | None = None) -> Iterator[dict[str, Any]]:
        """The batches of an epoch.

        Parameters
        ----------
        size : int, optional
            Samples of a batch, the last of which may be smaller; all in one without it.
        order : array of int64 [n], optional
            The numbers of the samples, in this order; all as they come without it.

        Yields
        ------
        dict of str to array
        """
        order = np.arange(self.count) if order is None else order
        for start in range(0, len(order), size or len(order)):
            chosen = order[start : start + (size or len(order))]
            # A mapped file is read from front to back.
            ascending = np.sort(chosen)
            yield {name: a[ascending] for name, a in self.arrays.items()}

    def split(self, share: float, rng: np.random.Generator, multiple: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The numbers of the samples that are trained on, and of the share of them that is held out.

        Parameters
        ----------
        share : float
            From 0 to below 1.
        rng : numpy.random.Generator
            What the choice follows from.
        multiple : int
            Of what the number of samples held out is a multiple.

        Raises
        ------
        ValueError
            A share that is none, or that leaves no samples.
        """
        if not 0.0 <= share < 1.0:
            raise ValueError(f"a share of samples is at least 0 and below 1, not {share}")
        order = rng.permutation(self.count)
        held = int(self.count * share) // multiple * multiple
        if share and not held:
            raise ValueError(f"a share of {share} of {self.count} samples is none: hold out more")
        return order[held:], order[:held]


class Stream:
    """Samples that come as mappings, one after the other.

    Parameters
    ----------
    source : iterable of mappings, or a function that returns one
        Mappings of arrays whose first axis counts the samples. An iterator can be gone through only once.
    names : collection of str, optional
        The arrays that are wanted.
    """

    def __init__(self, source: Iterable[Batch] | Callable[[], Iterable[Batch]], names: Collection[str] | None = None) -> None:
        self._source = source
        self._names = names

    @property
    def once(self) -> bool:
        """Whether it can be gone through only once."""
        return isinstance(self._source, Iterator)

    def steps(self, size: int | None) -> int | None:
        """How many batches come out of it, where it says how many mappings it has and they are not cut."""
        return len(self._source) if size is None and isinstance(self._source, Sized) else None

    def batches(self, size: int | None) -> Iterator[dict[str, Any]]:
        """The batches of an epoch, of `size` samples where it is given; the last one may be smaller."""
        source = self._source() if callable(self._source) else self._source
        wanted = self._names
        return rebatched(({n: a for n, a in batch.items() if wanted is None or n in wanted} for batch in source), size)


class _Joined:
    """Arrays behind each other along their first axis, of which samples are read by number."""

    def __init__(self, name: str, parts: Sequence[tuple[Path, Any]]) -> None:
        first, like = parts[0]
        for path, part in parts:
            if part.shape[1:] != like.shape[1:] or part.dtype.newbyteorder("=") != like.dtype.newbyteorder("="):
                raise ValueError(
                    f"{name!r} is {part.dtype}{list(part.shape[1:])} a sample in {path}, {like.dtype}{list(like.shape[1:])} in {first}"
                )
        self._parts = [part for _, part in parts]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.dtype = like.dtype.newbyteorder("=")
        self.shape = (int(self._starts[-1]), *like.shape[1:])

    def __getitem__(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        chosen = np.empty((len(samples), *self.shape[1:]), self.dtype)
        where = np.searchsorted(self._starts, samples, side="right") - 1
        for i in np.unique(where):
            chosen[where == i] = self._parts[i][samples[where == i] - self._starts[i]]
        return chosen


def _array(array: Any) -> Any:
    if isinstance(array, str | os.PathLike):
        return _mapped(Path(array))
    return array if hasattr(array, "shape") and hasattr(array, "__getitem__") else np.asarray(array)


def _mapped(path: Path) -> Any:
    with path.open("rb") as file:
        return _map(file, file, 0, str(path))


def _map(header: IO[bytes], file: IO[bytes], start: int, name: str) -> Any:
    """The array of a .npy file that lies in `file` from `start` on, and can be read from `header`."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(header)
    if version not in read:
        raise ValueError(f"{name}: a .npy file of version {version} holds no array of numbers")
    shape, fortran, dtype = read[version](header)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, no numbers")
    order: Any = "F" if fortran else "C"
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", start + header.tell(), shape, order)


def _npz(path: Path, names: Collection[str] | None) -> dict[str, Any]:
    """The arrays of an archive, mapped where they lie; those that are compressed from unpacked copies, which no folder shows."""
    arrays = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or (names is not None and name not in names):
                continue
            place = f"{name!r} of {path}"
            with archive.open(entry) as member:
                if entry.compress_type != zipfile.ZIP_STORED:
                    with tempfile.TemporaryFile() as copy:
                        shutil.copyfileobj(member, copy, 1 << 20)
                        copy.seek(0)
                        arrays[name] = _map(copy, copy, 0, place)
                    continue
                # To read it through is to compare its checksum.
                while member.read(1 << 20):
                    pass
            # The lengths of its name and of what else its own header holds, which precedes it.
            file.seek(entry.header_offset)
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(30)[26:]))
            with archive.open(entry) as member:
                arrays[name] = _map(member, file, start, place)
    return arrays


def _read(path: Path, names: Collection[str] | None) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return {n: a for n, a in _safetensors.read(path)[0].items() if names is None or n in names}
    if path.suffix == ".npz":
        try:
            return _npz(path, names)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is damaged, or no .npz file: {error}") from None
    raise ValueError(f"{path}: samples are in .npz or .safetensors files, or in a folder of .npy files or of shards")


def open_source(source: Source, names: Collection[str] | None = None) -> Arrays | Stream:
    """Samples wherever they are.

    Parameters
    ----------
    source : mapping, path, iterable of mappings, or a function that returns one
        Arrays by name, or paths of .npy files; an .npz or .safetensors file; a folder of one .npy file an array; a folder of
        shards, each an .npz or .safetensors file, which are taken one after the other in the order of their names; batches as
        mappings. Files are mapped into memory, so that a batch is what is read of them. What numpy.savez_compressed has
        written is unpacked into a temporary file first. An iterator can be gone through only once: give a function that
        makes one for several epochs.
    names : collection of str, optional
        The arrays that are wanted; nothing is read of the others.

    Returns
    -------
    Arrays or Stream
        The first where samples can be chosen by number.

    Raises
    ------
    ValueError
        A folder or file that holds no samples, or is damaged.
    """
    if isinstance(source, Arrays | Stream):
        return source
    if isinstance(source, Mapping):
        return Arrays(source, names)
    if not isinstance(source, str | os.PathLike):
        return Stream(source, names)
    path = Path(source)
    if not path.is_dir():
        return Arrays(_read(path, names), names)
    mapped = sorted(path.glob("*.npy"))
    if mapped:
        return Arrays({p.stem: p for p in mapped}, names)
    files = sorted([*path.glob("*.npz"), *path.glob("*.safetensors")])
    if not files:
        raise ValueError(f"{path} holds no .npy files and no shards (.npz, .safetensors)")
    shards = [(file, Arrays(_read(file, names), names).arrays) for file in files]
    wanted = set(shards[0][1])
    for file, arrays in shards:
        if set(arrays) != wanted:
            raise ValueError(f"{file} holds {sorted(arrays)}, {files[0]} {sorted(wanted)}")
    return Arrays({name: _Joined(name, [(file, arrays[name]) for file, arrays in shards]) for name in shards[0][1]})


def rebatched(batches: Iterable[Batch], size: int | None) -> Iterator[dict[str, Any]]:
    """Mappings of arrays, cut and joined to `size` samples each.

    Parameters
    ----------
    batches : iterable of mapping of str to array
        All with the same names.
    size : int, optional
        Samples of each; as they come without it.

    Yields
    ------
    dict of str to array
        The last one may hold fewer samples.

    Raises
    ------
    ValueError
        Other names than before, or different numbers of samples.
    """
    pieces: list[dict[str, Any]] = []
    held = 0

    def whole() -> dict[str, Any]:
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([np.asarray(piece[name]) for piece in pieces]) for name in pieces[0]}

    for batch in batches:
        if size is None:
            yield dict(batch)
            continue
        arrays = Arrays(batch)
        if pieces and set(pieces[0]) != set(arrays.arrays):
            raise ValueError(f"a batch holds {sorted(arrays.arrays)}, the one before {sorted(pieces[0])}")
        start = 0
        while start < arrays.count:
            end = min(arrays.count, start + size - held)
            pieces.append({name: a[start:end] for name, a in arrays.arrays.items()})
            held, start = held + end - start, end
            if held == size:
                yield whole()
                pieces, held = [], 0
    if pieces:
        yield whole()


def count(arrays: Mapping[str, Any]) -> int:
    """How many samples a batch holds."""
    return next((len(a) for a in arrays.values() if np.ndim(a)), 1)
