"""What a run writes down as it goes: JSON lines that resume exactly, and TensorBoard events beside them."""

import contextlib
import errno
import io
import json
import math
import os
import stat
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.harness import storage
from experiments.harness.folder import EVENTS, METRICS, TIMINGS, changed, extents_in

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

# A TensorBoard row needs one whole-number axis: the first of these that the row has.
STEP_NAMES = ("frames", "agent_steps", "updates", "iteration")

Scalar = bool | int | float | str | None


def plain_row(row: Mapping[str, Any]) -> dict[str, Scalar]:
    """One record with plain values, in the order given.

    JSON has no NaN and no infinity: a float that is not finite becomes null.

    Args:
        row: scalars by name; JAX and numpy scalars (arrays of size one) are accepted and fetched together.

    Returns:
        The same names with bools, ints, floats, strings and None.

    Raises:
        TypeError: a value is no scalar; the message names it.
    """
    import jax  # here, so that listing the experiments does not pay for it

    values = jax.device_get(list(row.values()))  # a list: as a dict it would come back sorted by name
    return {name: _plain_scalar(name, value) for name, value in zip(row, values, strict=True)}


def _plain_scalar(name: str, value: Any) -> Scalar:
    if hasattr(value, "item"):
        if value.size != 1:
            raise TypeError(f"the record '{name}' is an array of shape {value.shape}; a record holds scalars")
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"the record '{name}' is a {type(value).__name__}; a record holds scalars")


class JsonLines:
    """An append-only file of JSON lines that can be cut back to an earlier length, and whose checksum is kept.

    Every line reaches the operating system before `append` returns, so a killed process loses none. There is no
    buffer in between: a full disk is met at the line that did not fit, and closing cannot fail a second time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = io.FileIO(path, "ab+", opener=_open_for_appending)
        self._extent = storage.extent_of(self._file)  # as it must be, if nobody else writes to it

    def append(self, row: Mapping[str, Scalar]) -> None:
        """Writes one line.

        Raises:
            OSError: the disk is full, in which case part of the line may be there; or somebody else wrote to the file,
                or replaced it; or whatever the system says.
        """
        self._check()
        data = json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        line = memoryview(data)
        while line:
            line = line[self._file.write(line) :]
        length, checksum = self._extent
        self._extent = [length + len(data), zlib.crc32(data, checksum)]

    def sync(self) -> tuple[int, int]:
        """Waits until the disk has every line; returns the length in bytes and the CRC-32. Raises as `append` does."""
        self._check()
        os.fsync(self._file.fileno())
        return self._extent[0], self._extent[1]

    def cut(self, length: int) -> None:
        """Drops everything after the first `length` bytes."""
        os.ftruncate(self._file.fileno(), length)
        self._extent = storage.extent_of(self._file)

    def whole_lines(self, length: int) -> int:
        """How many of the first `length` bytes are lines with an end."""
        self._file.seek(0)
        return (self._file.read(length) or b"").rfind(b"\n") + 1

    def close(self) -> None:
        """Closes the file; there is nothing left to write."""
        self._file.close()

    def _check(self) -> None:
        """Raises OSError where the file is no longer what this process wrote."""
        ours = os.fstat(self._file.fileno())
        try:
            named = os.path.samestat(ours, os.stat(self.path))
        except FileNotFoundError:
            named = False
        if not named:
            raise OSError(errno.ESTALE, f"{self.path.name} was deleted or replaced while the run wrote it")
        if ours.st_size != self._extent[0]:
            raise OSError(
                errno.ESTALE, f"{self.path.name} has {ours.st_size} bytes, and the run wrote {self._extent[0]} of them"
            )


class Records:
    """The record files of an open run, and TensorBoard's events beside them."""

    def __init__(self, folder: Path, at: Path, marks: Mapping[str, int]) -> None:
        """Opens them; nothing is cut yet.

        Args:
            folder: the run's folder.
            at: the path to write there.
            marks: of the checkpoint with which the run goes on; empty for a run that begins.

        Raises:
            OSError: they can't be opened.
        """
        self._step = marks.get("step", -1)  # of the last record, on TensorBoard's axis
        self._kept = extents_in(marks or {"metrics_bytes": 0, "timings_bytes": 0})
        self._timings_changed = changed(folder, TIMINGS, self._kept[TIMINGS])
        self._events = TensorBoardEvents(at, self._step + 1 if any(at.glob(EVENTS)) else None)
        with contextlib.ExitStack() as opened:
            self._metrics = opened.enter_context(contextlib.closing(JsonLines(at / METRICS)))
            self._timings = JsonLines(at / TIMINGS)
            opened.pop_all()

    def cut(self) -> list[str]:
        """Cuts them to what they were when the run was saved; returns what there is to tell of that.

        Nothing is computed from timings, so a run goes on without those that were lost.
        """
        self._metrics.cut(self._kept[METRICS][0])
        length = self._kept[TIMINGS][0]
        self._timings.cut(self._timings.whole_lines(length) if self._timings_changed else length)
        return [f"{self._timings_changed}; its lines are kept as they are"] if self._timings_changed else []

    def append(self, row: Mapping[str, Scalar]) -> None:
        """Writes a record."""
        self._metrics.append(row)
        self._events.append(row)
        self._step = max(self._step, row_step(row) or 0)

    def append_timing(self, row: Mapping[str, Scalar]) -> None:
        """Writes what does not repeat."""
        self._timings.append(row)

    def sync(self) -> dict[str, int]:
        """Waits until the disk has everything; returns the marks by which the files are found to be the same again."""
        self._events.flush()
        metrics, timings = self._metrics.sync(), self._timings.sync()
        return {
            "metrics_bytes": metrics[0],
            "metrics_crc32": metrics[1],
            "timings_bytes": timings[0],
            "timings_crc32": timings[1],
            "step": self._step,
        }

    def close(self) -> None:
        """Closes the files."""
        for file in (self._metrics, self._timings, self._events):
            with contextlib.suppress(OSError):  # a full disk was told of when it was met
                file.close()


