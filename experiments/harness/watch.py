"""How several processes notice each other's end: one that fails ends all, and one that is silent is told of.

They wait for each other inside JAX, where nothing else of a process runs: for ever, if one of them is not coming. So
each leaves notes with JAX's coordinator, that it is alive or why it has failed, and a thread reads the others' notes.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from experiments.harness.ends import expected_end
from experiments.harness.errors import Interrupted, NonFinite, RunStopped
from experiments.harness.processes import known_to_all, several

_LOOK_SECONDS = 1.0
_SILENT_SECONDS = 10.0
"""A process that leaves no note for this long is told of. JAX, whose threads nothing of Python's can hold up, ends the
others where it stays silent for its own, longer time."""
_GRACE_SECONDS = 5.0
"""From another's failure to the end of this process, which may come to the same end by itself."""
_LEFT = "left"
# What JAX says where another process has gone in the middle of a computation.
_GONE_WORDS = ("Gloo", "NCCL", "Connection reset by peer", "Connection closed by peer", "coordination service")

_numbers = itertools.count()
_failed: "_Watch | None" = None


class Ended(RunStopped):
    """Another process has failed; with its exit code."""

    def __init__(self, message: str, exit_code: int = RunStopped.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """In several processes: an error that one of them raises within ends all of them, in a line and within seconds.

    Raises:
        Ended: another process failed, or is not there any more.
    """
    global _failed
    if not several():
        yield
        return
    watch = _Watch()
    try:
        yield
    except BaseException as error:
        if error in known_to_all or isinstance(error, (Interrupted, NonFinite)):
            raise
        _failed = watch
        if any(words in str(error) for words in _GONE_WORDS):
            raise watch.ended_by(error) from error
        watch.tell(error)
        raise
    finally:
        watch.leave()


def end_process(exit_code: int) -> None:
    """Ends this process where `watched` ended by an error of one alone, for JAX would wait for the others in vain.

    The first process, with which the notes are, waits until the others have read them.
    """
    if _failed is not None:
        _failed.wait_for_others()
        _exit(exit_code)


class _Watch:
    """This process's notes, and the thread that reads the others'."""

    def __init__(self) -> None:
        import jax
        from jax._src import distributed  # where multihost_utils and orbax have it from, too

        self._client: Any = distributed.global_state.client
        self._folder = f"nap/{next(_numbers)}"
        self._process, self._others = jax.process_index(), set(range(jax.process_count())) - {jax.process_index()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def tell(self, error: BaseException) -> None:
        """Leaves a note why this process has failed."""
        end = expected_end(error) if isinstance(error, Exception) else None
        line, code = f"{type(error).__name__}: {error}", RunStopped.exit_code
        if end is not None:
            line, code = str(end), end.exit_code
        with contextlib.suppress(Exception):  # the coordinator may be gone
            self._client.key_value_set(f"{self._folder}/failed/{self._process}", json.dumps([line, code]))

    def ended_by(self, error: BaseException) -> Ended:
        """The error to raise where JAX has found that another process is gone: that one's, if it left a note."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline:
            if (ended := self._failure()) is not None:
                return ended
            time.sleep(_LOOK_SECONDS / 5)
        line = " ".join(str(error).split())
        ended = Ended(f"another process is gone; the same commands go on from what was saved (JAX says: {line})")
        self.tell(ended)
        return ended

    def leave(self) -> None:
        """Ends the thread, and leaves a note that this process will end by itself."""
        self._over.set()
        self._thread.join(_LOOK_SECONDS)
        self._note(_LEFT)

    def wait_for_others(self) -> None:
        """In the first process: until all others have ended, or are about to."""
        deadline = time.monotonic() + _GRACE_SECONDS + 3 * _LOOK_SECONDS
        while self._process == 0 and time.monotonic() < deadline:
            notes = self._notes("alive")
            if all(notes.get(other) == _LEFT for other in self._others):
                return
            time.sleep(_LOOK_SECONDS / 5)

    def _look(self) -> None:
        """Leaves notes and reads the others', until it is over."""
        failed_at: float | None = None
        silence = _Silence(self._others if self._process == 0 else set())
        for number in itertools.count():
            if self._over.wait(_LOOK_SECONDS):
                return
            with self._coordinator_may_be_silent():
                self._note(str(number))
                failed = self._failure()
            if failed is not None:
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > _GRACE_SECONDS and not self._over.is_set():
                    print(f"error: {failed}", file=sys.stderr)
                    self._note(_LEFT)
                    _exit(failed.exit_code)
            silence.tell(self._notes("alive"))

    @contextlib.contextmanager
    def _coordinator_may_be_silent(self) -> Iterator[None]:
        """The first process does not even take a note, if its host is not there."""
        timer = threading.Timer(_SILENT_SECONDS, _say_silent, [0])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _failure(self) -> Ended | None:
        for process, note in self._notes("failed").items():
            if process in self._others:
                line, code = json.loads(note)
                return Ended(f"process {process}: {line}", code)
        return None

    def _note(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the coordinator may be gone: JAX ends this process, or already has
            self._client.key_value_set(f"{self._folder}/alive/{self._process}", text, allow_overwrite=True)

    def _notes(self, kind: str) -> dict[int, str]:
        """The notes of a kind, by process; none where the coordinator is gone."""
        try:
            found = self._client.key_value_dir_get(f"{self._folder}/{kind}/")
        except Exception:
            return {}
        return {int(name.rpartition("/")[2]): note for name, note in found}


class _Silence:
    """Tells of processes whose notes no longer change, and of those whose notes do again."""

    def __init__(self, others: set[int]) -> None:
        self._last = dict.fromkeys(others, ("", time.monotonic()))
        self._told: set[int] = set()

    def tell(self, notes: dict[int, str]) -> None:
        """Compares the notes with those of the last call."""
        now = time.monotonic()
        for process, (note, since) in self._last.items():
            if notes.get(process, "") != note:
                self._last[process] = notes[process], now
                if process in self._told:
                    self._told.remove(process)
                    print(f"process {process} answers again", file=sys.stderr, flush=True)
            elif now - since > _SILENT_SECONDS and note != _LEFT and process not in self._told:
                self._told.add(process)
                _say_silent(process)


def _say_silent(process: int) -> None:
    line = f"process {process} has not answered for {_SILENT_SECONDS:.0f} s: is its host there? The run waits for it"
    print(line, file=sys.stderr, flush=True)


def _exit(exit_code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
