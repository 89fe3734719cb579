"""The study of refined schedules: its computations by hand, then its command line on a few digits."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import config_of, folders_in, rows, stopped, typed, written

from experiments import schedule_refinement
from experiments.harness import stages
from experiments.harness.classifier import SCORES, make_training, over_seeds
from experiments.harness.problems import Problem, load_problem
from experiments.harness.trace import load_trace
from experiments.schedule_refinement import METHODS, SCHEDULES, change, plan, shapes
from nap import schedules

SEEDS, UPDATES = (3, 4), 40
OPTIONS = {"data": "digits", "hidden": 16, "updates": UPDATES, "lr": 0.5, "peaks": (0.2, 1)}
OPTIONS |= {"seed": SEEDS[0], "seeds": len(SEEDS)}


def command(out: Path, **changes) -> int:
    return schedule_refinement.main([*typed(OPTIONS | changes), "--out", str(out)])


def folders(out: Path) -> dict[str, Path]:
    """The run folders by method."""
    found = {config_of(path)["method"]: path for path in folders_in(out)}
    return {method: found[method] for method in METHODS}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The out folder of one finished command, which is only read."""
    out = tmp_path_factory.mktemp("done")
    assert command(out) == 0
    return out


def test_shapes_by_hand():
    z = np.arange(100) / 100
    of = shapes(np.stack([1 - z, np.minimum(z / 0.6, (1 - z) / 0.4)]))
    np.testing.assert_allclose(
        [of["at 25%"], of["at 50%"], of["at 75%"]], [[0.75, 0.25 / 0.6], [0.5, 0.5 / 0.6], [0.25, 0.625]]
    )
    np.testing.assert_allclose(of["half over quarter"], [2 / 3, 2])
    np.testing.assert_allclose(of["largest at"], [0, 0.6])
    assert of["correlation with linear"][0] == pytest.approx(1) and of["correlation with linear"][1] < 0.1


def test_change_by_hand():
    np.testing.assert_allclose(change(np.array([[1.0, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9, 8]])), [8.5 / 2])


def test_only_the_free_norms_grow_and_each_seed_follows_its_own_refined_schedule(done):
    for method, folder in folders(done).items():
        trace = load_trace(folder)
        growth = trace["weight_norm"][:, -1] / trace["weight_norm"][:, 0]
        assert np.all(growth > 1.01) if method == "layernorm" else growth == pytest.approx([1, 1], rel=5e-6)
        logged = rows(folder, "log")
        assert len(logged) == 20 * len(SEEDS) and {row["learning_rate"] for row in logged} == {0.5}
        for i, seed in enumerate(SEEDS):
            refined = schedules.refine(trace["gradient_l2"][i], order=2, smooth=0.1)
            row = next(row for row in logged if row["seed"] == seed and row["updates"] == 20)
            assert row["refined"] == pytest.approx(refined[19]) and row["gradient_l2"] == trace["gradient_l2"][i, 19]
        assert trace["scores"].shape == (len(SCHEDULES), 2, len(SEEDS), 3) and np.isfinite(trace["scores"]).all()
        found = rows(folder, "train")
        assert [row["schedule"] for row in found[::4]] == list(SCHEDULES)
        assert [(row["peak"], row["seed"]) for row in found[:4]] == [(0.1, 3), (0.1, 4), (0.5, 3), (0.5, 4)]
        assert found[3]["test_loss"] == trace["scores"][0, 1, 1, 1]
        assert len({row["test_loss"] for row in found}) == len(found)
    first = {method: load_trace(folder)["gradient_l2"][:, 0] for method, folder in folders(done).items()}
    np.testing.assert_allclose(first["nap"], first["layernorm"], rtol=1e-6)  # the same weights, the same batch


def test_what_is_trained_again_follows_its_own_seeds_refined_schedule(done):
    trace = load_trace(folders(done)["layernorm"])
    problem, digits = load_problem(Problem(data="digits", hidden=(16,), batch_size=20, label_noise=0.5))
    make = functools.partial(make_training, problem, digits, "layernorm", "sgd")
    rates = 0.5 * schedules.refine(trace["gradient_l2"][1], order=2, smooth=0.1)
    again = over_seeds(make, digits, 1, range(SEEDS[1], SEEDS[1] + 1))(rates[None])
    expected = [again.scores[name].item() for name in SCORES]
    np.testing.assert_allclose(trace["scores"][SCHEDULES.index("refined"), 1, 1], expected, rtol=1e-5)