def _open_for_appending(path: str, flags: int) -> int:
    # A pipe would keep whoever opens it waiting; and nothing but a file can be cut.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, f"{Path(path).name} is no file", path)


class TensorBoardEvents:
    """TensorBoard event files (`events.*`), written in the calling thread.

    tensorboardX's SummaryWriter writes from a thread of its own, where a full disk would pass unseen, so its event
    writer is used directly. The file is opened at the first row: importing tensorboardX takes some 0.2 s.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        """`purge_step`: where the run goes on: TensorBoard forgets older files' rows from there on; None at a start."""
        self._folder, self._purge_step = folder, purge_step
        self._writer: EventsWriter | None = None

    def append(self, row: Mapping[str, Scalar]) -> None:
        """Writes the numbers of one record under `<phase>/<name>`; a row without any of STEP_NAMES is left out."""
        step = row_step(row)
        if step is None:
            return
        event_pb2, summary_pb2 = _messages()
        if self._writer is None:
            self._writer = self._open()
        phase = row.get("phase")
        values = [
            summary_pb2.Summary.Value(tag=f"{phase}/{name}" if phase else name, simple_value=float(value))
            for name, value in row.items()
            if isinstance(value, (int, float)) and name not in STEP_NAMES
        ]
        summary = summary_pb2.Summary(value=values)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Waits until the disk has every event."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file, if one was opened."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> "EventsWriter":
        from tensorboardX.event_file_writer import EventsWriter

        event_pb2, _ = _messages()

        # The file's name holds a time in whole seconds only; the process id keeps a quick restart off the old file.
        writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}")
        if self._purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            writer.write_event(event_pb2.Event(wall_time=time.time(), step=self._purge_step, session_log=start))
        return writer


def _messages() -> tuple[Any, Any]:
    # The classes in these modules are made at import, where a type checker does not see them.
    from tensorboardX.proto import event_pb2, summary_pb2

    return event_pb2, summary_pb2


def row_step(row: Mapping[str, Any]) -> int | None:
    """A record's place on TensorBoard's axis: its frames, else agent_steps, updates or iteration; None without any."""
    return next((int(row[name]) for name in STEP_NAMES if row.get(name) is not None), None)
