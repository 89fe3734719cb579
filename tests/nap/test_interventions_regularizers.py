"""Regularizers: the gradients of their penalties, by hand and by automatic differentiation of the formulas."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from nap import paths
from nap.interventions.regularizers import l2, l2_init, parseval, spectral_regularization, w2_init
from nap.interventions.units import reset_entries
from nap.networks import CNN, MLP, as_functions
from nap.roles import Role
from nap.roles import roles as find_roles

NETWORKS = {
    "dense": as_functions(lambda rngs: MLP(5, [4, 3], 2, norm="none", rngs=rngs)),
    "convolutions": as_functions(lambda rngs: CNN((6, 6, 1), 3, channels=(2, 3), size=3, hidden=(4,), rngs=rngs)),
}
MAKERS = {
    "l2": l2,
    "l2_init": l2_init,
    "w2_init": w2_init,
    "parseval": parseval,
    "spectral_regularization": spectral_regularization,
}
ALL = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@functools.cache
def draw(seed, network="dense"):
    """Parameters with biases other than 0."""
    first, second = jax.random.split(jax.random.key(seed))
    params = jax.jit(NETWORKS[network].init)(first)
    return optax.tree.add_scale(params, 0.1, optax.tree.random_like(second, params))


def added(regularizer, params, initial=None):
    """What a regularizer adds to the gradient."""
    state = regularizer.init(params if initial is None else initial)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(regularizer.update)(gradients, state, params)
    return jax.tree.map(lambda u, g: u - g, updates, gradients)


def assert_close(found, expected, rtol=1e-4, atol=1e-6):
    for path, value in paths.leaves(expected).items():
        np.testing.assert_allclose(paths.leaves(found)[path], value, rtol=rtol, atol=atol, err_msg=path)


def matrices(params, *wanted):
    """Each weight as a matrix with a row for each unit."""
    leaves = paths.leaves(params)
    return [leaves[p].reshape(-1, leaves[p].shape[-1]).T for p in find_roles(params).paths(*wanted)]


@pytest.mark.parametrize("make", [l2, l2_init])
def test_strength_is_the_pull_at_distance_one(make):
    """As in L2 Init's code, and as a weight decay in the gradient: 0.01 for 1e-2."""
    params = {"hidden": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "output": {"kernel": jnp.ones((2, 1))}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = make(1e-2).update(zeros, make(1e-2).init(zeros), params)
    for pull in jax.tree.leaves(updates):
        np.testing.assert_allclose(pull, 0.01, rtol=1e-6)


def test_l2_is_the_gradient_of_half_the_squared_norm():
    params = draw(0)
    assert_close(added(l2(0.3), params), jax.grad(lambda p: 0.15 * optax.tree.norm(p, squared=True))(params))


NORMALIZED = {
    "hidden": {"kernel": jnp.ones((2, 2)), "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
    "output": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
}


@pytest.mark.parametrize("make", [l2, l2_init])
def test_normalizations_are_not_pulled(make):
    zeros = jax.tree.map(jnp.zeros_like, NORMALIZED)
    pulled = paths.leaves(make(0.5).update(zeros, make(0.5).init(zeros), NORMALIZED)[0])
    norms = {"hidden/norm/scale", "hidden/norm/bias"}
    for path, pull in pulled.items():
        np.testing.assert_array_equal(pull, 0 if path in norms else 0.5, err_msg=path)
    named = make(0.5, roles={"hidden/norm/bias": "bias"})  # a caller's own word for it
    pulled = paths.leaves(named.update(zeros, named.init(zeros), NORMALIZED)[0])
    assert pulled["hidden/norm/bias"][0] == 0.5 and pulled["hidden/norm/scale"][0] == 0


@pytest.mark.parametrize("make", [l2, l2_init])
@pytest.mark.parametrize(
    "params",
    [jnp.ones(3), {"w": jnp.ones((3, 3))}, {"a": {"kernel": jnp.ones((3, 3))}, "b": {"kernel": jnp.ones((3, 3))}}],
    ids=["a bare array", "one matrix", "no output to be told apart"],
)
def test_what_has_no_output_layer_is_pulled_too(make, params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = make(0.5).update(zeros, make(0.5).init(zeros), params)
    jax.tree.map(lambda pull: np.testing.assert_array_equal(pull, 0.5), updates)


@pytest.mark.parametrize("make", [l2, l2_init])
def test_a_masked_part_is_left_alone(make):
    regularizer = optax.masked(make(0.5), paths.map_leaves(lambda path, _: path.endswith("bias"), NORMALIZED))
    zeros = jax.tree.map(jnp.zeros_like, NORMALIZED)
    state = regularizer.init(zeros)
    pulled = paths.leaves(regularizer.update(zeros, state, NORMALIZED)[0])
    assert pulled["output/bias"][0] == 0.5 and not np.any(pulled["hidden/kernel"])


@pytest.mark.parametrize(("optimizer", "turned"), [(optax.sgd(0.01), False), (optax.adam(0.01), True)])
def test_l2_turns_projected_weights_behind_adam_only(optimizer, turned):
    params = {"hidden": {"kernel": jnp.array([[3.0, -1.0], [2.0, 0.5]])}, "output": {"kernel": jnp.ones((2, 1))}}
    gradients = {"hidden": {"kernel": jnp.array([[-1.0, 2.0], [-3.0, 1.0]])}, "output": {"kernel": jnp.ones((2, 1))}}

    def after(transformation):
        projected = nap.normalize_and_project(transformation)
        updates, _ = projected.update(gradients, projected.init(params), params)
        return optax.apply_updates(params, updates)["hidden"]["kernel"]

    alone, moved = after(optimizer), after(optax.chain(l2(1.0), optimizer))
    share = np.linalg.norm(moved - alone) / np.linalg.norm(alone - params["hidden"]["kernel"])
    assert share > 0.5 if turned else share < 0.02


def test_l2_init_is_the_gradient_of_half_the_squared_distance():
    params, initial = draw(0), draw(5)
    penalty = jax.grad(lambda p: 0.15 * optax.tree.norm(optax.tree.sub(p, initial), squared=True))
    assert_close(added(l2_init(0.3), params, initial), penalty(params))


def test_w2_init_by_hand():
    """The largest, 5, belongs to 3; 0 to 1; and 1 to 2."""
    found = added(w2_init(0.5), {"w": jnp.array([5.0, 0.0, 1.0])}, {"w": jnp.array([2.0, 3.0, 1.0])})
    np.testing.assert_allclose(found["w"], [2.0, -1.0, -1.0])


def test_w2_init_is_the_gradient_of_the_penalty():
    params, initial = draw(0), draw(5)

    def penalty(p):
        pairs = zip(jax.tree.leaves(p), jax.tree.leaves(initial), strict=True)
        return 0.3 * sum(jnp.sum((jnp.sort(a.ravel()) - jnp.sort(b.ravel())) ** 2) for a, b in pairs)

    assert_close(added(w2_init(0.3), params, initial), jax.jit(jax.grad(penalty))(params))


def test_w2_init_is_nothing_where_weights_are_only_exchanged():
    initial = {"kernel": jnp.arange(12.0).reshape(3, 4)}
    found = added(w2_init(1.0), {"kernel": initial["kernel"][::-1, ::-1]}, initial)
    np.testing.assert_allclose(found["kernel"], 0)


@pytest.mark.parametrize("network", NETWORKS)
def test_parseval_is_the_gradient_of_the_penalty(network):
    """Of which each layer has a share of (3 / its units)^2, with units by the rows."""
    params = draw(0, network)

    def penalty(p):
        rows = matrices(p, Role.HIDDEN)
        return 0.01 * sum((3 / len(w)) ** 2 * jnp.sum((w @ w.T - 2 * jnp.eye(len(w))) ** 2) for w in rows)

    found = added(parseval(0.01, width=3), params)
    assert_close(found, jax.jit(jax.grad(penalty))(params), atol=1e-4)
    assert not np.any(paths.leaves(found)["output/kernel"])


def test_parseval_by_hand():
    """Units (1, 0) and (1, 1): K^T K - 2 I = [[-1, 1], [1, 0]], times 4 K = [[4, 4], [0, 4]].

    As published that is multiplied by (64 / 2)^2 = 1024 in a layer of two units.
    """
    params = {"hidden": {"kernel": jnp.array([[1.0, 1.0], [0.0, 1.0]])}, "output": {"kernel": jnp.ones((2, 1))}}
    np.testing.assert_allclose(added(parseval(1.0, width=None), params)["hidden"]["kernel"], [[0, 4], [4, 0]])
    np.testing.assert_allclose(added(parseval(1.0), params)["hidden"]["kernel"], [[0, 4096], [4096, 0]], atol=1)


def test_parsevals_published_strength_is_that_of_64_units():
    """Units of squared norm 1 are pulled apart by 4 (1 - 2) K; in a layer of 256 units by a sixteenth of that."""
    pulls = {}
    for units in (64, 256):
        params = {"hidden": {"kernel": jnp.eye(units)}, "output": {"kernel": jnp.ones((units, 1))}}
        updates, _ = parseval(1e-3).update(jax.tree.map(jnp.zeros_like, params), optax.EmptyState(), params)
        pulls[units] = updates["hidden"]["kernel"][0, 0]
    assert pulls[64] == pytest.approx(-4e-3) and pulls[256] == pytest.approx(-4e-3 / 16)
    with pytest.raises(ValueError, match="width is a number of units, at least 1, got 0"):
        parseval(width=0)


def test_parseval_rests_where_units_are_orthogonal():
    orthogonal = jnp.sqrt(2) * jnp.eye(4)[:, :3]
    params = {"hidden": {"kernel": orthogonal}, "output": {"kernel": jnp.ones((3, 1))}}
    np.testing.assert_allclose(added(parseval(1.0, width=3), params)["hidden"]["kernel"], 0, atol=1e-5)


def test_attention_has_a_column_for_each_feature_of_each_head():
    kernels = {name: jax.random.normal(jax.random.key(i), (5, 2, 3)) for i, name in enumerate("qkv")}
    params = {"a": {name: {"kernel": kernel} for name, kernel in kernels.items()}}
    params["a"]["o"] = {"kernel": jnp.ones((2, 3, 5))}
    params["output"] = {"kernel": jnp.ones((5, 2))}
    updates, _ = parseval(1.0, width=6).update(jax.tree.map(jnp.zeros_like, params), optax.EmptyState(), params)
    flat = np.asarray(kernels["q"]).reshape(5, 6)
    expected = 4 * flat @ (flat.T @ flat - 2 * np.eye(6))
    np.testing.assert_allclose(updates["a"]["q"]["kernel"], expected.reshape(5, 2, 3), rtol=1e-4, atol=1e-4)


def test_a_weight_of_pytorch_layout_has_a_row_for_each_unit():
    """Equinox stores (out, in): an orthogonal row for each unit of a layer with more inputs than units."""
    mlp = eqx.filter(eqx.nn.MLP(6, 2, 3, 2, key=jax.random.key(0)), eqx.is_inexact_array)
    mlp = eqx.tree_at(lambda m: m.layers[0].weight, mlp, jnp.sqrt(2) * jnp.eye(3, 6))
    np.testing.assert_allclose(added(parseval(1.0, width=3), mlp).layers[0].weight, 0, atol=1e-5)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_spectral_regularization_is_the_gradient_of_the_penalty(power):
    params = draw(0)

    def penalty(p):
        weights = matrices(p, Role.HIDDEN, Role.OUTPUT)
        biases = [paths.leaves(p)[path] for path in find_roles(p).paths(Role.BIAS)]
        sigmas = sum((jnp.linalg.svd(w, compute_uv=False)[0] ** power - 1) ** 2 for w in weights)
        return 0.3 * (sigmas + sum(jnp.sum(b**2) ** power for b in biases))

    assert_close(
        added(spectral_regularization(0.3, power), params), jax.jit(jax.grad(penalty))(params), rtol=1e-2, atol=1e-3
    )


def test_spectral_regularization_by_hand():
    """Singular values 3 and 1: slope 2 (9 - 1) 2 3 = 96 on the first. Bias (1, 2): 4 ||b||^2 b = 20 b."""
    params = {
        "hidden": {"kernel": jnp.diag(jnp.array([1.0, -3.0])), "bias": jnp.array([1.0, 2.0])},
        "output": {"kernel": jnp.zeros((2, 1))},
    }
    found = added(spectral_regularization(1.0), params)
    np.testing.assert_allclose(found["hidden"]["kernel"], [[0, 0], [0, -96]], atol=1e-4)
    np.testing.assert_allclose(found["hidden"]["bias"], [20, 40], rtol=1e-5)
    np.testing.assert_allclose(found["output"]["kernel"], 0)


def test_spectral_regularization_follows_the_weights():
    """Descending the penalty alone brings every singular value to 1, and biases to 0."""
    regularizer = optax.chain(spectral_regularization(0.1), optax.sgd(0.1))
    params = draw(0)

    def step(carry, _):
        params, state = carry
        updates, state = regularizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=600))((params, regularizer.init(params)))
    for weight in matrices(params, Role.HIDDEN, Role.OUTPUT):
        assert np.linalg.norm(weight, 2) == pytest.approx(1, abs=0.02)


def test_stacked_layers_have_singular_values_of_their_own():
    kernels = jnp.stack([jnp.diag(jnp.array([2.0, 1.0])), jnp.diag(jnp.array([1.0, 3.0]))])
    params = {"stack": {"kernel": kernels, "bias": jnp.zeros((2, 2))}, "output": {"kernel": jnp.ones((2, 1))}}
    found = added(spectral_regularization(1.0), params)["stack"]["kernel"]
    np.testing.assert_allclose(found, [[[24, 0], [0, 0]], [[0, 0], [0, 96]]], atol=1e-3)


@ALL
def test_strength_zero_does_nothing(make):
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(added(make(0.0), draw(0), draw(5))))


