"""Playing without learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from agents.loops import Environments
from nap.paths import PyTree


@runtime_checkable  # for the tests, which check types at run time
class Player(Protocol):
    """Whoever chooses actions; `agents.loops.Functions` do."""

    @property
    def play(self) -> Callable[..., Any]:
        """`play(params, observations, epsilon, key, step)`, an action for each observation."""
        ...


def evaluate(
    functions: Player,
    params: PyTree,
    environments: Environments,
    *,
    epsilon: float,
    key: jax.Array,
    seed: int,
    episodes: int = 0,
    steps: int = 0,
    on_step: Callable[[int], None] = lambda agent_steps: None,
) -> list[float]:
    """Raw returns of complete episodes from a reset, played without a noisy network's noise.

    With `episodes` every environment plays the same number of them, and its first ones count. To take whichever
    episodes end first would favour short ones, which in most games are bad ones. With `steps` the episodes that
    begin within them count, and are played to their end: to leave out those that are cut off would favour short ones
    as well. (DQN Zoo leaves one out, that of its single environment.)

    Args:
      functions: from `agents.loops.make_functions`, or another player.
      params: the Q-network's parameters.
      environments: they are reset first, so those of training will do, between two of its iterations.
      epsilon: probability of a random action.
      key: random key.
      seed: what the environments are reset with.
      episodes: how many, rounded up to a multiple of the number of environments.
      steps: how many agent steps over all environments, instead of a number of episodes; some more are played.
      on_step: `on_step(agent_steps)`, after every step of the environments; may raise to stop.
    """
    wanted, last = math.ceil(episodes / environments.num_envs), steps // environments.num_envs
    returns: list[list[float]] = [[] for _ in range(environments.num_envs)]
    time_step, step = environments.reset(seed), 0
    unfinished: set[int] = set()  # the environments in an episode that the last of the steps lies in
    while step < last or unfinished or min(map(len, returns)) < wanted:
        actions = functions.play(params, time_step.observation, np.float32(epsilon), key, np.int64(step))
        environments.send(np.asarray(actions))
        time_step, step = environments.recv(), step + 1
        for episode in time_step.episodes:
            if wanted or step <= last or episode.env in unfinished:
                returns[episode.env].append(episode.episode_return)
                unfinished.discard(episode.env)
        if step == last:
            unfinished = set(np.flatnonzero(~time_step.first).tolist())
        on_step(step * environments.num_envs)
    return [value for played in returns for value in (played[:wanted] if wanted else played)]
