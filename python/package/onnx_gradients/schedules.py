"""Learning rates over the steps of a training: functions of the number of the step, from 0 on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, Union

Schedule: TypeAlias = Callable[[int], float]
ScheduleLike: TypeAlias = Union[str, Schedule, "ReduceOnPlateau"]


def constant(lr: float) -> Schedule:
    """`lr` at every step."""
    return lambda step: lr


def linear(lr: float, steps: int) -> Schedule:
    """From `lr` to zero in a straight line over `steps`."""
    return lambda step: lr * max(0.0, 1.0 - step / max(1, steps))


def cosine(lr: float, steps: int) -> Schedule:
    """From `lr` to zero as half a wave of the cosine over `steps` (Loshchilov and Hutter, 2017)."""
    return lambda step: lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, steps))))


def warm_up(schedule: Schedule, steps: int) -> Schedule:
    """`schedule` after a rise from zero over `steps`, the first of which has one part in `steps` of the rate."""
    return lambda step: schedule(0) * (step + 1) / steps if step < steps else schedule(step - steps)


@dataclass
class ReduceOnPlateau:
    """A rate that falls where a loss no longer does.

    Parameters
    ----------
    lr : float
        The rate to start with.
    factor : float
        What it is multiplied by.
    patience : int
        How many epochs without a better loss are waited for.
    least : float
        The rate that it does not go below.
    """

    lr: float
    factor: float = 0.1
    patience: int = 2
    least: float = 0.0
    best: float = field(default=math.inf, repr=False)
    waited: int = field(default=0, repr=False)

    def __call__(self, step: int) -> float:
        """The rate now, whichever the step."""
        return self.lr

    def observe(self, loss: float) -> None:
        """Take the loss of an epoch into account."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.lr, self.waited = max(self.least, self.lr * self.factor), 0


def named(schedule: ScheduleLike, lr: float, steps: int | None, warmup: int = 0) -> Schedule:
    """A schedule by its name, or the one that is given.

    Parameters
    ----------
    schedule : {'constant', 'linear', 'cosine', 'plateau'} or callable
        The name, or a function of the step.
    lr : float
        The rate to start with, after the warm-up.
    steps : int, optional
        The steps of the whole training; linear and cosine end there.
    warmup : int
        The steps over which the rate rises; the schedule follows behind them.

    Raises
    ------
    ValueError
        A name that is none of these, or one that needs the number of steps where there is none.
    """
    if callable(schedule):
        shape: Schedule = schedule
    elif schedule == "plateau":
        shape = ReduceOnPlateau(lr)
    elif schedule == "constant":
        shape = constant(lr)
    elif schedule in ("linear", "cosine"):
        if steps is None:
            raise ValueError(f"a {schedule} schedule ends with the training, whose number of steps is not known: give steps_per_epoch")
        shape = (linear if schedule == "linear" else cosine)(lr, max(1, steps - warmup))
    else:
        raise ValueError(f"schedule {schedule!r} is none of constant, linear, cosine, plateau")
    return warm_up(shape, warmup) if warmup else shape