def test_a_finished_command_returns_at_once_with_the_tables(done, capsys, monkeypatch):
    monkeypatch.setattr(schedule_refinement, "_train", lambda *_: pytest.fail("it ran again"))
    assert command(done) == 0
    shape, again, claims = capsys.readouterr().out.split("\n\n")[1:4]
    summary = json.loads((folders(done)["nap"] / "summary.json").read_text(encoding="utf-8"))
    line = next(line.split() for line in shape.splitlines() if line.startswith("nap  ") and "hidden" in line)
    assert float(line[8]) == pytest.approx(summary["hidden_refined/half_over_quarter"], abs=6e-3)
    line = next(line.split() for line in again.splitlines() if line.startswith("nap") and "cosine" in line)
    assert float(line[2]) == summary["peak/cosine"] and float(line[4]) == pytest.approx(
        summary["test_loss/cosine"], abs=1e-4
    )
    assert [line.split()[-1] in ("yes", "no", "open") for line in claims.splitlines()[3:15]] == [True] * 12


def test_the_picture_has_a_panel_of_all_curves(done, tmp_path):
    path = tmp_path / "refined.svg"
    assert command(done, plot=path) == 0
    picture = path.read_text(encoding="utf-8")
    for words in ("digits, sgd, label noise 0.5", "nap, all weights", "layernorm, hidden weights", "linear"):
        assert f"<!-- {words} -->" in picture


def test_logistic_regression_is_one_run_whose_schedules_are_ranked(tmp_path, capsys):
    path = tmp_path / "refined.svg"
    assert command(tmp_path, hidden=(), plot=path) == 0
    (folder,) = folders_in(tmp_path)
    assert folder.name.startswith("logistic-sgd-") and config_of(folder)["method"] == "none"
    trace = load_trace(folder)
    assert set(trace) == {"gradient_l2", "scores"} and np.isfinite(trace["scores"]).all()
    shape, again, claims = capsys.readouterr().out.split("\n\n")[1:4]
    assert len(shape.splitlines()) == 3 + 2 and len(again.splitlines()) == 4 + len(SCHEDULES)
    columns, linear = shape.splitlines()[1], shape.splitlines()[-1]
    assert linear.index("0.75") + 4 == columns.index("at 25%") + 6  # under its heading, though less stands before
    assert claims.count("logistic regression: test loss, ") == 3 and len(claims.splitlines()) == 3 + 3 + 1
    assert "<!-- none, all weights -->" in path.read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on_and_equals_the_uninterrupted_one(done, tmp_path, monkeypatch, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(folders(tmp_path)["nap"])

    with stopped(monkeypatch, stages):
        assert command(tmp_path) == 130
    assert not rows(folders(tmp_path)["nap"], "train")
    assert command(tmp_path) == 0
    assert "after iteration 1" in capsys.readouterr().err
    assert written(folders(tmp_path)["nap"]) == written(folders(done)["nap"])


def test_a_gradient_that_vanishes_ends_the_run(tmp_path, capsys, monkeypatch):
    whole = schedule_refinement.over_seeds

    def dead(*arguments):
        train = whole(*arguments)
        return lambda rates: train(rates)._replace(trace={name: 0 * of for name, of in train(rates).trace.items()})

    monkeypatch.setattr(schedule_refinement, "over_seeds", dead)
    assert command(tmp_path) == 1
    assert "the logarithm of the gradient's norm is -inf" in capsys.readouterr().err


def test_an_option_that_is_given_twice_is_an_axis_of_the_plan(tmp_path):
    jobs = plan(["--data", "digits", "--optimizer", "sgd", "--optimizer", "adam", "--out", str(tmp_path)])
    names = [folder.name.split("-seeds")[0] for job in jobs for folder in job.folders]
    assert names == [f"{method}-{rate}-noise0.5" for rate in ("sgd-lr1", "adam-lr0.01") for method in METHODS]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("lr", 0, "--lr 0: it must be above 0; for sgd try 1"),
        ("peaks", -1, "--peaks -1.0: it must be above 0"),
        ("updates", 19, "--updates 19: it must be at least 20"),
        ("smooth", 2, "--smooth 2.0: it must lie in 0 to 1"),
        ("seed", -1, "--seed -1"),
        ("label_noise", 1, "--label-noise 1"),
        ("data", "digitz", "nearest: digits"),
        ("plot", "refined.jpg", "--plot refined.jpg"),
        ("plot", "/no/such/refined.png", "--plot /no/such/refined.png"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, option, value, words):
    assert command(tmp_path, **{option: value}) == 2
    heard = capsys.readouterr()
    assert words in heard.err and heard.err.startswith("error: ") and heard.err.count("\n") == 1
    assert heard.out == "" and not list(tmp_path.rglob("DONE"))
