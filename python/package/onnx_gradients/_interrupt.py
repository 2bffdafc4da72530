"""Ctrl-C between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Deferred:
    """As long as this is entered, Ctrl-C is kept in mind, so that a step ends as a whole; a second one is raised at once.

    Where a program has its own handler, or in another thread than the main one, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: object = None

    def __enter__(self) -> Deferred:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise what was kept in mind."""
        if self.asked:
            raise KeyboardInterrupt
