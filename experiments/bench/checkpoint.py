"""Resuming Rainbow with a million steps in replay: what that costs, and whether anything is lost.

One process fills the replay, trains, saves, and trains on. Another one restores what was saved, and trains on. What the
two have is compared by a digest of each array. They come one after the other, for each holds the replay.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from agents.loops import Environments, Functions, Hooks, LoopState, Schedule, train
from agents.replay import Step
from envs.timestep import TimeStep
from experiments import harness
from experiments.atari.agent import build, replay_of
from experiments.atari.config import PRESETS, STACK, Config
from experiments.harness.checkpoint import Checkpoints
from experiments.harness.memory import bytes_of, require_memory
from experiments.harness.timing import Goal, Row, interleaved

ACTIONS, OBSERVATION = 6, (STACK, 84, 84)
AGENT_STEPS = 200
"""Trained for before the checkpoint, and again behind it."""
CONFIG = dataclasses.replace(PRESETS["rainbow"], method="nap")

Digests = dict[str, str]
"""Of each array, by its path."""


class Found(NamedTuple):
    """What a process has and measured.

    Attributes:
        at_checkpoint: the state that was saved, or restored.
        drawn: a batch drawn from its replay.
        later: the state after more training.
        updates: made by then.
        seconds: of saving, or restoring.
        gigabytes: of the state.
    """

    at_checkpoint: Digests
    drawn: Digests
    later: Digests
    updates: int
    seconds: tuple[float, ...]
    gigabytes: float


def rows(repeats: int, config: Config = CONFIG) -> Iterator[Row]:
    """Saved once or twice, as it is gigabytes. Nothing where they do not fit into memory."""
    needed = bytes_of(jax.eval_shape(build(config, ACTIONS, OBSERVATION).init, jax.random.key(0)))
    try:
        require_memory({"replay and learner": needed}, jax.devices()[0], "no checkpoint is measured")
    except harness.UserError as error:
        print(error, file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = _in_a_process_of_its_own(_saving, config, Path(folder), min(repeats, 2))
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2e9  # two are kept
        resumed = _in_a_process_of_its_own(_resuming, config, Path(folder))
    yield Row(f"saving a checkpoint, {config.replay_capacity:,} steps in replay", "s", whole.seconds)
    yield Row("  restoring it in another process", "s", resumed.seconds)
    yield Row("  its size, vs the arrays in memory", "GB", (on_disk,), (whole.gigabytes,))
    compared = {
        "what was restored": (resumed.at_checkpoint, whole.at_checkpoint),
        "the next batch drawn": (resumed.drawn, whole.drawn),
        f"all after {resumed.updates} updates": (resumed.later, whole.later),
    }
    for what, (ours, theirs) in compared.items():
        equal = sum(ours.get(path) == digest for path, digest in theirs.items())
        yield Row(f"  {what}: equal arrays, of all", "arrays", (equal,), (len(theirs),), Goal(1.0, at_least=True))


def _saving(config: Config, folder: Path, saves: int) -> Found:
    functions, environments = build(config, ACTIONS, OBSERVATION), _Random(config.num_envs)
    state = _with_experience(functions, environments, config)
    state = _trained(functions, environments, config, state, iteration=1)
    checkpoints, numbers = Checkpoints(folder, {}), itertools.count(1)
    sides = {"save": lambda: checkpoints.save(next(numbers), state, {})}
    seconds = interleaved(sides, repeats=saves)["save"]
    return _found(functions, environments, config, state, seconds)


def _resuming(config: Config, folder: Path) -> Found:
    functions = build(config, ACTIONS, OBSERVATION)
    like = jax.eval_shape(functions.init, jax.random.key(0))._replace(agent_steps=np.zeros([], np.int64))
    started = time.perf_counter()
    state = jax.block_until_ready(Checkpoints(folder, {}).restore(like, lambda marks: None).state)
    seconds = (time.perf_counter() - started,)
    return _found(functions, _Random(config.num_envs), config, state, seconds)


def _found(
    functions: Functions, environments: _Random, config: Config, state: LoopState, seconds: tuple[float, ...]
) -> Found:
    gigabytes, at_checkpoint = bytes_of(state) / 1e9, _digests(state)
    drawn = _digests(replay_of(config, OBSERVATION).sample(state.replay, jax.random.key(2)))
    before = int(state.agent.updates)
    state = _trained(functions, environments, config, state, iteration=2)
    updates = int(state.agent.updates) - before
    return Found(at_checkpoint, drawn, _digests(state), updates, seconds, gigabytes)


def _with_experience(functions: Functions, environments: Environments, config: Config) -> LoopState:
    """A fresh learner whose replay has been written round once, and a hundredth of it again."""
    state, rng, now = functions.init(jax.random.key(0)), np.random.default_rng(0), environments.reset(0)
    replay = state.replay
    for _ in range(_filling(config) // config.num_envs):
        actions = cast(jax.Array, rng.integers(0, ACTIONS, config.num_envs, np.int32))
        before, now = now, environments.recv()
        replay = functions.add(replay, Step(before.observation[:, -1], actions, now.reward, now.discount, before.first))
    return LoopState(state.agent, replay, np.asarray(_filling(config), np.int64))


def _filling(config: Config) -> int:
    """The agent steps that do that."""
    return math.ceil(1.01 * config.replay_capacity / config.num_envs) * config.num_envs


def _trained(
    functions: Functions, environments: _Random, config: Config, state: LoopState, iteration: int
) -> LoopState:
    """The state after an iteration of a run's own loop; the first update is due when the replay has been filled."""
    schedule = Schedule(config.update_period, _filling(config), config.log_every, lambda _: 0.0)
    hooks = Hooks(lambda _: None, lambda *_: None, lambda _: None)
    key = jax.random.key(1)
    return train(functions, schedule, state, environments, key=key, seed=iteration, steps=AGENT_STEPS, hooks=hooks)


class _Random:
    """Environments of random frames, rewards, lost lives and ends of episodes, the same after each reset by a seed."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def reset(self, seed: int) -> TimeStep:
        self._rng = np.random.default_rng(seed)
        self._observation = np.zeros((self.num_envs, *OBSERVATION), np.uint8)
        return self.recv()._replace(first=np.ones(self.num_envs, bool))

    def send(self, actions: np.ndarray) -> None:
        pass

    def recv(self) -> TimeStep:
        n, rng = self.num_envs, self._rng
        frames = np.frombuffer(rng.bytes(n * 84 * 84), np.uint8).reshape(n, 1, 84, 84)
        self._observation = np.concatenate([self._observation[:, 1:], frames], axis=1)
        reward, discount = rng.normal(size=n).astype(np.float32), (rng.random(n) > 0.005).astype(np.float32)
        return TimeStep(self._observation, reward, discount, rng.random(n) < 0.002, ())


def _digests(tree: Any) -> Digests:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _digest(leaf) for path, leaf in leaves}


def _digest(leaf: Any) -> str:
    """Of an array's bytes, where they lie. No view of them may stay, or the next update would copy what it is given."""
    return hashlib.blake2b(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data).hexdigest()


def _in_a_process_of_its_own(function: Callable[..., Found], *arguments: Any) -> Found:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_with_compilation_cache, functools.partial(function, *arguments)).result()
        except BrokenProcessPool:
            raise harness.RunStopped("a process of the benchmark was killed; was there too little memory?") from None


def _with_compilation_cache(function: Callable[[], Found]) -> Found:
    harness.enable_compilation_cache()
    return function()
