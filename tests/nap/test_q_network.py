"""The Q-networks: heads worked by hand from their own layers, torsos against Flax's, published sizes, readers."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from nap import paths
from nap.networks import Network, QNetwork, Quantiles, as_functions

ACTIONS, BATCH, KEY = 3, 5, jax.random.key(7)
FLAT = {"torso": "flat", "observation": (2, 3, 4), "hidden": 8}
FRAMES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (BATCH, 2, 3, 4)), jnp.uint8)


@functools.cache
def network(actions: int = ACTIONS, **options) -> Network:
    return as_functions(lambda rngs: QNetwork(actions, **options, rngs=rngs))


def shapes(made: Network) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in paths.leaves(jax.eval_shape(made.init, KEY)).items()}


def size(made: Network) -> int:
    return sum(math.prod(shape) for shape in shapes(made).values())


def random_params(made: Network):
    """Parameters that are nowhere 0, and double copies of them by path."""
    params, rng = jax.jit(made.init)(KEY), np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)
    return params, {path: np.asarray(leaf, np.float64) for path, leaf in paths.leaves(params).items()}


def flattened(frames: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(frames, np.float64), 1, -1).reshape(len(frames), -1) / 255


def stream(leaves: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    """A hidden layer and its output layer, without normalization."""
    h = np.maximum(x @ leaves[f"{name}hidden/kernel"] + leaves[f"{name}hidden/bias"], 0)
    return h @ leaves[f"{name}output/kernel"] + leaves[f"{name}output/bias"]


@pytest.mark.parametrize("atoms", [0, 7])
def test_dueling_by_hand(atoms):
    made = network(atoms=atoms, dueling=True, norm="none", **FLAT)
    params, leaves = random_params(made)
    x = flattened(FRAMES)
    value = stream(leaves, "value_", x).reshape(BATCH, 1, max(atoms, 1))
    advantage = stream(leaves, "advantage_", x).reshape(BATCH, ACTIONS, max(atoms, 1))
    expected = value + advantage - advantage.mean(1, keepdims=True)
    q = made.apply(params, FRAMES)
    np.testing.assert_allclose(q, expected if atoms else expected[..., 0], rtol=1e-4, atol=1e-4)
    state_value = value if atoms else value[..., 0]
    np.testing.assert_allclose(np.mean(q, axis=1, keepdims=True), state_value, rtol=1e-4, atol=1e-4)


def test_each_action_has_atoms_of_its_own():
    made = network(atoms=7, norm="none", **FLAT)
    params, leaves = random_params(made)
    expected = stream(leaves, "", flattened(FRAMES)).reshape(BATCH, ACTIONS, 7)
    np.testing.assert_allclose(made.apply(params, FRAMES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("key", [(), (KEY,)], ids=["evenly", "drawn"])
def test_implicit_quantiles_by_hand(key, dueling):
    """Dabney et al.'s equation 4: the torso's features times relu(W cos(pi i tau) + b)."""
    made = network(quantile_samples=6, dueling=dueling, norm="none", **FLAT)
    params, leaves = random_params(made)
    values, taus = made.apply(params, FRAMES, *key)
    cosines = np.cos(np.pi * np.arange(1, 65) * np.asarray(taus, np.float64)[..., None])
    embedded = np.maximum(cosines @ leaves["quantile/kernel"] + leaves["quantile/bias"], 0)
    x = flattened(FRAMES)[:, None] * embedded
    if dueling:
        advantage = stream(leaves, "advantage_", x)
        expected = stream(leaves, "value_", x) + advantage - advantage.mean(-1, keepdims=True)
    else:
        expected = stream(leaves, "", x)
    np.testing.assert_allclose(values, np.moveaxis(expected, 1, 2), rtol=1e-3, atol=1e-3)


def test_quantiles_are_evenly_spaced_without_a_key_and_drawn_for_each_example_with_one():
    made = network(quantile_samples=8, **FLAT)
    params = jax.jit(made.init)(KEY)
    np.testing.assert_allclose(made.apply(params, FRAMES).taus, np.tile((np.arange(8) + 0.5) / 8, (BATCH, 1)))
    frames = jnp.zeros((500, 2, 3, 4), jnp.uint8)
    apply = jax.jit(made.apply)
    taus, again, others = (np.asarray(apply(params, frames, key).taus) for key in (KEY, KEY, jax.random.key(8)))
    np.testing.assert_array_equal(taus, again)
    assert not np.isin(others, taus).all()
    assert len(np.unique(taus)) > 0.99 * taus.size
    assert scipy.stats.kstest(taus.ravel(), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(taus.T)[0, 1]) < 0.2


ZOO = {"torso/0": 16, "torso/1": 512**0.5, "torso/2": 24, "hidden": 56, "output": 512**0.5}
"""The roots of the fan-ins: 4 x 8 x 8, 32 x 4 x 4, 64 x 3 x 3, 64 x 7 x 7 and 512."""


def uniform_in(numbers: jax.Array, bound: float) -> bool:
    """Whether they could be uniform between the bounds, and none lies beyond."""
    x = np.asarray(numbers, np.float64).ravel()
    tested = scipy.stats.kstest(x[:20_000], scipy.stats.uniform(-bound, 2 * bound).cdf)
    return np.abs(x).max() <= bound * (1 + 1e-6) and tested.pvalue > 1e-4


def test_without_normalization_weights_and_biases_start_as_in_dqn_zoo():
    leaves = paths.leaves(jax.jit(network(actions=200, norm="none").init)(KEY))
    assert {path.rsplit("/", 1)[0] for path in leaves} == ZOO.keys()
    for layer, root in ZOO.items():
        assert uniform_in(leaves[f"{layer}/kernel"], 1 / root), layer
        assert uniform_in(leaves[f"{layer}/bias"], 1 / root), layer
        assert len(np.unique(leaves[f"{layer}/bias"])) > 30
    biases = [np.asarray(leaves[f"{layer}/bias"])[:32] * root for layer, root in ZOO.items()]
    assert np.abs(np.corrcoef(biases) - np.eye(5)).max() < 0.7, "each layer draws for itself"


def test_rainbows_hidden_biases_start_so_too_and_the_noise_on_them_at_its_own_value():
    leaves = paths.leaves(jax.jit(network(atoms=51, dueling=True, noisy=True, norm="none").init)(KEY))
    for stream in ("value", "advantage"):
        assert uniform_in(leaves[f"{stream}_hidden/bias"], 1 / 56)
        np.testing.assert_allclose(leaves[f"{stream}_hidden/noise_bias"], 0.1 / 56, rtol=1e-6)
        assert f"{stream}_output/bias" not in leaves
    embedding = paths.leaves(jax.jit(network(quantile_samples=4, norm="none", **FLAT).init)(KEY))
    assert uniform_in(embedding["quantile/bias"], 1 / 8)  # of 64 cosines


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_with_normalization_there_is_one_bias_and_it_starts_at_0(norm):
    leaves = paths.leaves(jax.jit(network(norm=norm).init)(KEY))
    assert [path for path in leaves if path.endswith("bias")] == ["output/bias"]
    assert not np.any(leaves["output/bias"])


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_shared_bias_is_one_number_that_is_added_to_all_outputs(norm):
    made = network(shared_bias=True, norm=norm, **FLAT)
    params = jax.jit(made.init)(KEY)
    leaves = paths.leaves(params)
    assert leaves["output/bias"].shape == (1,) and leaves["output/kernel"].shape == (8, ACTIONS)
    moved = paths.replace(params, {"output/bias": leaves["output/bias"] + 0.5})
    np.testing.assert_allclose(made.apply(moved, FRAMES) - made.apply(params, FRAMES), 0.5, rtol=1e-5)
    # Its gradient is the sum of what the outputs' biases would have.
    of_outputs = np.random.default_rng(3).normal(size=(BATCH, ACTIONS))
    gradient = jax.grad(lambda params: jnp.sum(of_outputs * made.apply(params, FRAMES)))(params)
    np.testing.assert_allclose(paths.leaves(gradient)["output/bias"], [of_outputs.sum()], rtol=1e-4)


COMBINATIONS = list(
    itertools.product(
        ["nature", "impala", "minatar", "flat"], [{}, {"atoms": 5}, {"quantile_samples": 6}], *[[False, True]] * 2
    )
)


@pytest.mark.parametrize(("torso", "head", "dueling", "noisy"), COMBINATIONS)
def test_shapes_and_readers_of_every_combination(torso, head, dueling, noisy):
    made = network(torso=torso, dueling=dueling, noisy=noisy, hidden=16, **head)
    assert made.draws == (noisy or "quantile_samples" in head)
    params, told = jax.eval_shape(made.init, KEY), []

    def activations(params, x, *key):
        outputs, by_layer = made.activations(params, x, *key)
        told.append(list(by_layer))
        return outputs, by_layer

    frames = jax.ShapeDtypeStruct((BATCH, 4, 84, 84), jnp.uint8)
    for key in [(), (KEY,)] if made.draws else [()]:
        outputs, by_layer = jax.eval_shape(activations, params, frames, *key)
        if "quantile_samples" in head:
            assert isinstance(outputs, Quantiles)
            assert (outputs.values.shape, outputs.taus.shape) == ((BATCH, ACTIONS, 6), (BATCH, 6))
        else:
            assert outputs.shape == (BATCH, ACTIONS, *head.values())
        assert told[-1] == list(made.readers), "both in the network's order"
    shape = shapes(made)
    hidden = ["value_hidden", "advantage_hidden"] if dueling else ["hidden"]
    assert list(made.readers)[-len(hidden) :] == hidden
    for layer, readers in made.readers.items():
        units = shape[f"{layer}/kernel"][-1]
        assert by_layer[layer].shape[0] == BATCH and by_layer[layer].shape[-1] == units
        is_convolution = len(shape[f"{layer}/kernel"]) == 4
        places = math.prod(by_layer[layer].shape[1:-1]) if is_convolution else 1
        for reader in readers:
            kernel = shape[f"{reader}/kernel"]
            assert kernel[-2] == (units if len(kernel) == 4 else places * units)
    kernels = {path.removesuffix("/kernel") for path in shape if path.endswith("/kernel")}
    outputs = {f"{name.removesuffix('hidden')}output" for name in hidden}
    if torso != "impala":  # what writes onto its residual stream has no activations of its own
        assert kernels == {*made.readers} | outputs
    else:
        inner = {f"torso/{i}/first/{j}" for i in range(3) for j in range(2)}
        assert {*made.readers} == inner | {*hidden} | ({"quantile"} if "quantile_samples" in head else set())


@pytest.mark.parametrize("noisy", [False, True])
def test_dueling_streams_read_the_torso_and_nothing_else(noisy):
    """Other rows for other units of the torso, in both streams: the function stays as it is."""
    made = network(dueling=True, noisy=noisy, observation=(2, 36, 36), hidden=8)
    params, _ = random_params(made)
    frames = jnp.asarray(np.random.default_rng(2).integers(0, 256, (2, 2, 36, 36)), jnp.uint8)
    leaves = paths.leaves(params)
    assert made.readers["torso/2"] == ("value_hidden", "advantage_hidden")
    order = np.roll(np.random.default_rng(3).permutation(64), 1)
    changed = {path: leaves[path][..., order] for path in leaves if path.startswith("torso/2/")}
    for reader in made.readers["torso/2"]:
        kernel = leaves[f"{reader}/kernel"]
        changed[f"{reader}/kernel"] = kernel.reshape(-1, 64, 8)[:, order].reshape(kernel.shape)
    apply = jax.jit(made.apply)
    q, moved = apply(params, frames), apply(paths.replace(params, changed), frames)
    np.testing.assert_allclose(moved, q, rtol=1e-3, atol=1e-3)
    assert not np.allclose(apply(paths.replace(params, dict(list(changed.items())[:-1])), frames), q, atol=1e-2)


@pytest.mark.parametrize("torso", ["minatar", "flat"])
def test_planes_are_channels_as_frames_are(torso):
    made = network(torso=torso, observation=(2 * 3, 10, 9), hidden=8)
    params, _ = random_params(made)
    frames = jnp.asarray(np.random.default_rng(2).integers(0, 256, (BATCH, 2, 3, 10, 9)), jnp.uint8)
    apply = jax.jit(made.apply)
    q = apply(params, frames)
    np.testing.assert_array_equal(q, apply(params, frames.reshape(BATCH, 6, 10, 9)))
    assert not np.allclose(q, apply(params, frames[:, :, ::-1]), atol=1e-2), "their order counts"


def test_the_minatar_torso_equals_a_flax_layer():
    made = network(torso="minatar", observation=(8, 10, 10), hidden=16, norm="none")
    params, leaves = random_params(made)
    frames = jnp.asarray(np.random.default_rng(2).integers(0, 256, (BATCH, 2, 4, 10, 10)), jnp.uint8)
    weights = {name: jnp.asarray(leaves[f"torso/0/{name}"], jnp.float32) for name in ("kernel", "bias")}
    x = jnp.moveaxis(frames.reshape(BATCH, 8, 10, 10), 1, -1) / 255
    x = nn.relu(nn.Conv(16, (3, 3), padding="VALID").apply({"params": weights}, x)).reshape(BATCH, -1)
    assert x.shape == (BATCH, 8 * 8 * 16)
    expected = stream(leaves, "", np.asarray(x, np.float64))
    np.testing.assert_allclose(jax.jit(made.apply)(params, frames), expected, rtol=1e-3, atol=1e-3)


def test_the_minatar_network_has_its_size():
    """Young & Tian's, for the four planes of Breakout: 10 -> 8 by a 3x3 convolution; then 128 units."""
    convolution, dense = 9 * 4 * 16 + 16, 8 * 8 * 16 * 128 + 128 + 128 * 6 + 6
    made = network(6, torso="minatar", observation=(4, 10, 10), hidden=128, norm="none")
    assert size(made) == convolution + dense == 132_566


