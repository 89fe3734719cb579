"""Small classifiers by written schedules: against numbers from elsewhere, and seeds that know nothing of each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import harness
from experiments.harness.classifier import SCORES, best_peak, make_training, over_seeds, scores_over_seeds
from experiments.harness.problems import Problem, load_problem
from experiments.harness.seeds import Seeds
from nap.networks import MLP, as_functions

PROBLEM, DIGITS = load_problem(Problem(data="digits", hidden=(16,), batch_size=20))
UPDATES = 12


def trained(rates, method="layernorm", optimizer="sgd", problem=PROBLEM, seeds=range(3, 5)):
    rates = np.asarray(rates, float)
    make = functools.partial(make_training, problem, DIGITS, method, optimizer)
    return over_seeds(make, DIGITS, len(rates), seeds)(rates)


def test_losses_are_expectations_over_the_noise_of_the_labels():
    noisy = Problem(data="digits", hidden=(16,), batch_size=20, label_noise=0.3)
    result = trained([[0.0]], "none", problem=noisy)  # nothing is learned at rate 0
    network = as_functions(lambda rngs: MLP(64, (16,), 10, norm="none", rngs=rngs))
    params = network.init(jax.random.split(jax.random.key(4), 3)[0])
    for name, x, y in (("train", *DIGITS.data[:2]), ("test", *DIGITS.data[2:])):
        outputs = np.asarray(network.apply(params, jnp.asarray(x, jnp.float32) / 255), float)
        losses = np.log(np.exp(outputs).sum(axis=1, keepdims=True)) - outputs  # of each label that could be drawn
        expected = np.mean(0.7 * losses[np.arange(len(y)), y] + 0.3 * losses.mean(axis=1))
        assert result.scores[f"{name}_loss"][0, 1] == pytest.approx(expected, rel=1e-5)
    assert result.scores["test_error"][0, 1] == pytest.approx(np.mean(outputs.argmax(axis=1) != y), abs=1e-6)


def test_the_trace_of_plain_sgd_obeys_pythagoras_and_its_own_rates():
    rates = np.linspace(0.5, 0.1, UPDATES)[None]
    free, projected = (trained(rates, method).trace for method in ("layernorm", "nap"))
    moved = rates[0] * free["hidden_gradient_l2"][0]
    np.testing.assert_allclose(free["elr"][0] * free["weight_norm"][0], moved, rtol=1e-5)
    norms = free["weight_norm"][0].astype(float)
    np.testing.assert_allclose(norms[:, 1:], np.hypot(norms[:, :-1], moved[:, :-1]), rtol=1e-6)
    assert np.all(norms[:, -1] > 1.005 * norms[:, 0])
    np.testing.assert_allclose(projected["weight_norm"][0], projected["weight_norm"][0, :, :1] * np.ones(UPDATES), 1e-5)
    for part, size in (("", 64 * 16 + 16 * 2 + 16 * 10 + 10), ("hidden_", 64 * 16)):
        l1, l2 = free[f"{part}gradient_l1"], free[f"{part}gradient_l2"]
        assert np.all(l1 > l2) and np.all(l1 <= np.sqrt(size) * l2 * 1.0001)
    assert np.all(free["gradient_l2"] > free["hidden_gradient_l2"])
    # The same weights and the same batch.
    np.testing.assert_allclose(projected["gradient_l2"][..., 0], free["gradient_l2"][..., 0], rtol=1e-6)


def test_a_seed_is_the_same_alone_and_whatever_runs_beside_it():
    rates = np.stack([np.full(UPDATES, 0.3), np.full(UPDATES, 0.1)])
    together, alone = trained(rates), trained(rates[1:], seeds=range(4, 5))
    for name, values in together.scores.items():
        assert values.shape == (2, 2)
        np.testing.assert_allclose(values[1, 1], alone.scores[name][0, 0], rtol=1e-6)
    assert np.ptp(together.scores["train_loss"]) > 0.01
    own = np.stack([rates])  # [runs, seeds, updates]: each seed has its own rates
    each = trained(own).scores["train_loss"]
    np.testing.assert_allclose(each[0], together.scores["train_loss"][[0, 1], [0, 1]], rtol=1e-6)


def test_an_update_at_rate_0_changes_nothing():
    short, padded = np.full((1, UPDATES), 0.01), np.zeros((1, UPDATES + 5))
    padded[:, :UPDATES] = short
    one, other = (trained(rates, "nap", "momentum").scores for rates in (short, padded))
    np.testing.assert_allclose(one["test_loss"], other["test_loss"], rtol=1e-5)


def test_runs_of_any_length_share_the_data_on_the_devices(monkeypatch):
    whole, given = Seeds.shared, []
    monkeypatch.setattr(Seeds, "shared", lambda self, data: given.append(data) or whole(self, data))
    make = functools.partial(make_training, PROBLEM, DIGITS, "none", "sgd")
    train = scores_over_seeds(make, DIGITS, 1, range(3, 5))
    scores = {updates: train(np.full((1, updates), 0.3)) for updates in (UPDATES, 2, UPDATES + 1)}
    assert len(given) == 1
    for updates, of_length in scores.items():
        alone = trained(np.full((1, updates), 0.3), "none").scores
        np.testing.assert_allclose(of_length, np.stack([alone[name] for name in SCORES], axis=-1), rtol=1e-6)


def test_noise_is_drawn_anew_at_every_update_and_hinders():
    rates = np.full((1, 60), 0.3)
    clean = trained(rates).scores["test_error"].mean()
    noisy = trained(rates, problem=Problem(data="digits", hidden=(16,), batch_size=20, label_noise=0.9)).scores
    assert clean < 0.4 < noisy["test_error"].mean()


@pytest.mark.parametrize("others", [(2,), (1, 2), (2, 1)])
def test_the_best_peak_by_hand(others):
    losses = np.array([[1.0, 3.0], [2.0, 1.0], [0.0, np.nan]]).reshape(3, *others)
    assert best_peak(np.stack([0 * losses, losses, 9 - losses], axis=-1)) == 1


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (Problem(data="digitz"), "nearest: digits"),
        (Problem(data="digits", hidden=(8, 0)), "--hidden 8 0: it must be at least 1"),
        (Problem(data="digits", label_noise=1.0), "--label-noise 1.0: it must be at least 0 and below 1"),
        (Problem(data="digits", batch_size=1501), "--batch-size 1501: from 1 to the 1500 training images of digits"),
    ],
)
def test_what_makes_no_sense_is_named(problem, words):
    with pytest.raises(harness.UserError, match=words):
        load_problem(problem)
