"""Progress without a terminal: few plain lines, a rate that a resume does not flatter, and no noise of others in it."""

import contextlib
import io
import sys

import pytest

from experiments.harness import progress as module
from experiments.harness.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_few_and_the_last_update_is_among_them(clock, capsys):
    progress = Progress("pong", total=1000, unit="frames")
    for step in range(100):
        progress.update(frames=10 * step, loss=0.5)
        clock[0] += 1.0  # the last update is a second old when the run is closed
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pong: 0/1,000 frames · loss 0.5"
    assert lines[1] == "pong: 300/1,000 frames · 10/s · 1:10 left · loss 0.5"
    assert lines[-1] == "pong: 990/1,000 frames · 9.7/s · 0:01 left · loss 0.5"
    assert len(lines) == 5


def test_a_run_too_short_for_a_second_line_has_a_rate_in_its_last_one(clock, capsys):
    progress = Progress("pong", total=20)
    progress.update(frames=10)
    clock[0] += 0.1
    progress.update(frames=20)
    progress.close()
    assert capsys.readouterr().err.splitlines()[-1] == "pong: 20/20 frames · 100/s · 0:00 left"


def test_what_an_earlier_process_did_is_not_speed(clock):
    progress = Progress("pong", total=1_000_000)
    progress.update(frames=900_000)
    assert progress.rate() is None
    clock[0] += 10
    progress.update(frames=901_000)
    assert progress.rate() == 100


def test_an_evaluation_is_shown_and_counts_as_no_speed(clock, capsys):
    progress = Progress("pong", total=1000)
    for frames in (0, 100, 200):
        progress.update(frames=frames)
        clock[0] += 10
    for evaluated in (40, 80, 120, 160):
        clock[0] += 10
        progress.update(frames=200, evaluation_frames=evaluated)
    assert progress.rate() is None
    clock[0] += 10
    progress.update(frames=300)
    assert progress.rate() == 10
    assert "pong: 200/1,000 frames · evaluation frames 160\n" in capsys.readouterr().err


def test_the_quantity_counted_has_the_runs_own_name(clock, capsys):
    Progress("streams", unit="agent_steps").update(agent_steps=12345, accuracy="98 %")
    assert capsys.readouterr().err == "streams: 12,345 agent steps · accuracy 98 %\n"


def test_its_lines_are_not_kept_back_with_the_noise_of_a_library(capsys):
    progress = Progress("pong")
    with contextlib.redirect_stderr(io.StringIO()) as kept:
        progress.say("a line")
        print("noise", file=sys.stderr)
    assert (kept.getvalue(), capsys.readouterr().err) == ("noise\n", "a line\n")
