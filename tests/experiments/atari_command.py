"""Atari runs in processes of their own, as users have them, and what they leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from run_folders import completed, rows

from experiments import atari, harness
from experiments.harness.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]


def command_line(options: dict[str, Any], out: Path, *flags: str) -> list[str]:
    """The arguments after `python -m experiments`."""
    return ["atari", *completed(flags, options), "--out", str(out)]


def start(argv: list[str]) -> subprocess.Popen:
    # One device, as users have, not the tests' eight; and compiled as theirs.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments", *argv]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, encoding="utf-8")


def finish(argv: list[str]) -> None:
    process = start(argv)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def folder_of(out: Path) -> Path:
    (folder,) = (out / "atari").iterdir()
    return folder


def records(folder: Path, phase: str = "train") -> list[dict]:
    return rows(folder, phase)


def final_state(folder: Path, argv: list[str], num_actions: int, observation: tuple[int, int, int]) -> Any:
    """What the last checkpoint holds of the run that these arguments started: the learner and the replay."""
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config, _ = harness.parse_command(atari.Config, argv[1:], name="atari", description=None)
    functions = atari.build(config, num_actions, observation)
    shapes = jax.eval_shape(functions.init, jax.random.key(0))._replace(agent_steps=np.zeros([], np.int64))
    identity = {name: about[name] for name in ("experiment", "config")}
    begun = atari.new_stretch(config.iteration_frames // atari.FRAME_SKIP, config.num_envs)
    saved = Checkpoints(folder / "checkpoints", identity).restore(
        (shapes, np.zeros([]), np.zeros([], bool), begun), lambda marks: None
    )
    assert saved.iteration == config.iterations
    return saved.state[0]


def bits(state: Any) -> list[tuple]:
    """Path, dtype and bytes of everything in a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for path, leaf in leaves]
