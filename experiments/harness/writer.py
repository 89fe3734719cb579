"""What writes a run's folder: in an order that a process killed at any moment may leave, and only where it belongs."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from experiments.harness import folder as files
from experiments.harness.checkpoint import Checkpoints, Restored
from experiments.harness.held import Held
from experiments.harness.records import Records, Scalar
from experiments.harness.storage import write_atomically


class Writer:
    """The folder of an open run, for the one process that writes it. All methods raise OSError, or FolderChanged."""

    def __init__(self, held: Held, about: dict[str, Any], checkpoints: Checkpoints) -> None:
        """
        Args:
            held: the folder.
            about: its config.json.
            checkpoints: those of the run.
        """
        self._held, self._about, self._checkpoints = held, about, checkpoints
        self._records: Records | None = None
        self._left: dict[str, tuple[int, int]] = {}

    @property
    def records(self) -> Records:
        """The open record files, where they are still what the run wrote."""
        assert self._records is not None, "the run has begun"
        self._held.check()
        return self._records

    def begin(self, restored: Restored) -> list[str]:
        """Goes on from what was restored: cuts the records to what they were then, when nothing can fail any more.

        Returns:
            Sentences for whoever started the run.

        Raises:
            UserError: nothing was restored, though the run was saved.
        """
        self._held.check()
        if not restored.iteration:
            files.may_begin(self._held.folder, self._about, restored.passed_over)
        self._checkpoints.make_ready()
        self._records = Records(self._held.folder, self._held.at, restored.marks)
        files.note_resumed(self._held, self._about, saved=restored.iteration > 0)
        if restored.iteration:  # what is newer is damaged, and its records are cut away
            kept = {iteration for iteration in self._checkpoints.iterations() if iteration <= restored.iteration}
            self._checkpoints.keep_only(kept)
        return self._records.cut()

    def save(self, iteration: int, state: Any) -> int:
        """Writes a checkpoint; returns its size in bytes."""
        size = self._checkpoints.save(iteration, state, self.records.sync())
        files.note_saved(self._held, self._about)
        return size

    def leave(self, name: str, content: bytes) -> None:
        """Writes a file that the run leaves beside its summary, before it ends."""
        self._held.check()
        write_atomically(self._held.at / name, content)
        self._left[name] = len(content), zlib.crc32(content)

    def diverge(self, updates: int) -> None:
        """Writes down that the run has diverged."""
        self._held.check()
        write_atomically(self._held.at / files.DIVERGED, json.dumps({"updates": updates}) + "\n")

    def finish(self, iteration: int, summary: Mapping[str, Scalar]) -> None:
        """Writes the summary, then DONE, and keeps the newest checkpoint only, which is that of `iteration`."""
        marks = self.records.sync()
        self.leave(files.SUMMARY, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
        left = {**files.extents_in(marks), **self._left}
        files.end(self._held, {"iteration": iteration, "data": self._about["data"]}, left)
        self._checkpoints.keep_only({iteration})

    def close(self) -> None:
        """Closes the files."""
        if self._records is not None:
            self._records.close()
