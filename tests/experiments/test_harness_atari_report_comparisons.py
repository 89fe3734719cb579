"""The report on Atari games compares like with like: the same iteration of all runs, whatever state they are in."""

import itertools

import numpy as np
import pytest
from test_harness_atari_report import Page, write_run

from envs.scores import human_normalised
from experiments.harness.read import load_runs
from experiments.harness.report import write_report
from experiments.harness.report.atari_scores import Scores, by_iteration, scores_of


def test_methods_are_compared_where_all_runs_of_a_game_have_come_to(tmp_path):
    write_run(tmp_path, "pong", "nap", 0, [-20, -10, 0, 10])
    write_run(tmp_path, "pong", "none", 0, [-21, -19], finish=False)  # still at 2,000 frames
    write_run(tmp_path, "breakout", "nap", 0, [1, 2, 3, 4])
    write_run(tmp_path, "breakout", "none", 0, [1, 1, 2, 2])
    scores = scores_of(load_runs([tmp_path]), "eval")
    assert scores.frames == {"breakout": 4000, "pong": 2000}
    assert scores.raw("pong", "nap") == {0: -10} and scores.raw("breakout", "nap") == {0: 4}
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "At different lengths: a game's scores are taken where the shortest of its runs has come to" in words
    assert "Pong at 2,000 (none, seed 0); the others at 4,000." in words
    frames, found = scores.aggregate_curve("nap", "mean")
    np.testing.assert_allclose(frames, [1000, 2000])
    expected = (human_normalised("pong", -10.0) + human_normalised("breakout", 2.0)) / 2
    assert found[-1, 0] == pytest.approx(expected) and np.isnan(found[:, 1:]).all()


def test_a_training_score_is_the_mean_over_the_episodes_of_the_last_iteration(tmp_path):
    train = [(1, 400, 2, 5.0), (1, 800, None, None), (2, 1200, 1, 10.0), (2, 1600, 3, 2.0), (2, 2000, 0, None)]
    write_run(tmp_path, "pong", "nap", 0, [1.0, 2.0], train)
    (run,) = load_runs([tmp_path])
    frames, returns = by_iteration(run, "train")
    np.testing.assert_allclose(frames, [1000, 2000])  # where the evaluations are: the iterations' ends
    np.testing.assert_allclose(returns, [5, (10 + 3 * 2) / 4])
    np.testing.assert_allclose(by_iteration(run, "eval")[1], [1, 2])


def test_training_scores_are_of_the_same_iteration_whenever_its_last_episode_ended(tmp_path):
    for game, method in itertools.product(("pong", "breakout"), ("none", "nap")):
        train = []
        for iteration in (1, 2, 3):
            ended = (1, float(iteration)) if method == "none" else (0, None)  # in the iteration's last record
            train.append((iteration, 1000 * iteration - 4, 9, float(iteration)))
            train.append((iteration, 1000 * iteration, *ended))
        write_run(tmp_path, game, method, 0, [0.0] * 3, train)
    scores = scores_of(load_runs([tmp_path]), "train")
    assert scores.frames == {"pong": 3000, "breakout": 3000}
    assert scores.raw("pong", "none") == scores.raw("pong", "nap") == {0: 3}
    assert scores.improvement("nap", "none").value == 0.5


def test_an_iteration_that_a_run_is_in_or_that_has_no_episode_is_compared_with_no_other(tmp_path):
    train = [(1, 1000, 1, 1.0), (2, 2000, 1, 2.0), (3, 3000, 1, 3.0)]
    write_run(tmp_path, "pong", "nap", 0, [0.0] * 3, train)
    write_run(tmp_path, "pong", "none", 0, [0.0] * 2, [*train[:2], (3, 2500, 1, 9.0)], finish=False)
    write_run(tmp_path, "breakout", "nap", 0, [0.0] * 3, [train[0], (2, 2000, 0, None), train[2]])
    write_run(tmp_path, "breakout", "none", 0, [0.0] * 3, [*train[:2], (3, 3000, 0, None)])
    scores = scores_of(load_runs([tmp_path]), "train")
    assert scores.frames == {"pong": 2000, "breakout": 1000}
    assert scores.raw("pong", "nap") == scores.raw("pong", "none") == {0: 2}
    assert scores.raw("breakout", "nap") == scores.raw("breakout", "none") == {0: 1}
    assert scores.shortest("pong") == ["none, seed 0"]


def test_runs_whose_iterations_never_end_together_are_compared_where_they_are_nearest():
    def scores(*curves):
        methods = {
            label: {0: (1.0 * np.array(x), 1.0 * np.arange(len(x)))}
            for label, x in zip(("none", "nap"), curves, strict=True)
        }
        return Scores("eval", {"pong": methods}, {})

    found = scores([1000, 2000, 3000, 4000], [999, 1998, 2997])
    assert found.frames == {"pong": 2997} and found.raw("pong", "none") == found.raw("pong", "nap") == {0: 2}
    apart = scores([1000, 2000], [250])
    assert apart.raw("pong", "none") == {} and apart.left_out == {"pong": "not scored with none"}


def test_a_seed_that_diverged_holds_no_other_back_and_is_named(tmp_path):
    for game, method, seed in itertools.product(("pong", "breakout"), ("none", "nap"), (0, 1)):
        is_lost = (game, method, seed) == ("pong", "nap", 1)
        evaluations = [1.0, None, None] if is_lost else [1.0, 2.0, 3.0]
        write_run(tmp_path, game, method, seed, evaluations, [(n, 1000 * n, 1, float(n)) for n in (1, 2, 3)])
    write_run(tmp_path, "pong", "none", 2, [], finish=False, train=[(1, 10, 0, None)])
    for phase in ("eval", "train"):
        scores = scores_of(load_runs([tmp_path]), phase)
        assert scores.raw("pong", "nap") == {0: 3} and scores.frames["pong"] == 3000
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "Not counted: none on Pong, seed 2 (no score yet); nap on Pong, seed 1 (diverged)." in words
    pong = Page(write_report(tmp_path.rglob("pong-*")).read_text(encoding="utf-8"))
    rows = {row[2]: row for row in pong.tables[0] if row[1] == "nap"}
    assert rows["mean of 2"][5:7] == ["3.000 (1)", "3.000 (1)"]
    assert rows["1"][6:8] == ["–", "–"] and rows["1"][-1] == "diverged"


def test_a_mean_over_seeds_is_of_the_same_iteration_for_all(tmp_path):
    write_run(tmp_path, "pong", "nap", 0, [1, 2, 3], [(n, 1000 * n, 1, n + 10.0) for n in (1, 2, 3)])
    write_run(tmp_path, "pong", "nap", 1, [1, 4], [(n, 1000 * n, 1, n + 10.0) for n in (1, 2)], finish=False)
    page = Page(write_report([tmp_path]).read_text(encoding="utf-8"))
    assert page.tables[0][-1][3:8] == ["2,000", "", "12.0 ± 0.0", "3.00 ± 1.4", page.tables[0][-1][7]]
    assert page.tables[0][1][3:7] == ["3,000", "–", "13.00", "3.000"], "a run's own are its last"


def test_no_run_that_holds_a_game_back_is_left_unsaid(tmp_path):
    write_run(tmp_path, "pong", "nap", 0, [1, 2])
    for seed in range(5):
        write_run(tmp_path, "pong", "none", seed, [1], finish=False)
    for method in ("none", "nap"):
        write_run(tmp_path, "breakout", method, 0, [1, 2])
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "Pong at 1,000 (none, seed 0, none, seed 1, none, seed 2 and 2 more); the others at 2,000." in words
