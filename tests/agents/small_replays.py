"""Replays of both kinds, small, and the transitions of their samples."""

import functools

import jax
import numpy as np
import pytest

from agents.prioritized import make_prioritized_replay
from agents.replay import make_replay, transitions

GAMMA = 0.9
SHAPE = (1, 2)  # two bytes: room for a frame's number, up to 65,535
MAKERS = {"uniform": make_replay, "prioritized": functools.partial(make_prioritized_replay, uniform_probability=0.1)}
KINDS = pytest.mark.parametrize("kind", MAKERS)


@functools.cache
def batched(stack: int, n_step: int, clip_reward: bool = False):
    one = functools.partial(transitions, stack=stack, n_step=n_step, gamma=GAMMA, clip_reward=clip_reward)
    return jax.jit(jax.vmap(one))


def at(batch, index: int):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], batch)
