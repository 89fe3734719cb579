"""A sequence of games that is over in seconds."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from experiments import harness, sequential_atari
from experiments.harness.methods import OptimizerConfig
from experiments.harness.trained import Arrays, TrainedRun
from experiments.sequential_atari.config import Config, resolve
from nap import paths

# Two games, two passes; a visit has two iterations of 40 steps, the first 16 without an update.
TINY = Config(
    tasks="moving-goals-0,switching-dim",
    passes=2,
    frames=320,
    iteration_frames=160,
    min_replay_frames=64,
    replay_capacity=200,
    num_envs=2,
    evaluation_episodes=2,
    batch_size=4,
    update_period=2,
    target_period=1000,
    log_every=4,
    exploration_frames=160,
    hidden=8,
    seeds=2,
    optimizer=OptimizerConfig(lr=1e-3, schedule="cosine"),
)
UPDATES = (80 - 2 - 16) // 2  # of each visit


def tiny(**changes) -> Config:
    return resolve(dataclasses.replace(TINY, **changes))


def run_one(config: Config, out: Path) -> Path:
    return sequential_atari._run_one(config, harness.RunOptions(out=out))


def rows_of(folder: Path, phase: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["phase"] == phase]


def assert_heads_differ(last: TrainedRun, other: TrainedRun, bank: Arrays, place: tuple[int, ...]) -> None:
    """Two tasks of a run are played by one network but for the output layer: the other's is at a place in a bank."""
    ours, theirs = paths.leaves(last.params), paths.leaves(other.params)
    assert {path for path in ours if not np.array_equal(ours[path], theirs[path])} == bank.keys()
    for path, heads in bank.items():
        np.testing.assert_array_equal(theirs[path], heads[place])
