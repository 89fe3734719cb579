"""A run: one configuration's folder, its records and checkpoints, resumed wherever the last process left it.

    with open_run("atari", config, options) as run:
        if run.done:
            return run.summary
        iteration, state = run.restore(initial_state)
        while iteration < config.iterations:
            state, losses = train(state)
            run.record({"phase": "train", "iteration": iteration, "frames": ..., "loss": ...})
            iteration += 1
            run.save(iteration, state)
            run.check_interrupted()
        run.finish({"return": ...})

The folder: `config.json` (what was run, with which software), `metrics.jsonl` (the records; no wall-clock time, so
that a run repeats bit for bit), `timings.jsonl` (everything that has wall-clock time), `events.*` (the records again,
for TensorBoard), `checkpoints/`, `summary.json` and, once the run has ended well, `DONE`; or, where it diverged,
`DIVERGED`. Each checkpoint's commit and `DONE` seal how long the other files were, with checksums. `lock` says which
process has the folder. A sweep adds `output.log` and, where the run failed, `FAILED`.

Several processes that make one run together all open it, and make the same calls in the same order. The first one alone
has the folder and shows progress; what it finds there, errors and signals reach all of them.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.harness import folder as files
from experiments.harness.checkpoint import Checkpoints
from experiments.harness.command_line import RunOptions
from experiments.harness.errors import Interrupted, NonFinite, writing
from experiments.harness.held import locked
from experiments.harness.identity import config_hash, folder_name, kind_of_numbers, plain, settings, software
from experiments.harness.interrupt import InterruptFlag
from experiments.harness.processes import Asked, in_first, several, writes
from experiments.harness.progress import Progress
from experiments.harness.records import plain_row
from experiments.harness.writer import Writer

Result = TypeVar("Result")


@contextlib.contextmanager
def open_run(
    experiment: str,
    config: Any,
    options: RunOptions,
    *,
    label: str = "",
    total: float | None = None,
    unit: str = "frames",
    data: Mapping[str, str] | None = None,
) -> Iterator["Run"]:
    """Opens the folder of one configuration, new or to be continued, and holds it for this process.

    Args:
        experiment: the experiment's name, part of the run's identity.
        config: a frozen dataclass of plain values (nested ones too): all that decides the result, the seed included.
        options: where all runs are (see `run_folder` for this one's), whether to start over, and whether to wait where
            another process has this run; then it goes on, or is found done.
        label: a hint for people in the folder's name, made from `config` alone: "pong-nap-seed0".
        total: how many `unit` the whole run has, for the progress bar and `sweep --status`.
        unit: what the progress bar counts, as `run.progress.update` will name it.
        data: a fingerprint of each thing that was read from files, which may change, by the option that names it:
            {"--tokenizer": "5f3a..."}. No part of the run's name, but a run goes on with the same ones only.

    Yields:
        The run. SIGINT and SIGTERM only set a flag while it is open: see `Run.check_interrupted`, which is called once
        more at the end.

    Raises:
        UserError: the folder is in use by another process, or is of another configuration; or the run began with other
            data, or JAX set otherwise; or it has changed since it ended; or of several processes that make this run
            together, one has another configuration, data or software.
        DiskFull, Unwritable: the folder's first files can't be written.
    """
    identity, data = {"experiment": experiment, "config": plain(config)}, dict(data or {})
    folder = run_folder(experiment, config, out=options.out, label=label)
    checkpoints, writer = Checkpoints(folder / files.CHECKPOINTS, identity, data), None
    progress = Progress(label or experiment, total, unit, shown=writes())
    with contextlib.ExitStack() as stack:

        def prepare() -> tuple[bool, list[str]]:
            nonlocal checkpoints, writer
            with writing(folder, lambda: "nothing was begun"):
                held = stack.enter_context(locked(folder, options.wait))
                digest, size = config_hash(experiment, config), {"total": total, "unit": unit}
                found = files.prepare(held, identity, digest, fresh=options.fresh, size=size, data=data)
            checkpoints = Checkpoints(folder / files.CHECKPOINTS, identity, data, at=held.at / files.CHECKPOINTS)
            writer = Writer(held, found.about, checkpoints)
            return found.done, found.told

        if several():  # before anything is done to the folder
            numbers = kind_of_numbers(settings())
            in_first(lambda: None, same={**identity, "software": software(), "settings": numbers, "data": data})
        done, told = in_first(prepare)
        for sentence in told:
            progress.say(sentence)
        stack.callback(progress.close)
        interrupt = stack.enter_context(InterruptFlag())
        run = Run(folder, done, checkpoints, writer, progress, interrupt)
        stack.callback(run.close)
        if run.done:
            progress.say(f"{folder} is finished; --fresh would run it again")
        yield run
        run.check_interrupted()  # a signal that came after the last call: what follows this run must not start


def run_folder(experiment: str, config: Any, *, out: Path, label: str) -> Path:
    """The folder of a run, there or not: `<out>/<experiment>/<label>-<hash of experiment and config>`."""
    return Path(out) / experiment / folder_name(label, config_hash(experiment, config))


class Run:
    """An open run; `open_run` makes it.

    Attributes:
        folder: the run's folder.
        done: whether the run had ended well before it was opened.
        progress: the progress bar; `progress.say(line)` prints a line beside it.
    """

    def __init__(
        self,
        folder: Path,
        done: bool,
        checkpoints: Checkpoints,
        writer: Writer | None,
        progress: Progress,
        interrupt: InterruptFlag,
    ) -> None:
        self.folder, self.done, self.progress = folder, done, progress
        self._checkpoints, self._interrupt = checkpoints, interrupt
        self._writer = writer  # of the first process
        self._asked = Asked()
        self._finished = done
        self._stop = 0  # the number of the signal that all processes know of
        self._restored = False
        self._saved = 0  # the iteration of the last good checkpoint; 0 when there is none
        self._saved_at = time.monotonic()  # or restored
        self._told_seconds = 0.5  # that a save was last said to take; the next is told of over twice that

    @property
    def summary(self) -> dict[str, Any]:
        """What `finish` was given. Raises FileNotFoundError when the run is not done, UserError where it is damaged."""
        return in_first(lambda: files.summary(self.folder))

    def restore(self, state: Any) -> tuple[int, Any]:
        """Goes back to the newest whole checkpoint: loads the state and cuts the records to what they were then.

        Must be called once, before anything is recorded or saved.

        Args:
            state: the initial state, any pytree; it also gives the structure, shapes, dtypes and devices to load into.

        Returns:
            How many iterations are done, and the state after them: `(0, state)` when there is no checkpoint.

        Raises:
            UserError: the checkpoint is of another configuration, of other data or of another code's state; or none is
                whole, or what there was is gone; or something can't be read. Nothing was changed.
            DiskFull, Unwritable: the run can't go on where it is.
        """
        from experiments.harness.spread import restore  # here, so that listing the experiments does not import JAX

        if self.done:
            raise RuntimeError(f"{self.folder} is finished: look at run.done first")
        restored = restore(self._checkpoints, state, self._why_not_resumable)
        for sentence in restored.passed_over:
            self.progress.say(sentence)
        self._restored, self._saved = True, restored.iteration
        without_state = restored._replace(state=None)
        for sentence in self._write(lambda writer: writer.begin(without_state)):
            self.progress.say(sentence)
        self._saved_at = time.monotonic()
        if restored.iteration:
            self.progress.say(f"resuming {self.folder} after iteration {restored.iteration}")
        elif restored.passed_over:
            self.progress.say(f"starting {self.folder} from the beginning")
        return restored.iteration, restored.state

    def record(self, row: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl, and its numbers to the TensorBoard events.

        Args:
            row: scalars by name, units in the names (`frames`, `updates`); JAX and NumPy scalars are accepted. Nothing
                in it may depend on wall-clock time: that goes to `record_timing`. NaN and infinities become null.

        Raises:
            TypeError: a value is no scalar.
            DiskFull: the line does not fit; a part of it may be there, and is cut off when the run resumes.
            UserError: of several processes, one has come to other numbers.
        """
        plain_values = plain_row(row)
        self._write(lambda writer: writer.records.append(plain_values), plain_values)

    def record_timing(self, row: Mapping[str, Any]) -> None:
        """Appends a line to timings.jsonl, with the time of day as `unix_seconds`: for all that does not repeat.

        Args:
            row: scalars by name, as for `record`: `{"frames": 8000, "frames_per_second": 812.5}`.
        """
        line = {"unix_seconds": round(time.time(), 3), **plain_row(row)}
        self._write(lambda writer: writer.records.append_timing(line))

    def save(self, iteration: int, state: Any) -> None:
        """Writes a checkpoint to resume from, and waits until it is on disk: then `state` may be donated or changed.

        The newest two checkpoints are kept; while the third is written there must be space for all three. How long
        it takes is told the first time that it is over a second, and again when it is over twice what was told.

        Args:
            iteration: how many iterations are done, 1 or more; `restore` gives it back.
            state: everything that the rest of the run depends on.

        Raises:
            DiskFull: it does not fit; the earlier checkpoints are untouched.
        """
        from experiments.harness.spread import gather

        started = time.monotonic()
        here = gather(state)
        size = self._write(lambda writer: writer.save(iteration, here))
        self._saved, self._saved_at = iteration, time.monotonic()
        seconds = self._saved_at - started
        if seconds > 2 * self._told_seconds:
            self._told_seconds = seconds
            name = f"{files.CHECKPOINTS}/{iteration}"
            self.progress.say(f"{self.progress.name}: saving took {seconds:.0f} s ({name}, {size / 1e9:.3g} GB)")

    def save_due(self, seconds: float) -> bool:
        """Whether to `save` now, and to call `check_interrupted` after it: that long ago, or SIGINT or SIGTERM came.

        Args:
            seconds: since the last `save`, or `restore`.
        """
        return self._ask(save=time.monotonic() - self._saved_at > seconds) or self._stop > 0

    def check_interrupted(self) -> None:
        """Raises Interrupted if SIGINT or SIGTERM came; of several processes to any, and in all at the next call.

        Work since the last `save` will be repeated, so call it after one; where an iteration takes minutes, call it
        inside as well: a cluster gives a job little time between SIGTERM and SIGKILL.
        """
        if not self._stop:
            self._ask()
        if self._stop:
            number = signal.Signals(self._stop)
            raise Interrupted(f"stopped by {number.name}; {self._what_is_saved()}; the same command goes on", number)

    def save_and_stop_if_asked(self, iteration: int, state: Callable[[], Any]) -> None:
        """Where SIGINT or SIGTERM came: saves what `state()` gives, and raises Interrupted; see `save`."""
        if self.save_due(math.inf):
            self.save(iteration, state())
            self.check_interrupted()

    def check_finite(self, name: str, value: Any, *, updates: int) -> None:
        """Ends the run when a number is NaN or infinite. Call it before `save`, so that no such state is saved.

        Args:
            name: what the number is: "loss".
            value: the number; a JAX or NumPy scalar is accepted.
            updates: how many updates had been made; written to `DIVERGED`, for reports.

        Raises:
            NonFinite: it is.
            DiskFull: it is, and there is no space to say so.
        """
        if not math.isfinite(number := float(value)):
            if self._writer is not None:
                with self._writing():
                    self._writer.diverge(updates)
            raise NonFinite(f"the {name} is {number} at update {updates} in {self.folder}; {self._what_is_saved()}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Ends the run well: writes summary.json, then DONE, and keeps the newest checkpoint only.

        Args:
            summary: scalars by name, as for `record`. They must follow from the state alone: a run that was killed just
                before this call comes here again from its last checkpoint, without another iteration.
        """
        plain_values = plain_row(summary)
        self._write(lambda writer: writer.finish(self._saved, plain_values), plain_values)
        self._finished = True

    def leave(self, name: str, content: bytes) -> None:
        """Writes a file that the run leaves in its folder beside the summary, for whoever comes after it.

        Args:
            name: the file's; there is none of this name among the run's own.
            content: what to write. As the summary it must follow from the state alone, and is written before `finish`.
        """
        self._write(lambda writer: writer.leave(name, content))

    def close(self) -> None:
        """Closes the files; `open_run` does it."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, action: Callable[[Writer], Result], same: Mapping[str, Any] | None = None) -> Result:
        """Has the first process write into the folder, and all know whether it could; `same`: see `in_first`.

        Returns:
            What `action` returned there, in all.
        """
        if not self._restored:
            raise RuntimeError("call run.restore(state) before anything is recorded, saved or finished")

        def write() -> Result:
            assert self._writer is not None, "in the first process"
            with self._writing():
                return action(self._writer)

        return in_first(write, same)

    def _ask(self, save: bool = False) -> bool:
        """Has all processes know of a signal to any of them; returns whether one wants to save."""
        self._stop, save_now = self._asked.most(self._interrupt.received or 0, int(save))
        return save_now > 0

    def _why_not_resumable(self, marks: Mapping[str, int]) -> str | None:
        return files.changed(self.folder, files.METRICS, files.extents_in(marks)[files.METRICS])

    def _what_is_saved(self) -> str:
        if self._finished:
            return f"{self.folder} is finished"
        if not self._saved:
            return "no checkpoint was saved yet"
        path = self.folder / files.CHECKPOINTS / str(self._saved)
        return f"the last good checkpoint is {path} (iteration {self._saved})"

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self.folder, self._what_is_saved)
