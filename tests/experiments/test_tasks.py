"""A stretch of a task against the same updates written out, one by one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from envs.streams import Stream
from experiments.harness.learner import Learner, make_learner
from experiments.harness.tasks import Own, make_start, make_stretch, nearest_stretch
from nap.networks import MLP, as_functions

STEPS, EPOCHS, BATCH = 4, 3, 5


def stream(loss: Any = "cross-entropy", with_test: bool = True) -> Stream:
    """20 points with random labels; the task shifts the labels by its index."""

    def begin(data, key, index):
        return {"labels": (jax.random.randint(key, (20,), 0, 3) + index) % 3}

    def order(data, task, key):
        return jax.random.permutation(key, 20).reshape(STEPS, BATCH)

    def batch(data, task, item):
        labels = task["labels"][item]
        return data[item], labels if loss == "cross-entropy" else jax.nn.one_hot(labels, 3)

    def test(data, task):
        x, y = batch(data, task, jnp.arange(20))
        return x, y, jnp.arange(20) < 8

    data = jax.random.normal(jax.random.key(5), (20, 6))
    return Stream(
        "made-up", data, (6,), 3, loss, 2, EPOCHS, STEPS, BATCH, begin, order, batch, test if with_test else None
    )


@functools.cache
def learner(loss: Any = "cross-entropy") -> Learner:
    network = as_functions(lambda rngs: MLP(6, (8, 7), 3, norm="layer", rngs=rngs))
    return make_learner(network, lambda key: nap.normalize_and_project(optax.adam(1e-2)), loss)


def written_out(tasks: Stream, own: Own, task: int, updates: range) -> tuple[Any, list, Any, Any]:
    """The same updates in a Python loop, without the harness."""
    drawn = tasks.begin(tasks.data, jax.random.fold_in(own.key, 1), task)
    state, scores = own.state, []
    for update in updates:
        epoch_key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(own.key, 2), task), update // STEPS)
        item = tasks.order(tasks.data, drawn, epoch_key)[update % STEPS]
        state, score = learner().update(state, *tasks.batch(tasks.data, drawn, item))
        scores.append(score)
    return state, scores, drawn, item


@pytest.mark.parametrize(("length", "start"), [(1, 3), (2, 6), (12, 0)])
def test_a_stretch_makes_the_updates_of_a_plain_loop(length, start):
    tasks = stream()
    own = make_start(learner())(jax.random.key(3))
    run = jax.jit(make_stretch(learner(), tasks, length))
    result = run(tasks.data, own, jnp.asarray(1), jnp.asarray(start))
    state, scores, drawn, _ = written_out(tasks, own, 1, range(start, start + length))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6), result.own.state, state)
    row = result.row
    np.testing.assert_allclose(row["online_loss"], np.mean([score.loss for score in scores]), rtol=1e-4)
    np.testing.assert_allclose(row["online_accuracy"], np.mean([score.accuracy for score in scores]), rtol=1e-6)
    if length > 1:  # what is recorded of the network is from before the last update
        state = written_out(tasks, own, 1, range(start, start + length - 1))[0]
    x, y = tasks.batch(tasks.data, drawn, jnp.arange(20))
    whole = learner().score(state.params, x, y, jnp.ones(20))
    np.testing.assert_allclose([row["loss"], row["accuracy"]], whole, rtol=1e-3)
    held_out = learner().score(state.params, x[:8], y[:8], jnp.ones(8))
    np.testing.assert_allclose([row["test_loss"], row["test_accuracy"]], held_out, rtol=1e-3)


def test_short_stretches_make_up_a_long_one():
    tasks, own = stream(), make_start(learner())(jax.random.key(3))
    whole = make_stretch(learner(), tasks, 12)(tasks.data, own, jnp.asarray(0), jnp.asarray(0))
    part, losses = make_stretch(learner(), tasks, 2), []
    for start in range(0, 12, 2):
        own, row = part(tasks.data, own, jnp.asarray(0), jnp.asarray(start))
        losses.append(row["online_loss"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6), own.state, whole.own.state)
    np.testing.assert_allclose(np.mean(losses), whole.row["online_loss"], rtol=1e-4)


def test_what_is_recorded_of_the_update_before_the_last():
    tasks, own = stream(), make_start(learner())(jax.random.key(3))
    row = make_stretch(learner(), tasks, 4)(tasks.data, own, jnp.asarray(0), jnp.asarray(0)).row
    before, _, _, _ = written_out(tasks, own, 0, range(2))
    after, _, _, _ = written_out(tasks, own, 0, range(3))
    kernels = [state.params["hidden"][0]["kernel"][...] for state in (own.state, before, after)]
    start, old, new = (np.asarray(kernel, np.float64) for kernel in kernels)
    expected = {
        "weight_norm/hidden/0": np.linalg.norm(old),
        "update_norm/hidden/0": np.linalg.norm(new - old),
        "elr/hidden/0": np.linalg.norm(new - old) / np.linalg.norm(old),
        "distance_to_init/hidden/0": np.linalg.norm(new - start) / np.sqrt(start.size),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(row[name], value, rtol=1e-3, err_msg=name)
    layers = ("hidden/0", "hidden/1")
    assert {f"dormant_fraction_{tau}/{layer}" for tau in ("0", "0.025", "0.1") for layer in layers} <= row.keys()
    assert {f"{name}/{layer}" for name in ("dead_fraction", "linearized_fraction") for layer in layers} <= row.keys()
    assert {"srank", "stable_rank", "effective_rank", "approximate_rank", "feature_rank", "feature_norm"} <= row.keys()


def test_a_regression_has_a_loss_and_no_accuracy():
    tasks = stream("squared-error", with_test=False)
    start = make_start(learner("squared-error"))(jax.random.key(3))
    row = make_stretch(learner("squared-error"), tasks, 1)(tasks.data, start, jnp.asarray(0), jnp.asarray(0)).row
    drawn = tasks.begin(tasks.data, jax.random.fold_in(start.key, 1), 0)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(start.key, 2), 0), 0)
    x, y = tasks.batch(tasks.data, drawn, tasks.order(tasks.data, drawn, key)[0])
    network = as_functions(lambda rngs: MLP(6, (8, 7), 3, norm="layer", rngs=rngs))
    errors = np.asarray(network.apply(start.state.params, x) - y)
    np.testing.assert_allclose(row["online_loss"], 0.5 * np.mean(np.sum(errors**2, axis=1)), rtol=1e-5)
    assert np.isnan(row["online_accuracy"])
    assert "test_loss" not in row


@pytest.mark.parametrize(("updates", "nearest"), [(1, 1), (3, 4), (4, 4), (5, 4), (9, 12), (12, 12), (6, 4), (99, 12)])
def test_a_stretch_divides_an_epoch_or_is_whole_epochs_that_divide_the_task(updates, nearest):
    assert nearest_stretch(updates, STEPS, EPOCHS) == nearest  # divisors of 4; 4 and 12


def test_an_epoch_that_nothing_divides_is_not_recorded_update_by_update():
    assert nearest_stretch(10_000, 30_011, 1) == 30_011  # a prime


def test_a_stretch_that_does_not_divide_the_task_is_refused():
    with pytest.raises(ValueError, match="does not divide"):
        make_stretch(learner(), stream(), 8)
