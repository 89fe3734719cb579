"""How far a run is, for the person who waits: a bar on a terminal, an occasional plain line elsewhere."""

import collections
import math
import sys
import time
from typing import Any

_WINDOW_SECONDS = 30.0  # the rate shown is the mean over this long
_LINE_SECONDS = 30.0  # without a terminal, at most one line in this long
_UPDATE_SECONDS = 0.25  # more frequent updates are not worth the time that they take


class Progress:
    """One run's progress, shown on stderr, so that stdout holds results only.

    The rate is that of this process: what an earlier process did before a resume does not count as speed.
    """

    def __init__(self, name: str, total: float | None = None, unit: str = "frames", shown: bool = True) -> None:
        """
        Args:
            name: what is running, shown first.
            total: how many `unit` the whole run has; None when it is not known (then no time left is shown).
            unit: the quantity that is counted, as `update` names it.
            shown: whether anything is: of several processes one shows it.
        """
        self.name, self.total, self.unit = name, total, unit
        self._shown = shown and sys.stderr is not None  # a daemon may have none
        self._stream = sys.stderr  # as it is now: a library whose noise is kept back must not take these lines with it
        self._marks: collections.deque[tuple[float, float]] = collections.deque()
        self._last_update = self._last_line = -math.inf
        self._unshown: dict[str, Any] | None = None
        self._bar: Any = None
        self._task: Any = None

    def update(self, **fields: Any) -> None:
        """Shows where the run is. It may be called at every step: nearly all calls return at once.

        Args:
            **fields: the quantity named by `unit`, and whatever else is worth seeing (numbers or text), in the order
                in which it is shown.
        """
        if not self._shown:
            return
        self._unshown = fields
        now = time.monotonic()
        if now - self._last_update >= _UPDATE_SECONDS:
            self._last_update = now
            if self._marks and self._marks[-1][1] == fields[self.unit]:
                self._marks.clear()  # something else is going on, such as an evaluation: its time is none of the rate's
            self._show(fields, now=now, due=now - self._last_line >= _LINE_SECONDS)

    def rate(self) -> float | None:
        """How many `unit` a second, lately; None until two updates are some time apart."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start else None

    def say(self, line: str) -> None:
        """Prints a line on stderr, above the bar if there is one."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last update and leaves the bar as it is."""
        if self._unshown is not None:
            self._show(self._unshown, now=time.monotonic(), due=True)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, fields: dict[str, Any], *, now: float, due: bool) -> None:
        others = {name: value for name, value in fields.items() if name != self.unit}
        position = float(fields[self.unit])
        self._marks.append((now, position))
        while now - self._marks[0][0] > _WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        text = self._describe(position, others)
        if self._stream.isatty():
            self._show_bar(position, text)
        elif due:
            self.say(f"{self.name}: {text}")
            self._last_line = now
        else:
            return
        self._unshown = None

    def _describe(self, position: float, fields: dict[str, Any]) -> str:
        whole = f"/{self.total:,.0f}" if self.total is not None else ""
        parts = [f"{position:,.0f}{whole} {self.unit.replace('_', ' ')}"]
        rate = self.rate()
        if rate:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            if self.total is not None:
                parts.append(f"{_clock((self.total - position) / rate)} left")
        return " · ".join(parts + [f"{name.replace('_', ' ')} {_short(value)}" for name, value in fields.items()])

    def _show_bar(self, position: float, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._bar = RichProgress(
                *columns, console=Console(file=self._stream), refresh_per_second=1 / _UPDATE_SECONDS, transient=False
            )
            self._task = self._bar.add_task(self.name, total=self.total, text=text)
            self._bar.start()
        self._bar.update(self._task, completed=position, text=text)


def _short(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value  # a JAX or NumPy scalar
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
