"""Losses against numbers worked by hand and against rlax."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rlax

from agents import values
from agents.losses import (
    categorical_double_q_loss,
    categorical_projection,
    double_q_error,
    quantile_double_q_loss,
)
from nap.networks import Quantiles

ATOMS = jnp.linspace(-10.0, 10.0, 51)  # 0.4 apart


def test_by_hand():
    # The selector prefers action 2, so its value counts, although action 0 has a greater one: 1 + 0.5 * 4 = 3.
    error = double_q_error(
        q_tm1=jnp.array([1.0, 2.0, 0.0]),
        a_tm1=jnp.array(1),
        r_t=jnp.array(1.0),
        discount_t=jnp.array(0.5),
        q_t_value=jnp.array([9.0, 0.0, 4.0]),
        q_t_selector=jnp.array([0.0, 1.0, 2.0]),
    )
    assert error == 1.0


def test_a_termination_leaves_the_reward_alone():
    q_t = jnp.array([100.0, 200.0])
    error = double_q_error(jnp.array([1.0, 5.0]), jnp.array(0), jnp.array(-1.0), jnp.array(0.0), q_t, q_t)
    assert error == -2.0


def random_batch(seed: int, batch: int = 64, actions: int = 6):
    rng = np.random.default_rng(seed)
    values = [jnp.asarray(rng.normal(size=(batch, actions)), jnp.float32) for _ in range(3)]
    a_tm1 = jnp.asarray(rng.integers(actions, size=batch), jnp.int32)
    r_t = jnp.asarray(rng.normal(size=batch), jnp.float32)
    discount_t = jnp.asarray(0.99 * rng.integers(2, size=batch), jnp.float32)
    return values[0], a_tm1, r_t, discount_t, values[1], values[2]


@pytest.mark.parametrize("jit", [False, True])
def test_equals_rlax(jit):
    batch = random_batch(0)
    ours, theirs = jax.vmap(double_q_error), jax.vmap(rlax.double_q_learning)
    np.testing.assert_allclose((jax.jit(ours) if jit else ours)(*batch), theirs(*batch), rtol=1e-6)


def test_q_learning_is_the_case_of_one_network():
    q_tm1, a_tm1, r_t, discount_t, q_t, _ = random_batch(1)
    ours = jax.vmap(double_q_error)(q_tm1, a_tm1, r_t, discount_t, q_t, q_t)
    np.testing.assert_allclose(ours, jax.vmap(rlax.q_learning)(q_tm1, a_tm1, r_t, discount_t, q_t), rtol=1e-6)


def test_only_the_action_taken_is_moved():
    q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector = jax.tree.map(lambda leaf: leaf[0], random_batch(2))

    def error(q_tm1, r_t, discount_t, q_t_value, q_t_selector):
        return double_q_error(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector)

    gradients = jax.grad(error, argnums=range(5))(q_tm1, r_t, discount_t, q_t_value, q_t_selector)
    np.testing.assert_array_equal(gradients[0], -jax.nn.one_hot(a_tm1, q_tm1.size))
    assert all(not np.any(gradient) for gradient in gradients[1:])


def test_optax_huber_loss_is_the_one_dqn_uses():
    """Quadratic up to 1 and linear beyond, so its slope is the error clipped to [-1, 1] (Mnih et al. 2015)."""
    errors = jnp.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(optax.losses.huber_loss(errors), [2.5, 0.5, 0.125, 0.0, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(jax.vmap(jax.grad(optax.losses.huber_loss))(errors), [-1, -1, -0.5, 0, 0.5, 1, 1])
    np.testing.assert_allclose(optax.losses.huber_loss(errors), rlax.huber_loss(errors))


# --- The categorical projection --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0.0, {25: 1.0}),  # exactly on an atom
        (0.4, {26: 1.0}),
        (0.1, {25: 0.75, 26: 0.25}),
        (-0.3, {24: 0.75, 25: 0.25}),
        (0.2, {25: 0.5, 26: 0.5}),
        (10.0, {50: 1.0}),
        (9.9, {49: 0.25, 50: 0.75}),
        (10.1, {50: 1.0}),  # beyond the support
        (1e6, {50: 1.0}),
        (-10.0, {0: 1.0}),
        (-9.9, {0: 0.75, 1: 0.25}),
        (-11.0, {0: 1.0}),
    ],
)
def test_one_atom_goes_to_its_neighbours(at, expected):
    shares = categorical_projection(jnp.array([at]), jnp.array([1.0]), ATOMS)
    wanted = np.zeros(51)
    wanted[list(expected)] = list(expected.values())
    np.testing.assert_allclose(shares, wanted, atol=1e-5)


def random_distributions(seed: int, count: int, atoms: int) -> jax.Array:
    return jax.nn.softmax(2 * jax.random.normal(jax.random.key(seed), (count, atoms)))


@pytest.mark.parametrize("reach", [0.5, 1.5])  # within the atoms, and beyond both ends
def test_the_projection_equals_rlax(reach):
    rng = np.random.default_rng(0)
    support = jnp.asarray(np.sort(rng.uniform(-10 * reach, 10 * reach, (200, 30))), jnp.float32)
    probabilities = random_distributions(1, 200, 30)
    ours = jax.vmap(lambda z, p: categorical_projection(z, p, ATOMS))(support, probabilities)
    theirs = jax.vmap(lambda z, p: rlax.categorical_l2_project(z, p, ATOMS))(support, probabilities)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-5)
    means = (jnp.clip(support, -10, 10) * probabilities).sum(1)
    np.testing.assert_allclose(ours @ ATOMS, means, atol=1e-4)


def test_a_terminal_step_puts_all_on_the_reward():
    target = categorical_projection(0.1 + 0.0 * ATOMS, random_distributions(2, 1, 51)[0], ATOMS)
    np.testing.assert_allclose(target[25:27], [0.75, 0.25], atol=1e-5)


# --- The losses of distributions -------------------------------------------------------------------------------------


def random_outputs(seed: int, numbers: int, batch: int = 64, actions: int = 6) -> tuple[jax.Array, ...]:
    """Outputs at t-1 and at t, and the selector's action values."""
    keys = jax.random.split(jax.random.key(seed), 3)
    tm1, t = (2 * jax.random.normal(key, (batch, actions, numbers)) for key in keys[:2])
    return tm1, t, jax.random.normal(keys[2], (batch, actions))


