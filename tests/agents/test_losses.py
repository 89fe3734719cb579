import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rlax

from agents.losses import double_q_error


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
