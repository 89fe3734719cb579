"""Moving goals: a walk to the good one of two marked cells; which it is, and where they are, changes by phase."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from envs.games.board import HEIGHT, NUM_ACTIONS, downwards, sideways
from envs.games.game import Game, Outcome


class MovingGoalsState(NamedTuple):
    """Where the agent is.

    Attributes:
        row: from the top.
        column: from the left.
    """

    row: Int[Array, ""]
    column: Int[Array, ""]


def moving_goals(phase: int, size: int = HEIGHT) -> Game:
    """The game in one of its phases; a sequence of tasks goes through several.

    The agent starts in a random cell and moves left, not at all, right, up or down (`envs.games.board`), but not off
    the board. The two marked cells look alike. The episode ends on either of them: with reward 1 on the good one, -1 on
    the bad one. Phases 2k and 2k + 1 have the same marked cells, the good one and the bad one exchanged, so that what
    was learnt in the one is wrong in the other; other phases have others. A game has no memory of its own from episode
    to episode: what changes over time is which phase is played.

    Chance scores about 0, what it gains in a phase it loses in the one with the cells exchanged; 1 is perfect, and
    scores -1 there.

    Args:
        phase: which, from 0.
        size: rows and columns of the board.

    Raises:
        ValueError: a negative phase, or a board with fewer than 2 rows.
    """
    if phase < 0 or size < 2:
        raise ValueError(f"moving_goals: phase is {phase} and size {size}, must be at least 0 and 2")
    good, bad = places(phase, size)
    lower, upper = sorted((good, bad))

    def reset(key: jax.Array) -> MovingGoalsState:
        cell = jax.random.randint(key, (), 0, size * size - 2)  # of those that are not marked
        cell += cell >= lower
        cell += cell >= upper
        return MovingGoalsState(cell // size, cell % size)

    def step(state: MovingGoalsState, action: Int[Array, ""], key: jax.Array) -> Outcome:
        row = jnp.clip(state.row + downwards(action), 0, size - 1)
        column = jnp.clip(state.column + sideways(action), 0, size - 1)
        cell = size * row + column
        reward = 1.0 * (cell == good) - (cell == bad)
        return Outcome(MovingGoalsState(row, column), reward, reward != 0)

    def frame(state: MovingGoalsState) -> UInt8[Array, "height width"]:
        board = jnp.zeros(size * size, jnp.uint8).at[np.array([good, bad])].set(128).reshape(size, size)
        return board.at[state.row, state.column].set(255)

    return Game(reset, step, frame, num_actions=NUM_ACTIONS, shape=(size, size), max_steps=100)


def places(phase: int, size: int = HEIGHT) -> tuple[int, int]:
    """The good cell and the bad one, each as size * row + column."""
    first, second = np.random.default_rng(phase // 2).choice(size * size, 2, replace=False)
    return (int(second), int(first)) if phase % 2 else (int(first), int(second))
