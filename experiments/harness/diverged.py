"""Seeds whose loss or weights are no finite numbers any more: each ends alone, and the run ends with the last one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from experiments.harness.run import Run

PyTree = Any


class Diverged:
    """The seeds of a run that have diverged. A seed that has stays so, even if a reset makes its weights finite again.

    Attributes:
        seeds: whether each has; to be saved with the run's state, and restored.
    """

    def __init__(self, opened: Run, first: int, count: int) -> None:
        """
        Args:
            opened: the run.
            first: the first seed.
            count: how many seeds there are.
        """
        self._opened, self._first = opened, first
        self._untold: list[int] = []
        self.seeds = np.zeros(count, bool)

    def add(self, which: Iterable[int]) -> None:
        """Takes seeds that have diverged, by their place; call it before what was found is recorded."""
        self._untold += [seed for seed in which if not self.seeds[seed]]
        self.seeds[self._untold] = True

    def tell(self, updates: int) -> None:
        """Tells of each seed that was added, once and in one line; call it before so many updates are saved.

        Raises:
            NonFinite: all seeds have diverged.
        """
        if self.seeds.all():
            what = "loss" if self.seeds.size == 1 else "loss of every seed"
            self._opened.check_finite(what, math.nan, updates=updates)
        for seed in self._untold:
            self._opened.progress.say(
                f"{self._opened.progress.name}, seed {self._first + seed}: the loss is not finite at update {updates}; "
                "it has no scores from there on"
            )
        self._untold = []

    def scores(self, values: Num[np.ndarray, " seeds"]) -> Float[np.ndarray, " seeds"]:
        """Each seed's number; NaN for those that have diverged."""
        return np.where(self.seeds, np.nan, values)


def not_finite(of_seeds: PyTree) -> list[int]:
    """The places of the seeds, which are the first axis, for which some number is not finite."""
    finite = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(of_seeds)]
    return np.flatnonzero(~np.all(jax.device_get(finite), axis=0)).tolist()
