"""Activation functions: formulas by hand, gradients by finite differences, what the audit says of each."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats
from flax import nnx

import nap
from nap import paths
from nap.activations import (
    RATIONAL_DENOMINATOR,
    RATIONAL_NUMERATOR,
    ActivationName,
    PReLU,
    Rational,
    crelu,
    features_per_unit,
    fourier,
    make_activation,
)
from nap.invariance import Verdict
from nap.networks import MLP, Network, as_functions
from nap.roles import Role

NAMES = get_args(ActivationName)
HOMOGENEOUS = {"relu", "leaky-relu", "crelu", "prelu"}
VECTORS = jax.random.normal(jax.random.key(0), (16, 8))
POINTS = np.array([-30.0, -2.0, -0.5, 0.0, 0.25, 3.0, 30.0])


@functools.cache
def mlp(activation: str, norm: str = "layer") -> Network:
    return as_functions(lambda rngs: MLP(8, [12, 10], 3, norm=norm, activation=activation, rngs=rngs))


@functools.cache
def params_of(activation: str, norm: str = "layer"):
    return jax.jit(mlp(activation, norm).init)(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", np.where(POINTS > 0, POINTS, 0)),
        ("leaky-relu", np.where(POINTS > 0, POINTS, POINTS / 100)),
        ("prelu", np.where(POINTS > 0, POINTS, POINTS / 4)),
        ("tanh", np.tanh(POINTS)),
        ("gelu", POINTS * scipy.stats.norm.cdf(POINTS)),
        ("crelu", np.concatenate([np.where(POINTS > 0, POINTS, 0), np.where(POINTS < 0, -POINTS, 0)])),
        ("fourier", np.concatenate([np.sin(POINTS), np.cos(POINTS)])),
    ],
)
def test_a_name_is_its_published_function(name, expected):
    activation = make_activation(name, len(POINTS))
    np.testing.assert_allclose(activation(jnp.asarray(POINTS, jnp.float32)), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("function", [crelu, fourier])
def test_two_features_stand_on_the_last_axis_all_first_before_all_second(function):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 5))
    both = function(x)
    assert both.shape == (2, 3, 3, 10)
    first, second = (jax.nn.relu(x), jax.nn.relu(-x)) if function is crelu else (jnp.sin(x), jnp.cos(x))
    np.testing.assert_array_equal(both[..., :5], first)
    np.testing.assert_array_equal(both[..., 5:], second)


@pytest.mark.parametrize("name", NAMES)
def test_features_per_unit_is_what_comes_out(name):
    activation = make_activation(name, 6)
    assert activation(jnp.ones((2, 6))).shape == (2, 6 * features_per_unit(name))
    assert features_per_unit(name) == (2 if name in ("crelu", "fourier") else 1)


def test_functions_are_taken_as_they_are():
    assert make_activation(jnp.sin, 3) is jnp.sin
    assert make_activation("crelu", 3) is crelu
    assert [features_per_unit(function) for function in (jnp.tanh, crelu, fourier)] == [1, 2, 2]


def test_prelu_has_a_slope_for_each_channel():
    activation = PReLU(3)
    activation.slope[...] = jnp.array([0.0, 0.5, -2.0])
    x = jnp.array([[-4.0, -4.0, -4.0], [1.0, 2.0, 3.0]])
    assert activation(x).tolist() == [[0.0, -2.0, 8.0], [1.0, 2.0, 3.0]]


def test_rational_is_its_formula_in_numpy_where_q_is_negative_too():
    random = np.random.default_rng(0)
    numerator, denominator, x = random.normal(size=6), random.normal(size=4), random.normal(size=(50, 4))
    activation = Rational()
    activation.numerator[...], activation.denominator[...] = jnp.asarray(numerator), jnp.asarray(denominator)
    q = np.polynomial.polynomial.polyval(x, [0, *denominator])
    assert q.min() < -0.5 and q.max() > 0.5
    expected = np.polynomial.polynomial.polyval(x, numerator) / (1 + np.abs(q))
    np.testing.assert_allclose(activation(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_rational_starts_as_the_best_fit_of_leaky_relu():
    """With the error that the source states; least squares from there, over all ten coefficients, finds no better."""
    x = np.linspace(-3, 3, 6001)
    target = np.maximum(x, 0.01 * x)

    def error(coefficients: np.ndarray) -> np.ndarray:
        q = np.polynomial.polynomial.polyval(x, [0, *coefficients[6:]])
        return np.polynomial.polynomial.polyval(x, coefficients[:6]) / (1 + np.abs(q)) - target

    ours = error(np.array([*RATIONAL_NUMERATOR, *RATIONAL_DENOMINATOR]))
    np.testing.assert_allclose(Rational()(jnp.asarray(x, jnp.float32)), ours + target, rtol=1e-4, atol=1e-5)
    assert np.sqrt(np.mean(ours**2)) == pytest.approx(0.0055, abs=5e-5)
    assert np.abs(ours).max() == ours[3000] == pytest.approx(0.034, abs=5e-4)  # at 0
    best = scipy.optimize.least_squares(error, [*RATIONAL_NUMERATOR, *RATIONAL_DENOMINATOR], xtol=1e-12, ftol=1e-12)
    assert np.mean(best.fun**2) > 0.9999 * np.mean(ours**2)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_central_differences(name):
    """Of the input and of every learned parameter, in float64; no point lies at a kink."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        x = random.normal(size=(40, 3))
        x = jnp.asarray(x + 0.05 * np.sign(x))
        activation = make_activation(name, 3)
        if isinstance(activation, nnx.Module):
            graph, params = nnx.split(jax.tree.map(lambda p: p.astype(jnp.float64), activation))
        else:
            graph, params = None, {}
        weight = jnp.asarray(random.normal(size=(40, 3 * features_per_unit(name))))

        def value(params, x):
            function = activation if graph is None else nnx.merge(graph, params)
            return jnp.sum(weight * function(x))

        point = (params, x)
        gradient = jax.grad(lambda point: value(*point))(point)
        for seed in range(3):
            direction = jax.tree.map(
                lambda leaf, seed=seed: jnp.asarray(np.random.default_rng(seed).normal(size=leaf.shape)), point
            )
            there, back = (value(*jax.tree.map(lambda p, d, s=s: p + s * 1e-6 * d, point, direction)) for s in (1, -1))
            slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
            assert float((there - back) / 2e-6) == pytest.approx(float(slope), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_bfloat16(name):
    assert make_activation(name, 4)(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"rational"}))
