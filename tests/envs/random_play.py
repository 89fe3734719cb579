"""Random play in games of ale-py, and whether two such plays are the same."""

from typing import Any

import numpy as np

from envs.atari import AtariEnvs, AtariProtocol, TimeStep


def rollout(envs: AtariEnvs, steps: int) -> list[TimeStep]:
    """Random actions from the environments' own first reset on."""
    actions = np.random.default_rng(0).integers(envs.num_actions, size=(steps, envs.num_envs))
    return [envs.reset(), *(envs.step(a) for a in actions)]


def play(
    game: str, steps: int, *, protocol: AtariProtocol, num_envs: int = 2, seed: int = 0, **options: Any
) -> list[TimeStep]:
    """A rollout in environments that are made for it."""
    envs = AtariEnvs(game, protocol=protocol, num_envs=num_envs, seed=seed, **options)
    try:
        return rollout(envs, steps)
    finally:
        envs.close()


def assert_same(left: list[TimeStep], right: list[TimeStep]) -> None:
    """Every array of every time step."""
    for t, (a, b) in enumerate(zip(left, right, strict=True)):
        for field in TimeStep._fields:
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=f"{field} at {t}")
