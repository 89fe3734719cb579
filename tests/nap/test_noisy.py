"""Noisy layers: the noise's statistics, the formula, and one radius for a weight and the noise on it."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats
from flax import nnx

import nap
from nap import paths
from nap.layers import normalize
from nap.networks import Network, QNetwork, as_functions
from nap.noisy import NoisyLinear, NoisyOutput, factor
from nap.roles import Role, weight_groups

KEY = jax.random.key(3)


def factors(key: jax.Array, batch: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The random vectors of a layer that is given this key, [batch, inputs] and [batch, outputs]."""
    for_inputs, for_outputs = jax.random.split(key)
    return np.asarray(factor(for_inputs, (batch, inputs))), np.asarray(factor(for_outputs, (batch, outputs)))


def test_factors_have_the_moments_of_a_truncated_normal():
    """f(x)^2 = |x|, so E[f^2] is the mean size of x: 2 (pdf(0) - pdf(2)) / (cdf(2) - cdf(-2)) = 0.72."""
    f = np.asarray(factor(KEY, (400_000,)), np.float64)
    x = scipy.stats.truncnorm(-2, 2)
    size = scipy.integrate.quad(lambda value: abs(value) * x.pdf(value), -2, 2)[0]
    assert size == pytest.approx(0.7226, abs=5e-4)
    assert abs(f.mean()) < 4 * np.sqrt(size / f.size)
    assert (f**2).mean() == pytest.approx(size, rel=5e-3)
    assert np.abs(f).max() <= np.sqrt(2)
    assert scipy.stats.kstest(np.sign(f) * f**2, x.cdf).pvalue > 1e-4


def linear(norm: str = "none", inputs: int = 5, outputs: int = 4, seed: int = 0) -> NoisyLinear:
    """A linear layer whose noise and noise on the bias are other than they start."""
    layer = NoisyLinear(inputs, outputs, norm=norm, activation=lambda z: z, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    layer.noise[...] = jnp.asarray(rng.normal(size=(inputs, outputs)), jnp.float32)
    if norm == "none":
        layer.noise_bias[...] = jnp.asarray(rng.normal(size=outputs), jnp.float32)
        layer.bias[...] = jnp.asarray(rng.normal(size=outputs), jnp.float32)
    return layer


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_each_example_is_multiplied_by_a_noisy_weight_of_its_own(norm):
    layer, x = linear(norm), jax.random.normal(jax.random.key(1), (6, 5))
    a, b = factors(KEY, 6, 5, 4)
    for i, y in enumerate(layer(x, KEY)):
        weight = layer.kernel[...] + layer.noise[...] * np.outer(a[i], b[i])
        z = x[i] @ weight
        z = z + layer.bias[...] + layer.noise_bias[...] * b[i] if norm == "none" else normalize(z, norm)
        np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-5)


def test_an_output_layer_has_noise_on_a_bias_that_it_does_not_have():
    layer, x = NoisyOutput(5, 3, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (6, 5))
    assert set(nnx.split(layer)[1]) == {"kernel", "noise", "noise_bias"}
    a, b = factors(KEY, 6, 5, 3)
    for i, y in enumerate(layer(x, KEY)):
        weight = layer.kernel[...] + layer.noise[...] * np.outer(a[i], b[i])
        np.testing.assert_allclose(y, x[i] @ weight + layer.noise_bias[...] * b[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [NoisyLinear, NoisyOutput])
def test_without_a_key_there_is_no_noise(make):
    layer, x = make(5, 4, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (6, 5))
    z = x @ layer.kernel[...]
    np.testing.assert_allclose(layer(x), nnx.relu(normalize(z, "layer")) if make is NoisyLinear else z, rtol=1e-6)
    assert not np.allclose(layer(x, KEY), layer(x))
    layer.noise[...] = jnp.zeros((5, 4))
    if layer.noise_bias is not None:
        layer.noise_bias[...] = jnp.zeros(4)
    np.testing.assert_allclose(layer(x, KEY), layer(x), rtol=1e-6)


@pytest.mark.parametrize("make", [NoisyLinear, NoisyOutput])
def test_the_noise_starts_at_sigma_over_the_root_of_the_inputs(make):
    for sigma, value in ((None, 0.1 / 8), (0.5, 0.5 / 8)):
        layer = make(64, 3, rngs=nnx.Rngs(0), **({} if sigma is None else {"sigma": sigma}))
        np.testing.assert_allclose(layer.noise[...], np.full((64, 3), value), rtol=1e-6)
    np.testing.assert_allclose(NoisyOutput(64, 3, rngs=nnx.Rngs(0)).noise_bias[...], np.full(3, 0.1 / 8), rtol=1e-6)


def test_examples_and_layers_draw_independently():
    """The noise on the outputs of all examples and layers, for many keys: nothing is correlated with anything else."""

    class Two(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            make = functools.partial(QNetwork, 1, noisy=True, dueling=True, torso="flat", observation=(1, 1, 2))
            self.network = make(hidden=2, norm="none", rngs=rngs)

        def __call__(self, x, key):
            activations = self.network.with_activations(x, key)[1]
            return jnp.concatenate([activations["value_hidden"], activations["advantage_hidden"]], axis=1)

    # Ones in, and the units far from the bend of the ReLU: what varies is the noise alone.
    module = Two(nnx.Rngs(0))
    for layer in (module.network.value_hidden, module.network.advantage_hidden):
        layer.bias[...] = jnp.full(2, 10.0)
    frames = jnp.full((2, 1, 1, 2), 255, jnp.uint8)
    drawn = jax.jit(jax.vmap(lambda key: module(frames, key).ravel()))(jax.random.split(KEY, 20_000))
    drawn = np.asarray(drawn, np.float64)  # [keys, example x layer x unit]
    owner = np.arange(8) // 2
    correlation = np.corrcoef(drawn.T)
    assert np.abs(correlation[owner[:, None] != owner]).max() < 5 / np.sqrt(20_000)
    assert (drawn.std(0) > 0.01).all()
    # Within a layer the units share the inputs' vector: their signs are free, so they are uncorrelated as well, but
    # their sizes are not.
    sizes = np.corrcoef(np.square(drawn - drawn.mean(0)).T)
    assert min(sizes[0, 1], sizes[2, 3]) > 0.1
    assert np.abs(sizes[owner[:, None] != owner]).max() < 5 / np.sqrt(20_000)


SMALL = {"torso": "flat", "observation": (2, 3, 3), "hidden": 16, "noisy": True}
FRAMES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 2, 3, 3)), jnp.uint8)


