"""Games played by a policy written by hand, with nothing of the games' environments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.games import Game

Policy = Callable[[Any, jax.Array], jax.Array]
"""policy(state, key), an action."""


class Played(NamedTuple):
    """The returns of some episodes, how many steps each took, and which ended before their limit of steps."""

    returns: np.ndarray
    steps: np.ndarray
    terminated: np.ndarray


def play(game: Game, policy: Policy, episodes: int, seed: int = 0) -> Played:
    def episode(key):
        def step(carry, key):
            state, alive, earned, steps = carry
            policy_key, step_key = jax.random.split(key)
            outcome = game.step(state, policy(state, policy_key), step_key)
            return (outcome.state, alive & ~outcome.terminated, earned + alive * outcome.reward, steps + alive), None

        reset_key, key = jax.random.split(key)
        start = (game.reset(reset_key), jnp.asarray(True), jnp.zeros(()), jnp.zeros((), int))
        _, alive, earned, steps = jax.lax.scan(step, start, jax.random.split(key, game.max_steps))[0]
        return Played(earned, steps, ~alive)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), episodes)))


def chance(game: Game) -> Policy:
    return lambda state, key: jax.random.randint(key, (), 0, game.num_actions)
