"""Small games in JAX: pure functions, which run on the device, and under `jit`, `vmap` and `scan`."""

import functools
from collections.abc import Callable, Mapping

from envs.games.bricks import bricks
from envs.games.catch import catch
from envs.games.game import Game
from envs.games.minatar import CLASSES, minatar
from envs.games.moving_goals import moving_goals
from envs.games.permutations import permute_actions, permute_channels
from envs.games.switching import switching
from envs.games.vector import GameEnvs

GAMES: Mapping[str, Callable[[], Game]] = {
    "catch": catch,
    "bricks": bricks,
    **{f"moving-goals-{phase}": functools.partial(moving_goals, phase) for phase in range(8)},
    "switching-bright": functools.partial(switching, "bright"),
    "switching-dim": functools.partial(switching, "dim"),
    **{f"minatar-{name}": functools.partial(minatar, name) for name in CLASSES},
}
"""Makers of the games by name. Those from bricks to switching-dim have the same board and actions, and so have all of
MinAtar, which raises ValueError without pgx."""

__all__ = [
    "GAMES",
    "Game",
    "GameEnvs",
    "bricks",
    "catch",
    "minatar",
    "moving_goals",
    "permute_actions",
    "permute_channels",
    "switching",
]
