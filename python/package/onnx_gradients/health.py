"""How gradients are spread over the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._plot import axes_or_new

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Layer:
    """The gradient of one weight.

    Attributes
    ----------
    name : str
        The weight.
    norm : float
        The Euclidean norm of its gradient.
    relative : float
        The same over the norm of the weight.
    zeros : float
        The share of elements that are exactly zero.
    verdict : str
        ``ok``, ``not finite``, ``dead`` (all zero), ``vanishing`` or ``exploding`` (a norm a thousand times below or above
        the median of all).
    """

    name: str
    norm: float
    relative: float
    zeros: float
    verdict: str


@dataclass(frozen=True)
class Health:
    """The gradients of a batch, weight by weight, in the model's order."""

    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, gradients: Mapping[str, npt.NDArray[Any]], weights: Mapping[str, npt.NDArray[Any]]) -> Health:
        """Look at gradients and the weights that they belong to, by name."""
        wide = {name: np.asarray(g).astype(np.float64) for name, g in gradients.items()}
        norms = {name: float(np.sqrt(np.sum(g * g))) for name, g in wide.items()}
        usual = [n for n in norms.values() if np.isfinite(n) and n > 0.0]
        median = float(np.median(usual)) if usual else 0.0
        layers = []
        for name, g in wide.items():
            norm = norms[name]
            if not np.isfinite(norm):
                verdict = "not finite"
            elif norm == 0.0:
                verdict = "dead"
            elif norm < 1e-3 * median:
                verdict = "vanishing"
            elif norm > 1e3 * median:
                verdict = "exploding"
            else:
                verdict = "ok"
            size = float(np.linalg.norm(np.asarray(weights[name]).astype(np.float64)))
            layers.append(Layer(name, norm, norm / size if size else float("inf"), float(np.mean(g == 0.0)), verdict))
        return cls(tuple(layers))

    def __str__(self) -> str:
        width = max([6, *(len(layer.name) for layer in self.layers)])
        lines = [f"{'weight':{width}}  {'norm':>9}  {'relative':>9}  {'zeros':>6}  verdict"]
        for layer in self.layers:
            lines.append(
                f"{layer.name:{width}}  {layer.norm:9.2e}  {layer.relative:9.2e}  {layer.zeros:6.1%}  {layer.verdict}"
            )
        return "\n".join(lines)

    def plot(self, axes: Any = None) -> Any:
        """The norms as bars on a logarithmic axis, with matplotlib.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw.

        Returns
        -------
        matplotlib.axes.Axes
        """
        axes = axes_or_new(axes, figsize=(6, 0.3 * len(self.layers) + 1))
        colours = ["tab:blue" if layer.verdict == "ok" else "tab:red" for layer in self.layers]
        axes.barh([layer.name for layer in self.layers], [max(layer.norm, 1e-30) for layer in self.layers], color=colours)
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="norm of the gradient")
        return axes
