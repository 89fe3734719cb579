"""The yardsticks of the plasticity benchmark learn what the product learns, and its rows are what they say."""

import dataclasses
import importlib.util
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.streams import Protocol
from experiments.bench import by_hand, in_torch
from experiments.bench import plasticity as bench
from experiments.harness.cores import cores_here
from experiments.harness.tasks import make_start, make_stretch
from experiments.harness.timing import Goal, table
from experiments.plasticity import Config, build_learner
from nap import paths

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is optional")


def small() -> Config:
    """Width 12, batch 8, 3 seeds, 10 updates a task."""
    protocol = Protocol(tasks=9, epochs=2, examples=40, batch_size=8)
    return dataclasses.replace(bench.narrow(), hidden=(12, 12), protocol=protocol, seeds=3, record_every=10)


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.random((8, 784), np.float32), rng.integers(0, 10, 8, np.int32)) for _ in range(count)]


def product(updates: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[float]]:
    """The product's weights before and after some updates, and the losses."""
    config = small()
    learner = build_learner(config, bench.stream_of(config))
    state = make_start(learner)(jax.random.key(0)).state
    before, losses = paths.leaves(state.params), []
    for x, y in batches(updates):
        state, score = jax.jit(learner.update)(state, x.reshape(-1, 28, 28, 1), y)
        losses.append(float(score.loss))
    numbers = [
        {path: np.asarray(leaf) for path, leaf in leaves.items()} for leaves in (before, paths.leaves(state.params))
    ]
    return *numbers, losses


# The sign of a first gradient near zero decides a whole step of Adam: hence weights to 1e-4, a tenth of a step.
@pytest.mark.parametrize("updates", [1, 3])
def test_by_hand_is_the_products_update(updates):
    before, after, losses = product(updates)
    assert len(before) == 8  # two kernels, scales and offsets, and the output's kernel and bias
    state = by_hand.start({path: jnp.asarray(leaf) for path, leaf in before.items()})
    for (x, y), expected in zip(batches(updates), losses, strict=True):
        state, loss = by_hand.update(state, x, y)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for path, weight in after.items():
        np.testing.assert_allclose(state.weights[path], weight, atol=1e-4, err_msg=path)
        assert np.abs(weight - before[path]).max() > 5e-4, f"{path} has not moved: this test would hold of anything"


@needs_torch
@pytest.mark.parametrize(("updates", "fused"), [(1, False), (1, True), (3, False)])
def test_pytorch_makes_the_products_update(updates, fused):
    import torch

    before, after, losses = product(updates)
    learner = in_torch.Learner(before, fused=fused)
    for (x, y), expected in zip(batches(updates), losses, strict=True):
        loss = learner.update(torch.from_numpy(x), torch.from_numpy(y).long())
        np.testing.assert_allclose(float(loss), expected, rtol=1e-4)
    for path, weight in after.items():
        np.testing.assert_allclose(learner.weights[path].detach().numpy(), weight, atol=1e-4, err_msg=path)


@needs_torch
def test_pytorch_trains_on_random_labels():
    config = small()
    weights = {path: np.asarray(leaf[0]) for path, leaf in bench.first_weights(config, 1).items()}
    problem = in_torch.Problem(weights, bench.random_images(config).images.reshape(40, -1), 8)
    first, long = (in_torch.train(problem, updates, threads=1, fused=False) for updates in (5, 200))
    assert math.log(10) * 0.7 < first < math.log(10) * 2  # random labels, not yet learnt
    assert long < 0.7 * first  # memorized


def test_the_formulations_learn_the_same_over_several_tasks():
    config = small()
    ways = by_hand.formulations(
        bench.random_images(config).images.reshape(40, -1),
        jax.vmap(by_hand.start)(bench.first_weights(config, 3)),
        batch_size=8,
        epochs=2,
        devices=jax.local_devices()[:2],  # the third seed is learnt alone, and a copy of the first beside it
    )
    assert list(ways) == ["vmap", "lax.map", "vmap, divided", "lax.map, divided"]
    learnt = {name: np.stack([learn() for _ in range(3)]) for name, learn in ways.items()}
    assert learnt["vmap"].shape == (3, 3)
    assert len(np.unique(learnt["vmap"])) == 9  # seeds and tasks differ
    np.testing.assert_allclose(learnt["lax.map"], learnt["vmap"], rtol=1e-3)
    np.testing.assert_allclose(learnt["lax.map, divided"], learnt["vmap, divided"], rtol=1e-3)


def test_by_hand_memorizes_what_it_is_shown():
    config = small()
    state = by_hand.start({path: leaf[0] for path, leaf in bench.first_weights(config, 1).items()})
    images = jnp.asarray(bench.random_images(config).images.reshape(40, -1))
    _, early = by_hand.learn_task(images, state, jax.random.key(0), batch_size=8, epochs=1)
    _, late = by_hand.learn_task(images, state, jax.random.key(0), batch_size=8, epochs=40)
    assert late < 0.7 * early


def test_without_records_the_learning_is_the_same():
    config = small()
    stream = bench.stream_of(config)
    learner = build_learner(config, stream)
    own = make_start(learner)(jax.random.key(0))
    results = [
        jax.jit(make_stretch(one, stream, 10))(stream.data, own, jnp.asarray(0), jnp.asarray(0))
        for one in (learner, bench.without_records(learner))
    ]
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6),
        *(result.own.state for result in results),
    )
    np.testing.assert_allclose(results[0].row["online_loss"], results[1].row["online_loss"], rtol=1e-5)
    assert len(results[0].row) > 20
    assert set(results[1].row) == {"online_loss", "online_accuracy", "loss", "accuracy"}


def test_the_rows_against_plain_jax_and_of_records():
    best, *others = bench.against_plain_jax(2, small())
    assert (best.goal, [other.goal for other in others]) == (Goal(0.90, at_least=True), [None] * 3)
    assert best.what.startswith("nap, width 12, batch 8, 3 seeds, vs plain JAX (")
    medians = [statistics.median(row.reference) for row in (best, *others)]
    assert medians == sorted(medians, reverse=True)  # the goal is against the fastest
    (row,) = bench.records(2, small())
    assert (row.what, row.goal, len(row.ours)) == ("update: a record every 10, vs none", Goal(1.05), 2)
    assert table([best, *others, row]).count("updates/s") == 4


def test_without_pytorch_a_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench.against_torch(1) == []
    assert capsys.readouterr().err.count("pip install torch") == 1


def test_the_rows_come_from_a_process_with_a_device_a_core(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the eight devices of the tests
    monkeypatch.setattr(bench, "PARTS", (bench.memory,))
    (row,) = bench.rows(1)
    assert row.ratio == pytest.approx(min(bench.SEEDS, len(cores_here())))
    assert row.met is True
