"""Stopping when asked: SIGINT and SIGTERM raise a flag that the run looks at where it can stop without loss."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
_CLEAR_LINE = "\r\x1b[2K"


class InterruptFlag:
    """A context in which the first SIGINT or SIGTERM sets a flag and a second one raises KeyboardInterrupt(its number).

    Signals reach the main thread only: in another thread the context does nothing, and the flag stays down.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Takes over both signals."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives both signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt(number)
        self.received = signal.Signals(number)
        line = f"{self.received.name}: stopping at the next safe point (once more: at once)\n"
        # Past Python's streams: the signal may have come in the middle of a write, which cannot be entered twice.
        with contextlib.suppress(OSError):  # the terminal may have gone
            os.write(_STDERR, ((_CLEAR_LINE if os.isatty(_STDERR) else "") + line).encode())
