"""Catch: a ball falls, a paddle of one cell at the bottom has to be under it (Mnih et al., 2014; bsuite's rules)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from envs.games.game import Game, Outcome


class CatchState(NamedTuple):
    """Where things are.

    Attributes:
        row: the ball's row, from the top.
        column: the ball's column.
        paddle: the paddle's column, in the last row.
    """

    row: Int[Array, ""]
    column: Int[Array, ""]
    paddle: Int[Array, ""]


def catch(rows: int = 10, columns: int = 5) -> Game:
    """The game on a board of this size.

    The ball starts in a random column of the first row and falls a row a step; the paddle starts in the middle. Actions
    0, 1, 2 move it left, not at all, right. When the ball is in the last row the episode ends, with reward 1 if the
    paddle is under it and -1 otherwise. Chance alone scores about -0.6, and 1 is perfect.

    Raises:
        ValueError: a board with fewer than 2 rows or columns, or with too few rows to reach every column in time.
    """
    if rows < 2 or columns < 2 or columns // 2 > rows - 1:
        raise ValueError(f"catch: a board of {rows} rows and {columns} columns can't be played")

    def reset(key: jax.Array) -> CatchState:
        column = jax.random.randint(key, (), 0, columns)
        return CatchState(jnp.zeros((), jnp.int32), column, jnp.asarray(columns // 2, jnp.int32))

    def step(state: CatchState, action: Int[Array, ""], key: jax.Array) -> Outcome:
        paddle = jnp.clip(state.paddle + action - 1, 0, columns - 1)
        row = state.row + 1
        down = row == rows - 1
        reward = jnp.where(down, jnp.where(paddle == state.column, 1.0, -1.0), 0.0)
        return Outcome(CatchState(row, state.column, paddle), reward, down)

    def frame(state: CatchState) -> UInt8[Array, "height width"]:
        board = jnp.zeros((rows, columns), jnp.uint8)
        return board.at[state.row, state.column].set(255).at[rows - 1, state.paddle].set(255)

    return Game(reset, step, frame, num_actions=3, shape=(rows, columns), max_steps=rows)
