"""Interventions on the weights: where they land, by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nap import paths
from nap.interventions.weights import (
    clip_weights,
    hare_and_tortoise,
    noisy_updates,
    project_units,
    shrink_and_perturb,
    spectral_normalization,
)
from nap.networks import CNN, MLP, as_functions

KEY = jax.random.key(3)
PLAIN = as_functions(lambda rngs: MLP(4, [3], 2, norm="none", rngs=rngs))


def land(transformation, params, updates, state=None):
    """Where an update leads to, and the state after it."""
    state = transformation.init(params) if state is None else state
    updates, state = jax.jit(transformation.update)(updates, state, params)
    return optax.apply_updates(params, updates), state


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def constant(value):
    """An initializer whose draws are of the same shapes as `params` below, all `value`, and never alike."""
    return lambda key: {"kernel": jnp.full((2, 2), value) + 0 * jax.random.normal(key), "bias": jnp.full(2, value)}


PARAMS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "bias": jnp.array([5.0, 6.0])}


def test_shrink_and_perturb_by_hand():
    """0.5 (w + u) + 0.25 * 8, biases too."""
    params, _ = land(
        shrink_and_perturb(shrink=0.5, perturb=0.25, init=constant(8.0), key=KEY),
        PARAMS,
        {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)},
    )
    np.testing.assert_allclose(params["kernel"], [[3, 1.5], [4, 4.5]])
    np.testing.assert_allclose(params["bias"], [4.5, 5])


def test_shrink_and_perturb_every_third_update():
    transformation = shrink_and_perturb(shrink=0.5, perturb=0.0, init=constant(0.0), key=KEY, every=3)
    params, state, seen = PARAMS, None, []
    for _ in range(6):
        params, state = land(transformation, params, zeros(params), state)
        seen.append(float(params["bias"][0]))
    assert seen == [5, 5, 2.5, 2.5, 2.5, 1.25]


@pytest.mark.parametrize("every", [1, 2])
def test_each_draw_is_another_one(every):
    """From zero, with shrink 1, the steps are the draws."""
    transformation = shrink_and_perturb(shrink=1.0, perturb=1.0, init=jax.jit(PLAIN.init), key=KEY, every=every)
    params, state, kernels = zeros(PLAIN.init(KEY)), None, []
    for _ in range(2 * every):
        params, state = land(transformation, params, zeros(params), state)
        kernels.append(np.asarray(paths.leaves(params)["hidden/0/kernel"]))
    first, second = kernels[every - 1], kernels[-1] - kernels[every - 1]
    assert np.std(first) == pytest.approx(np.std(second), rel=0.7)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("every", [1, 2])
def test_shrink_one_and_perturb_zero_do_nothing(every):
    transformation = shrink_and_perturb(shrink=1.0, perturb=0.0, init=constant(8.0), key=KEY, every=every)
    updates = {"kernel": jnp.full((2, 2), 0.01), "bias": jnp.full(2, -0.03)}
    params, _ = land(transformation, PARAMS, updates)
    jax.tree.map(np.testing.assert_array_equal, params, optax.apply_updates(PARAMS, updates))


def test_an_initializer_of_another_network_is_an_error():
    transformation = shrink_and_perturb(shrink=0.5, perturb=0.5, init=lambda key: {"kernel": jnp.ones(3)}, key=KEY)
    with pytest.raises(ValueError, match=r"'bias' has shape \(2,\), but init draws no such leaf"):
        transformation.update(zeros(PARAMS), transformation.init(PARAMS), PARAMS)


def test_noise_has_its_scale_and_changes():
    params = {"w": jnp.zeros((100, 100), jnp.float32), "b": jnp.zeros(10_000)}
    transformation = noisy_updates(lambda count: 0.1 * (count + 1), KEY)
    first, state = land(transformation, params, jax.tree.map(jnp.ones_like, params))
    second, _ = land(transformation, params, zeros(params), state)
    for found, mean, deviation in ((first, 1, 0.1), (second, 0, 0.2)):
        for leaf in found.values():
            assert float(jnp.mean(leaf)) == pytest.approx(mean, abs=0.01)
            assert float(jnp.std(leaf)) == pytest.approx(deviation, rel=0.03)
    draws = [first["w"].ravel() - 1, first["b"] - 1, second["w"].ravel(), second["b"]]
    assert np.max(np.abs(np.corrcoef(np.stack(draws)) - np.eye(4))) < 0.05


def test_no_noise_is_no_change():
    transformation = noisy_updates(0.0, KEY)
    updates, _ = transformation.update(PARAMS, transformation.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, updates, PARAMS)


def test_clip_weights_by_hand():
    """Bounds 2 / sqrt(4) = 1 for the hidden layer and 2 / sqrt(16) = 0.5 for the output; scale and offset are free."""
    params = {
        "hidden": {"kernel": jnp.full((4, 16), 3.0), "norm": {"scale": jnp.full(16, 9.0), "bias": jnp.full(16, 9.0)}},
        "output": {"kernel": jnp.full((16, 2), -3.0), "bias": jnp.array([0.2, 7.0])},
    }
    clipped, _ = land(clip_weights(2.0), params, zeros(params))
    np.testing.assert_allclose(clipped["hidden"]["kernel"], 1)
    np.testing.assert_allclose(clipped["output"]["kernel"], -0.5)
    np.testing.assert_allclose(clipped["output"]["bias"], [0.2, 0.5])
    np.testing.assert_array_equal(clipped["hidden"]["norm"]["scale"], 9)
    np.testing.assert_array_equal(clipped["hidden"]["norm"]["bias"], 9)
    without, _ = land(clip_weights(2.0, include_output=False), params, zeros(params))
    np.testing.assert_allclose(without["hidden"]["kernel"], 1)
    jax.tree.map(np.testing.assert_array_equal, without["output"], params["output"])


def test_clip_weights_knows_the_fan_in_of_filters_and_of_pytorch_layout():
    network = as_functions(lambda rngs: CNN((6, 6, 2), 3, channels=(2,), size=3, hidden=(4,), norm="none", rngs=rngs))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 9.0), jax.eval_shape(network.init, KEY))
    clipped = paths.leaves(land(clip_weights(1.0), params, zeros(params))[0])
    convolution = next(path for path, leaf in clipped.items() if leaf.ndim == 4)
    np.testing.assert_allclose(clipped[convolution], 1 / np.sqrt(3 * 3 * 2), rtol=1e-5)
    np.testing.assert_allclose(clipped[convolution.replace("kernel", "bias")], 1 / np.sqrt(3 * 3 * 2), rtol=1e-5)
    mlp = eqx.filter(eqx.nn.MLP(9, 2, 4, 1, key=KEY), eqx.is_inexact_array)
    mlp = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 9.0), mlp)
    layer = land(clip_weights(1.0), mlp, zeros(mlp))[0].layers[0]
    np.testing.assert_allclose(layer.weight, 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(layer.bias, 1 / 3, rtol=1e-5)


def attention(leaf):
    """Eight inputs, two heads of three features, five outputs; `leaf(shape)` makes each kernel."""
    of_heads = {name: {"kernel": leaf((8, 2, 3)), "bias": leaf((2, 3))} for name in ("query", "key", "value")}
    return {"attention": {**of_heads, "out": {"kernel": leaf((2, 3, 5))}}, "output": {"kernel": leaf((5, 2))}}


def test_a_unit_of_attention_is_a_feature_of_a_head():
    params = attention(lambda shape: jnp.full(shape, 9.0))
    clipped = paths.leaves(land(clip_weights(1.0), params, zeros(params))[0])
    bounds = {"query/kernel": 8, "query/bias": 8, "key/kernel": 8, "value/kernel": 8, "out/kernel": 2 * 3}
    for path, fan_in in bounds.items():
        np.testing.assert_allclose(clipped[f"attention/{path}"], 1 / np.sqrt(fan_in), rtol=1e-5)
    params = attention(lambda shape: jax.random.normal(KEY, shape))
    projected = land(project_units(2.0), params, zeros(params))[0]["attention"]
    np.testing.assert_allclose(np.linalg.norm(projected["query"]["kernel"], axis=0), np.full((2, 3), 2.0), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(projected["out"]["kernel"], axis=(0, 1)), np.full(5, 2.0), rtol=1e-5)
    normalized, _ = land(spectral_normalization(), params, zeros(params))
    query = np.asarray(normalized["attention"]["query"]["kernel"]).reshape(8, 6)
    assert np.linalg.norm(query, 2) == pytest.approx(1, rel=1e-2)


def test_spectral_normalization_holds_the_largest_singular_value():
    params = PLAIN.init(KEY)
    transformation = spectral_normalization(0.7)
    state = transformation.init(params)
    for i in range(20):
        updates = jax.tree.map(lambda x, i=i: 0.02 * jax.random.normal(jax.random.key(i), x.shape), params)
        before = paths.leaves(optax.apply_updates(params, updates))
        params, state = land(transformation, params, updates, state)
        leaves = paths.leaves(params)
        assert np.linalg.norm(leaves["hidden/0/kernel"], 2) == pytest.approx(0.7, rel=5e-3)
        ratio = leaves["hidden/0/kernel"] / before["hidden/0/kernel"]
        np.testing.assert_allclose(ratio, np.mean(ratio), rtol=1e-4)
        np.testing.assert_array_equal(leaves["output/kernel"], before["output/kernel"])


def test_project_units_by_hand():
    """Columns (3, 4), of length 5, (0, 0.5) and zero."""
    kernel = jnp.array([[3.0, 0.0, 0.0], [4.0, 0.5, 0.0]])
    params = {"hidden": {"kernel": kernel}, "output": {"kernel": jnp.ones((3, 1))}}
    projected, _ = land(project_units(2.0), params, zeros(params))
    np.testing.assert_allclose(projected["hidden"]["kernel"], [[1.2, 0, 0], [1.6, 2, 0]], rtol=1e-6)
    np.testing.assert_array_equal(projected["output"]["kernel"], 1)


def test_project_units_takes_the_output_layer_along_where_it_is_told_to():
    """As SimbaV2 does: columns (3, 4) and (0, 2) to norm 1, in the layer that is otherwise left alone."""
    params = {"hidden": {"kernel": jnp.full((5, 2), 2.0)}, "output": {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])}}
    without, _ = land(project_units(), params, zeros(params))
    jax.tree.map(np.testing.assert_array_equal, without["output"], params["output"])
    projected, _ = land(project_units(include_output=True), params, zeros(params))
    np.testing.assert_allclose(projected["output"]["kernel"], [[0.6, 0], [0.8, 1]], rtol=1e-6)
    np.testing.assert_allclose(projected["hidden"]["kernel"], np.sqrt(0.2), rtol=1e-6)


def test_project_units_of_filters():
    network = as_functions(lambda rngs: CNN((6, 6, 2), 3, channels=(2,), size=3, hidden=(4,), rngs=rngs))
    params = jax.jit(network.init)(KEY)
    projected = paths.leaves(land(project_units(), params, zeros(params))[0])
    for path, leaf in projected.items():
        if path.endswith("kernel") and not path.startswith("output"):
            np.testing.assert_allclose(np.linalg.norm(leaf.reshape(-1, leaf.shape[-1]), axis=0), 1, rtol=1e-6)


def test_hare_and_tortoise_by_hand():
    """From 0 in steps of 1: tortoise 0.5, 1.25, 2.125; hare 3 -> 2.125; then 3.125 and tortoise 2.625."""
    transformation = hare_and_tortoise(momentum=0.5, every=3)
    params, state = {"w": jnp.zeros(2)}, None
    for hare, tortoise in ((1, 0.5), (2, 1.25), (2.125, 2.125), (3.125, 2.625)):
        params, state = land(transformation, params, {"w": jnp.ones(2)}, state)
        np.testing.assert_allclose(params["w"], hare)
        np.testing.assert_allclose(state.tortoise["w"], tortoise)


def test_a_tortoise_without_momentum_does_nothing():
    params, _ = land(hare_and_tortoise(momentum=0.0, every=1), PARAMS, jax.tree.map(jnp.ones_like, PARAMS))
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(lambda leaf: leaf + 1, PARAMS))


def test_weights_keep_their_dtype_and_small_shares_count():
    """In bfloat16 a momentum of 0.999 would round to 1: the tortoise would never move."""
    params = {"hidden": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}, "output": {"kernel": jnp.ones((2, 1))}}
    for transformation in (hare_and_tortoise(every=5), project_units(), clip_weights(0.5)):
        landed, state = land(transformation, params, jax.tree.map(jnp.ones_like, params))
        assert landed["hidden"]["kernel"].dtype == jnp.bfloat16
        if hasattr(state, "tortoise"):
            np.testing.assert_allclose(state.tortoise["hidden"]["kernel"], 1.001, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shrink_and_perturb(shrink=2.0, perturb=0.0, init=PLAIN.init, key=KEY), "shrink must be in 0 to 1"),
        (
            lambda: shrink_and_perturb(shrink=1.0, perturb=-1.0, init=PLAIN.init, key=KEY),
            "perturb must be a finite number of at least 0",
        ),
        (
            lambda: shrink_and_perturb(shrink=1.0, perturb=0.0, init=PLAIN.init, key=KEY, every=0),
            "every must be at least 1",
        ),
        (lambda: noisy_updates(-0.1, KEY), "scale must be a finite number of at least 0"),
        (lambda: clip_weights(0.0), "kappa must be a finite number above 0"),
        (lambda: spectral_normalization(0.0), "radius must be a finite number above 0"),
        (lambda: project_units(-1.0), "radius must be a finite number above 0"),
        (lambda: hare_and_tortoise(momentum=1.5, every=2), "momentum must be in 0 to 1"),
        (lambda: hare_and_tortoise(every=0), "every must be at least 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
