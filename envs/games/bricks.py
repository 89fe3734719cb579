"""Bricks: a ball between a wall of bricks above and a paddle below, after the arcade game of 1976."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from envs.games.board import HEIGHT, NUM_ACTIONS, WIDTH, sideways
from envs.games.game import Game, Outcome

TOP, ROWS = 1, 3
START, PADDLE = 4, HEIGHT - 1


class BricksState(NamedTuple):
    """Where things are, and where the ball is going.

    Attributes:
        row: the ball's row, from the top.
        column: the ball's column.
        down: rows that the ball moves by in a step: 1, or -1 upwards.
        right: columns that it moves by: -1, 0 or 1.
        paddle: the column of the paddle's middle, in the last row.
        wall: which bricks there are.
    """

    row: Int[Array, ""]
    column: Int[Array, ""]
    down: Int[Array, ""]
    right: Int[Array, ""]
    paddle: Int[Array, ""]
    wall: Bool[Array, "rows width"]


def bricks() -> Game:
    """The game, on the board and with the actions of `envs.games.board`.

    Three rows of bricks lie below an empty one. The ball starts in row 4, in a random column, downwards, with a random
    sideways direction (left, none, right); the paddle, three cells wide, starts in column 5. A step goes as follows:

    1. LEFT and RIGHT move the paddle by a cell, its middle to no column beyond the board's.
    2. The ball turns back from a side or the top if its next cell, one row and up to one column on, is beyond it.
    3. If the next cell holds a brick, the brick goes, for a reward of 1; the ball stays where it is for this step and
       turns up or down. It passes between two bricks that touch at their corners.
    4. If the next cell is the paddle's, the ball stays where it is for this step and turns up: from the paddle's left
       cell to the left, from its right cell to the right, from its middle straight. If no brick is left, a new wall
       stands from then on.
    5. Otherwise the ball moves on; if it is then in the last row, the episode ends.

    So every brick can be hit, and who follows the ball never loses: with a random part of the paddle that scores about
    20 within an episode's 500 steps. Chance scores about 0.6.
    """

    def reset(key: jax.Array) -> BricksState:
        column_key, right_key = jax.random.split(key)
        column = jax.random.randint(column_key, (), 0, WIDTH)
        right = jax.random.randint(right_key, (), -1, 2)
        row, down, paddle = (jnp.asarray(number, jnp.int32) for number in (START, 1, WIDTH // 2))
        return BricksState(row, column, down, right, paddle, jnp.ones((ROWS, WIDTH), bool))

    def step(state: BricksState, action: Int[Array, ""], key: jax.Array) -> Outcome:
        paddle = jnp.clip(state.paddle + sideways(action), 0, WIDTH - 1)
        right, down, wall = state.right, state.down, state.wall
        beyond = state.column + right
        right = jnp.where((beyond < 0) | (beyond >= WIDTH), -right, right)
        down = jnp.where(state.row + down < 0, 1, down)
        row, column = state.row + down, state.column + right

        in_wall = (row >= TOP) & (row < TOP + ROWS)
        brick = in_wall & wall[jnp.clip(row - TOP, 0, ROWS - 1), column]
        saved = (row == PADDLE) & (abs(column - paddle) <= 1)
        wall = wall & ~(brick & _at(row - TOP, column))
        wall = wall | (saved & ~wall.any())
        stays = brick | saved
        after = BricksState(
            row=jnp.where(stays, state.row, row),
            column=jnp.where(stays, state.column, column),
            down=jnp.where(stays, -down, down),
            right=jnp.where(saved, column - paddle, right),
            paddle=paddle,
            wall=wall,
        )
        return Outcome(after, brick.astype(jnp.float32), after.row == PADDLE)

    def frame(state: BricksState) -> UInt8[Array, "height width"]:
        board = jnp.zeros((HEIGHT, WIDTH), jnp.uint8)
        board = board.at[TOP : TOP + ROWS].set(jnp.where(state.wall, 128, 0).astype(jnp.uint8))
        paddle = abs(jnp.arange(WIDTH) - state.paddle) <= 1
        board = board.at[PADDLE].set(jnp.where(paddle, 255, 0).astype(jnp.uint8))
        return board.at[state.row, state.column].set(255)

    return Game(reset, step, frame, num_actions=NUM_ACTIONS, shape=(HEIGHT, WIDTH), max_steps=500)


def _at(row: Int[Array, ""], column: Int[Array, ""]) -> Bool[Array, "rows width"]:
    """The wall's place in this row and column; none if they are outside it."""
    return (jnp.arange(ROWS)[:, None] == row) & (jnp.arange(WIDTH) == column)
