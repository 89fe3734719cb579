"""Effective learning rates by hand, and a free run against a projected one with the matching schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from nap import paths
from nap.networks import MLP, as_functions

NETWORK = as_functions(lambda rngs: MLP(8, [32, 32], 4, norm="layer", rngs=rngs))
STEPS = 200
RATE = 0.5  # large enough for norms to grow by a fifth, small enough to be stable


def test_rates_and_angles_by_hand():
    params = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.ones(2), "zero": jnp.zeros((2, 2))}
    updates = {"w": jnp.array([[0.0, 5.0], [0.0, 0.0]]), "b": jnp.ones(2), "zero": jnp.ones((2, 2))}
    rates = nap.effective_learning_rates(updates, params)
    assert rates.keys() == {"w", "zero"}
    assert float(rates["w"].weight_norm) == 5.0
    assert float(rates["w"].update_norm) == 5.0
    assert float(rates["w"].ratio) == 1.0
    assert float(rates["w"].angle) == pytest.approx(np.pi / 4, rel=1e-6)  # orthogonal and as long
    assert float(rates["zero"].ratio) == float(rates["zero"].angle) == 0.0


@pytest.mark.parametrize("angle", [1e-1, 1e-3, 1e-5])
def test_small_angles_keep_their_digits(angle):
    params = {"w": jnp.array([[1.0, 0.0]])}
    rates = nap.effective_learning_rates({"w": jnp.array([[0.0, np.tan(angle)]])}, params)
    assert float(rates["w"].angle) == pytest.approx(angle, rel=1e-4)


def test_schedule_values_by_hand():
    norms = np.array([2.0, 4.0, 8.0])
    for order, expected in ((1, [1, 0.5, 0.25, 0.25]), (2, [1, 0.25, 1 / 16, 1 / 16])):
        schedule = nap.matching_schedule(norms, order)
        np.testing.assert_allclose([float(schedule(i)) for i in range(4)], expected)
    assert set(nap.matching_schedule({"a": norms, "b": norms}, 2)) == {"a", "b"}
    for bad_norms, order in ((norms, 3), ([], 1), ([0.0], 1)):
        with pytest.raises(ValueError, match=r"optimizer_order|norms"):
            nap.matching_schedule(bad_norms, order)


def test_norms_that_were_not_taken_at_every_update_are_interpolated():
    for order, expected in ((1, [1, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 4]), (2, [1, 4 / 9, 1 / 4, 1 / 9, 1 / 16, 1 / 16])):
        schedule = nap.matching_schedule([2.0, 4.0, 8.0], order, [0, 2, 4])
        np.testing.assert_allclose([float(schedule(i)) for i in range(6)], expected, rtol=1e-6)
        (of_path,) = nap.matching_schedule({"a": [2.0, 4.0, 8.0]}, order, [0, 2, 4]).values()
        assert float(of_path(3)) == float(schedule(3))
    for bad_steps in ([1, 2, 3], [0, 2, 2], [0, 2]):
        with pytest.raises(ValueError, match=r"steps must be as many as the norms \(3\), start at 0 and increase"):
            nap.matching_schedule([2.0, 4.0, 8.0], 1, bad_steps)


def test_a_schedule_for_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="no such leaf"):
        nap.scale_by_schedules({"x": optax.constant_schedule(1.0)}).init({"w": jnp.ones(2)})


def targets(x):
    return jnp.sin(2 * x[:, :4]) + x[:, 4:]


def run(optimizer, key=0):
    """Train on a stream of batches; the outputs on fixed inputs after every step, and the hidden norms before it."""
    params = NETWORK.init(jax.random.key(key))
    probe = jax.random.normal(jax.random.key(99), (64, 8))

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            x = jax.random.normal(key, (32, 8))
            gradients = jax.grad(lambda p: jnp.mean(jnp.square(NETWORK.apply(p, x) - targets(x))))(params)
            norms = nap.weight_norms(params)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (NETWORK.apply(params, probe), norms)

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), STEPS))[1]

    outputs, norms = train(params)
    return np.asarray(outputs), {name: np.asarray(values) for name, values in norms.items()}


def distance(a, b):
    """Relative L2 distance of the outputs, at each step."""
    return np.linalg.norm(a - b, axis=(1, 2)) / np.linalg.norm(b, axis=(1, 2))


def projected(step, schedules):
    """Projection of the weights alone, so that only they differ from the free run."""
    return optax.chain(step, nap.scale_by_schedules(schedules), nap.project_weights())


def test_sgd_with_the_matching_schedule_makes_the_same_function_at_every_step():
    """Test (c): a free run and a projected run with per-layer (rho / ||W||)^2, to 1e-4 at each of 200 steps."""
    free, norms = run(optax.sgd(RATE))
    assert max(values[-1] / values[0] for values in norms.values()) > 1.2  # else there would be nothing to match
    matched, held = run(projected(optax.sgd(RATE), nap.matching_schedule(norms, 2)))
    assert all(np.ptp(values) < 1e-5 * values[0] for values in held.values())
    assert distance(matched, free).max() < 1e-4
    # Without the schedule, with the other order, and with one global schedule for all layers it is another function.
    constant, _ = run(optax.chain(optax.sgd(RATE), nap.project_weights()))
    wrong_order, _ = run(projected(optax.sgd(RATE), nap.matching_schedule(norms, 1)))
    mean = np.exp(np.mean([np.log(values / values[0]) for values in norms.values()], axis=0))
    everywhere = nap.matching_schedule(dict.fromkeys(norms, mean), 2)
    globally, _ = run(projected(optax.sgd(RATE), everywhere))
    assert distance(wrong_order, free)[-1] > 1e-2
    assert 1e-2 < distance(globally, free)[-1] < distance(constant, free)[-1]


def test_adam_with_the_matching_schedule_stays_close():
    """Exponent 1, approximately: Adam's moments average gradients of different scales."""
    free, norms = run(optax.adam(2e-2, eps=1e-12))
    assert max(values[-1] / values[0] for values in norms.values()) > 1.2
    matched, _ = run(projected(optax.adam(2e-2, eps=1e-12), nap.matching_schedule(norms, 1)))
    constant, _ = run(optax.chain(optax.adam(2e-2, eps=1e-12), nap.project_weights()))
    squared, _ = run(projected(optax.adam(2e-2, eps=1e-12), nap.matching_schedule(norms, 2)))
    assert distance(matched, free).mean() < 0.6 * distance(constant, free).mean()
    assert distance(matched, free).mean() < distance(squared, free).mean()


