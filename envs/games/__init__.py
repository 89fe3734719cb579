"""Small games in JAX: pure functions, which run on the device, and under `jit`, `vmap` and `scan`."""

from envs.games.catch import catch
from envs.games.game import Game
from envs.games.vector import GameEnvs

GAMES = {"catch": catch}
"""The games by name."""

__all__ = ["GAMES", "Game", "GameEnvs", "catch"]
