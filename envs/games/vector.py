"""A game of `envs.games` many times over, with the interface of `envs.atari.AtariEnvs`: stepped from Python."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from envs.games.game import Game, State
from envs.screens import View, paint
from envs.timestep import Episode, TimeStep


class Playing(NamedTuple):
    """One environment in the middle of an episode.

    Attributes:
        state: the game.
        stack: the last frames, the oldest first; 0 before the episode's start.
        steps: actions taken in this episode.
        earned: the sum of its rewards.
        key: for all that is random.
    """

    state: State
    stack: UInt8[Array, "stack *planes height width"]
    steps: Int[Array, ""]
    earned: Float[Array, ""]
    key: Key[Array, ""]


class Step(NamedTuple):
    """What one environment answers; see `TimeStep`. `episode_return` and `steps` count where `first` is true."""

    reward: Float[Array, ""]
    discount: Float[Array, ""]
    first: Bool[Array, ""]
    episode_return: Float[Array, ""]
    steps: Int[Array, ""]


def start(game: Game, stack: int, key: Key[Array, ""]) -> Playing:
    """A new environment, at the beginning of an episode."""
    key, reset_key = jax.random.split(key)
    state = game.reset(reset_key)
    frames = jnp.zeros((stack, *game.shape), jnp.uint8).at[-1].set(game.frame(state))
    return Playing(state, frames, jnp.zeros((), jnp.int32), jnp.zeros(()), key)


def advance(game: Game, playing: Playing, action: Int[Array, ""]) -> tuple[Playing, Step]:
    """One step; an episode that ends is followed by the next one within the step."""
    key, step_key, reset_key = _keys(playing.key)
    outcome = game.step(playing.state, action, step_key)
    steps, earned = playing.steps + 1, playing.earned + outcome.reward
    over = outcome.terminated | (steps >= game.max_steps)
    frames = jnp.concatenate([playing.stack[1:], game.frame(outcome.state)[None]])
    going_on = Playing(outcome.state, frames, steps, earned, key)
    after = jax.tree.map(functools.partial(jnp.where, over), start(game, frames.shape[0], reset_key), going_on)
    return after, Step(outcome.reward, 1.0 - outcome.terminated, over, earned, steps)


def frame_after(game: Game, playing: Playing, action: Int[Array, ""]) -> UInt8[Array, "*planes height width"]:
    """The frame that a step leads to, also where `advance` goes on with the next episode's first."""
    return game.frame(game.step(playing.state, action, _keys(playing.key)[1]).state)


def _keys(key: Key[Array, ""]) -> Key[Array, "3"]:
    """For what follows a step, for the step, and for the episode that may follow it."""
    return jax.random.split(key, 3)


class GameEnvs:
    """The same game `num_envs` times.

    Args:
        game: the game.
        num_envs: how many.
        seed: any integer; with the actions it determines all that happens.
        stack: frames in an observation.
        frames_per_step: frames that a step counts for.

    Attributes:
        num_envs: as given.
        num_actions: how many there are to choose from.
        observation_shape: of one environment: the frames in it, then the shape of one.
    """

    def __init__(self, game: Game, *, num_envs: int, seed: int, stack: int = 4, frames_per_step: int = 1) -> None:
        if num_envs < 1:
            raise ValueError(f"GameEnvs: num_envs is {num_envs}, must be at least 1")
        self.num_envs, self.num_actions = num_envs, game.num_actions
        self.observation_shape = (stack, *game.shape)
        self._frames_per_step, self._seed = frames_per_step, seed
        self._start = jax.jit(jax.vmap(functools.partial(start, game, stack)))
        self._advance = jax.jit(jax.vmap(functools.partial(advance, game)))
        self._frame_after = jax.jit(jax.vmap(functools.partial(frame_after, game)))
        self._playing: Playing | None = None
        self._last: tuple[Playing, npt.NDArray[np.int32], npt.NDArray[np.bool_]] | None = None
        self._sent: Any = None

    def reset(self, seed: int | None = None) -> TimeStep:
        """Starts every environment afresh from its seed; None keeps the one there was."""
        self._seed = self._seed if seed is None else seed
        self._playing = self._start(jax.random.split(jax.random.key(self._seed), self.num_envs))
        self._sent = self._last = None
        zeros, ones = np.zeros(self.num_envs, np.float32), np.ones(self.num_envs, np.float32)
        return TimeStep(np.asarray(self._playing.stack), zeros, ones, np.ones(self.num_envs, bool), ())

    def send(self, actions: npt.ArrayLike) -> None:
        """Hands every environment its action and returns at once.

        Raises:
            ValueError: actions of another shape, not integers, or out of range.
            RuntimeError: not reset yet, or actions sent before were not received.
        """
        if self._playing is None or self._sent is not None:
            raise RuntimeError("GameEnvs.send(): call reset() first" if self._sent is None else "call recv() first")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions are {actions.dtype} of shape {actions.shape}, must be {self.num_envs} integers")
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(f"actions must lie in 0 to {self.num_actions - 1}, got {actions.min()} to {actions.max()}")
        self._before = self._playing, actions.astype(np.int32)
        self._sent = self._advance(*self._before)

    def recv(self) -> TimeStep:
        """Waits for what the actions sent last have led to.

        Raises:
            RuntimeError: no actions were sent.
        """
        if self._sent is None:
            raise RuntimeError("GameEnvs.recv(): no actions were sent: call send() first")
        self._playing, step = self._sent
        self._sent = None
        told: Any = jax.device_get(step)
        self._last = *self._before, told.first
        episodes = tuple(
            Episode(int(env), float(told.episode_return[env]), self._frames_per_step * int(told.steps[env]))
            for env in np.flatnonzero(told.first)
        )
        return TimeStep(np.asarray(self._playing.stack), told.reward, told.discount, told.first, episodes)

    def view(self, env: int) -> View:
        """What is to be seen of an environment.

        Raises:
            RuntimeError: not reset yet.
        """
        if self._playing is None:
            raise RuntimeError("GameEnvs.view(): call reset() first")
        ended = None
        if self._last is not None and self._last[2][env]:
            ended = paint(np.asarray(self._frame_after(*self._last[:2])[env]))
        return View(paint(np.asarray(self._playing.stack[env, -1])), ended)

    def close(self) -> None:
        """There is nothing to free."""