def test_projection_keeps_the_effective_learning_rate_that_was_set():
    """What it is all for: without projection the rate decays by itself, with it a constant schedule is constant."""

    def ratios(optimizer):
        params = NETWORK.init(jax.random.key(0))
        state, seen = optimizer.init(params), []

        @jax.jit
        def step(params, state, key):
            updates, state = optimizer.update(
                jax.tree.map(lambda p: jax.random.normal(key, p.shape), params), state, params
            )
            rate = nap.effective_learning_rates(updates, params)["hidden/1/kernel"]
            return optax.apply_updates(params, updates), state, rate

        for i in range(300):
            params, state, rate = step(params, state, jax.random.key(i))
            seen.append(float(rate.angle))
        return np.mean(seen[20:40]), np.mean(seen[-20:])

    early, late = ratios(optax.adam(2e-2))
    assert late < 0.7 * early
    early, late = ratios(nap.normalize_and_project(optax.adam(2e-2)))
    assert late == pytest.approx(early, rel=0.1)
    assert paths.leaves(NETWORK.init(jax.random.key(0)))["hidden/1/kernel"].shape == (32, 32)


def test_roles_by_name_and_narrow_updates():
    params = {"a": jnp.ones((2, 3, 4), jnp.bfloat16), "b": jnp.ones((2, 4, 5), jnp.bfloat16)}
    given = nap.roles(params, {"b": "output weight"}, stacked={"*": 1})
    assert nap.effective_learning_rates(params, params, given)["a"].ratio.shape == (2,)
    assert nap.effective_learning_rates(params, params, {"b": "output weight"})["a"].ratio.shape == ()
    optimizer = nap.scale_by_schedules({"a": optax.linear_schedule(1.0, 0.0, 10)})
    updates, _ = optimizer.update(params, optimizer.init(params))
    assert {leaf.dtype for leaf in updates.values()} == {jnp.bfloat16.dtype}
