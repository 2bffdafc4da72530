"""A bar, where somebody looks."""

from __future__ import annotations

import sys
from typing import Any


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and running.has_trait("kernel")


def _tqdm() -> Any:
    if _in_notebook():
        try:
            import ipywidgets  # noqa: F401
            from tqdm.notebook import tqdm as bar

            return bar
        except ImportError:
            pass  # A notebook without widgets has the bar as text.
    from tqdm import tqdm

    return tqdm


class Bar:
    """A bar of tqdm over the steps of an epoch.

    Parameters
    ----------
    text : str
        What stands before it.
    total : int, optional
        How many steps there are.
    done : int
        How many there have been.
    shown : bool, optional
        Whether it is; in a terminal or notebook with tqdm without it.
    """

    def __init__(self, text: str, total: int | None, done: int, shown: bool | None) -> None:
        self._bar: Any = None
        if shown is False or (shown is None and not (sys.stderr.isatty() or _in_notebook())):
            return
        try:
            kind = _tqdm()
        except ImportError:
            if shown:
                raise
            return
        self._bar = kind(desc=text, total=total, initial=done, leave=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, loss: float) -> None:
        """One more step, which has come to this loss."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update()
