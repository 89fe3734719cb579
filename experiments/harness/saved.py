"""Parts of a checkpoint, read by their names: without the rest, and without the code that would make the whole state.

So the weights of a run can be had though its replay is gone or larger than this machine's memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from experiments.harness import large_arrays
from experiments.harness.checkpoint import Checkpoints
from experiments.harness.errors import Damaged, UserError
from experiments.harness.folder import CHECKPOINTS
from experiments.harness.state_files import arrays_beside

_KEYS = re.compile(r"\['(.*?)'\]|\[(\d+)\]|\.(\w+)")


class Saved:
    """A checkpoint; `newest` finds it.

    Attributes:
        path: its folder.
        iteration: how many iterations were done.
        shapes: of every array in it, by its path: "0/agent/params/torso/0/kernel" of what was saved as
            (LoopState(agent=...), ...).
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        """`content`: of the checkpoint's commit, verified."""
        self.path, self.iteration = path, int(content["iteration"])
        self._arrays: dict[int, list[int]] = {int(i): checksum for i, checksum in content.get("arrays", {}).items()}
        self._leaves = {_path(name): described for name, described in content["leaves"].items()}
        self.shapes = {path: shape for path, told in self._leaves.items() if (shape := _shape(told)) is not None}

    def has(self, where: str) -> bool:
        """Whether there are arrays below a path."""
        return any(_is_in(path, where) for path in self.shapes)

    def below(self, where: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays below a path, by the rest of theirs. Raises UserError where there is none."""
        found = {path.removeprefix(f"{where}/"): shape for path, shape in self.shapes.items() if _is_in(path, where)}
        if not found:
            raise UserError(f"the checkpoint {self.path} was written by other code: there is no {where} in it")
        return found

    def read(self, where: str) -> dict[str, np.ndarray]:
        """The arrays below a path, by the rest of theirs.

        Raises:
            UserError: there is none, or they can't be read.
        """
        shapes, found = self.below(where), {}
        places = {path: place for place, path in enumerate(self._leaves)}
        for name, shape in shapes.items():
            place = places[f"{where}/{name}"]
            if place in self._arrays:
                like = np.empty(shape, self._dtype(f"{where}/{name}"))
                try:
                    found[name] = large_arrays.read(arrays_beside(self.path) / str(place), like, self._arrays[place])
                except Damaged as error:
                    raise UserError(f"the checkpoint {self.path} can't be read: array {place}: {error}") from None
        if len(found) < len(shapes):
            found |= self._read_by_orbax(where, shapes.keys() - found.keys())
        return {name: found[name] for name in shapes}

    def _read_by_orbax(self, where: str, names: set[str]) -> dict[str, np.ndarray]:
        def target(keys: Any, leaf: Any) -> Any:
            name = _path(jax.tree_util.keystr(keys))
            # Into NumPy's memory: the devices that it was saved from need not be there.
            return np.empty(leaf.shape, leaf.dtype) if name in wanted else ocp.PLACEHOLDER

        # orbax keeps the attribute `value` of an NNX variable as a key.
        wanted = {f"{where}/{name}{end}": name for name in names for end in ("", "/value")}
        try:
            leaves = jax.tree_util.tree_map_with_path(target, ocp.metadata(str(self.path.absolute())).metadata)
            loaded = ocp.load(str(self.path.absolute()), leaves)
        except Exception as error:  # whatever orbax can't read
            told = str(error).splitlines()[:1] or [type(error).__name__]
            raise UserError(f"the checkpoint {self.path} can't be read: {told[0][:200]}") from error
        flat = jax.tree_util.tree_flatten_with_path(loaded)[0]
        found = {_path(jax.tree_util.keystr(keys)): leaf for keys, leaf in flat}
        return {wanted[path]: found[path] for path in wanted.keys() & found.keys()}

    def _dtype(self, path: str) -> np.dtype:
        return np.dtype(self._leaves[path].partition("[")[0])


def newest(folder: Path, about: Mapping[str, Any]) -> Saved:
    """The newest whole checkpoint of a run.

    Args:
        folder: the run's.
        about: its config.json.

    Raises:
        UserError: there is none, or none is whole.
    """
    identity = {name: about[name] for name in ("experiment", "config")}
    return Saved(*Checkpoints(folder / CHECKPOINTS, identity, about.get("data")).newest())


def _path(name: str) -> str:
    """What `jax.tree_util.keystr` calls "[0].params['torso'][0]['kernel'].value" as "0/params/torso/0/kernel"."""
    return "/".join(key or place or field for key, place, field in _KEYS.findall(name.removesuffix(".value")))


def _is_in(path: str, where: str) -> bool:
    return path.startswith(f"{where}/")


def _shape(described: str) -> tuple[int, ...] | None:
    """The shape in "float32[200, 512]"; None of what is no array."""
    found = re.fullmatch(r"\w+\[([\d, ]*)\]", described)
    return None if found is None else tuple(int(size) for size in found[1].split(",") if size.strip())
