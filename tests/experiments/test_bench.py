"""The benchmark: its ratios and table on made-up times, and one real row."""

import dataclasses
import json
import re
from typing import get_args

import jax.numpy as jnp
import pytest

from experiments import bench
from experiments.harness import memory
from experiments.harness.catalogue import catalogue
from experiments.harness.timing import Goal, Row, interleaved, rates, scaled, table


class MadeUpTime:
    """A clock that only the timed calls move on."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, *seconds: float):
        """A call that takes these seconds in turn, the first one in the warm-up."""
        left = list(seconds)

        def call():
            self.order.append(name)
            self.now += left.pop(0)

        return call


def test_the_sides_take_turns_and_the_first_calls_are_not_timed():
    clock = MadeUpTime()
    sides = {"a": clock.side("a", 99, 1, 2, 3), "b": clock.side("b", 99, 4, 5, 6)}
    assert interleaved(sides, repeats=3, clock=clock) == {"a": (1, 2, 3), "b": (4, 5, 6)}
    assert "".join(clock.order) == "ab" + "ab" + "ba" + "ab"


def test_the_median_of_the_calls_in_a_repeat_counts():
    clock = MadeUpTime()
    sides = {"a": clock.side("a", 99, 1, 50, 2, 7, 7, 100)}
    assert interleaved(sides, repeats=2, calls=3, clock=clock) == {"a": (2, 7)}


def test_a_ratio_is_the_median_of_the_repeats_ratios():
    # The machine is 10 times slower in the second repeat: the medians' ratio would be 3 / 2.
    row = Row("x", "ms", ours=(1.1, 22.0, 3.0), reference=(1.0, 20.0, 2.0), goal=Goal(1.2))
    assert row.ratios == pytest.approx((1.1, 1.1, 1.5))
    assert row.ratio == pytest.approx(1.1)
    assert row.met is True


@pytest.mark.parametrize(
    ("goal", "met"), [(Goal(1.0), True), (Goal(0.9), False), (Goal(1.0, at_least=True), True), (None, None)]
)
def test_a_goal_is_met_up_to_its_limit(goal, met):
    assert Row("x", "ms", (2.0,), (2.0,), goal).met is met


def test_a_row_may_stand_alone():
    row = Row("x", "ms", (1.0, 3.0))
    assert (row.ratio, row.met, row.as_json()["goal"]) == (None, None, None)


def test_units():
    assert scaled((0.5, 2.0), 1e3) == (500.0, 2000.0)
    assert rates((0.5, 2.0), 10) == (20.0, 5.0)


def test_the_table_is_aligned_and_says_what_is_met():
    rows = [
        Row("an update", "ms", (10.3, 10.4, 10.2), (10.0, 10.0, 10.0), Goal(1.02)),
        Row("a loop", "steps/s", (170.0,), (200.0,), Goal(0.8, at_least=True)),
        Row("  alone", "steps/s", (1234.5,)),
    ]
    assert table(rows).splitlines() == [
        "what        ours  reference  unit     ratio      from - to  goal     met",
        "---------  -----  ---------  -------  -----  -------------  -------  ---",
        "an update  10.30      10.00  ms       1.030  1.020 - 1.040  <= 1.02  NO",
        "a loop     170.0      200.0  steps/s  0.850  0.850 - 0.850  >= 0.80  yes",
        "  alone     1234             steps/s",
    ]


def test_the_replay_is_measured_for_real(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench.atari, "REPLAY_CALLS", 2)
    monkeypatch.setattr(bench, "matmul_peak", lambda repeats: 1e9)
    assert bench.main(["--repeats", "2", "--only", "replay", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "bench" / "bench.txt").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "bench" / "bench.json").read_text(encoding="utf-8"))
    assert figures["machine"]["float32 matmul peak"] == "1 GFLOP/s"
    goals = [(row["unit"], row["goal"], len(row["ours"])) for row in figures["rows"]]
    assert goals == [("µs", "<= 1.10", 2), ("µs", "<= 1.10", 2), ("µs", None, 2)]
    assert all(seconds > 0 for row in figures["rows"] for seconds in row["ours"] + row["reference"])


def test_a_resumed_rainbow_is_the_one_that_was_saved_bit_for_bit():
    """The benchmark of a million steps with 10,000, of which the frames are a large array of a checkpoint too."""
    small = dataclasses.replace(bench.checkpoint.CONFIG, replay_capacity=10_000, hidden=16, batch_size=4)
    rows = {row.what.strip(): row for row in bench.checkpoint.rows(1, small)}
    assert set(rows) == {
        "saving a checkpoint, 10,000 steps in replay",
        "restoring it in another process",
        "its size, vs the arrays in memory",
        "what was restored: equal arrays, of all",
        "the next batch drawn: equal arrays, of all",
        "all after 50 updates: equal arrays, of all",
    }
    assert [row.met for row in rows.values()] == [None] * 3 + [True] * 3
    assert rows["its size, vs the arrays in memory"].reference[0] * 1e9 > 10_000 * 7069


def test_an_array_that_is_not_restored_is_noticed(monkeypatch):
    one = {"a": "1", "b": "2"}
    whole = bench.checkpoint.Found(one, one, one, 50, (1.0,), 7.0)
    found = iter([whole, whole._replace(drawn={"a": "1", "b": "3"}, later={"a": "1"})])
    monkeypatch.setattr(bench.checkpoint, "_in_a_process_of_its_own", lambda *_: next(found))
    restored, drawn, later = list(bench.checkpoint.rows(1))[3:]
    assert [(row.ratio, row.met) for row in (restored, drawn, later)] == [(1.0, True), (0.5, False), (0.5, False)]


def test_a_digest_is_of_the_bytes():
    array = jnp.zeros((3, 5, 2), jnp.uint8)
    same, changed = jnp.zeros((3, 5, 2), jnp.uint8), array.at[2, 4, 1].set(1)
    digest = bench.checkpoint._digests
    assert digest({"a": array}) == digest({"a": same}) != digest({"a": changed})


def test_what_does_not_fit_is_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 7_000_000_000)
    assert list(bench.checkpoint.rows(1)) == []
    assert re.match(r"replay and learner 7\.\d\d GB: .* free there; no checkpoint is", capsys.readouterr().err)


@pytest.mark.parametrize("argv", [["--repeats", "0"], ["--only", "projecton"]])
def test_bad_input_ends_with_exit_code_2(argv, capsys):
    assert bench.main(argv) == 2
    assert argv[0].strip("-") in capsys.readouterr().err


def test_the_command_is_found_and_knows_each_benchmark():
    assert catalogue()["bench"].description == (bench.__doc__ or "").partition("\n")[0]
    assert tuple(bench.BENCHMARKS) == get_args(bench.Name)


def test_only_what_is_asked_for_is_measured(tmp_path, capsys, monkeypatch):
    rows = [Row("made up", "ms", (2.0,), (1.0,), Goal(1.0))]
    monkeypatch.setattr(bench, "matmul_peak", lambda repeats: 1e9)
    monkeypatch.setattr(bench, "BENCHMARKS", {"plasticity": lambda repeats: rows * repeats})
    assert bench.main(["--repeats", "2", "--only", "plasticity", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"{table(rows * 2)}\n")


def test_without_stable_baselines3_a_line_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(bench.in_sb3.importlib.util, "find_spec", lambda name: None)
    assert list(bench.in_sb3.rows(2)) == []
    assert "pip install stable-baselines3" in capsys.readouterr().err
