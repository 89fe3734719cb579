"""DASH: when the weights are held still, and what is left of them, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nap.interventions.dash import dash

KERNEL = jnp.array([[3.0, 3.0, 3.0], [4.0, 4.0, 4.0]])  # three units, each with incoming weights (3, 4)


def tree(kernel, bias):
    return {"hidden": {"kernel": kernel, "bias": bias}, "output": {"kernel": jnp.ones((3, 1))}}


def test_factors_by_hand():
    """Cosines of (3, 4) with -G: 1 along it, -1 against it, and 0.6 with (1, 0): factors 1, 0.3 and 0.6.

    The whole bias of ones has -1 with its gradient's opposite.
    """
    optimizer = dash(optax.sgd(0.0), every=2, window=1)
    params = tree(KERNEL, jnp.ones(3))
    gradients = tree(jnp.array([[-3.0, 3.0, -2.0], [-4.0, 4.0, 0.0]]), jnp.ones(3))
    gradients["output"]["kernel"] = -jnp.array([[1.0], [1.0], [0.0]])
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["hidden"]["kernel"], KERNEL * jnp.array([1, 0.3, 0.6]), rtol=1e-5)
    np.testing.assert_allclose(params["output"]["kernel"], np.sqrt(2 / 3), rtol=1e-5)  # cosine of 1, 1, 1 and 1, 1, 0
    np.testing.assert_allclose(params["hidden"]["bias"], 0.3, rtol=1e-5)


def shrunk(params, descent, **options):
    """The parameters behind one window, in which the gradient is the negative of `descent`."""
    optimizer = dash(optax.sgd(0.0), every=2, window=1, alpha=1.0, **options)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.negative, descent), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_a_convolution_is_shrunk_slice_by_slice_as_in_the_authors_code():
    """1 x 1, two inputs, w = (3, 4), -G = (1, 0): factors 1 and 0.3; as a filter both would have 0.6.

    A larger window is one vector for each input and output: (3, 4) with (1, 0) again, beside one along -G.
    """
    output = {"kernel": jnp.ones((1, 1))}
    params = {"hidden": {"kernel": jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1)}, "output": output}
    descent = {"hidden": {"kernel": jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)}, "output": output}
    np.testing.assert_allclose(shrunk(params, descent)["hidden"]["kernel"].ravel(), [3, 1.2], rtol=1e-5)
    window = jnp.array([[3.0, 6.0], [4.0, 8.0]]).reshape(1, 2, 2, 1)  # width, inputs
    descent = {"hidden": {"kernel": jnp.array([[1.0, 3.0], [0.0, 4.0]]).reshape(1, 2, 2, 1)}, "output": output}
    found = shrunk({"hidden": {"kernel": window}, "output": output}, descent)["hidden"]["kernel"]
    np.testing.assert_allclose(found.reshape(2, 2), [[1.8, 6], [2.4, 8]], rtol=1e-5)


def test_a_convolution_in_pytorchs_layout():
    """Outputs, inputs, window: the same numbers, for two outputs."""
    weight = jnp.array([[3.0, 4.0], [6.0, 8.0]])[None]
    params = {"hidden": {"weight": jnp.tile(weight, (3, 1, 1))}, "output": {"weight": jnp.ones((1, 3))}}
    along = jnp.tile(jnp.array([[1.0, 0.0], [3.0, 4.0]])[None], (3, 1, 1))
    descent = {"hidden": {"weight": along}, "output": {"weight": jnp.ones((1, 3))}}
    roles = {"hidden/weight": "hidden weight", "output/weight": "output weight"}
    found = shrunk(params, descent, roles=roles)["hidden"]["weight"]
    np.testing.assert_allclose(found, jnp.tile(jnp.array([[1.8, 2.4], [6, 8]])[None], (3, 1, 1)), rtol=1e-5)


def test_a_bias_is_shrunk_as_a_whole_and_a_normalization_is_not():
    """(3, 4) with (1, 0): 0.6 of it."""
    one = {"kernel": jnp.ones((2, 2)), "bias": jnp.array([3.0, 4.0])}
    norm = {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    params = {"hidden": one | norm, "output": {"kernel": jnp.ones((2, 1))}}
    descent = jax.tree.map(jnp.ones_like, params)
    descent["hidden"]["bias"] = jnp.array([1.0, 0.0])
    found = shrunk(params, descent)["hidden"]
    np.testing.assert_allclose(found["bias"], [1.8, 2.4], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, found["norm"], norm["norm"])


def test_a_kernel_of_attention_has_a_vector_for_each_unit():
    kernels = {name: {"kernel": jnp.full((2, 1, 3), 3.0).at[1].set(4.0)} for name in "qkv"}
    params = {"a": {**kernels, "o": {"kernel": jnp.ones((1, 3, 2))}}, "output": {"kernel": jnp.ones((2, 1))}}
    descent = jax.tree.map(jnp.ones_like, params)
    descent["a"]["q"]["kernel"] = descent["a"]["q"]["kernel"].at[1].set(0.0)
    found = shrunk(params, descent)["a"]
    np.testing.assert_allclose(found["q"]["kernel"][:, 0], [[1.8] * 3, [2.4] * 3], rtol=1e-5)
    np.testing.assert_allclose(found["o"]["kernel"], 1, rtol=1e-5)


def test_the_average_of_the_window():
    """Gradients -e1, then -e2 with alpha 0.25: -G = 0.75 * 0.25 e1 + 0.25 e2, what came before does not count."""
    optimizer = dash(optax.sgd(0.0), every=4, window=2, alpha=0.25, shrink=0.0)
    params = {"hidden": {"kernel": jnp.ones((2, 1))}, "output": {"kernel": jnp.ones((1, 3))}}
    state = optimizer.init(params)
    for t in range(10):  # windows: updates 4 and 5, 8 and 9
        gradient = {4: [-1.0, 0.0], 5: [0.0, -1.0], 8: [0.0, -1.0], 9: [0.0, -1.0]}.get(t, [7.0, 5.0])
        gradients = {"hidden": {"kernel": jnp.array(gradient)[:, None]}, "output": {"kernel": jnp.zeros((1, 3))}}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        if t == 5:
            np.testing.assert_allclose(state.gradient["hidden"]["kernel"][:, 0], [-0.1875, -0.25])
            cosine = (0.1875 + 0.25) / (np.sqrt(2) * np.hypot(0.1875, 0.25))
            np.testing.assert_allclose(params["hidden"]["kernel"], cosine, rtol=1e-5)
            np.testing.assert_allclose(params["output"]["kernel"], 0)  # no gradient: cosine 0
    np.testing.assert_allclose(state.gradient["hidden"]["kernel"][:, 0], [0, -0.4375])
    np.testing.assert_allclose(params["hidden"]["kernel"], cosine / np.sqrt(2), rtol=1e-5)


def test_weights_and_optimizer_stand_still_in_the_window():
    optimizer = dash(optax.adam(0.1), every=5, window=3, shrink=1.0)
    params = tree(KERNEL, jnp.zeros(3))
    state, moved, counts = optimizer.init(params), [], []
    for _ in range(11):
        updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        moved.append(bool(jnp.any(updates["hidden"]["kernel"])) and bool(jnp.any(updates["hidden"]["bias"])))
        counts.append(int(state.inner[0].count))
    assert moved == [True] * 5 + [False] * 3 + [True] * 2 + [False]
    assert counts == [1, 2, 3, 4, 5, 5, 5, 5, 6, 7, 7]


def test_nothing_happens_before_the_first_new_data():
    params = tree(KERNEL, jnp.zeros(3))
    gradients = jax.tree.map(jnp.ones_like, params)
    optimizer = dash(optax.sgd(0.1), every=3, window=2)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["hidden"]["kernel"], -0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a finite number above 0"),
        ({"shrink": 1.5}, "shrink must be in 0 to 1"),
        ({"window": 5}, "window must lie in 1 to 4, below every=5, got 5"),
        ({"window": 0}, "window must lie in 1 to 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        dash(optax.sgd(0.1), **{"every": 5, "window": 1, **arguments})
