"""The networks: published sizes, the CNN against Flax's layers, and readers that really read what they say."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from nap import paths
from nap.layers import Conv, uniform_fan_in
from nap.networks import CNN, MLP, Network, QNetwork, as_functions, as_stateful_functions
from nap.networks.cnn import max_pool

IMAGES = jax.random.uniform(jax.random.key(1), (3, 9, 8, 2))  # a row too many for the first max-pool
FRAMES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 84, 84)), jnp.uint8)
ACTIVATIONS = ("relu", "crelu", "prelu")


def cnn(norm: str, activation: str) -> Callable[[nnx.Rngs], CNN]:
    return lambda rngs: CNN((9, 8, 2), 4, channels=(6, 5), hidden=(12, 10), norm=norm, activation=activation, rngs=rngs)


def mlp(norm: str, activation: str) -> Callable[[nnx.Rngs], MLP]:
    return lambda rngs: MLP(9 * 8 * 2, (12, 10, 7), 4, norm=norm, activation=activation, rngs=rngs)


@functools.cache
def network(family: str, activation: str = "relu", norm: str = "layer") -> Network:
    if family == "nature":
        return as_functions(lambda rngs: QNetwork(4, norm=norm, activation=activation, rngs=rngs))
    return as_functions((cnn if family == "cnn" else mlp)(norm, activation))


LAYERS = {
    "mlp": ["hidden/0", "hidden/1", "hidden/2"],
    "cnn": ["torso/0", "torso/1", "hidden/0", "hidden/1"],
    "nature": ["torso/0", "torso/1", "torso/2", "hidden"],
}


def inputs_of(family: str) -> jax.Array:
    return FRAMES if family == "nature" else IMAGES


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("family", LAYERS)
def test_readers_are_layers_and_take_in_what_their_layer_gives(family, activation):
    made = network(family, activation)
    params = jax.eval_shape(made.init, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in paths.leaves(params).items()}
    told: list[str] = []

    def activations(params, x):
        outputs, by_layer = made.activations(params, x)
        told.extend(by_layer)
        return outputs, by_layer

    _, by_layer = jax.eval_shape(activations, params, inputs_of(family))
    assert told == list(made.readers) == LAYERS[family], "both in the network's order"
    k = 2 if activation == "crelu" else 1
    for layer, readers in made.readers.items():
        _, *space, features = by_layer[layer].shape
        units = shapes[f"{layer}/kernel"][-1]
        assert features == k * units
        for reader in readers:
            kernel = shapes[f"{reader}/kernel"]
            assert kernel[-2] == (features if len(kernel) == 4 else math.prod(space) * k * units)
    kernels = {path.removesuffix("/kernel") for path in shapes if path.endswith("/kernel")}
    assert kernels == {*made.readers, "output"} == {LAYERS[family][0], *(r for rs in made.readers.values() for r in rs)}


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_units_in_another_order_make_the_same_function(family, activation, norm):
    """Reorder each layer's units, and with them the rows of its readers: [places, features of a unit, units]."""
    made = network(family, activation, norm)
    params = jax.jit(made.init)(jax.random.key(0))
    random = np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(leaf + 0.3 * random.normal(size=leaf.shape), jnp.float32)
        for path, leaf in paths.leaves(params).items()
    }
    outputs, activations = jax.jit(made.activations)(paths.replace(params, leaves), IMAGES)
    changed, orders = dict(leaves), {}
    for layer, readers in made.readers.items():
        units = leaves[f"{layer}/kernel"].shape[-1]
        order = orders[layer] = np.roll(random.permutation(units), 1)
        for path in leaves:
            if path.startswith(f"{layer}/"):
                changed[path] = changed[path][..., order]
        k = activations[layer].shape[-1] // units
        for reader in readers:
            kernel = changed[f"{reader}/kernel"]
            changed[f"{reader}/kernel"] = kernel.reshape(-1, k, units, kernel.shape[-1])[:, :, order].reshape(
                kernel.shape
            )
    again, reordered = jax.jit(made.activations)(paths.replace(params, changed), IMAGES)
    np.testing.assert_allclose(again, outputs, rtol=1e-4, atol=1e-4)
    for layer, order in orders.items():
        shape = (*activations[layer].shape[:-1], -1, len(order))
        expected = activations[layer].reshape(shape)[..., order]
        np.testing.assert_allclose(reordered[layer].reshape(shape), expected, rtol=1e-4, atol=1e-4)
        assert not np.allclose(expected, activations[layer].reshape(shape)), "or the above would show nothing"