def test_the_impala_torso_equals_flax_layers():
    made = network(torso="impala", observation=(2, 21, 18), hidden=8, norm="none")
    params, leaves = random_params(made)
    frames = jnp.asarray(np.random.default_rng(2).integers(0, 256, (2, 2, 21, 18)), jnp.uint8)

    def conv(path: str, x: jax.Array) -> jax.Array:
        weights = {name: jnp.asarray(leaves[f"{path}/{name}"], jnp.float32) for name in ("kernel", "bias")}
        return nn.Conv(weights["bias"].size, (3, 3), padding="SAME").apply({"params": weights}, x)

    x = jnp.moveaxis(frames, 1, -1) / 255
    for i in range(3):
        x = nn.max_pool(conv(f"torso/{i}/conv", x), (3, 3), (2, 2), "SAME")
        for j in range(2):
            x = x + conv(f"torso/{i}/second/{j}", nn.relu(conv(f"torso/{i}/first/{j}", nn.relu(x))))
    x = nn.relu(x).reshape(2, -1)
    assert x.shape == (2, 3 * 3 * 32)
    expected = stream(leaves, "", np.asarray(x, np.float64))
    np.testing.assert_allclose(jax.jit(made.apply)(params, frames), expected, rtol=1e-3, atol=1e-2)


