"""What a game in JAX is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8

State = Any
"""A pytree of arrays; what it holds is the game's own business."""


class Outcome(NamedTuple):
    """What an action led to.

    Attributes:
        state: the game after it.
        reward: float32, what it earned.
        terminated: whether it ended the episode.
    """

    state: State
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]


class Game(NamedTuple):
    """A game as pure functions of one game: `jax.vmap` plays many.

    Attributes:
        reset: `reset(key)`, a new episode.
        step: `step(state, action, key)`, one action; after it ended the episode the state is not stepped again.
        frame: `frame(state)`, what is to be seen, uint8: grey, or planes of grey.
        num_actions: how many actions there are: 0 to num_actions - 1.
        shape: of a frame: height and width, after the number of planes if it has several.
        max_steps: steps after which an episode that goes on is truncated.
    """

    reset: Callable[[jax.Array], State]
    step: Callable[[State, Int[Array, ""], jax.Array], Outcome]
    frame: Callable[[State], UInt8[Array, "*planes height width"]]
    num_actions: int
    shape: tuple[int, ...]
    max_steps: int
