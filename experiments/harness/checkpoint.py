"""Checkpoints that a run killed at any moment can trust: a state's files, and a commit that tells of them.

`checkpoints/<iteration>/` and `checkpoints/<iteration>.arrays/` have the state (see state_files.py), or, where an
iteration was saved before, the same with `.again` behind the number: the earlier save is there until the later one is.
`checkpoints/<iteration>.json`, the commit, written last and sealed with a checksum, tells that they are complete. It
holds whose checkpoint this is and of which iteration, what its data was read from, the marks (how long the record files
were, and their checksums), each leaf's shape and dtype, and the size and CRC-32 of every file.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import state_files, storage
from experiments.harness.errors import Damaged, UserError
from experiments.harness.identity import difference, other_data

_AGAIN = ".again"
_NAME = re.compile(r"(0|[1-9][0-9]*)(\.again)?(\..*)?")  # of whatever belongs to a checkpoint
_COMMIT = re.compile(r"(0|[1-9][0-9]*)\.json")


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    iteration: int  # 0 when there is no checkpoint
    state: Any
    marks: dict[str, int]  # as given to `save`; empty when there is no checkpoint
    passed_over: list[str]  # one sentence for each newer checkpoint that could not be used


class Checkpoints:
    """The checkpoints of one run: the newest two are kept, so that a damaged one leaves one to go back to."""

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], data: Mapping[str, str] | None = None, at: Path | None = None
    ) -> None:
        """
        Args:
            folder: where they are; in a folder that is there.
            identity: the experiment and plain configuration that every checkpoint here must be of.
            data: the fingerprint of all that the run reads from files, by name.
            at: another path to the same folder, to write at, if it is not `folder`.
        """
        self._folder, self._identity, self._data = folder.absolute(), dict(identity), dict(data or {})
        self._at = self._folder if at is None else at.absolute()  # orbax takes absolute paths only

    def path(self, iteration: int) -> Path:
        """The folder of the checkpoint taken after `iteration` iterations."""
        return self._folder / str(iteration)

    def iterations(self) -> list[int]:
        """The iterations with a completely written checkpoint, in rising order. Raises Unreadable."""
        return _committed(storage.names_in(self._folder))

    def make_ready(self) -> None:
        """Makes the folder, if it is not there, and tries whether it can be written. Raises OSError where it cannot."""
        self._at.mkdir(exist_ok=True)  # without its parents: they would be another run's folder
        state_files.require_descriptors()
        with tempfile.TemporaryFile(dir=self._at):
            pass

    def save(self, iteration: int, state: Any, marks: Mapping[str, int]) -> int:
        """Writes a checkpoint and, once it is complete, deletes all but it and the one before.

        It returns when everything is on disk. Saving in the background would read arrays that the caller's next
        jitted call may already have been given to overwrite (donated), or NumPy arrays that it changes in place.

        Args:
            iteration: how many iterations are done; it names the checkpoint. One of this name is replaced.
            state: any pytree of JAX or NumPy arrays, typed PRNG keys, numbers, bools and strings.
            marks: whole numbers to get back with the state.

        Returns:
            How many bytes it takes on disk.

        Raises:
            OSError: it cannot be written. The earlier checkpoints are untouched.
        """
        self._at.mkdir(exist_ok=True)
        earlier = self._name_of_data(iteration)
        name = str(iteration) if earlier != str(iteration) else f"{iteration}{_AGAIN}"
        self._delete_data(iteration, but=earlier)  # what a killed process or a damaged disk left under this name
        try:
            files = state_files.write(self._at / name, state)
            content = {
                **self._identity,
                "iteration": iteration,
                "data": self._data,
                "marks": dict(marks),
                "leaves": state_files.describe(state),
                "folder": name,
                "files": files.by_orbax,
                "arrays": files.of_arrays,
            }
            storage.write_atomically(self._at / f"{iteration}.json", storage.sealed(content))
        except Exception:
            with contextlib.suppress(OSError):
                self._delete_data(iteration, but=earlier)  # what a full disk left of it only takes space
            raise
        self._delete_data(iteration, but=name)
        older = [other for other in _committed(self._names()) if other < iteration]
        self.keep_only({iteration, *older[-1:]})
        return files.size

    def restore(self, state: Any, usable: Callable[[Mapping[str, int]], str | None]) -> Restored:
        """Loads the newest checkpoint that is whole.

        Args:
            state: a pytree of the structure, shapes, dtypes and devices to load into; its values are returned when
                there is no checkpoint, and its large arrays are given up when there is one.
                `jax.ShapeDtypeStruct` leaves will do where a checkpoint is sure to exist.
            usable: given a checkpoint's marks, says in words why it can not be resumed from, or None if it can.

        Returns:
            The iteration, the state, the marks and what was passed over.

        Raises:
            UserError: the newest whole checkpoint is of another configuration or other data, or its leaves are not
                `state`'s; or there are checkpoints and none of them is whole.
            Unreadable: the newest that may be whole can't be read.
        """
        from orbax.checkpoint import v1  # noqa: F401  # seconds, for which a signal would wait at the first save

        complete = self.iterations()
        passed_over = [
            f"checkpoint {iteration} is half-written (the run was stopped while saving it)"
            for iteration in sorted(self._all_iterations() - set(complete), reverse=True)
            if iteration > max(complete, default=0)
        ]
        for iteration in reversed(complete):
            try:
                content = self._read_commit(iteration, usable)
                folder, at = (place / content.get("folder", str(iteration)) for place in (self._folder, self._at))
                state_files.check(folder, content["files"])
                self._check_leaves(iteration, content["leaves"], state)
                restored = state_files.read(folder, at, state, content.get("arrays", {}))
            except Damaged as error:
                passed_over.append(f"checkpoint {iteration} cannot be used: {error}")
                continue
            return Restored(iteration, restored, content["marks"], passed_over)
        if complete:
            raise UserError(
                f"no checkpoint in {self._folder} is whole ({'; '.join(passed_over)}); nothing was changed: put back "
                "what there is a copy of, or start over with --fresh"
            )
        return Restored(0, state, {}, passed_over)

    def newest(self) -> tuple[Path, dict[str, Any]]:
        """The folder and the commit of the newest checkpoint that is whole, for parts of it to be read.

        Raises:
            UserError: it is of another configuration or other data; or there is none, or none is whole.
            Unreadable: the newest that may be whole can't be read.
        """
        problems = []
        for iteration in reversed(self.iterations()):
            try:
                content = self._read_commit(iteration, lambda _: None)
                folder = self._folder / content.get("folder", str(iteration))
                state_files.check(folder, content["files"])
            except Damaged as error:
                problems.append(f"{iteration}: {error}")
                continue
            return folder, content
        if problems:
            raise UserError(f"no checkpoint in {self._folder} is whole ({'; '.join(problems)})")
        raise UserError(
            f"{self._folder.parent} has no checkpoint yet, so there are no weights; SIGTERM to its process makes it "
            "save one"
        )

    def keep_only(self, iterations: set[int]) -> None:
        """Deletes all other checkpoints, half-written ones included."""
        for iteration in self._all_iterations() - iterations:
            storage.remove(self._at / f"{iteration}.json")  # first: what is half-deleted is half-written
            self._delete_data(iteration)

    def newest_marks(self) -> dict[str, int] | None:
        """The marks of the newest checkpoint with a whole commit, whatever became of the state; None where none has."""
        for iteration in reversed(self.iterations()):
            try:
                return self._read_content(iteration)["marks"]
            except Damaged:
                continue
        return None

    def _all_iterations(self) -> set[int]:
        return {int(found[1]) for found in map(_NAME.fullmatch, self._names()) if found}

    def _names(self) -> list[str]:
        return os.listdir(self._at) if self._at.is_dir() else []

    def _name_of_data(self, iteration: int) -> str | None:
        """What the folder of a committed checkpoint is called; None where there is no whole commit."""
        try:
            return self._read_content(iteration).get("folder", str(iteration))
        except Damaged:
            return None

    def _delete_data(self, iteration: int, but: str | None = None) -> None:
        """Deletes what was written for an iteration, but for the commit, and for the state in the folder `but`."""
        for name in self._names():
            found = _NAME.fullmatch(name)
            if not found or int(found[1]) != iteration or found[1] + (found[2] or "") == but or _COMMIT.fullmatch(name):
                continue
            with contextlib.suppress(OSError):  # such as a network's file system, for a file that is open
                storage.remove(self._at / name)

    def _read_content(self, iteration: int) -> dict[str, Any]:
        content = storage.read_sealed(self._folder / f"{iteration}.json")
        if content is None:
            raise Damaged("it is gone")
        if content.get("iteration") != iteration:
            raise Damaged(f"it was saved as that of iteration {content.get('iteration')}, and renamed")
        return content

    def _read_commit(self, iteration: int, usable: Callable[[Mapping[str, int]], str | None]) -> dict[str, Any]:
        content, place = self._read_content(iteration), self.path(iteration)
        change = difference({name: content.get(name) for name in self._identity}, self._identity)
        if change:
            raise UserError(f"the checkpoint {place} is of another run: {change}; move it away, or give another --out")
        change = other_data(content.get("data", {}), self._data)
        if change:
            raise UserError(f"the checkpoint {place} was saved with other data: {change}")
        problem = usable(content["marks"])
        if problem:
            raise Damaged(problem)
        return content

    def _check_leaves(self, iteration: int, leaves: Mapping[str, str], state: Any) -> None:
        change = difference(leaves, state_files.describe(state))
        if change:
            raise UserError(
                f"the checkpoint {self.path(iteration)} was written by other code: leaf {change}; go back to that "
                "code, or start over with --fresh"
            )


def _committed(names: Iterable[str]) -> list[int]:
    return sorted(int(commit[1]) for commit in map(_COMMIT.fullmatch, names) if commit)
