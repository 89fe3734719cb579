"""How steps and updates alternate in the loop of `agents.compiled`."""

from __future__ import annotations

from typing import NamedTuple


class Round(NamedTuple):
    """The shortest part of training that repeats.

    Attributes:
      steps: how often all environments are stepped; the updates come with the first of these steps.
      updates: updates.
    """

    steps: int
    updates: int

    @classmethod
    def of(cls, num_envs: int, update_period: int) -> Round:
        """The round of so many environments and agent steps for each update; ValueError if neither is a multiple."""
        if update_period % num_envs == 0:
            return cls(update_period // num_envs, 1)
        if num_envs % update_period == 0:
            return cls(1, num_envs // update_period)
        nearest = max(1, round(update_period / num_envs)) * num_envs
        raise ValueError(
            f"{num_envs} environments and an update every {update_period} agent steps: one must be a multiple of the "
            f"other; the nearest is an update every {nearest}"
        )
