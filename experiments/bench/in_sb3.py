"""DQN's whole loop on Pong against that of Stable-Baselines3, in PyTorch: a public implementation that is kept up.

Both have the Nature CNN, ALE Pong with sticky actions, batches of 32, an update every four agent steps and no
normalization. It is optional, and a line says how to install it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import ale_py
import gymnasium

from envs.atari import PROTOCOLS, AtariEnvs
from experiments.atari import Config
from experiments.bench.atari import VECTOR_STEPS, training_of
from experiments.harness.cores import cores_here
from experiments.harness.timing import Row, interleaved, left_out, rates

REPLAY = 20_000  # steps; its default of a million takes 28 GB
_learners: dict[tuple[int, int], Any] = {}  # of a process of its own, by environments and threads


def rows(repeats: int) -> Iterator[Row]:
    """Agent steps a second, against each number of environments and threads."""
    if importlib.util.find_spec("stable_baselines3") is None:
        left_out(
            "stable-baselines3",
            "there is none to compare with: pip install stable-baselines3 opencv-python-headless torch",
        )
        return
    config = dataclasses.replace(Config(method="none"), replay_capacity=REPLAY)
    steps, cores = VECTOR_STEPS * config.num_envs, len(cores_here())
    variants = [(envs, threads) for envs in (1, config.num_envs) for threads in sorted({1, cores})]
    environments = AtariEnvs("pong", protocol=PROTOCOLS["machado"], num_envs=config.num_envs, seed=0)
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, spawn) as process:

            def theirs(envs: int, threads: int) -> None:
                process.submit(train, envs, threads, steps, config.update_period).result()

            sides: dict[str, Callable[[], Any]] = {"ours": training_of(config, environments, steps)}
            sides |= {_name(*variant): functools.partial(theirs, *variant) for variant in variants}
            times = interleaved(sides, repeats=repeats)
    finally:
        environments.close()
    ours = rates(times["ours"], steps)
    for variant in variants:
        yield Row(f"DQN loop, none, vs {_name(*variant)}", "agent steps/s", ours, rates(times[_name(*variant)], steps))


def train(envs: int, threads: int, steps: int, update_period: int) -> None:
    """Trains for so many agent steps more; those before the first update are taken at the first call."""
    importlib.import_module("torch").set_num_threads(threads)
    learner = _learners.get((envs, threads))
    if learner is None:
        learner = _learners[envs, threads] = _make(envs, update_period)
        learner.learn(learner.learning_starts + update_period)
    learner.learn(steps, reset_num_timesteps=False)


def _make(envs: int, update_period: int) -> Any:
    gymnasium.register_envs(ale_py)
    sb3 = importlib.import_module("stable_baselines3")
    make = importlib.import_module("stable_baselines3.common.env_util").make_atari_env
    options = {"frameskip": 1, "repeat_action_probability": 0.25}  # the skip is its wrapper's
    games = make("ALE/Pong-v5", n_envs=envs, env_kwargs=options)
    stacked = importlib.import_module("stable_baselines3.common.vec_env").VecFrameStack(games, 4)
    together = max(1, update_period // envs)
    return sb3.DQN(
        "CnnPolicy",
        stacked,
        batch_size=32,
        buffer_size=REPLAY,
        learning_starts=500,
        train_freq=together,
        gradient_steps=together * envs // update_period,
    )


def _name(envs: int, threads: int) -> str:
    return f"Stable-Baselines3 ({envs} environment{'s' * (envs > 1)}, {threads} thread{'s' * (threads > 1)})"