@pytest.mark.parametrize("activation", ["relu", "prelu", "rational"])
def test_kernels_are_drawn_in_order_and_activations_draw_nothing(activation):
    """So that a seed means the same network whatever the activation, and in every version."""
    key, draw = jax.random.key(3), nnx.initializers.lecun_normal()
    params = as_functions(lambda rngs: MLP(4, [6, 5], 3, activation=activation, rngs=rngs)).init(key)
    rngs, leaves = nnx.Rngs(key), paths.leaves(params)
    for layer, shape in {"hidden/0": (4, 6), "hidden/1": (6, 5), "output": (5, 3)}.items():
        np.testing.assert_array_equal(leaves[f"{layer}/kernel"], draw(rngs.params(), shape))


def size(make: Callable[[nnx.Rngs], nnx.Module]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(as_functions(make).init, jax.random.key(0))))


def test_the_networks_of_kumar_et_al_have_their_size():
    """784 x 100 x 100 x 10 with biases; the CNN, with 8x8 positions before its dense layers, as its docstring says."""
    dense = 100 * 100 + 100 + 100 * 10 + 10
    make = functools.partial(MLP, 784, (100, 100), 10, norm="none", kernel_init=uniform_fan_in)
    assert size(lambda rngs: make(rngs=rngs)) == 784 * 100 + 100 + dense
    convolutions = 25 * 3 * 16 + 16 + 25 * 16 * 16 + 16
    expected = convolutions + 8 * 8 * 16 * 100 + 100 + dense
    assert size(lambda rngs: CNN((32, 32, 3), 10, norm="none", rngs=rngs)) == expected == 121_242
    params = as_functions(lambda rngs: make(rngs=rngs)).init(jax.random.key(0))
    for path, leaf in paths.leaves(params).items():
        if path.endswith("kernel"):
            bound = leaf.shape[0] ** -0.5
            assert 0.99 * bound < float(jnp.max(jnp.abs(leaf))) <= bound, path
        else:
            assert not leaf.any(), path


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_the_cnn_equals_flax_layers(norm):
    made = network("cnn", norm=norm)
    params = jax.jit(made.init)(jax.random.key(0))
    random = np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(leaf + 0.3 * random.normal(size=leaf.shape), jnp.float32)
        for path, leaf in paths.leaves(params).items()
    }
    outputs, activations = jax.jit(made.activations)(paths.replace(params, leaves), IMAGES)
    x = IMAGES
    for layer in LAYERS["cnn"]:
        kernel = leaves[f"{layer}/kernel"]
        if layer == "hidden/0":
            x = x.reshape(len(x), -1)
        kind = (
            nn.Conv(kernel.shape[-1], (5, 5), use_bias=False)
            if kernel.ndim == 4
            else nn.Dense(kernel.shape[-1], use_bias=False)
        )
        x = kind.apply({"params": {"kernel": kernel}}, x)
        if norm == "none":
            x = x + leaves[f"{layer}/bias"]
        else:
            affine = {"scale": leaves[f"{layer}/norm/scale"], "bias": leaves[f"{layer}/norm/offset"]}
            x = nn.LayerNorm().apply({"params": affine}, x)
        x = nn.relu(x)
        if kernel.ndim == 4:
            x = nn.max_pool(x, (2, 2), (2, 2))
        np.testing.assert_allclose(activations[layer], x, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs, x @ leaves["output/kernel"] + leaves["output/bias"], rtol=1e-3, atol=1e-3)


