"""The supervised learner and its loop: gradients in parts, averages, evaluation, devices; and the report on it."""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from envs.loaders import Loader
from experiments.harness import mesh
from experiments.harness.errors import UserError
from experiments.harness.read import load_runs
from experiments.harness.report import supervised as report
from experiments.harness.report import write_report
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import draw
from experiments.harness.supervised import Judged, Task, TrainingConfig, evaluated, make_learner
from experiments.harness.training import TrainingOptions, compiled, evaluate
from experiments.harness.utilisation import training_flops
from nap.networks import MLP, as_stateful_functions

FEATURES, CLASSES, ROWS = 4, 3, 16


class Batch(NamedTuple):
    x: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def batches(count: int, rows: int = ROWS) -> list[Batch]:
    """Made-up examples, of unequal weights."""
    rng = np.random.default_rng(0)
    return [
        Batch(
            rng.normal(size=(rows, FEATURES)).astype(np.float32),
            rng.integers(0, CLASSES, rows).astype(np.int32),
            rng.integers(0, 3, rows).astype(np.float32),
        )
        for _ in range(count)
    ]


def judge(outputs, batch: Batch) -> Judged:
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.labels)
    return Judged(2 * loss, loss, (jnp.argmax(outputs, axis=-1) == batch.labels).astype(jnp.float32))


NETWORK = as_stateful_functions(lambda rngs: MLP(FEATURES, [8, 8], CLASSES, norm="layer", rngs=rngs))
TASK = Task(NETWORK, lambda batch: batch.x, judge)


def learner(optimizer: optax.GradientTransformation | None = None, **training):
    return make_learner(TASK, TrainingConfig(**training), lambda key: optimizer or optax.sgd(0.1))


def trained(made, count: int = 3):
    state, update = jax.jit(made.init)(jax.random.key(0)), jax.jit(made.update)
    states = [state]
    for batch in batches(count):
        state, _, _ = update(state, batch)
        states.append(state)
    return states


def assert_close(found, expected, **tolerance) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), found, expected)


def test_an_update_is_gradient_descent_on_the_weighted_mean():
    before, after, *_ = trained(learner())
    (batch,) = batches(1)

    def objective(params):
        losses = judge(NETWORK.evaluate(params, before.rest, jnp.asarray(batch.x)), batch).objective
        return sum(w * loss for w, loss in zip(batch.weights, losses, strict=True)) / batch.weights.sum()

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, jax.jit(jax.grad(objective))(before.params))
    assert_close(after.params, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_in_parts_gives_the_update_of_the_whole():
    whole, parts = trained(learner())[-1], trained(learner(accumulate=4))[-1]
    assert_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
    assert_close(parts.since, whole.since, rtol=1e-6)


def test_a_batch_in_parts_takes_the_memory_of_a_part():
    memory = []
    for parts in (1, 4):
        made, (batch,) = learner(accumulate=parts), batches(1, rows=4096 * parts)
        compiled_update = jax.jit(made.update).lower(jax.eval_shape(made.init, jax.random.key(0)), batch).compile()
        memory.append(compiled_update.memory_analysis().temp_size_in_bytes)
    assert memory[1] < 2 * memory[0]


def test_averages_follow_the_weights():
    states = trained(learner(ema=0.2), 3)
    expected = states[0].params
    for i, state in enumerate(states[1:]):
        decay = min(0.2, (1 + i) / (10 + i))  # 1/10, 2/11 and 1/5, not 3/12
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, state.params)
    assert_close(evaluated(states[-1])[0], expected, rtol=1e-5, atol=1e-6)


def test_projection_holds_the_norms_of_weights_and_of_their_averages():
    states = trained(learner(nap.normalize_and_project(optax.sgd(1.0)), ema=0.9))
    start = nap.weight_norms(states[0].params)
    assert len(start) == 2
    moved = jax.tree.leaves(
        jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), states[0].params, states[-1].params)
    )
    assert max(moved) > 0.01
    assert_close(nap.weight_norms(states[-1].params), start, rtol=1e-5)
    assert_close(nap.weight_norms(evaluated(states[-1])[0]), start, rtol=1e-5)
    free = trained(learner(optax.sgd(1.0), ema=0.9))[-1]
    assert any(abs(norm / start[path] - 1) > 1e-3 for path, norm in nap.weight_norms(evaluated(free)[0]).items())


def test_a_measured_update_tells_of_all_updates_since_the_last():
    made = learner()
    first, second = batches(2)
    state = jax.jit(made.init)(jax.random.key(0))
    between, first_loss, told = jax.jit(made.update)(state, first)
    assert told == {}
    after, second_loss, told = jax.jit(made.measure)(between, second)
    weights = first.weights.sum(), second.weights.sum()
    expected = (first_loss * weights[0] + second_loss * weights[1]) / sum(weights)
    np.testing.assert_allclose(told["loss"], expected, rtol=1e-6)
    assert float(after.since.weight) == 0
    norms = nap.weight_norms(between.params)
    np.testing.assert_allclose(told["weight_norm/hidden/0"], norms["hidden/0/kernel"], rtol=1e-6)
    assert {"elr/output", "angle/hidden/1", "update_norm/output"} <= told.keys()


def test_evaluation_counts_every_example_by_its_weight():
    held_out = batches(3)
    loader = Loader(lambda position: ((batch, (i,)) for i, batch in enumerate(held_out)), (0,), 3)
    functions = compiled(learner(), TrainingConfig(), TrainingOptions())
    state = functions.init(jax.random.key(1))
    found = evaluate(functions, state, loader)
    logits = [
        np.asarray(NETWORK.evaluate(state.params, state.rest, jnp.asarray(batch.x)), np.float64) for batch in held_out
    ]
    weight = loss = correct = 0.0
    for outputs, batch in zip(logits, held_out, strict=True):
        for row, label, w in zip(outputs, batch.labels, batch.weights, strict=True):
            weight += w
            loss += w * (math.log(np.exp(row).sum()) - row[label])
            correct += w * (row.argmax() == label)
    np.testing.assert_allclose(list(found.values()), [loss / weight, correct / weight], rtol=1e-5)


