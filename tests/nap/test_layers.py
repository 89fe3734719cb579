"""Normalized layers: gradients against finite differences in float64, dead units revived, formulas against Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from nap import paths
from nap.layers import (
    BatchNormalization,
    Conv,
    GroupNormalization,
    Linear,
    Normalization,
    Output,
    normalize,
    uniform_fan_in,
)
from nap.networks import MLP, QNetwork, as_functions
from nap.noisy import NoisyOutput
from nap.roles import Role

KINDS = pytest.mark.parametrize("norm", ["layer", "rms"])


@KINDS
@pytest.mark.parametrize("axes", [(-1,), (-3, -2, -1)])
def test_normalization_equals_flax(norm, axes):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 5, 8))
    kind = nnx.LayerNorm if norm == "layer" else nnx.RMSNorm
    shape = 8 if axes == (-1,) else (5, 5, 8)
    kwargs = {"use_bias": False} if norm == "layer" else {}
    expected = kind(
        shape, epsilon=1e-6, use_scale=False, rngs=nnx.Rngs(0), reduction_axes=axes, feature_axes=axes, **kwargs
    )(x)
    np.testing.assert_allclose(normalize(x, norm, axes), expected, rtol=2e-5, atol=2e-6)


@KINDS
@pytest.mark.parametrize("axes", [(-1,), (-3, -2, -1)])
def test_normalization_gradient_equals_that_of_flax(norm, axes):
    """The gradient, through scale and offset as well."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, weight = jax.random.normal(keys[0], (4, 5, 5, 8)) + 1, jax.random.normal(keys[1], (4, 5, 5, 8))
    kind = nnx.LayerNorm if norm == "layer" else nnx.RMSNorm
    flax_kwargs = {"use_bias": False} if norm == "layer" else {}
    shape = 8 if axes == (-1,) else (5, 5, 8)
    reference = kind(
        shape, epsilon=1e-6, use_scale=False, reduction_axes=axes, feature_axes=axes, rngs=nnx.Rngs(0), **flax_kwargs
    )
    ours = jax.grad(lambda x: jnp.sum(weight * normalize(x, norm, axes)))(x)
    theirs = jax.grad(lambda x: jnp.sum(weight * reference(x)))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


MAPS = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 12)) * jnp.arange(1, 13)
SCALE, OFFSET = jax.random.normal(jax.random.key(1), (2, 12))


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (512, 32), (48, 8), (16, 8), (12, 2), (2, 1), (1, 1), (7, 1)]
)
def test_groups_of_channels_are_equal_and_have_at_least_two(channels, groups):
    assert GroupNormalization(channels).groups == groups


