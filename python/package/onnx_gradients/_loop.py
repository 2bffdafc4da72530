"""The loop of a training: epochs, evaluation, checkpoints, and how it goes on where it was interrupted."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import _interrupt, _safetensors, data, schedules
from ._plot import axes_or_new
from ._progress import Bar
from .data import count
from .errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._models import PathLike
    from ._step import Step


class Trained(Protocol):
    """What the loop asks of a trainer."""

    manifest: dict[str, Any]

    @property
    def fixed_batch(self) -> int | None: ...
    def step(self, batch: data.Batch, lr: float = ...) -> Step: ...
    def state_dict(self) -> dict[str, npt.NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None: ...
    def save(self, path: PathLike) -> None: ...
    def _opened(self, source: data.Source) -> data.Arrays | data.Stream: ...
    def _evaluate(self, batches: Iterable[data.Batch]) -> Step: ...


@dataclass
class History:
    """How a training went: one row an epoch."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def plot(self, axes: Any = None) -> Any:
        """The loss over the epochs, with matplotlib.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw.

        Returns
        -------
        matplotlib.axes.Axes
        """
        axes = axes_or_new(axes)
        epochs = [row["epoch"] for row in self.rows]
        for key, label in (("loss", "training"), ("val_loss", "held out")):
            if self.rows and key in self.rows[0]:
                axes.plot(epochs, [row[key] for row in self.rows], marker="o", label=label)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend()
        return axes


@dataclass
class _Course:
    """How far a training has come: what a file has to hold for it to go on to the same numbers.

    Attributes
    ----------
    settings : dict
        What it was begun with.
    epoch, batch, step : int
        The epoch that is gone through, how many of its batches have been read, and how many steps have been done in all.
    sums : dict of str to float
        The sums over the samples of this epoch of what each step says.
    samples : int
        How many these are.
    rows : list of dict
        Those of the history.
    best : float
        The best loss.
    waited : int
        For how many epochs it has been the best.
    plateau : dict
        What a rate has noticed that falls on plateaus.
    """

    settings: dict[str, Any]
    epoch: int = 1
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: float = math.inf
    waited: int = 0
    plateau: dict[str, float] = field(default_factory=dict)

    def add(self, done: Step, samples: int) -> None:
        """A step on so many samples has been done."""
        for name, value in {"loss": done.loss, **done.metrics}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * samples
        self.samples += samples
        self.step += 1

    def end(self, row: dict[str, float]) -> None:
        """The epoch has come to its end."""
        self.rows.append(row)
        self.epoch, self.batch, self.sums, self.samples = self.epoch + 1, 0, {}, 0


_COURSE, BEST = "onnx-gradients.course", "onnx-gradients.best:"