def test_max_pool_by_hand():
    x = jnp.array([[1.0, 5.0, 2.0, 0.0, 9.0], [3.0, 4.0, -1.0, 1.5, 9.0], [-3.0, -4.0, 7.0, 7.0, 9.0]])
    x = jnp.stack([x, -x], axis=-1)[None]  # the last row and the last column are one too many
    assert max_pool(x)[0].tolist() == [[[5.0, -1.0], [2.0, 1.0]]]
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)[..., 0]))(x)[0, ..., 0]
    assert gradient.tolist() == [[0.0, 1.0, 1.0, 0.0, 0.0], [0.0] * 5, [0.0] * 5]


@pytest.mark.parametrize(("padding", "shape"), [("VALID", (5, 6)), ("SAME", (9, 10))])
def test_padding_of_a_convolution(padding, shape):
    """SAME: inside, where no padding is seen, the two agree; at the border zeros are read."""
    layer = Conv(2, 3, 5, padding=padding, norm="none", activation=lambda z: z, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 9, 10, 2))
    z = layer(x)
    assert z.shape == (1, *shape, 3)
    kernel, corner = layer.kernel[...], x[0, :3, :3]
    inside = z[0, 2, 2] if padding == "SAME" else z[0, 0, 0]
    np.testing.assert_allclose(inside, jnp.einsum("hwi,hwio->o", x[0, :5, :5], kernel), rtol=1e-4, atol=1e-5)
    if padding == "SAME":
        np.testing.assert_allclose(z[0, 0, 0], jnp.einsum("hwi,hwio->o", corner, kernel[2:, 2:]), rtol=1e-4, atol=1e-5)


def test_an_mlp_flattens_images():
    made = network("mlp")
    params = made.init(jax.random.key(0))
    np.testing.assert_array_equal(made.apply(params, IMAGES), made.apply(params, IMAGES.reshape(3, -1)))


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 5, 3)])
def test_the_cnn_takes_small_images_and_seeds_side_by_side(shape):
    made = as_functions(lambda rngs: CNN(shape, 10, rngs=rngs))
    stacked = jax.jit(jax.vmap(made.init))(jax.random.split(jax.random.key(0), 2))
    images = jax.random.uniform(jax.random.key(1), (5, *shape))
    outputs = jax.jit(jax.vmap(made.apply, in_axes=(0, None)))(stacked, images)
    alone = jax.jit(made.apply)(jax.tree.map(lambda leaf: leaf[1], stacked), images)
    np.testing.assert_allclose(outputs[1], alone, rtol=1e-3, atol=1e-4)
    assert outputs.shape == (2, 5, 10) and not np.allclose(outputs[0], outputs[1])


