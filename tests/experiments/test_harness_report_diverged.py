"""Runs that ended as all of their seeds had diverged, before an evaluation could show it: they are not unfinished."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import PlasticityConfig, plasticity_rows, write_plasticity_run
from test_harness_atari_report import write_run
from test_harness_plasticity_report import Tables
from worked_sequences import FRESH, NAP, NONE, config_of, write, write_fresh

from envs.scores import REFERENCES
from experiments.harness.errors import UserError
from experiments.harness.folder import DIVERGED
from experiments.harness.read import load_runs
from experiments.harness.report import write_report
from experiments.harness.report.atari_scores import Scores, scores_of


def diverge(folder: Path, updates: int) -> None:
    (folder / DIVERGED).write_text(f'{{"updates": {updates}}}', encoding="utf-8")


def page_of(out: Path) -> Tables:
    return Tables(write_report([out]).read_text(encoding="utf-8"))


def test_a_game(tmp_path):
    write_run(tmp_path, "pong", "nap", 0, [1.0, 2.0, 3.0])
    write_run(tmp_path, "pong", "nap", 1, [1.0], finish=False)
    diverge(write_run(tmp_path, "pong", "none", 0, [1.0, 2.0], finish=False), 1234)
    page = page_of(tmp_path)
    assert "1 of them has not finished. 1 of them diverged, by update 1,234." in page.words
    states = {(row[1], row[2]): row[-1] for row in page.tables[0] if row[2] in "01"}
    assert states == {
        ("none", "0"): "diverged by update 1,234", ("nap", "0"): "finished", ("nap", "1"): "not finished"
    }  # fmt: skip
    assert scores_of(load_runs([tmp_path]), "eval").unscored == {("pong", "none", 0): "diverged"}


def test_a_stream_of_tasks(tmp_path):
    for method in ("nap", "none", "layernorm"):
        config = PlasticityConfig(method=method, seeds=2)
        rows = plasticity_rows(config, tasks=3, stretches=2)
        rows = rows if method == "none" else rows[:-2]  # within the third task
        folder = write_plasticity_run(tmp_path, config, rows, finish=False)
        if method != "layernorm":
            diverge(folder, {"none": 2250, "nap": 1900}[method])
    page = page_of(tmp_path)
    assert "1 of them has not finished. 2 of them diverged, by update 1,900 and 2,250." in page.words
    assert page.column(0, "state") == {
        "none": "diverged by update 2,250", "layernorm": "2 of 20 tasks", "nap": "diverged by update 1,900"
    }  # fmt: skip
    assert page.column(0, "seeds") == {"none": "2 (2 diverged)", "layernorm": "2", "nap": "2 (2 diverged)"}


def test_a_sequence_and_a_fresh_agent(tmp_path):
    diverge(write(tmp_path, config_of(), NAP[:2], finish=False), 70)
    write(tmp_path, config_of("none"), NONE)
    write_fresh(tmp_path, config_of(), FRESH)
    config = config_of("none")
    write_fresh(tmp_path, config, [[(1, 1)] * 2, [(0.5, 0.5)] * 2])
    fresh = next(run.folder for run in load_runs([tmp_path]) if (run.method, run.config["tasks"]) == ("none", "catch"))
    diverge(fresh, 30)
    (fresh / "DONE").unlink()
    page = page_of(tmp_path)
    assert "2 of them diverged, by update 30 and 70." in page.words and "not finished" not in page.words
    assert page.column(0, "state") == {"none": "finished", "nap": "diverged by update 70"}
    assert "nap, seed 0: diverged in visit 2 (catch), so it has no score from there on" in page.words
    assert "none, seed 1: its fresh agent on catch diverged" in page.words


def test_a_file_that_is_damaged_is_one_line(tmp_path):
    folder = write_run(tmp_path, "pong", "nap", 0, [1.0], finish=False)
    (folder / DIVERGED).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=f"^the run in {folder} is damaged: "):
        load_runs([tmp_path])


def test_a_method_that_diverges_on_a_game_is_also_scored_as_random_play_there():
    frames, human = np.array([1000.0, 2000.0]), np.full(2, REFERENCES["pong"].human)
    curves = {
        "pong": {"none": {0: (frames, human)}, "nap": {0: (frames, human), 1: (frames, human)}},
        "breakout": {label: {0: (frames, np.full(2, REFERENCES["breakout"].human))} for label in ("none", "nap")},
        "qbert": {"nap": {0: (frames, np.full(2, REFERENCES["qbert"].human))}},
    }
    lost = {("pong", "none", 1): "diverged", ("qbert", "none", 0): "diverged", ("breakout", "nap", 1): "no score yet"}
    scores = Scores("eval", curves, lost)
    assert scores.games == ("pong", "breakout") and scores.aggregate("none", "mean").value == pytest.approx(1)
    both = scores.with_random_play
    assert both.games == ("pong", "breakout", "qbert") and both.unscored == {("breakout", "nap", 1): "no score yet"}
    assert both.normalised("pong", "none") == {0: 1, 1: 0} and both.normalised("qbert", "none") == {0: 0}
    assert both.aggregate("none", "mean").value == pytest.approx((0.5 + 1 + 0) / 3)
    assert both.aggregate("nap", "mean").value == pytest.approx(1)
    assert both.frames == {"pong": 2000, "breakout": 2000, "qbert": 2000}


def test_aggregates_are_printed_both_ways(tmp_path):
    for game, method in itertools.product(("pong", "breakout", "qbert"), ("none", "nap")):
        lost = (game, method) == ("qbert", "none")
        folder = write_run(tmp_path, game, method, 0, [1.0, 2.0], finish=not lost)
        if lost:
            diverge(folder, 1234)
    words = page_of(tmp_path).words
    assert "In evaluation, diverged runs left out" in words and "a diverged run scores as random play" in words