@functools.cache
def small(norm: str = "layer", dueling: bool = True) -> Network:
    return as_functions(lambda rngs: QNetwork(3, norm=norm, dueling=dueling, rngs=rngs, **SMALL))


def test_one_radius_for_a_weight_and_its_noise_while_each_of_them_moves():
    network = small()
    params = jax.jit(network.init)(KEY)
    optimizer = nap.normalize_and_project(optax.adam(0.01))
    target = jax.random.normal(jax.random.key(5), (8, 3))

    @jax.jit
    def update(params, state, key):
        def loss(params):
            return jnp.mean(jnp.square(network.apply(params, FRAMES, key) - target))

        steps, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, steps), state

    start, state = paths.leaves(params), optimizer.init(params)
    for key in jax.random.split(KEY, 50):
        params, state = update(params, state, key)
        now = paths.leaves(params)
        for layer in ("value_hidden", "advantage_hidden"):
            joint = [
                np.sqrt(sum(np.square(tree[f"{layer}/{name}"], dtype=np.float64).sum() for name in ("kernel", "noise")))
                for tree in (start, now)
            ]
            assert joint[1] == pytest.approx(joint[0], rel=1e-6)
    for layer in ("value_hidden", "advantage_hidden"):
        for name in ("kernel", "noise"):
            before, after = (np.linalg.norm(tree[f"{layer}/{name}"]) for tree in (start, now))
            assert abs(after / before - 1) > 1e-3, f"{layer}/{name}"
    for path in ("value_output/kernel", "advantage_output/noise"):  # free
        assert abs(np.linalg.norm(now[path]) / np.linalg.norm(start[path]) - 1) > 1e-2


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_audit_is_clean_with_noise_on_and_off(norm, dueling):
    network = small(norm, dueling)
    params = jax.jit(network.init)(KEY)
    for extra in ((), (KEY,)):
        audit = nap.audit(network.apply, params, FRAMES, *extra)
        assert audit.clean, str(audit)
        joined = {row.path for row in audit if row.role in (Role.HIDDEN, Role.NOISE)}
        assert len(joined) == (4 if dueling else 2)
        assert all(audit[path].joined and audit[path].projected and audit[path].change < 1e-3 for path in joined)
    outputs = [row for row in audit if row.role in (Role.OUTPUT, Role.OUTPUT_NOISE)]
    assert len(outputs) == (6 if dueling else 3) and not any(row.projected for row in outputs)


def test_the_audit_finds_a_noisy_layer_without_normalization():
    network = small("none")
    audit = nap.audit(network.apply, jax.jit(network.init)(KEY), FRAMES, KEY)
    assert audit["value_hidden/kernel"].verdict == audit["value_hidden/noise"].verdict
    assert "real constraint" in audit["value_hidden/kernel"].verdict


def test_a_weight_and_its_noise_are_a_group_and_count_as_one_for_the_effective_learning_rate():
    params = jax.jit(small().init)(KEY)
    roles = nap.roles(params)
    assert weight_groups(roles) == [(f"{s}_hidden/kernel", f"{s}_hidden/noise") for s in ("advantage", "value")]
    steps = jax.tree.map(lambda leaf: 0.1 * leaf, params)
    rates = nap.effective_learning_rates(steps, params, roles)
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in paths.leaves(params).items()}
    rate = rates["value_hidden/kernel+value_hidden/noise"]
    norm = np.sqrt((leaves["value_hidden/kernel"] ** 2).sum() + (leaves["value_hidden/noise"] ** 2).sum())
    np.testing.assert_allclose([rate.weight_norm, rate.update_norm, rate.ratio], [norm, 0.1 * norm, 0.1], rtol=1e-5)
    assert not {"value_hidden/kernel", "value_hidden/noise"} & rates.keys()


@pytest.mark.parametrize(
    ("tree", "owners"),
    [
        ({"a": {"noise": (2, 3)}, "b": {"kernel": (2, 3)}}, 0),
        ({"a": {"noise": (2, 3), "kernel": (3, 2)}}, 0),
        ({"a": {"noise": (2, 3), "kernel": (2, 3), "other": (2, 3)}}, 2),
    ],
)
def test_a_noise_weight_needs_one_weight_of_its_shape_beside_it(tree, owners):
    params = jax.tree.map(jnp.zeros, tree, is_leaf=lambda node: isinstance(node, tuple))
    roles = nap.roles(params, {"*": Role.HIDDEN, "a/noise": Role.NOISE})
    with pytest.raises(ValueError, match=f"'a/noise' needs one hidden weight beside it, and there are {owners}"):
        weight_groups(roles)
    with pytest.raises(ValueError, match="needs one hidden weight"):
        nap.normalize_and_project(optax.sgd(0.1), roles=roles).init(params)


def test_a_norm_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match="norm must be one of 'none', 'layer', 'rms', got 'batch'"):
        NoisyLinear(2, 3, norm="batch", rngs=nnx.Rngs(0))
