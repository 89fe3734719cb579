"""What `--method`, `--optimizer`, `--lr` and `--schedule` stand for, against numbers worked by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness.methods import NapConfig, OptimizerConfig, learning_rate, make_optimizer, norm_of

UPDATES = 100
SGD = OptimizerConfig(optimizer="sgd", lr=0.1, clip=0.0)


def params() -> dict:
    """Two normalized layers and an output: norms 5, 13 and 1."""

    def norm() -> dict:
        return {"scale": jnp.ones(2), "offset": jnp.zeros(2)}

    return {
        "layers": [
            {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "norm": norm()},
            {"kernel": jnp.array([[5.0, 0.0], [0.0, 12.0]]), "norm": norm()},
        ],
        "output": {"kernel": jnp.array([[0.6], [0.8]]), "bias": jnp.zeros(1)},
    }


def after(optimizer: optax.GradientTransformation, updates: int, gradient: float = 1.0) -> dict:
    """The parameters after some updates, all with the same gradient for every number."""
    current = params()
    state = optimizer.init(current)
    for _ in range(updates):
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), current)
        steps, state = optimizer.update(gradients, state, current)
        current = optax.apply_updates(current, steps)
    return current


def norms(tree: dict) -> list[float]:
    return [float(np.linalg.norm(layer["kernel"])) for layer in (*tree["layers"], tree["output"])]


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last", "beyond"),
    [
        ("constant", 0.2, 0.2, 0.2, 0.2),
        ("linear", 0.2, 0.12, 0.04, 0.04),  # to a fifth of 0.2; the middle is their mean
        ("cosine", 0.2, 0.12, 0.04, 0.04),
    ],
)
def test_learning_rate_at_the_first_the_middle_and_the_last_update(schedule, first, middle, last, beyond):
    rate = learning_rate(OptimizerConfig(lr=0.2, schedule=schedule, lr_end=0.2), UPDATES)
    found = [float(rate(update)) for update in (0, UPDATES // 2, UPDATES, 2 * UPDATES)]
    np.testing.assert_allclose(found, [first, middle, last, beyond], rtol=1e-6)


def test_linear_and_cosine_differ_in_between():
    quarter = [
        float(learning_rate(OptimizerConfig(lr=1.0, schedule=schedule, lr_end=0.0), UPDATES)(UPDATES // 4))
        for schedule in ("linear", "cosine")
    ]
    np.testing.assert_allclose(quarter, [0.75, (1 + math.sqrt(0.5)) / 2], rtol=1e-6)


def test_the_optimizer_follows_the_schedule_from_its_first_update_on():
    config = dataclasses.replace(SGD, schedule="linear", lr_end=0.0)
    optimizer = make_optimizer("none", config, NapConfig(), updates=4)
    moved = [float(after(optimizer, n)["output"]["bias"][0]) for n in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(moved, [-0.1, -0.175, -0.225, -0.25, -0.25], rtol=1e-6)


@pytest.mark.parametrize("method", ["none", "layernorm"])
def test_methods_without_projection_leave_the_optimizer_as_it_is(method):
    moved = after(make_optimizer(method, SGD, NapConfig(), UPDATES), 3)
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, old - 0.3, atol=1e-6), moved, params())


def test_nap_projects_hidden_weights_and_not_the_output():
    moved = after(make_optimizer("nap", SGD, NapConfig(), UPDATES), 3)
    first, second, output = norms(moved)
    np.testing.assert_allclose([first, second], [5.0, 13.0], rtol=1e-6)
    np.testing.assert_allclose(moved["output"]["kernel"], [[0.3], [0.5]], rtol=1e-5)
    np.testing.assert_allclose(output, math.sqrt(0.34), rtol=1e-5)
    assert abs(float(moved["layers"][0]["kernel"][0, 1])) > 0.01, "the direction must move"


def test_affine_is_handed_on():
    def scale_and_offset(affine: str) -> np.ndarray:
        layer = after(make_optimizer("nap", SGD, NapConfig(affine=affine), UPDATES), 1)["layers"][0]["norm"]
        return np.concatenate([layer["scale"], layer["offset"]])

    free = np.array([0.9, 0.9, -0.1, -0.1])
    np.testing.assert_allclose(scale_and_offset("free"), free, rtol=1e-6)
    np.testing.assert_allclose(scale_and_offset("project"), free * math.sqrt(2 / 1.64), rtol=1e-6)


def test_project_every_is_handed_on():
    optimizer = make_optimizer("nap", SGD, NapConfig(project_every=2), UPDATES)
    assert abs(norms(after(optimizer, 1))[0] - 5) > 0.01
    assert abs(norms(after(optimizer, 2))[0] - 5) < 1e-5


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"optimizer": "sgd", "clip": 0.0}, 0.1 * 2.0),
        # 19 numbers with gradient 2 each: a gradient of norm 2 sqrt(19), cut to 0.5
        ({"optimizer": "sgd", "clip": 0.5}, 0.1 * 0.5 / math.sqrt(19)),
        ({"optimizer": "sgd", "clip": 1e3}, 0.1 * 2.0),
        ({"optimizer": "adam", "clip": 0.0, "optimizer_epsilon": 0.5}, 0.1 * 2.0 / (2.0 + 0.5)),
        # second moment 0.05 * 2^2, first 0.05 * 2, epsilon inside the root
        ({"optimizer": "rmsprop", "clip": 0.0, "optimizer_epsilon": 0.5}, 0.1 * 2 / math.sqrt(0.2 - 0.1**2 + 0.5)),
    ],
)
def test_the_first_step_of_each_optimizer(changes, step):
    optimizer = make_optimizer("layernorm", dataclasses.replace(SGD, **changes), NapConfig(), UPDATES)
    moved = after(optimizer, 1, gradient=2.0)
    jax.tree.map(lambda new, old: np.testing.assert_allclose(old - new, step, rtol=1e-5, atol=1e-6), moved, params())


def test_clipping_comes_before_the_optimizer_and_projection_after_it():
    clipped = dataclasses.replace(SGD, lr=100.0, clip=1e-3)
    before_projection = after(make_optimizer("none", clipped, NapConfig(), UPDATES), 1)
    moved = after(make_optimizer("nap", clipped, NapConfig(), UPDATES), 1)
    wanted = before_projection["layers"][0]["kernel"]
    np.testing.assert_allclose(moved["layers"][0]["kernel"], wanted * 5 / np.linalg.norm(wanted), rtol=1e-5)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norm_of_a_method(norm):
    config = NapConfig(norm=norm)
    assert [norm_of(method, config) for method in ("none", "layernorm", "nap")] == ["none", norm, norm]