def test_the_audit_lets_scale_and_offset_be_projected_only_where_the_activation_is_homogeneous(name):
    network, params = mlp(name), params_of(name)
    projected = nap.audit(network.apply, params, VECTORS, affine="project")
    assert projected.clean == (name in HOMOGENEOUS), str(projected)
    if name not in HOMOGENEOUS:
        assert nap.audit(network.apply, params, VECTORS, affine="regularize").clean
        bad = {row.path for row in projected if row.verdict is not Verdict.FINE}
        assert bad == {"hidden/0/norm/scale", "hidden/0/norm/offset"}
        assert {projected[path].verdict for path in bad} == {Verdict.CONSTRAINED}


def test_the_audit_finds_the_implicit_schedule_of_a_rational_activations_numerator():
    audit = nap.audit(mlp("rational").apply, params_of("rational"), VECTORS, affine="regularize")
    bad = {row.path: row.verdict for row in audit if row.verdict is not Verdict.FINE}
    assert bad == {"hidden/0/activation/numerator": Verdict.IMPLICIT}  # hidden/1's scales the output
    free = mlp("rational", "none")
    audit = nap.audit(free.apply, params_of("rational", "none"), VECTORS, roles={"hidden/*/kernel": Role.OUTPUT})
    assert audit.clean, "without normalization there is no invariance"


@pytest.mark.parametrize(("name", "learned"), [("prelu", ["slope"]), ("rational", ["denominator", "numerator"])])
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_learned_parameters_have_a_role_a_path_and_no_radius(name, learned, norm):
    roles = nap.roles(params_of(name, norm))
    expected = [f"hidden/{i}/activation/{leaf}" for i in range(2) for leaf in learned]
    assert roles.paths(Role.ACTIVATION) == expected
    assert list(nap.weight_norms(params_of(name, norm))) == ["hidden/0/kernel", "hidden/1/kernel"]
    # The same, decided by structure alone: a plain dictionary declares nothing.
    plain = nap.roles(paths.leaves(params_of(name, norm)), {"hidden*kernel": Role.HIDDEN})
    assert {plain[path].role for path in expected} == {Role.BIAS}


@pytest.mark.parametrize("name", ["prelu", "rational"])
def test_nap_trains_them_freely_beside_projected_weights(name):
    network, params = mlp(name), params_of(name)
    optimizer = nap.normalize_and_project(optax.adam(0.01), affine="regularize")

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: jnp.mean(jnp.square(network.apply(p, VECTORS) - 1)))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    moved, state = params, optimizer.init(params)
    for _ in range(10):
        moved, state = step(moved, state)
    before, after = paths.leaves(params), paths.leaves(moved)
    for path, leaf in before.items():
        size, now = float(jnp.linalg.norm(leaf)), float(jnp.linalg.norm(after[path]))
        if path.startswith("hidden") and path.endswith("kernel"):
            assert now == pytest.approx(size, rel=1e-6), path
        elif "activation" in path:
            assert abs(now / size - 1) > 1e-3, path


@pytest.mark.parametrize("name", ["prelu", "rational"])
def test_seeds_side_by_side_are_stacked(name):
    stacked = jax.jit(jax.vmap(mlp(name).init))(jax.random.split(jax.random.key(0), 3))
    roles = nap.roles(stacked)
    assert {leaf.stacked for leaf in roles} == {1}
    assert nap.weight_norms(stacked)["hidden/1/kernel"].shape == (3, 1, 1)
    outputs = jax.jit(jax.vmap(mlp(name).apply, in_axes=(0, None)))(stacked, VECTORS)
    alone = jax.jit(mlp(name).apply)(jax.tree.map(lambda leaf: leaf[1], stacked), VECTORS)
    np.testing.assert_allclose(outputs[1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("call", [features_per_unit, lambda name: make_activation(name, 3)])
@pytest.mark.parametrize(("name", "nearest"), [("leaky_relu", "leaky-relu"), ("Tanh", "tanh"), ("c-relu", "crelu")])
def test_an_unknown_name_is_told_in_one_line(call, name, nearest, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match=f"one of 'relu'.*, got '{name}'; the nearest is '{nearest}'$"):
        call(name)
