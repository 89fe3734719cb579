"""The toys of the river valley against theory, the equal compute of the schedules, and the study's command line."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import folder_in, rows, stopped, typed, written

from experiments import river_valley
from experiments.harness import stages
from experiments.harness.classifier import best_peak
from experiments.harness.trace import load_trace
from experiments.river_valley import SCHEDULES, plan, rates_until
from experiments.river_valley.toys import (
    Bigrams,
    Valley,
    hessian_diagonal,
    measure_bigrams,
    measure_valley,
    next_tokens,
    results,
    walk_in_valley,
)

SEEDS = (3, 4)
OPTIONS = {"data": "digits", "hidden": 16, "bigram_tokens": 4, "seed": SEEDS[0], "seeds": len(SEEDS)}
SMALL_VALLEY = Valley(updates=100, particles=4, rates=(0.004, 0.016))
SMALL_BIGRAMS = Bigrams(updates=200, tables=2)


def command(out: Path, *budgets: int, **changes) -> int:
    options = OPTIONS | changes | {"budgets": budgets or (20, 40)}
    return river_valley.main([*typed(options), "--out", str(out)])


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(river_valley, "VALLEY", SMALL_VALLEY)
        patched.setattr(river_valley, "BIGRAMS", SMALL_BIGRAMS)
        yield


@pytest.fixture(scope="module")
def done(small, tmp_path_factory) -> Path:
    """The out folder of one finished command, which is only read."""
    out = tmp_path_factory.mktemp("done")
    assert command(out) == 0
    return out


def test_without_noise_the_valleys_river_flows_as_far_as_the_rates_add_up():
    valley = Valley(noise=0.0, particles=1)
    height, progress = jax.jit(lambda: walk_in_valley(valley, jax.random.key(0), jnp.full(6000, 0.01)))()
    assert progress[-1] == pytest.approx(valley.slope * 60, rel=0.01)
    assert 0 < height[-1] <= 1.01 * valley.slope**2 / (8 * valley.steepness)  # where cos(x) = 1: it lags behind


def test_the_noise_holds_the_weights_as_high_as_on_a_parabola():
    rates = (0.004, 0.016)
    valley = Valley(slope=0.0, updates=2000, particles=64, rates=rates)
    measured = measure_valley(valley, jax.vmap(jax.random.key)(jnp.arange(2)))
    # Around x = 0 the hills have the curvature 2 k across the river, along which the noise does nothing; SGD with
    # rate r on curvature c stays at a variance r s^2 / (c (2 - r c)), so that the height is r s^2 / (2 (2 - r c)).
    for j, rate in enumerate(rates):
        assert measured["height"][:, j].mean() == pytest.approx(rate / (2 * (2 - rate * 20)), rel=0.1)
    assert results(
        valley._replace(slope=1.0),
        {**measured, "excess_before": np.eye(2), "excess_after": 0 * np.eye(2), "curvature": np.eye(2)},
    )["slope"] == pytest.approx([1, 1], abs=0.2)
    np.testing.assert_allclose(measured["after_decay"] / measured["before_decay"], 0.1, atol=0.05)


def test_bigrams_end_near_their_entropies_and_certain_rows_lose_nothing_to_noise():
    bigrams = Bigrams(tokens=4, updates=8000, tables=4)
    probabilities = next_tokens(bigrams)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities[0].tolist() == [0, 1, 0, 0] and probabilities[3, 0] == pytest.approx(0.1)
    measured = measure_bigrams(bigrams, jax.vmap(jax.random.key)(jnp.arange(2)))
    before, after = (measured[name].mean(axis=0) for name in ("excess_before", "excess_after"))
    assert np.all(after > 0) and np.all(after < before)
    assert before[0] < 0.01 < 0.05 < before[3]
    assert before[0] - after[0] < 0.1 * (before[3] - after[3])


def test_the_hessians_diagonal_is_that_of_jax_and_grows_with_the_entropy():
    bigrams = Bigrams(tokens=4)
    probabilities = jnp.asarray(next_tokens(bigrams), jnp.float32)
    logits = jax.random.normal(jax.random.key(0), (4, 4))

    def loss(row, probabilities):
        return -jnp.sum(probabilities * jax.nn.log_softmax(row))

    for row, of_row, found in zip(logits, probabilities, hessian_diagonal(logits), strict=True):
        products = [jax.jvp(jax.grad(loss), (row, of_row), (basis, 0 * of_row))[1] for basis in jnp.eye(4)]
        np.testing.assert_allclose(found, np.diag(np.stack(products)), rtol=1e-5)
    # e = 0, 0.3, 0.6, 0.9, of which each of the three other tokens has a third.
    expected = [-(1 - e) * np.log(1 - e) - (e * np.log(e / 3) if e else 0) for e in (0, 0.3, 0.6, 0.9)]
    np.testing.assert_allclose(bigrams.entropies, expected)
    measured = measure_bigrams(bigrams._replace(updates=8000, tables=4), jax.vmap(jax.random.key)(jnp.arange(2)))
    at_optimum = [(1 - e) * e + e * (1 - e / 3) for e in (0, 0.3, 0.6, 0.9)]  # summed over the row
    np.testing.assert_allclose(4 * measured["curvature"].mean(axis=0), at_optimum, atol=0.05)


def test_the_rows_order_is_what_spearman_reads():
    rising, falling = np.array([[0.1, 0.2, 0.4, 0.3]]), np.array([[4.0, 3, 2, 1]])
    toys = {"excess_before": rising, "excess_after": 0 * rising, "curvature": falling}
    toys |= {"height": np.ones((1, 2)), "progress": np.ones((1, 2))}
    toys |= {"before_decay": np.ones(1), "after_decay": np.ones(1)}
    found = results(Valley(rates=(0.1, 0.2)), toys)
    assert found["fallen_spearman"] == pytest.approx([0.8]) and found["curvature_spearman"] == pytest.approx([-1])


def test_all_schedules_but_a_cosine_for_each_spend_the_same():
    budgets = (100, 200, 400)
    for schedule in ("wsd-s", "cosine-cycles"):
        assert [len(rates_until(schedule, budgets, which)) for which in range(3)] == [100, 200, 400]
        whole = rates_until(schedule, budgets, 2)
        np.testing.assert_array_equal(rates_until(schedule, budgets, 1), whole[:200])  # one run
        assert whole[99] < 0.13 and whole[100] == 1  # decayed, then at its peak
    wsd = [rates_until("wsd", budgets, which) for which in range(3)]
    assert [len(of) for of in wsd] == [100, 190, 370]
    trunks = [int((of == 1).sum()) for of in wsd]  # a decay's first update is at the peak
    assert trunks == [91, 171, 331]
    assert trunks[-1] - 1 + sum(len(of) - trunk + 1 for of, trunk in zip(wsd, trunks, strict=True)) == 400
    np.testing.assert_array_equal(wsd[0], rates_until("wsd-s", budgets, 0))
    assert rates_until("cosine-each", budgets, 2)[200] == pytest.approx(0.55)


def test_records_and_summary(done):
    found = rows(folder_in(done))
    phases = [row["phase"] for row in found]
    assert [phases.count(phase) for phase in ("valley", "bigrams", "train")] == [2 * 2, 2 * 4, 4 * 5 * 2 * 2]
    trace = load_trace(folder_in(done))
    trained = [row for row in found if row["phase"] == "train"]
    assert [row["schedule"] for row in trained[::20]] == list(SCHEDULES)
    wsd = [row for row in trained if row["schedule"] == "wsd"][:4]
    assert [(row["budget"], row["updates"], row["seed"]) for row in wsd] == [
        (20, 20, 3), (20, 20, 4), (40, 38, 3), (40, 38, 4)
    ]  # fmt: skip
    assert wsd[3]["test_loss"] == trace["scores"][1, 0, 1, 1, 1] and trace["scores"].shape == (4, 5, 2, 2, 3)
    np.testing.assert_allclose(trace["scores"][0, :, 0], trace["scores"][1, :, 0], rtol=1e-5)  # WSD is WSD-S at first
    summary = json.loads((folder_in(done) / "summary.json").read_text(encoding="utf-8"))
    best = best_peak(trace["scores"][0])
    assert summary["test_loss/wsd-s/40"] == pytest.approx(trace["scores"][0, best, 1, :, 1].mean())


def test_a_finished_command_returns_at_once_with_the_tables(done, capsys, monkeypatch):
    monkeypatch.setattr(river_valley, "_train", lambda *_: pytest.fail("it ran again"))
    assert command(done) == 0
    valley, bigrams, trained, claims = capsys.readouterr().out.split("\n\n")[1:5]
    assert len(valley.splitlines()) == 3 + 2 and len(bigrams.splitlines()) == 3 + 4
    assert [line.split()[0] for line in trained.splitlines()[3:]] == list(SCHEDULES)
    assert [line.split()[-1] for line in trained.splitlines()[3:]] == ["40", "40", "40", "60"]
    assert len(claims.splitlines()) == 3 + 5 + 3 + 1


def test_an_interrupted_run_goes_on_and_equals_the_uninterrupted_one(small, done, tmp_path, monkeypatch, capsys):
    with stopped(monkeypatch, stages):
        assert command(tmp_path) == 130
    assert command(tmp_path) == 0
    assert "after iteration 1" in capsys.readouterr().err
    assert written(folder_in(tmp_path)) == written(folder_in(done))


def test_text_and_another_vocabulary_of_bigrams(small, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("so it goes, again and again. " * 100, encoding="utf-8")
    options = ["--preset", "text", "--data", str(path), "--hidden", "4", "--bigram-tokens", "5", "--seeds", "2"]
    assert river_valley.main([*options, "--budgets", "10", "20", "--out", str(tmp_path)]) == 0
    trace = load_trace(folder_in(tmp_path))
    assert trace["curvature"].shape == (2, 5) and trace["scores"].shape == (4, 5, 2, 2, 3)
    assert trace["scores"][:, :3, ..., 1].min() < 4 < np.log(257)
    assert len(rows(folder_in(tmp_path), "bigrams")) == 2 * 5
    out = capsys.readouterr().out
    assert "Bigrams of 5 tokens" in out and "\n0.90 to 0.90" in out


def test_the_plan_is_one_command(tmp_path):
    (job,) = plan(["--data", "digits", "--method", "nap", "--optimizer", "adam", "--out", str(tmp_path)])
    assert [folder.name.split("-seeds")[0] for folder in job.folders] == ["nap-adam"]


@pytest.mark.parametrize(
    ("budgets", "changes", "words"),
    [
        ((40, 20), {}, "--budgets 40 20: budgets must be increasing"),
        ((0, 20), {}, "--budgets 0 20: it must be at least 1"),
        ((), {"seed": -1}, "--seed -1"),
        ((), {"bigram_tokens": 3}, "--bigram-tokens 3: it must be at least 4"),
        ((), {"hidden": (), "method": "nap"}, "--method nap: without a hidden layer there is nothing to normalize"),
        ((), {"data": "digitz"}, "nearest: digits"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, budgets, changes, words):
    assert command(tmp_path, *budgets, **changes) == 2
    heard = capsys.readouterr()
    assert words in heard.err and heard.err.startswith("error: ") and heard.err.count("\n") == 1
    assert heard.out == "" and not list(tmp_path.rglob("DONE"))


def test_budgets_whose_decays_leave_no_trunk_are_refused(tmp_path, capsys):
    assert command(tmp_path, 100, 101) == 2
    assert "--budgets 100 101: " in capsys.readouterr().err