def test_the_impala_network_has_its_size():
    """Three sections of a 3x3 convolution and two blocks of two each, 84 -> 42 -> 21 -> 11; then 256 units."""
    first = 9 * 4 * 16 + 16 + 4 * (9 * 16 * 16 + 16)
    second = 9 * 16 * 32 + 32 + 4 * (9 * 32 * 32 + 32)
    third = 5 * (9 * 32 * 32 + 32)
    dense = 11 * 11 * 32 * 256 + 256 + 256 * 6 + 6
    assert size(network(6, torso="impala", hidden=256, norm="none")) == first + second + third + dense == 1_090_774


def test_rainbow_has_the_size_of_dqn_zoos():
    """Mean and noise of weights and biases, but no mean bias in the output layers."""
    torso = 8 * 8 * 4 * 32 + 32 + 4 * 4 * 32 * 64 + 64 + 3 * 3 * 64 * 64 + 64
    hidden = 2 * (7 * 7 * 64 * 512 + 512)
    advantage = 2 * 512 * 6 * 51 + 6 * 51
    value = 2 * 512 * 51 + 51
    made = network(6, atoms=51, dueling=True, noisy=True, norm="none")
    assert size(made) == torso + 2 * hidden + advantage + value == 6_868_485


def test_iqn_has_the_size_of_dqn_zoos():
    torso_and_head = 1_687_206  # of DQN with six actions
    assert size(network(6, quantile_samples=64, norm="none")) == torso_and_head + 64 * 3136 + 3136


