"""The study of budgets: ranks by hand, then its command line on a few digits."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import config_of, folders_in, rows, stopped, typed, written

from experiments import schedule_budgets
from experiments.harness import stages
from experiments.harness.trace import load_trace
from experiments.schedule_budgets import (
    OPTIMIZERS,
    PROFILES,
    RATES,
    SCHEDULES,
    Config,
    mean_ranks,
    plan,
    rank_intervals,
    schedule_of,
    tables,
)

SEEDS = (3, 4)
OPTIONS = {"data": "digits", "hidden": 16, "updates": 30, "seed": SEEDS[0], "seeds": len(SEEDS)}


def command(out: Path, *budgets: float, **changes) -> int:
    options = OPTIONS | changes | {"budgets": budgets or (0.1, 1.0)}
    return schedule_budgets.main([*typed(options), "--out", str(out)])


def folders(out: Path, readings: int = 0) -> dict[str, Path]:
    """The run folders by optimizer."""
    configs = {path: config_of(path) for path in folders_in(out)}
    found = {config["optimizer"]: path for path, config in configs.items() if config["readings"] == readings}
    return {optimizer: found[optimizer] for optimizer in OPTIMIZERS}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The out folder of one finished command, which is only read."""
    out = tmp_path_factory.mktemp("done")
    assert command(out) == 0
    return out


def test_ranks_by_hand():
    errors = np.zeros((2, 3, 1, 2, 1))  # settings, schedules, budgets, rates, seeds
    errors[0, :, 0, :, 0] = [[0.3, 0.2], [0.1, 0.9], [0.2, 0.4]]  # at their best 0.2, 0.1, 0.2: ranks 2.5, 1, 2.5
    errors[1, :, 0, :, 0] = [[0.5, 0.6], [0.4, 0.4], [0.3, 0.2]]  # 3, 2, 1
    np.testing.assert_allclose(mean_ranks(errors), [[2.75], [1.5], [1.75]])
    one, other = errors, errors[:, ::-1]
    two_seeds = np.concatenate([one, other], axis=-1)  # the seeds disagree: whichever is drawn decides
    averages, ranks = rank_intervals(two_seeds)
    np.testing.assert_allclose(ranks, mean_ranks(two_seeds))
    assert [(of.low, of.high) for of in averages] == [(1.75, 2.75), (1.5, 1.5), (1.75, 2.75)]


def test_records_and_summary_hold_each_schedule_in_each_budget(done):
    for optimizer, folder in folders(done).items():
        scores, found = load_trace(folder)["scores"], rows(folder)
        assert scores.shape == (len(SCHEDULES), 2, len(RATES[optimizer]), len(SEEDS), 3)
        assert [(row["updates"], row["schedule"]) for row in found[:: 5 * 2]] == [
            (updates, schedule) for updates in (3, 30) for schedule in SCHEDULES
        ]
        assert [(row["peak"], row["seed"]) for row in found[:3]] == [
            (RATES[optimizer][0], 3), (RATES[optimizer][0], 4), (RATES[optimizer][1], 3)
        ]  # fmt: skip
        row = next(row for row in found if (row["budget"], row["schedule"]) == (1, "step"))
        assert row["test_error"] == scores[list(SCHEDULES).index("step"), 1, 0, 0, 2]
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        for i, schedule in enumerate(SCHEDULES):
            best = min(scores[i, 1, :, :, 2].mean(axis=1))
            assert summary[f"test_error/{schedule}/1"] == pytest.approx(best)
        assert sum(summary[f"rank/{schedule}"] for schedule in SCHEDULES) == pytest.approx(21)
        assert summary["test_error/rex/1"] < summary["test_error/rex/0.1"]


def test_a_finished_command_returns_at_once_with_the_tables(done, capsys, monkeypatch):
    monkeypatch.setattr(schedule_budgets, "_train", lambda *_: pytest.fail("it ran again"))
    assert command(done) == 0
    momentum, adam, ranks, claims = capsys.readouterr().out.split("\n\n")[1:5]
    for table in (momentum, adam, ranks):
        assert [line.split()[0] for line in table.splitlines()[3:]] == list(SCHEDULES)
    averages = [float(line.split()[3]) for line in ranks.splitlines()[3:]]
    assert sum(averages) == pytest.approx(21, abs=0.05)
    assert f"place {1 + sum(other < averages[0] for other in averages)}" in claims