def test_the_categorical_loss_equals_rlax():
    logits_tm1, logits_t, selector = random_outputs(0, 51)
    _, a_tm1, r_t, discount_t, *_ = random_batch(3)
    r_t = 8 * r_t  # some targets lie beyond the atoms
    ours = jax.vmap(functools.partial(categorical_double_q_loss, ATOMS))
    theirs = jax.vmap(rlax.categorical_double_q_learning, in_axes=(None, 0, 0, 0, 0, None, 0, 0))
    with warnings.catch_warnings(action="ignore", category=PendingDeprecationWarning):  # of rlax's own parts
        wanted = theirs(ATOMS, logits_tm1, a_tm1, r_t, discount_t, ATOMS, logits_t, selector)
    np.testing.assert_allclose(ours(logits_tm1, a_tm1, r_t, discount_t, logits_t, selector), wanted, rtol=1e-4)


def test_the_categorical_loss_by_hand():
    """Three atoms -1, 0, 1; the target has 1/2 on 0 and 1/2 on 1, moved to 0.5 + 0.5 z: 0.5 and 1."""
    logits_t = jnp.log(jnp.array([[1e-9, 0.5, 0.5], [0.4, 0.3, 0.3]]))
    logits_tm1 = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]))
    found = categorical_double_q_loss(
        jnp.array([-1.0, 0.0, 1.0]), logits_tm1, jnp.array(0), jnp.array(0.5), jnp.array(0.5), logits_t,
        jnp.array([1.0, 0.0]),
    )  # fmt: skip
    np.testing.assert_allclose(found, -0.25 * np.log(0.3) - 0.75 * np.log(0.5), rtol=1e-5)


@pytest.mark.parametrize("targets", [16, 24])
def test_the_quantile_loss_equals_rlax(targets):
    quantiles_tm1, _, _ = random_outputs(1, 16)
    _, quantiles_t, selector = random_outputs(2, targets)
    _, a_tm1, r_t, discount_t, *_ = random_batch(4)
    taus = jax.random.uniform(jax.random.key(5), (64, 16))

    def rlax_loss(tm1, taus, a_tm1, r_t, discount_t, t, selector):
        return rlax.quantile_q_learning(tm1.T, taus, a_tm1, r_t, discount_t, selector[None], t.T, huber_param=1.0)

    arguments = (quantiles_tm1, taus, a_tm1, r_t, discount_t, quantiles_t, selector)
    ours = jax.vmap(quantile_double_q_loss)(*arguments)
    np.testing.assert_allclose(ours, jax.vmap(rlax_loss)(*arguments), rtol=1e-5)