@pytest.mark.parametrize("head", [{"atoms": 51, "noisy": True, "dueling": True}, {"quantile_samples": 8}])
def test_bfloat16_computes_in_it_and_gives_float32(head):
    options = {**FLAT, "hidden": 64, **head}
    full, half = network(**options), network(**options, dtype="bfloat16")
    params = jax.jit(half.init)(KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for key in ((), (KEY,)):
        exact, _ = jax.jit(full.activations)(params, FRAMES, *key)
        near, activations = jax.jit(half.activations)(params, FRAMES, *key)
        assert {leaf.dtype for leaf in jax.tree.leaves(near)} == {jnp.dtype("float32")}
        assert {leaf.dtype for leaf in activations.values()} == {jnp.dtype("bfloat16")}
        for ours, wanted in zip(jax.tree.leaves(near), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=0.05 * float(jnp.max(jnp.abs(wanted))))


@pytest.mark.parametrize("noisy", [False, True])
def test_the_output_starts_small_behind_a_normalization(noisy):
    for norm, bound in (("layer", 0.01 / 8), ("none", 1 / 8)):
        params = network(norm=norm, noisy=noisy, **{**FLAT, "hidden": 64}).init(KEY)
        largest = float(jnp.max(jnp.abs(paths.leaves(params)["output/kernel"])))
        assert 0.95 * bound < largest <= bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atoms": 5, "quantile_samples": 5}, "a network has atoms or quantile_samples, not both"),
        ({"torso": "resnet"}, "torso must be one of 'nature', 'impala', 'minatar', 'flat', got 'resnet'"),
        ({"observation": (4, 35, 84)}, "an observation of 35x84 is too small for the torso 'nature'"),
        ({"observation": (4, 10, 5)}, "an observation of 10x5 is too small"),
        ({"observation": (4, 2, 3), "torso": "minatar"}, "an observation of 2x3 is too small for the torso 'minatar'"),
        ({"norm": "batch"}, "norm must be one of"),
    ],
)
def test_bad_input_is_told_in_one_line(options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match=message):
        QNetwork(4, **options, rngs=nnx.Rngs(0))
