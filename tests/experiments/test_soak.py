"""Runs that are killed again and again at random moments: `make soak`. Takes minutes, so `make test` leaves it out."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from atari_command import bits, command_line, final_state, finish, folder_of, start
from run_folders import folders_in, typed, written

KILLS = 20
# Rainbow on catch: a prioritized replay that wraps many times, and an iteration a fraction of a second.
OPTIONS = {
    "game": "catch", "agent": "rainbow", "method": "nap", "frames": 192_000, "iteration_frames": 960,
    "min_replay_frames": 480, "replay_capacity": 2000, "num_envs": 4, "batch_size": 8, "update_period": 8,
    "target_period": 16, "log_every": 10, "evaluation_episodes": 4, "lr": 1e-3,
}  # fmt: skip
# Two games of ALE one after the other, then each alone: three runs of ten or twenty iterations, of a second each.
SEQUENCE = {
    "preset": "three-games", "tasks": "breakout,freeway", "passes": 1, "method": "nap", "hidden": 16, "head": "own",
    "frames": 16_000, "iteration_frames": 1600, "evaluation_episodes": 1, "evaluation_epsilon": 1.0,
    "min_replay_frames": 640, "replay_capacity": 2000, "num_envs": 2, "batch_size": 8, "log_every": 10,
}  # fmt: skip


def saved(out: Path) -> int:
    """The last complete checkpoints' numbers, of all runs together."""
    numbers = [
        [int(path.stem) for path in folder.glob("checkpoints/*.json") if path.stem.isdigit()]
        for folder in folders_in(out)
    ]
    return sum(max(of_run, default=0) for of_run in numbers)


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


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_sequence_that_is_killed_and_stopped_ends_as_if_it_were_not(tmp_path):
    def command(out: Path) -> list[str]:
        return ["sequential-atari", *typed(SEQUENCE), "--out", str(out)]

    whole, ended = tmp_path / "whole", tmp_path / "ended"
    finish(command(whole))
    seed = time.time_ns()
    print("seed of the signals:", seed)  # shown when the test fails
    moments = random.Random(seed)
    for life in range(10):
        before = saved(ended)
        with start(command(ended)) as process:
            wait_for_more_than(before, ended, process)
            time.sleep(moments.uniform(0, 1.5))
            assert process.poll() is None, "it ended before it was killed"
            process.send_signal((signal.SIGKILL, signal.SIGTERM)[life % 2])
            process.communicate()
    finish(command(ended))
    folders = [folder.relative_to(whole) for folder in folders_in(whole)]
    assert len(folders) == 3
    assert [folder.relative_to(ended) for folder in folders_in(ended)] == folders
    for folder in folders:
        assert written(ended / folder) == written(whole / folder), folder
