"""A run that is killed twenty times at random moments: `make soak`. It takes minutes, so `make test` leaves it out."""

import random
import subprocess
import time
from pathlib import Path

import pytest
from atari_command import bits, command_line, final_state, finish, folder_of, start

KILLS = 20
# Rainbow on catch: a prioritized replay that wraps many times, and an iteration a fraction of a second.
OPTIONS = {
    "game": "catch", "agent": "rainbow", "method": "nap", "frames": 192_000, "iteration_frames": 960,
    "min_replay_frames": 480, "replay_capacity": 2000, "num_envs": 4, "batch_size": 8, "update_period": 8,
    "target_period": 16, "log_every": 10, "evaluation_episodes": 4, "lr": 1e-3,
}  # fmt: skip


def saved(out: Path) -> int:
    """The last complete checkpoint."""
    return max((int(path.stem) for path in out.glob("atari/*/checkpoints/*.json") if path.stem.isdigit()), default=0)


def wait_for_more_than(before: int, out: Path, process: subprocess.Popen) -> None:
    while saved(out) <= before:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(command_line(OPTIONS, whole))
    seed = time.time_ns()
    print("seed of the kills:", seed)  # shown when the test fails
    moments = random.Random(seed)
    for _ in range(KILLS):
        before = saved(killed)
        with start(command_line(OPTIONS, killed)) as process:
            # Each life gets somewhere, and ends in training, in an evaluation or while a checkpoint is written.
            wait_for_more_than(before, killed, process)
            time.sleep(moments.random())
            assert process.poll() is None, "it ended before it was killed"
            process.kill()
    finish(command_line(OPTIONS, killed))
    ours, theirs = folder_of(killed), folder_of(whole)
    for name in ("metrics.jsonl", "summary.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    states = [final_state(folder, command_line(OPTIONS, whole), 3, (4, 10, 5)) for folder in (ours, theirs)]
    assert bits(states[0]) == bits(states[1])