def test_group_normalization_equals_flax():
    layer = GroupNormalization(12)
    layer.scale[...], layer.offset[...] = SCALE, OFFSET
    affine = {"params": {"scale": SCALE, "bias": OFFSET}}
    np.testing.assert_allclose(layer(MAPS), nn.GroupNorm(2).apply(affine, MAPS), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(layer(MAPS[0]), layer(MAPS)[0], rtol=2e-5, atol=2e-5)  # a single image


def test_batch_normalization_equals_flax_in_training_and_in_evaluation():
    layer = BatchNormalization(12)
    layer.scale[...], layer.offset[...] = SCALE, OFFSET
    theirs = nn.BatchNorm(momentum=0.9, epsilon=1e-6)
    variables = {
        "params": {"scale": SCALE, "bias": OFFSET},
        "batch_stats": {"mean": jnp.zeros(12), "var": jnp.ones(12)},
    }
    for batch in (MAPS, 2 * MAPS - 1):
        expected, stats = theirs.apply(variables, batch, use_running_average=False, mutable="batch_stats")
        variables |= stats
        np.testing.assert_allclose(layer(batch), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.mean[...], variables["batch_stats"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(layer.variance[...], variables["batch_stats"]["var"], rtol=1e-5)
    layer.eval()
    expected, running = theirs.apply(variables, MAPS, use_running_average=True), layer.mean[...]
    np.testing.assert_allclose(layer(MAPS), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.mean[...], running)


def test_batch_normalization_takes_its_statistics_in_float32():
    layer = BatchNormalization(1)
    maps = jnp.full((1, 1, 1024, 1), 1.0, jnp.bfloat16).at[0, 0, 0].set(3.0)  # a sum that bfloat16 can't count to
    assert layer(maps).dtype == jnp.bfloat16
    assert float(layer.mean[0]) == pytest.approx(0.1 * (1 + 2 / 1024), rel=1e-6)


@KINDS
@pytest.mark.parametrize("kind", ["linear", "conv", "conv-all"])
def test_gradient_is_orthogonal_to_the_weight_and_scales_as_one_over_c(norm, kind):
    """Test (a), against central differences in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        rngs = nnx.Rngs(0)
        if kind == "linear":
            layer, x = Linear(6, 10, norm=norm, activation=jnp.tanh, rngs=rngs), rng.normal(size=(5, 6))
        else:
            axes = "all" if kind == "conv-all" else "channels"
            layer = Conv(3, 6, 3, norm=norm, norm_axes=axes, activation=jnp.tanh, rngs=rngs)
            x = rng.normal(size=(2, 5, 5, 3))
        layer = jax.tree.map(lambda p: p.astype(jnp.float64), layer)
        graph, params = nnx.split(layer)
        x = jnp.asarray(x)
        weight = jnp.asarray(rng.normal(size=layer(x).shape))

        def loss(kernel):
            changed = jax.tree.map(lambda p: kernel if p.shape == kernel.shape else p, params)
            return jnp.sum(weight * nnx.merge(graph, changed)(x))

        kernel = params["kernel"][...]
        gradient = jax.grad(loss)(kernel)

        direction = jnp.asarray(rng.normal(size=kernel.shape))
        step = 1e-5
        numerical = (loss(kernel + step * direction) - loss(kernel - step * direction)) / (2 * step)
        assert float(numerical) == pytest.approx(float(jnp.vdot(gradient, direction)), rel=1e-6)

        size = float(jnp.linalg.norm(gradient) * jnp.linalg.norm(kernel))
        assert abs(float(jnp.vdot(gradient, kernel))) < 2e-5 * size  # epsilon = 1e-6 breaks it by this much
        for c in (0.5, 3.0, 10.0):
            np.testing.assert_allclose(jax.grad(loss)(c * kernel) * c, gradient, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize(("norm", "revived"), [("none", False), ("layer", True), ("rms", True)])
def test_a_dead_unit_gets_gradient_only_through_a_normalization(norm, revived):
    """Test (d): a unit that is silent on the whole batch."""
    layer = Linear(6, 10, norm=norm, rngs=nnx.Rngs(0))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (64, 6))) + 0.1
    layer.kernel[...] = layer.kernel[...].at[:, 3].set(-2.0)  # x > 0, so unit 3 is always negative before the ReLU
    graph, params = nnx.split(layer)
    assert float(jnp.max(layer(x)[:, 3])) == 0.0
    weight = jax.random.normal(jax.random.key(1), (64, 10))
    gradient = jax.grad(lambda p: jnp.sum(weight * nnx.merge(graph, p)(x)))(params)["kernel"][...]
    size = float(jnp.linalg.norm(gradient[:, 3]))
    assert (size > 1e-3) == revived
    assert size == 0.0 or revived
    assert float(jnp.linalg.norm(gradient[:, 0])) > 1e-3


@KINDS
def test_there_is_no_bias_before_a_normalization(norm):
    state = nnx.split(Linear(4, 5, norm=norm, rngs=nnx.Rngs(0)))[1]
    assert set(state) == {"kernel", "norm"}
    assert set(nnx.split(Linear(4, 5, norm="none", rngs=nnx.Rngs(0)))[1]) == {"kernel", "bias"}


@pytest.mark.parametrize("norm", ["layer", "rms", "group", "batch"])
def test_a_normalized_convolution_has_no_bias(norm):
    params = nnx.split(Conv(4, 5, 3, norm=norm, rngs=nnx.Rngs(0)), nnx.Param, ...)[1]
    assert set(paths.leaves(params)) == {"kernel", "norm/scale", "norm/offset"}


def test_a_bias_can_be_left_out():
    x = jax.random.normal(jax.random.key(0), (2, 4))
    for layer in (
        Linear(4, 5, norm="none", bias=False, activation="tanh", rngs=nnx.Rngs(0)),
        Output(4, 5, bias=False, rngs=nnx.Rngs(0)),
    ):
        assert set(nnx.split(layer)[1]) == {"kernel"}
        z = x @ layer.kernel[...]
        np.testing.assert_allclose(layer(x), jnp.tanh(z) if isinstance(layer, Linear) else z, rtol=1e-5)


def test_roles_are_declared():
    assert Normalization(3, norm="layer").scale.get_metadata()["role"] == Role.SCALE
    assert Normalization(3, norm="layer", before_output=True).offset.get_metadata()["role"] == Role.OUTPUT_OFFSET
    assert Output(3, 2, rngs=nnx.Rngs(0)).kernel.get_metadata()["role"] == Role.OUTPUT


def test_uniform_fan_in_has_the_bound_of_dqn_zoo():
    kernel = uniform_fan_in(jax.random.key(0), (8, 8, 4, 32))
    assert float(jnp.max(jnp.abs(kernel))) == pytest.approx(1 / 16, rel=1e-3)
    assert float(jnp.std(kernel)) == pytest.approx(1 / 16 / np.sqrt(3), rel=0.02)


def test_the_nature_network_has_the_published_size():
    """1,687,206 parameters for six actions with biases, as in Mnih et al.'s network."""
    network = as_functions(lambda rngs: QNetwork(6, norm="none", rngs=rngs))
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_687_206
    frames = jax.ShapeDtypeStruct((2, 4, 84, 84), jnp.uint8)
    values, activations = jax.eval_shape(network.activations, params, frames)
    assert values.shape == (2, 6)
    assert {name: value.shape[1:] for name, value in activations.items()} == {
        "torso/0": (20, 20, 32),
        "torso/1": (9, 9, 64),
        "torso/2": (7, 7, 64),
        "hidden": (512,),
    }


def test_bfloat16_inputs_give_bfloat16_outputs():
    layer = Linear(4, 5, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Linear(2, 3, norm="batch", rngs=nnx.Rngs(0)),
            "norm must be one of 'none', 'layer', 'rms', got 'batch'",
        ),
        (lambda: Conv(2, 3, 3, norm="bach", rngs=nnx.Rngs(0)), "norm must be one of .*'group', 'batch', got 'bach'"),
        (lambda: Conv(2, 3, 3, norm_axes="height", rngs=nnx.Rngs(0)), "norm_axes must be one of"),
        (lambda: MLP(2, [], 3, rngs=nnx.Rngs(0)), "at least one hidden layer"),
    ],
)
def test_bad_input_is_told_in_one_line(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match=message):
        call()


def test_whole_numbers_are_taken_as_floating_point_ones(monkeypatch):
    """Never are weights cut to whole numbers."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 2)), jnp.uint8)
    for layer, x in (
        (Linear(2, 4, rngs=nnx.Rngs(0)), pixels),
        (Conv(2, 4, 3, rngs=nnx.Rngs(0)), pixels),
        (Output(2, 4, rngs=nnx.Rngs(0)), pixels),
        (NoisyOutput(2, 4, rngs=nnx.Rngs(0)), pixels[:, 0, 0]),
    ):
        found = layer(x)
        np.testing.assert_allclose(found, layer(x.astype(jnp.float32)))
        assert found.dtype == jnp.float32 and np.std(found) > 0


def test_noise_is_drawn_for_each_example_or_for_a_single_one():
    layer, key = NoisyOutput(5, 3, rngs=nnx.Rngs(0)), jax.random.key(0)
    assert layer(jnp.ones(5), key).shape == (3,)
    assert len(np.unique(layer(jnp.ones((4, 4, 5)), key).round(6))) == 48
