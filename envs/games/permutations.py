"""Games made of others: the same rules with what is seen, or what the actions are called, in another order.

A sequence of them is a sequence of tasks in which all that was learnt has to be learnt anew, though the game is as hard
as it was.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from envs.games.game import Game, Outcome, State


def permute_channels(game: Game, seed: int) -> Game:
    """The game with the planes of its frames in a random order, the same in every frame.

    Raises:
        ValueError: its frames have no planes.
    """
    if len(game.shape) != 3:
        raise ValueError(f"permute_channels: frames of shape {game.shape} have no planes to permute")
    order = np.random.default_rng(seed).permutation(game.shape[0])

    def frame(state: State) -> UInt8[Array, "planes height width"]:
        return game.frame(state)[order]

    return game._replace(frame=frame)


def permute_actions(game: Game, seed: int) -> Game:
    """The game with its actions in a random order."""
    order = np.random.default_rng(seed).permutation(game.num_actions)

    def step(state: State, action: Int[Array, ""], key: jax.Array) -> Outcome:
        return game.step(state, jnp.asarray(order)[action], key)

    return game._replace(step=step)