def test_gradients_through_normalization_and_max_pool_are_finite():
    """jnp.max has a gradient of mask / count, and was 0 / 0 here where the compiler computes its input twice."""
    made = as_functions(lambda rngs: CNN((8, 8, 1), 10, channels=(3, 4), hidden=(5,), rngs=rngs))
    images = jax.random.uniform(jax.random.key(1), (32, 8, 8, 1))

    @jax.jit
    def gradients(params):
        return jax.grad(lambda params: jnp.mean(made.apply(params, images) ** 2))(params)

    params = jax.jit(made.init)(jax.random.key(0))
    for _ in range(5):
        found = gradients(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        params = jax.tree.map(lambda weight, gradient: weight - 0.1 * gradient, params, found)


def test_a_module_that_does_not_tell_its_readers_has_none():
    class Bare(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.kernel = nnx.Param(jnp.ones((2, 3)))

        def __call__(self, x):
            return x @ self.kernel[...]

        def with_activations(self, x):
            return self(x), {}

    made = as_functions(Bare)
    assert made.readers == {}
    assert made.apply(made.init(jax.random.key(0)), jnp.ones((1, 2))).tolist() == [[2.0, 2.0, 2.0]]


class Centred(nnx.Module):
    """A map of its input less the running mean of what it has seen."""

    def __init__(self, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (2, 3)))
        self.seen = nnx.BatchStat(jnp.zeros(2))
        self.use_running_average = False

    def __call__(self, x):
        return self.with_activations(x)[0]

    def with_activations(self, x):
        if not self.use_running_average:
            self.seen[...] = 0.5 * self.seen[...] + 0.5 * jnp.mean(x, axis=0)
        centred = x - self.seen[...]
        return centred @ self.kernel[...], {"centred": centred}


def test_a_network_with_other_state_by_hand():
    made, x = as_stateful_functions(Centred), jnp.array([[1.0, 2.0], [3.0, 6.0]])
    params, rest = jax.jit(made.init)(jax.random.key(0))
    assert set(paths.leaves(params)) == {"kernel"} and set(paths.leaves(rest)) == {"seen"}

    @jax.jit
    def step(params, rest):
        def loss(params):
            outputs, seen = made.train(params, rest, x)
            return jnp.sum(outputs), seen

        return jax.grad(loss, has_aux=True)(params)

    gradient, once = step(params, rest)
    np.testing.assert_allclose(gradient["kernel"][...], jnp.tile(jnp.array([[2.0], [4.0]]), 3))  # x less [1, 2]
    assert once["seen"][...].tolist() == [1.0, 2.0] and rest["seen"][...].tolist() == [0.0, 0.0]
    assert jax.tree.structure(once) == jax.tree.structure(rest)
    twice = step(params, once)[1]
    assert twice["seen"][...].tolist() == [1.5, 3.0]
    np.testing.assert_allclose(
        made.evaluate(params, twice, x), (x - jnp.array([1.5, 3.0])) @ params["kernel"][...], rtol=1e-5
    )
    outputs, activations = made.activations(params, twice, x)
    np.testing.assert_array_equal(outputs, made.evaluate(params, twice, x))
    assert activations["centred"].tolist() == [[-0.5, -1.0], [1.5, 3.0]]


def test_a_network_without_other_state_has_an_empty_rest():
    plain, stateful = network("mlp"), as_stateful_functions(mlp("layer", "relu"))
    params, rest = stateful.init(jax.random.key(0))
    assert not jax.tree.leaves(rest) and stateful.readers == plain.readers
    jax.tree.map(np.testing.assert_array_equal, params, plain.init(jax.random.key(0)))
    outputs, after = stateful.train(params, rest, IMAGES)
    assert jax.tree.structure(after) == jax.tree.structure(rest)
    for other in (stateful.evaluate(params, rest, IMAGES), plain.apply(params, IMAGES)):
        np.testing.assert_array_equal(outputs, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_functions(Centred), r"holds more than parameters \(seen\).* use as_stateful_functions"),
        (lambda: CNN((3, 9, 1), 2, rngs=nnx.Rngs(0)), "images of 3x9 are too small for 2 max-pools: .* 4x4 or larger"),
        (lambda: CNN((8, 8), 2, rngs=nnx.Rngs(0)), r"\(height, width, channels\) of an image, got \(8, 8\)"),
        (lambda: CNN((8, 8, 1), 2, channels=(), rngs=nnx.Rngs(0)), "at least one convolution and one dense layer"),
        (lambda: CNN((8, 8, 1), 2, hidden=(), rngs=nnx.Rngs(0)), "at least one convolution and one dense layer"),
        (lambda: MLP(4, [5], 2, activation="swish", rngs=nnx.Rngs(0)), "activation must be a function or one of"),
        (lambda: Conv(2, 3, 3, padding="FULL", rngs=nnx.Rngs(0)), "padding must be one of 'VALID', 'SAME', got 'FULL'"),
    ],
)
def test_bad_input_is_told_in_one_line(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match=message):
        call()
