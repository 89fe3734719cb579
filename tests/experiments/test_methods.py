"""What `--method`, `--optimizer`, `--lr` and `--schedule` stand for, against numbers worked by hand."""

import dataclasses
import math
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness import methods, rivals
from experiments.harness.errors import UserError
from experiments.harness.methods import NapConfig, OptimizerConfig, learning_rate, norm_of, parse_method
from experiments.harness.rivals import RivalsConfig, Setting
from nap.networks import Network

UPDATES = 100
SGD = OptimizerConfig(optimizer="sgd", lr=0.1, clip=0.0)


READERS = {"layers/0": ("layers/1",), "layers/1": ("output",)}


def make_optimizer(
    method: str, config: OptimizerConfig, nap_config: NapConfig, updates: int, rivals: RivalsConfig | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a method by name, for the network whose parameters are `params()`."""
    network = Network(lambda key: params(), lambda *_: jnp.zeros(()), lambda *_: (jnp.zeros(()), {}), READERS)
    setting = Setting(network, jax.random.key(0), updates, task_updates=2)
    return methods.make_optimizer(parse_method(method), config, nap_config, rivals or RivalsConfig(), setting)


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
        ("rex", 0.2, 0.04 + 0.16 * 2 / 3, 0.04, 0.04),
        ("step", 0.2, 0.02, 0.0002, 0.0002),
        ("one-cycle", 0.008, 0.2 - 0.192 * 20 / 55, 0.04, 0.04),  # 20 updates from the peak, 35 before 0.008 again
        ("warmup-cosine", 0.0, 0.04 + 0.16 * (1 + math.cos(math.pi * 49 / 99)) / 2, 0.04, 0.04),  # warm-up of 1 update
        ("wsd", 0.0, 0.2, 0.04, 0.04),
        ("inverse-sqrt", 0.0, 0.2 / math.sqrt(50), 0.02, 0.02 / math.sqrt(2)),
        ("matching", 0.2, 0.2, 0.2, 0.2),  # its own rate; the multipliers come on top
        ("global-matching", 0.2, 0.2, 0.2, 0.2),
    ],
)
def test_learning_rate_at_the_first_the_middle_and_the_last_update(schedule, first, middle, last, beyond):
    rate = learning_rate(OptimizerConfig(lr=0.2, schedule=schedule, lr_end=0.2), UPDATES)
    found = [float(rate(update)) for update in (0, UPDATES // 2, UPDATES, 2 * UPDATES)]
    np.testing.assert_allclose(found, [first, middle, last, beyond], rtol=1e-6)


def test_every_schedule_that_can_be_named_is_there():
    named = get_args(get_type_hints(OptimizerConfig)["schedule"])
    assert set(named) == methods.SCHEDULES.keys() >= set(methods.MATCHING)


def test_wsd_stays_at_the_peak_until_the_last_tenth():
    rate = learning_rate(OptimizerConfig(lr=0.2, schedule="wsd", lr_end=0.01), UPDATES)
    np.testing.assert_allclose([float(rate(n)) for n in (1, 90, 95, 100)], [0.2, 0.2, 0.02, 0.002], rtol=1e-5)


def test_wsd_to_0_decays_linearly():
    rate = learning_rate(OptimizerConfig(lr=0.2, schedule="wsd", lr_end=0.0), UPDATES)
    np.testing.assert_allclose([float(rate(n)) for n in (1, 90, 95, 99, 100)], [0.2, 0.2, 0.1, 0.02, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"schedule": "wsd", "lr_end": -0.1},
            "--schedule wsd --lr 6.25e-05 --lr-end -0.1: end must be a finite number",
        ),
        (
            {"schedule": "nap-cosine", "lr": 1e-7},
            "--schedule nap-cosine --lr 1e-07 .*: peak must be at least 1e-06, as",
        ),
    ],
)
def test_a_peak_or_an_end_that_a_schedule_cannot_have_is_told_in_a_line(changes, said):
    with pytest.raises(UserError, match=said) as told:
        learning_rate(OptimizerConfig(**changes), UPDATES)
    assert "\n" not in str(told.value)


SIZES = (1, 5, 100)
FIRST_AND_LAST = {  # where schedules from 0.5 to 0 begin in runs of these sizes, and where they end
    **dict.fromkeys(("constant", *methods.MATCHING), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    **dict.fromkeys(("linear", "cosine", "rex"), ((0.5, 0.5, 0.5), (0.0, 0.0, 0.0))),
    **dict.fromkeys(("warmup-cosine", "wsd"), ((0.5, 0.5, 0.0), (0.0, 0.0, 0.0))),  # 1 % of 5 is no update
    "step": ((0.5, 0.5, 0.5), (0.0005, 0.0005, 0.0005)),
    "one-cycle": ((0.02, 0.02, 0.02), (0.0, 0.0, 0.0)),
    "nap-cosine": ((0.5, 0.5, 1e-8), (1e-6, 1e-6, 1e-6)),
    "inverse-sqrt": ((0.0, 0.0, 0.0), (0.5, 0.5 / math.sqrt(5), 0.05)),
}


@pytest.mark.parametrize("schedule", methods.SCHEDULES)
def test_runs_of_all_sizes_start_and_end_where_the_schedule_says(schedule):
    for updates, first, last in zip(SIZES, *FIRST_AND_LAST[schedule], strict=True):
        rate = np.asarray(
            learning_rate(OptimizerConfig(schedule=schedule, lr=0.5, lr_end=0.0), updates)(np.arange(200))
        )
        assert np.isfinite(rate).all() and rate.min() >= 0 and rate.max() <= 0.5 + 1e-7
        np.testing.assert_allclose(rate[[0, updates]], [first, last], rtol=1e-5, atol=1e-10)


def test_the_schedules_work_without_a_rate_and_for_a_single_update():
    for name in methods.SCHEDULES:
        assert float(learning_rate(OptimizerConfig(schedule=name, lr=0.0), 1)(0)) == 0
        assert 0 <= float(learning_rate(OptimizerConfig(schedule=name, lr=0.5), 1)(1)) <= 0.5


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
    named = ("none", "layernorm", "nap", "rmsnorm")
    assert [norm_of(parse_method(method), config) for method in named] == ["none", norm, norm, "rms"]


def test_a_method_has_a_network_an_activation_and_interventions():
    assert parse_method("nap+redo+crelu") == methods.Method("nap", "crelu", ("redo",))
    assert parse_method("l2-init") == methods.Method("none", "relu", ("l2-init",))
    assert parse_method("redo+l2").interventions == parse_method("l2+redo").interventions


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("nap+reddo", "'reddo' is not a method; did you mean 'redo'?"),
        ("nap+layernorm", "one of layernorm and nap"),
        ("crelu+fourier", "one of crelu and fourier"),
        ("redo+redo", "named twice"),
    ],
)
def test_a_method_that_makes_no_sense_is_told_in_a_line(method, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        parse_method(method)


@pytest.mark.parametrize("name", [name for name in methods.method_names() if name != "plasticity-injection"])
@pytest.mark.parametrize("base", ["none", "nap"])
def test_every_method_makes_an_optimizer_that_runs_and_with_nap_keeps_the_norms(name, base):
    both = base if name in ("none", "layernorm", "rmsnorm", "nap") else f"{base}+{name}"
    config = OptimizerConfig(lr=0.1, clip=0.0, optimizer_epsilon=1e-8)
    optimizer = make_optimizer(both, config, NapConfig(), UPDATES, RivalsConfig(dash_window=1, redo_every=2))
    current = params()
    state = optimizer.init(current)
    activations = {layer: jnp.ones((3, 2)) for layer in READERS}
    for _ in range(3):
        gradients = jax.tree.map(jnp.ones_like, current)
        steps, state = optimizer.update(gradients, state, current, activations=activations)
        current = optax.apply_updates(current, steps)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(current))
    assert norms(current) != norms(params())  # it learns
    if base == "nap" and parse_method(both).base == "nap":
        np.testing.assert_allclose(norms(current)[:2], [5, 13], rtol=1e-5)


def test_weight_decay_is_that_of_adamw_for_matrices_and_no_other_parameter():
    config = OptimizerConfig(lr=0.1, schedule="linear", lr_end=0.0, clip=0.0, optimizer_epsilon=1e-8)
    ours = after(make_optimizer("weight-decay", config, NapConfig(), 4, RivalsConfig(weight_decay=0.5)), 3)

    def matrices(tree: dict) -> dict:
        return jax.tree.map(lambda leaf: leaf.ndim == 2, tree)

    theirs = optax.adamw(optax.linear_schedule(0.1, 0.0, 4), eps=1e-8, weight_decay=0.5, mask=matrices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, after(theirs, 3))
    plain = after(make_optimizer("none", config, NapConfig(), 4), 3)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), ours, plain)
    assert moved == matrices(params())


def test_l2_is_a_weight_decay_in_the_gradient_and_leaves_normalizations():
    """0.1 x 0.5 x 3 of 3; the scales stay 1."""
    moved = after(make_optimizer("none+l2", SGD, NapConfig(), UPDATES, RivalsConfig(l2_strength=0.5)), 1, gradient=0.0)
    assert moved["layers"][0]["kernel"][0, 0] == pytest.approx(2.85)
    np.testing.assert_array_equal(moved["layers"][0]["norm"]["scale"], 1)


def test_parsevals_strength_is_that_of_a_layer_of_64_units():
    """Two units, of norms 3 and 4: 4 K (K^T K - 2 I) is 84 and 224, and (64 / 2)^2 of 1e-3 is 1.024."""
    moved = after(make_optimizer("none+parseval", SGD, NapConfig(), UPDATES), 1, gradient=0.0)
    expected = np.diag([3 - 0.1 * 1.024 * 84, 4 - 0.1 * 1.024 * 224])
    np.testing.assert_allclose(moved["layers"][0]["kernel"], expected, rtol=1e-5)


def test_an_intervention_that_comes_once_a_task_needs_tasks_or_an_interval():
    network = Network(lambda key: params(), lambda *_: jnp.zeros(()), lambda *_: (jnp.zeros(()), {}), READERS)
    setting = Setting(network, jax.random.key(0), UPDATES)
    with pytest.raises(UserError, match="--every"):
        methods.make_optimizer(parse_method("reset-head"), SGD, NapConfig(), RivalsConfig(), setting)
    methods.make_optimizer(parse_method("reset-head"), SGD, NapConfig(), RivalsConfig(every=7), setting)


@pytest.mark.parametrize("name", rivals.names())
def test_those_that_come_once_a_task_are_listed(name):
    """Sequences refuse these by the list before they begin, where tasks differ in length."""
    network = Network(lambda key: params(), lambda *_: jnp.zeros(()), lambda *_: (jnp.zeros(()), {}), READERS)
    setting = Setting(network, jax.random.key(0), UPDATES)
    asks = False
    try:
        methods.make_optimizer(parse_method(name), OptimizerConfig(), NapConfig(), RivalsConfig(), setting)
    except UserError as error:
        asks = "--every N" in str(error)
    assert asks == (name in rivals.ONCE_A_TASK)


@pytest.mark.parametrize(
    ("method", "optimizer", "words"),
    [
        ("equal-betas", "sgd", "changes Adam"),
        ("upgd", "rmsprop", "needs --optimizer"),
        ("upgd+weight-decay", "adam", "--upgd-weight-decay"),
    ],
)
def test_a_method_that_does_not_go_with_the_optimizer_is_told_in_a_line(method, optimizer, words):
    with pytest.raises(UserError, match=words):
        make_optimizer(method, dataclasses.replace(SGD, optimizer=optimizer), NapConfig(), UPDATES)


def test_adam_counts_by_entry_where_units_are_recycled_only():
    adam = dataclasses.replace(SGD, optimizer="adam")
    counts = {
        method: [leaf.shape for leaf in jax.tree.leaves(make_optimizer(method, adam, NapConfig(), 9).init(params()))]
        for method in ("l2", "redo")
    }
    assert len(counts["redo"]) > len(counts["l2"])
    assert sum(shape == (2, 2) for shape in counts["redo"]) == 3 * 2  # counts, first and second moments of two kernels
    assert sum(shape == (2, 2) for shape in counts["l2"]) == 2 * 2
