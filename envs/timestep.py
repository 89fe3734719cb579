"""What a vector of environments answers to a reset or to one action each."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8


class Episode(NamedTuple):
    """An episode that ended.

    Attributes:
        env: the index of the environment.
        episode_return: the sum of its rewards, unclipped and undiscounted.
        frames: the emulator frames that the agent acted for, no-ops at the start not counted; for other games its
            steps, times the frames that one counts for.
    """

    env: int
    episode_return: float
    frames: int


class TimeStep(NamedTuple):
    """What all environments answer to one action each, or to a reset.

    At the step that ends an episode `reward` and `discount` belong to the old episode and `observation` is the first
    of the new one; the old one's last observation is not given (its discount is 0, or it was truncated).

    Attributes:
        observation: uint8, grey, oldest frame first; in some games of JAX each frame has several planes. At an
            episode's start all but the newest frame are 0.
        reward: summed over the skipped frames, unclipped. 0 at a reset.
        discount: 0 where the game ended, or a life was lost under "zero-discount"; else 1, also where truncated.
        first: whether the observation is the first of an episode: the step before it ended one, whichever way.
        episodes: those that this step ended, by environment.
    """

    observation: UInt8[np.ndarray, "num_envs stack *planes height width"]
    reward: Float32[np.ndarray, " num_envs"]
    discount: Float32[np.ndarray, " num_envs"]
    first: Bool[np.ndarray, " num_envs"]
    episodes: tuple[Episode, ...]
