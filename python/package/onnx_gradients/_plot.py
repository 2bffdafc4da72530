"""Where plots are drawn."""

from __future__ import annotations

from typing import Any


def axes_or_new(axes: Any, **figure: Any) -> Any:
    """The axes of matplotlib that are given, or those of a new figure with these options."""
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    return plt.subplots(**figure)[1]