@pytest.mark.parametrize("shard", [False, True])
def test_eight_devices_train_as_one_does(shard, monkeypatch):
    monkeypatch.setattr(mesh, "_SMALL", 16)  # else nothing of this network would be divided
    config = TrainingConfig(batch_size=ROWS, accumulate=2, ema=0.9)
    made = make_learner(TASK, config, lambda key: nap.normalize_and_project(optax.adam(0.01)))
    states = []
    for options in (TrainingOptions(), TrainingOptions(devices=8, shard=shard)):
        functions = compiled(made, config, options)
        state = functions.init(jax.random.key(0))
        for batch in batches(3):
            state, loss, _ = functions.update(state, functions.place(batch))
        states.append((state, loss))
    divided = {leaf.shape for leaf in jax.tree.leaves(states[1][0]) if not leaf.is_fully_replicated}
    assert divided == ({(FEATURES, 8), (8, 8), (8, CLASSES)} if shard else set())
    assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


def test_devices_that_cannot_share_a_part_are_refused():
    with pytest.raises(UserError, match=r"--batch-size / --accumulate 6: .* multiple of the number of devices, 8"):
        compiled(learner(), TrainingConfig(batch_size=12, accumulate=2), TrainingOptions(devices=8))
    with pytest.raises(UserError, match="--shard"):
        compiled(learner(), TrainingConfig(), TrainingOptions(shard=True))


def test_operations_of_products_loops_and_convolutions():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 5))
    assert training_flops(jnp.matmul, a, b) == 3 * 2 * (2 * 3 * 5)

    def loop(x, w):
        return jax.lax.scan(jax.checkpoint(lambda x, _: (x @ w, None)), x, None, length=7)[0]

    assert training_flops(jax.jit(loop), a, jnp.ones((3, 3))) == 3 * 7 * 2 * (2 * 3 * 3)
    images, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4, 5))
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    assert training_flops(conv, images, kernel) == 3 * 2 * (2 * 2 * 2 * 5) * (3 * 3 * 4)


# --- The report -------------------------------------------------------------------------------------------------------


def make_run(out: Path, method: str, lr: float, seed: int, loss: float | None) -> None:
    """A run of 20 updates on disk; without a loss it diverged after 10."""
    folder = out / f"{method}-{lr}-{seed}"
    folder.mkdir(parents=True)
    config = {"data": "digits", "method": method, "seed": seed, "updates": 20, "optimizer": {"lr": lr}}
    (folder / "config.json").write_text(
        json.dumps({"experiment": "images", "config": config, "versions": {}}), encoding="utf-8"
    )
    rows = [{"phase": "train", "updates": 1, "loss": 2.0, "weight_norm/stem": 3.0, "elr/stem": 0.0}]
    rows.append({"phase": "eval", "updates": 10, "eval/loss": 0.1, "eval/accuracy": 0.5})
    rows.append({"phase": "train", "updates": 20, "loss": loss, "weight_norm/stem": 3.0, "elr/stem": 0.01})
    if loss is not None:
        rows.append({"phase": "eval", "updates": 20, "eval/loss": loss, "eval/accuracy": 0.9})
        (folder / "DONE").write_text("", encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for lr, loss in {0.1: 1.04, 0.2: 1.0, 0.4: 1.2, 0.8: 1.01}.items():
            make_run(out, "nap", lr, seed, loss + 0.001 * seed)
        make_run(out, "none", 0.1, seed, 0.5 if seed else None)
        make_run(out, "none", 0.2, seed, 1.5)
    return out


def test_the_best_rate_and_those_as_good(runs):
    arms = report.make_arms(load_runs([runs]))
    assert [(arm.label, arm.lr, len(arm.runs)) for arm in arms] == [
        ("none", 0.1, 2), ("none", 0.2, 2), ("nap", 0.1, 2), ("nap", 0.2, 2), ("nap", 0.4, 2), ("nap", 0.8, 2),
    ]  # fmt: skip
    chosen = report.choose(arms)
    # The other rate of `none` is better where it does not diverge; that of its last evaluation does not count.
    assert [(arm.label, arm.lr) for arm in chosen] == [("none", 0.2), ("nap", 0.2)]
    assert arms[0].finals("eval/loss") == {1: 0.5}
    # 0.8 is as good too, but 0.4 between them is not.
    assert report.tolerated(arms[2:]) == (0.1, 0.2)


def test_the_report_has_tables_and_figures(runs, tmp_path):
    page = write_report([runs], tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("images on digits", "1.000 [1.000, 1.001]", "0.1 to 0.2, 2-fold", "1 of 2 seeds", "<b>−0.5"):
        assert words in page
    assert page.count("<figure>") == 4
    (rates,) = (plot for _, plot in report.plots(load_runs([runs])) if plot.name == "learning-rates")
    line = next(line for line in rates.panels[0].lines if line.method == "nap")
    np.testing.assert_allclose(line.x, [0.1, 0.2, 0.4, 0.8])
    marks = draw(rates, palette(["none", "nap"])).axes[0].get_xticklabels()
    assert [mark.get_text() for mark in marks] == ["0.1", "0.2", "0.4", "0.8"]
    weights = next(plot for _, plot in report.plots(load_runs([runs])) if plot.name == "weights")
    for line in weights.panels[1].lines:  # the zero of the warm-up is left out
        np.testing.assert_allclose(line.y, [0.01])