def test_an_interrupted_run_goes_on_and_equals_the_uninterrupted_one(done, tmp_path, monkeypatch, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(folders(tmp_path)["adam"])

    with stopped(monkeypatch, stages, lambda: len(rows(folders(tmp_path)["adam"])) >= 30):
        assert command(tmp_path) == 130
    assert command(tmp_path) == 0
    assert "after iteration 3" in capsys.readouterr().err
    assert written(folders(tmp_path)["adam"]) == written(folders(done)["adam"])


def test_a_profile_that_is_read_twice_stays_as_it_is_for_half_of_the_run():
    counts = np.arange(8)
    np.testing.assert_allclose(schedule_of("linear", 2.0, 8, 2)(counts), [2] * 4 + [1] * 4)
    np.testing.assert_allclose(schedule_of("rex", 3.0, 8, 2)(counts), [3] * 4 + [2] * 4, rtol=1e-6)
    np.testing.assert_allclose(schedule_of("linear", 2.0, 8)(counts), 2 - counts / 4)
    assert schedule_of("step", 1.0, 10)(9) == pytest.approx(1e-3)


def test_rare_readings_are_runs_of_their_own_beside_the_finished_ones(done, tmp_path, monkeypatch, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    whole, asked = schedule_budgets.schedule_of, []
    monkeypatch.setattr(schedule_budgets, "schedule_of", lambda *of: asked.append(of) or whole(*of))
    assert command(tmp_path, readings=2) == 0
    assert {of[3] for of in asked} == {2} and {of[0] for of in asked} == set(PROFILES)
    for folder in folders(tmp_path, readings=2).values():
        assert load_trace(folder)["scores"].shape[0] == len(PROFILES) == len(SCHEDULES) - 1
    *_, lost, claims, _ = capsys.readouterr().out.rstrip().split("\n\n")
    assert [line.split()[0] for line in lost.splitlines()[3:]] == list(PROFILES)
    assert claims.count("lost by 2 readings a run, above 0") == len(PROFILES)


def test_what_rare_readings_lose_by_hand():
    config = Config(optimizer="momentum", budgets=(1.0,), rates=(0.1, 1.0), seeds=2)
    always, rarely = (np.full((count, 1, 2, 2, 3), 0.5) for count in (len(SCHEDULES), len(PROFILES)))
    always[0, 0, :, :, 2] = [[0.2, 0.4], [0.9, 0.1]]  # of rex; its best rate is the first
    rarely[0, 0, :, :, 2] = [[0.7, 0.7], [0.3, 0.5]]  # the second: each seed loses 10 points
    lost, claims = tables([config, dataclasses.replace(config, readings=2)], [always, rarely]).split("\n\n")[-2:]
    assert lost.splitlines()[3].split() == ["rex", "+10.00"] and lost.splitlines()[4].split() == ["linear", "+0.00"]
    assert next(line for line in claims.splitlines() if "rex: test error [%] lost" in line).split()[-5:-3] == [
        "0",
        "+10",
    ]


def test_text_is_ranked_by_its_loss_and_a_rate_that_diverges_is_no_ones_best(tmp_path, monkeypatch, capsys):
    path = tmp_path / "text.txt"
    path.write_text("so it goes, again and again. " * 100, encoding="utf-8")
    monkeypatch.setattr(schedule_budgets, "RATES", {"momentum": (0.1, 1e6), "adam": (0.01, 0.1)})
    options = [
        "--preset",
        "text",
        "--data",
        str(path),
        "--hidden",
        "4",
        "--updates",
        "8",
        "--budgets",
        "1",
        "--seeds",
        "2",
    ]
    assert schedule_budgets.main([*options, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "momentum: test loss [nats a byte] after each budget" in out and "nan" not in out
    folder = folders(tmp_path)["momentum"]
    losses = load_trace(folder)["scores"][:, 0, :, :, 1]
    assert np.isnan(losses[:, 1]).all() and np.isfinite(losses[:, 0]).all()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["test_loss/rex/1"] == pytest.approx(losses[0, 0].mean(), rel=1e-6)


def test_the_plan_is_one_command_of_both_optimizers(tmp_path):
    (job,) = plan(["--data", "digits", "--out", str(tmp_path), "--readings", "3"])
    names = ["momentum-none", "adam-none", "momentum-none-read3", "adam-none-read3"]
    assert [folder.name.split("-seeds")[0] for folder in job.folders] == names


@pytest.mark.parametrize(
    ("budgets", "changes", "words"),
    [
        ((0.01,), {}, "--budgets 0.01: shares of the updates, of at least one (0.033) to 1"),
        ((1.5,), {}, "--budgets 1.5"),
        ((), {"updates": 0}, "--updates 0"),
        ((), {"seed": -1}, "--seed -1"),
        ((), {"data": "digitz"}, "nearest: digits"),
        ((), {"readings": 31}, "--readings 31: from 1 to the 30 updates, or 0 for none"),
        ((), {"readings": -1}, "--readings -1: "),
        ((), {"task": "text"}, "--data digits: no such file or folder; or take stdlib"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, budgets, changes, words):
    assert command(tmp_path, *budgets, **changes) == 2
    heard = capsys.readouterr()
    assert words in heard.err and heard.err.startswith("error: ") and heard.err.count("\n") == 1
    assert heard.out == "" and not list(tmp_path.rglob("DONE"))
