"""Residual networks: published sizes, Flax's layers on the same weights, and what is invariant in training."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx

import nap
from nap import paths
from nap.interventions.units import count_units
from nap.invariance import Verdict
from nap.networks import ResNet, StatefulNetwork, as_functions, as_stateful_functions, resnet_18, resnet_50
from nap.roles import Role

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (6, 12, 12, 3))
SMALL = {"blocks": (1, 1), "width": 8}


@functools.cache
def network(**options) -> StatefulNetwork:
    return as_stateful_functions(lambda rngs: ResNet(5, **{**SMALL, **options}, rngs=rngs))


@functools.cache
def random(**options):
    """A network with parameters and statistics that are nowhere 0; by NumPy, as compiling an initialization is slow."""
    made, rng = network(**options), np.random.default_rng(0)

    def draw(path, leaf):
        value = np.abs(rng.normal(size=leaf.shape)) + 0.5
        if path.endswith("kernel"):
            value = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(value, jnp.float32)

    return made, *(paths.map_leaves(draw, tree) for tree in jax.eval_shape(made.init, KEY))


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (functools.partial(resnet_18, 1000, stem="imagenet"), 11_689_512),  # torchvision's resnet18
        (functools.partial(resnet_50, 1000, stem="imagenet"), 25_557_032),  # and resnet50
        (functools.partial(resnet_18, 10), 11_173_962),  # the usual CIFAR variant
    ],
)
def test_published_sizes(make, size):
    params, rest = jax.eval_shape(as_stateful_functions(lambda rngs: make(rngs=rngs)).init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    channels = sum(leaf.size for path, leaf in paths.leaves(params).items() if path.endswith("norm/scale"))
    assert sum(leaf.size for leaf in jax.tree.leaves(rest)) == 2 * channels


@pytest.mark.parametrize(("make", "stem", "side"), [(resnet_18, "cifar", 32), (resnet_50, "imagenet", 224)])
def test_each_stage_halves_the_side_and_doubles_the_channels(make, stem, side):
    made = as_functions(lambda rngs: make(10, stem=stem, norm="group", rngs=rngs))
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    outputs, activations = jax.eval_shape(made.activations, jax.eval_shape(made.init, KEY), images)
    assert outputs.shape == (2, 10)
    first = side if stem == "cifar" else side // 4
    shapes = {a.shape[1:] for a in activations.values()}
    expected = {(first // 2**i, first // 2**i, 64 * 2**i) for i in range(4)}
    bottlenecks = {(first // 2**i, first // 2**i, 64 * 2 ** (i + 1)) for i in range(3)}  # before the strided 3x3
    assert shapes == (expected if stem == "cifar" else expected | bottlenecks)


def reference(leaves, stats, x, *, norm, block, stem, train):
    """The outputs by Linen's layers, written from the papers' figures."""

    def layer(x, path, stride=1):
        kernel = leaves[f"{path}/kernel"]
        size, channels = kernel.shape[:2], kernel.shape[-1]
        x = nn.Conv(channels, size, (stride, stride), "SAME", use_bias=False).apply({"params": {"kernel": kernel}}, x)
        variables = {"params": {"scale": leaves[f"{path}/norm/scale"], "bias": leaves[f"{path}/norm/offset"]}}
        if norm != "batch":
            return nn.LayerNorm().apply(variables, x)
        variables["batch_stats"] = {"mean": stats[f"{path}/norm/mean"], "var": stats[f"{path}/norm/variance"]}
        kind = nn.BatchNorm(use_running_average=not train, epsilon=1e-6)
        return kind.apply(variables, x, mutable="batch_stats")[0]

    big = stem == "imagenet"
    x = nn.relu(layer(x, "stem", 2 if big else 1))
    x = nn.max_pool(x, (3, 3), (2, 2), "SAME") if big else x
    for path, stride in (("blocks/0", 1), ("blocks/1", 2), ("blocks/2", 1)):
        if block == "basic":
            y = layer(nn.relu(layer(x, f"{path}/layers/0", stride)), f"{path}/layers/1")
        else:
            y = nn.relu(layer(nn.relu(layer(x, f"{path}/layers/0")), f"{path}/layers/1", stride))
            y = layer(y, f"{path}/layers/2")
        shortcut = f"{path}/shortcut/kernel" in leaves
        x = nn.relu(y + (layer(x, f"{path}/shortcut", stride) if shortcut else x))
    return x.mean((1, 2)) @ leaves["output/kernel"] + leaves["output/bias"]


@pytest.mark.parametrize(
    ("norm", "block", "stem"),
    [("batch", "basic", "cifar"), ("batch", "bottleneck", "imagenet"), ("layer", "basic", "imagenet")],
)
def test_outputs_are_those_of_flax_layers(norm, block, stem):
    made, params, rest = random(norm=norm, block=block, stem=stem, blocks=(1, 2))
    leaves, stats = paths.leaves(params), paths.leaves(rest)
    expected = functools.partial(reference, leaves, stats, IMAGES, norm=norm, block=block, stem=stem)
    trained, evaluated = jax.jit(made.train)(params, rest, IMAGES)[0], jax.jit(made.evaluate)(params, rest, IMAGES)
    np.testing.assert_allclose(trained, jax.jit(lambda: expected(train=True))(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(evaluated, jax.jit(lambda: expected(train=False))(), rtol=1e-3, atol=1e-3)
    assert np.allclose(trained, evaluated) == (norm != "batch")


CLEAN = {
    "batch": {"norm": "batch"},
    "group": {"norm": "group"},
    "layer": {"norm": "layer"},
    "rms-all": {"norm": "rms", "norm_axes": "all"},
    "bottleneck": {"norm": "batch", "block": "bottleneck", "stem": "imagenet"},
}


@pytest.mark.parametrize("name", CLEAN)
def test_the_audit_is_clean_in_training(name):
    made, params, rest = random(**CLEAN[name])
    audit = nap.audit(lambda params, x: made.train(params, rest, x)[0], params, IMAGES)
    assert audit.clean, str(audit)
    kernels = [row for row in audit if row.path.endswith("kernel") and row.path != "output/kernel"]
    assert all(row.projected and row.change < 2e-3 for row in kernels)
    inner = {row.path.removesuffix("/norm/scale") for row in audit if row.role is Role.SCALE}
    assert inner == set(made.readers), "only what normalized convolutions alone read is projected jointly"


def test_without_normalization_projection_is_a_constraint():
    made, params, rest = random(norm="none")
    audit = nap.audit(lambda params, x: made.train(params, rest, x)[0], params, IMAGES)
    assert {row.verdict for row in audit if row.role is Role.HIDDEN} == {Verdict.CONSTRAINED}


def test_running_statistics_belong_to_one_norm_of_the_kernels():
    """As its docstring says: a kernel rescaled at once changes nothing in training, everything in evaluation."""
    made, params, rest = random(norm="batch")
    for _ in range(60):
        outputs, rest = jax.jit(made.train)(params, rest, IMAGES)
    evaluate = jax.jit(made.evaluate)
    np.testing.assert_allclose(evaluate(params, rest, IMAGES), outputs, rtol=0.05, atol=0.05)  # the same batch's
    scaled = paths.replace(params, {"stem/kernel": 3 * paths.leaves(params)["stem/kernel"]})
    np.testing.assert_allclose(jax.jit(made.train)(scaled, rest, IMAGES)[0], outputs, rtol=1e-3, atol=1e-3)
    assert np.abs(evaluate(scaled, rest, IMAGES) - outputs).max() > 0.5
    assert np.abs(evaluate(scaled, rest, IMAGES) - evaluate(params, rest, IMAGES)).max() > 0.5


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_readers_take_in_what_their_layer_gives(block):
    made = network(block=block)
    params, rest = jax.eval_shape(made.init, KEY)
    _, activations = jax.eval_shape(made.activations, params, rest, IMAGES)
    assert set(activations) == set(made.readers)
    assert count_units(params, made.readers) == {layer: a.shape[-1] for layer, a in activations.items()}


def test_training_under_projection_holds_every_norm_for_seeds_side_by_side():
    made = network(norm="batch")
    optimizer = nap.normalize_and_project(optax.adam(1e-2))
    labels = jnp.arange(6) % 5
    params, rest = jax.jit(jax.vmap(made.init))(jax.random.split(KEY, 2))
    state = jax.vmap(optimizer.init)(params)
    before = nap.weight_norms(params)
    assert all(norm.size == 2 for norm in before.values())  # one a seed

    @jax.jit
    @jax.vmap
    def step(params, rest, state):
        def loss(params):
            outputs, new = made.train(params, rest, IMAGES)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels)), new

        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), rest, state, value

    losses = []
    for _ in range(15):
        params, rest, state, value = step(params, rest, state)
        losses.append(value)
    assert np.all(losses[-1] < 0.5 * losses[0])
    assert set(before) == {p for p in paths.leaves(params) if "kernel" in p and "output" not in p}
    for path, norm in nap.weight_norms(params).items():
        np.testing.assert_allclose(norm, before[path], rtol=1e-5)


def test_bfloat16_is_computed_in_and_float32_comes_out():
    made, params, rest = random(norm="batch", dtype=jnp.bfloat16)
    outputs, new = jax.jit(made.train)(params, rest, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, rest, new, outputs))} == {jnp.dtype("float32")}
    exact = jax.jit(network(norm="batch").train)(params, rest, IMAGES)[0]
    size = float(jnp.abs(exact).max())
    assert 1e-5 * size < float(jnp.abs(outputs - exact).max()) < 0.1 * size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ()}, r"at least one stage, each with at least one block, got \[\]"),
        ({"blocks": (2, 0)}, r"at least one block, got \[2, 0\]"),
        ({"block": "wide"}, "block must be one of 'basic', 'bottleneck', got 'wide'"),
        ({"stem": "mnist"}, "stem must be one of 'cifar', 'imagenet', got 'mnist'"),
        ({"norm": "instance"}, "norm must be one of .* got 'instance'"),
        ({"activation": "crelu"}, "activation 'crelu' makes two features of a unit.* such as 'relu'"),
    ],
)
def test_bad_input_is_told_in_one_line(options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match=message):
        ResNet(5, **{**SMALL, **options}, rngs=nnx.Rngs(0))
