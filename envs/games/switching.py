"""Switching: two balls fall, and one has to be caught, the other avoided; which is which depends on the task."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from envs.games.board import HEIGHT, NUM_ACTIONS, WIDTH, sideways
from envs.games.game import Game, Outcome

SwitchingTask = Literal["bright", "dim"]
"""The ball to catch."""


class SwitchingState(NamedTuple):
    """Where things are.

    Attributes:
        row: the row of both balls, from the top.
        bright: the bright ball's column.
        dim: the dim ball's column.
        paddle: the paddle's column, in the last row.
    """

    row: Int[Array, ""]
    bright: Int[Array, ""]
    dim: Int[Array, ""]
    paddle: Int[Array, ""]


def switching(task: SwitchingTask) -> Game:
    """The game with one of its two tasks, on the board and with the actions of `envs.games.board`.

    A bright and a dim ball start in two random columns of the first row and fall a row a step; the paddle of one cell
    starts in column 5 and moves with LEFT and RIGHT. When the balls are in the last row the episode ends: with reward 1
    if the paddle is under the ball of the task, -1 if it is under the other, 0 if under neither. Nothing that can be
    seen tells the task, so what was learnt in one earns the opposite in the other.

    Chance scores 0 in both; 1 is perfect, and scores -1 in the other task.

    Raises:
        ValueError: no such task.
    """
    if task not in get_args(SwitchingTask):
        raise ValueError(f"switching: task is {task!r}, must be 'bright' or 'dim'")
    bright_is_worth = 1.0 if task == "bright" else -1.0

    def reset(key: jax.Array) -> SwitchingState:
        bright_key, dim_key = jax.random.split(key)
        bright = jax.random.randint(bright_key, (), 0, WIDTH)
        dim = (bright + jax.random.randint(dim_key, (), 1, WIDTH)) % WIDTH
        return SwitchingState(jnp.zeros((), jnp.int32), bright, dim, jnp.asarray(WIDTH // 2, jnp.int32))

    def step(state: SwitchingState, action: Int[Array, ""], key: jax.Array) -> Outcome:
        paddle = jnp.clip(state.paddle + sideways(action), 0, WIDTH - 1)
        row = state.row + 1
        down = row == HEIGHT - 1
        caught = 1 * (paddle == state.bright) - (paddle == state.dim)
        return Outcome(SwitchingState(row, state.bright, state.dim, paddle), bright_is_worth * down * caught, down)

    def frame(state: SwitchingState) -> UInt8[Array, "height width"]:
        board = jnp.zeros((HEIGHT, WIDTH), jnp.uint8)
        board = board.at[state.row, state.bright].set(255).at[state.row, state.dim].set(128)
        return board.at[HEIGHT - 1, state.paddle].set(255)

    return Game(reset, step, frame, num_actions=NUM_ACTIONS, shape=(HEIGHT, WIDTH), max_steps=HEIGHT)