def test_the_quantile_loss_by_hand():
    """Quantiles 0 and 3 at 1/4 and 3/4; targets 1 + 0.5 (0, 2) = 1 and 2."""
    found = quantile_double_q_loss(
        jnp.array([[0.0, 3.0]]), jnp.array([0.25, 0.75]), jnp.array(0), jnp.array(1.0), jnp.array(0.5),
        jnp.array([[0.0, 2.0]]), jnp.array([0.0]),
    )  # fmt: skip
    # Of 0: errors 1 and 2, Huber 0.5 and 1.5, weight 1/4. Of 3: errors -2 and -1, Huber 1.5 and 0.5, weight 1/4.
    np.testing.assert_allclose(found, 0.25 * (0.5 + 1.5) / 2 + 0.25 * (1.5 + 0.5) / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "quantile"])
def test_only_the_distribution_of_the_action_taken_is_moved(kind):
    tm1, t, selector = (leaf[0] for leaf in random_outputs(3, 51))

    def loss(tm1, r_t, discount_t, t, selector):
        if kind == "categorical":
            return categorical_double_q_loss(ATOMS, tm1, jnp.array(2), r_t, discount_t, t, selector)
        taus = (jnp.arange(51) + 0.5) / 51
        return quantile_double_q_loss(tm1, taus, jnp.array(2), r_t, discount_t, t, selector)

    moved, *rest = jax.grad(loss, argnums=range(5))(tm1, jnp.array(0.3), jnp.array(0.9), t, selector)
    assert moved[2].any() and not np.delete(np.asarray(moved), 2, axis=0).any()
    assert not any(gradient.any() for gradient in rest)


# --- What outputs are read as ----------------------------------------------------------------------------------------


def test_action_values_by_hand():
    logits = jnp.full((2, 51), -1e9).at[0, 30].set(0.0).at[1, jnp.array([0, 50])].set(0.0)
    np.testing.assert_allclose(values.categorical().action_values(logits), [2.0, 0.0], atol=1e-5)
    quantiles = jnp.array([[0.0, 1.0, 5.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(values.quantile(3).action_values(quantiles), [2.0, 1.0], rtol=1e-6)
    implicit = Quantiles(quantiles, jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(values.implicit_quantile(3).action_values(implicit), [2.0, 1.0], rtol=1e-6)
    assert values.scalar().action_values(quantiles[0]).tolist() == [0.0, 1.0, 5.0]


def test_priorities_are_the_errors_size_or_the_loss():
    q_tm1, a_tm1, r_t, discount_t, q_t, selector = jax.tree.map(lambda leaf: leaf[0], random_batch(6))
    found = values.scalar().loss(q_tm1, a_tm1, 5 * r_t, discount_t, q_t, selector)
    error = double_q_error(q_tm1, a_tm1, 5 * r_t, discount_t, q_t, selector)
    assert found.priority == abs(error) and found.loss == optax.losses.huber_loss(error) and abs(error) > 1
    tm1, t, selector = (leaf[0] for leaf in random_outputs(4, 51))
    for read in (values.categorical(), values.quantile(51)):
        found = read.loss(tm1, a_tm1, r_t, discount_t, t, selector)
        assert found.priority == found.loss > 0


def test_implicit_quantiles_are_judged_at_the_probabilities_that_the_network_drew():
    tm1, t, selector = (leaf[0] for leaf in random_outputs(5, 8))
    _, a_tm1, r_t, discount_t, *_ = jax.tree.map(lambda leaf: leaf[0], random_batch(7))
    taus, others = jax.random.uniform(jax.random.key(0), (2, 8))
    found = values.implicit_quantile(8).loss(
        Quantiles(tm1, taus), a_tm1, r_t, discount_t, Quantiles(t, others), selector
    )
    assert found.loss == quantile_double_q_loss(tm1, taus, a_tm1, r_t, discount_t, t, selector)
