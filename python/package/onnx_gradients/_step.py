"""What a step of a training has come to."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """What a step has come to.

    Attributes
    ----------
    loss : float
        The loss, before the step.
    metrics : dict of str to float
        The metrics of the manifest.
    """

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