def run(
    trainer: Trained, source: data.Source, epochs: int, batch_size: int | None, lr: float, schedule: schedules.ScheduleLike,
    warmup: int, *, validation: data.Source | None, held_out: float, patience: int | None, checkpoint: PathLike | None,
    resume: PathLike | None, log: PathLike | None, progress: bool | None, seed: int, steps_per_epoch: int | None,
    on_epoch: Callable[[dict[str, float]], object] | None,
) -> History:
    """What :meth:`onnx_gradients.Trainer.fit` says."""
    opened = trainer._opened(source)
    evaluation = trainer._opened(validation) if validation is not None else None
    parts, fixed = trainer.manifest["accumulate"], trainer.fixed_batch
    size = fixed * parts if fixed else batch_size
    # What the last batch is cut to a multiple of.
    unit = fixed * parts if fixed else parts
    if size is not None and size < unit:
        raise UsageError(f"a batch of {size} samples cannot be cut into {parts} micro-batches")
    order, held = None, None
    if isinstance(opened, data.Arrays):
        order, held = opened.split(held_out if validation is None else 0.0, np.random.default_rng((seed, 0)), fixed or 1)
        whole, left = divmod(len(order), size or len(order))
        steps: int | None = whole + (left >= unit)
        if not steps:
            raise ValueError(f"{len(order)} samples are less than the {unit} of a step")
    else:
        if held_out and validation is None:
            raise UsageError("held_out takes samples that are arrays; give validation=... for iterables")
        if opened.once and epochs > 1 and steps_per_epoch is None:
            raise UsageError("an iterator can be gone through only once: give a function that makes one for each epoch")
        steps = opened.steps(size)
    if steps_per_epoch is not None:
        steps = steps_per_epoch if steps is None else min(steps, steps_per_epoch)
    course = _Course({
        "epochs": epochs, "batch_size": size, "lr": lr, "schedule": schedule if isinstance(schedule, str) else type(schedule).__name__,
        "warmup": warmup, "held_out": held_out, "seed": seed, "steps_per_epoch": steps_per_epoch,
        "samples": opened.count if isinstance(opened, data.Arrays) else None,
    })
    plateau = schedule if isinstance(schedule, schedules.ReduceOnPlateau) else None
    if schedule == "plateau":
        plateau = schedules.ReduceOnPlateau(lr)
    rate = schedules.named(plateau or schedule, lr, None if steps is None else epochs * steps, warmup)
    best: dict[str, npt.NDArray[Any]] | None = None
    if resume is not None and Path(resume).exists():
        course, best = _go_on(trainer, Path(resume), course)
        if plateau is not None:
            plateau.__dict__.update(course.plateau)
    stream = opened.batches(size) if isinstance(opened, data.Stream) and opened.once else None

    def keep() -> None:
        if resume is not None:
            course.plateau = asdict(plateau) if plateau is not None else {}
            state = {**trainer.state_dict(), **{BEST + name: array for name, array in (best or {}).items()}}
            _safetensors.write(resume, state, {_COURSE: json.dumps(asdict(course))})

    def batches() -> Iterator[data.Batch]:
        """Those of the epoch that are still to come."""
        if isinstance(opened, data.Arrays):
            assert order is not None
            shuffled = np.random.default_rng((seed, course.epoch)).permutation(order)
            return islice(opened.batches(size, shuffled[course.batch * (size or len(order)) :]), _rest(steps, course.batch))
        if stream is not None:
            return islice(stream, _rest(steps_per_epoch, course.batch))
        return islice(opened.batches(size), course.batch, steps_per_epoch)

    def is_over() -> bool:
        return course.epoch > epochs or (patience is not None and course.waited > patience)

    with _interrupt.Deferred() as interrupt:
        while not is_over():
            with Bar(f"epoch {course.epoch}/{epochs}", steps, course.batch, progress) as bar:
                for read in batches():
                    course.batch += 1
                    batch = _cut(read, unit)
                    if batch is None:
                        continue
                    done = trainer.step(batch, rate(course.step))
                    if not math.isfinite(done.loss):
                        raise FloatingPointError(f"the loss is {done.loss} in step {course.step}")
                    course.add(done, count(batch))
                    bar.step(done.loss)
                    if interrupt.asked:
                        keep()
                        interrupt.check()
            if not course.samples:
                raise ValueError(f"there are no samples in epoch {course.epoch}, or fewer than the {unit} of a step")
            row = {"epoch": course.epoch, "lr": float(rate(course.step - 1))}
            row |= {name: total / course.samples for name, total in course.sums.items()}
            tested = None
            if evaluation is not None:
                tested = trainer._evaluate(evaluation.batches(fixed or batch_size))
            elif isinstance(opened, data.Arrays) and held is not None and len(held):
                tested = trainer._evaluate(opened.batches(fixed or batch_size, held))
            if tested is not None:
                row |= {"val_loss": tested.loss, **{f"val_{n}": v for n, v in tested.metrics.items()}}
            judged = row.get("val_loss", row["loss"])
            if plateau is not None:
                plateau.observe(judged)
            if judged < course.best:
                course.best, course.waited = judged, 0
                best = trainer.state_dict() if patience is not None else None
                if checkpoint is not None:
                    trainer.save(checkpoint)
            else:
                course.waited += 1
            course.end(row)
            if log is not None:
                _write_log(Path(log), course.rows)
            keep()
            if on_epoch is not None:
                on_epoch(dict(row))
            interrupt.check()
    if patience is not None and best is not None:
        trainer.load_state_dict(best)
    return History(course.rows)


def _go_on(trainer: Trained, path: Path, begun: _Course) -> tuple[_Course, dict[str, npt.NDArray[Any]] | None]:
    """Takes over the state of a file, and how far it has come; with it the best state, where one is kept."""
    tensors, metadata = _safetensors.read(path)
    if _COURSE not in metadata:
        raise UsageError(f"{path} holds no training to go on with; another file, or none, begins anew")
    course = _Course(**json.loads(metadata[_COURSE]))
    other = [name for name, value in begun.settings.items() if course.settings.get(name) != value]
    if other:
        said = ", ".join(f"{name} {course.settings.get(name)!r}, not {begun.settings[name]!r}" for name in other)
        raise UsageError(f"{path} is of another training: {said}")
    best = {n.removeprefix(BEST): np.array(t) for n, t in tensors.items() if n.startswith(BEST)}
    trainer.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(BEST)})
    return course, best or None


def _rest(steps: int | None, done: int) -> int | None:
    return None if steps is None else max(0, steps - done)


def _cut(batch: data.Batch, unit: int) -> data.Batch | None:
    """As many samples of a batch as are a multiple of a number; None where that is none."""
    if unit == 1:
        return batch
    arrays = {n: np.asarray(a) for n, a in batch.items()}
    whole = count(arrays) // unit * unit
    return {n: a[:whole] for n, a in arrays.items()} if whole else None


def _write_log(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes the rows as CSV, whole, so that what goes on writes what went before."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
