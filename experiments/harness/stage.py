"""Where a trained agent plays: the game of its run, as the run had it, to be evaluated or filmed in."""

from __future__ import annotations

import dataclasses
from typing import Any

from envs.atari import PROTOCOLS, AtariEnvs, AtariProtocol
from envs.games import GameEnvs
from envs.scores import Reference
from envs.sequence import Task
from experiments.harness.errors import UserError, unknown

FRAME_SKIP = 4
"""Emulator frames, or what counts for them, of an agent step."""
_SECOND = 60 / FRAME_SKIP
"""Agent steps in a second of a console."""
_LEISURE = 6.0
"""Agent steps in a second of film of a game in JAX, which has no time of its own."""
_BOARD = ("left", "stay", "right", "up", "down")
_MINATAR = ("no-op", "left", "up", "right", "down", "fire")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A game and how it is played.

    Attributes:
        task: the game, and in which of its forms.
        stack: frames in an observation.
        protocol: of a game of ale-py's; None for one in JAX.
        epsilon: probability of a random action in the run's own evaluations.
    """

    task: Task
    stack: int
    protocol: AtariProtocol | None
    epsilon: float

    @property
    def reference(self) -> Reference | None:
        """Scores of random play and of a human tester, if there are any."""
        return self.task.reference

    @property
    def steps_per_second(self) -> float:
        """Agent steps in a second of film."""
        return _LEISURE if self.protocol is None else _SECOND

    def under(self, protocol: str) -> Stage:
        """The same under another of `envs.atari.PROTOCOLS`, with as many actions.

        Raises:
            UserError: there is no such protocol, or the game is none of ale-py's.
        """
        if protocol not in PROTOCOLS:
            raise unknown("a protocol", protocol, PROTOCOLS, option="--protocol")
        if self.protocol is None:
            raise UserError(f"--protocol {protocol}: protocols are of ale-py's games, and {self.task.name} is in JAX")
        new = dataclasses.replace(PROTOCOLS[protocol], full_action_space=self.protocol.full_action_space)
        return dataclasses.replace(self, protocol=new)

    def open(self, num_envs: int, seed: int, *, filmed: bool = False) -> AtariEnvs | GameEnvs:
        """The game so many times; `filmed`: their `view` is to be asked. Close them."""
        task = self.task
        if self.protocol is None:
            return GameEnvs(task.make(), num_envs=num_envs, seed=seed, stack=self.stack, frames_per_step=FRAME_SKIP)
        how: dict[str, Any] = {"mode": task.mode, "difficulty": task.difficulty, "filmed": filmed}
        return AtariEnvs(task.game, protocol=self.protocol, num_envs=num_envs, seed=seed, **how)


def action_names(environments: AtariEnvs | GameEnvs) -> list[str]:
    """What the actions are called, in their order."""
    if isinstance(environments, AtariEnvs):
        return [name.lower() for name in environments.action_meanings]
    planes = len(environments.observation_shape) == 4
    names = _MINATAR if planes else _BOARD
    if environments.num_actions > len(names):
        return [str(number) for number in range(environments.num_actions)]
    return list(names[: environments.num_actions])