@ALL
def test_a_reset_of_single_units_goes_through(make):
    """State that is no copy of the parameters stays; the initial parameters of reset entries are the new ones."""
    params, fresh = draw(0), draw(5)
    optimizer = optax.chain(make(0.1), optax.sgd(0.1))
    state = optimizer.init(params)
    masks = paths.map_leaves(lambda path, leaf: jnp.asarray(path == "hidden/0/kernel"), params)
    after = reset_entries(optimizer, state, fresh, masks)
    kept = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state, after)
    assert sum(not same for same in jax.tree.leaves(kept)) == (1 if make is l2_init else 0)


@ALL
def test_bad_arguments(make):
    for strength in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"strength must be a finite number of at least 0, got {strength}"):
            make(strength)
    regularizer = make(1.0)
    with pytest.raises(ValueError, match="needs the parameters"):
        regularizer.update(draw(0), regularizer.init(draw(0)))


def test_a_power_below_one_is_an_error():
    with pytest.raises(ValueError, match="power must be at least 1, got 0"):
        spectral_regularization(1.0, 0)


def test_strengths_may_be_traced():
    """A sweep in one compiled function, or `optax.inject_hyperparams`."""
    params, gradients, start = draw(0), draw(1), draw(2)

    def step(strength):
        optimizer = optax.inject_hyperparams(l2_init)(strength=strength)
        return optimizer.update(gradients, optimizer.init(start), params)[0]

    both = jax.jit(jax.vmap(step))(jnp.asarray([0.1, 0.2]))
    for i, strength in enumerate((0.1, 0.2)):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), both, step(strength))
