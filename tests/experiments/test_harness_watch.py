"""Of two processes, one that is silent is told of, and one that fails alone ends the other, wherever that one waits."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from two_processes import run_two

from experiments import harness
from experiments.harness import processes, watch


def test_a_silent_process_is_told_of_and_the_failure_of_one_alone_ends_both():
    (first, told), (second, own) = run_two(Path(__file__), "fail")
    assert (first, second) == (2, 2), told
    lines = [line for line in told.splitlines() if line.startswith(("process", "error"))]
    assert lines[0].startswith("process 1 has not answered for 1 s")
    assert lines[1:] == ["process 1 answers again", "error: process 1: no such file"]
    assert "error: no such file" in own.splitlines()


def test_a_process_that_is_killed_ends_the_one_that_computes_with_it():
    (first, told), (second, _) = run_two(Path(__file__), "die")
    assert (first, second) == (1, -signal.SIGKILL), told
    assert "error: another process is gone; " in told and "Traceback" not in told


def test_a_process_that_is_alone_is_not_watched():
    with pytest.raises(harness.UserError, match=r"^wrong$"), watch.watched():
        raise harness.UserError("wrong")
    watch.end_process(2)  # returns


def fail_in_one() -> None:
    """Process 1 stands still until it was told of. Then it fails, while the other one computes nothing with it."""
    ids = processes._told(os.getpid())
    if not processes.writes():
        os.kill(os.getpid(), signal.SIGSTOP)
        raise harness.UserError("no such file")
    say = watch._say_silent

    def say_and_resume(silent: int) -> None:
        say(silent)
        os.kill(ids[silent], signal.SIGCONT)

    watch._say_silent = say_and_resume
    time.sleep(250)  # as for the next batch


def die_in_one() -> None:
    """Process 1 is killed, in the middle of a computation of both."""
    processes.together(lambda: None)
    if not processes.writes():
        os.kill(os.getpid(), signal.SIGKILL)
    processes.together(lambda: None)


def be_process(process: int, port: int, what: str) -> None:
    watch._LOOK_SECONDS, watch._SILENT_SECONDS, watch._GRACE_SECONDS = 0.2, 1.0, 2.0

    def run() -> None:
        processes.join(f"127.0.0.1:{port}", processes=2, process=process)
        with watch.watched():
            {"fail": fail_in_one, "die": die_in_one}[what]()

    exit_code = harness.exit_code_of(run)
    watch.end_process(exit_code)
    sys.exit(exit_code)


if __name__ == "__main__":
    be_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
