"""The plasticity probe: exact cases, a dead network, and what it must not depend on."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import nap
from nap.diagnostics import plasticity_probe
from nap.networks import MLP, as_functions

NETWORK = as_functions(lambda rngs: MLP(6, [32], 4, norm="none", rngs=rngs))
NETWORKS = {
    "plain": NETWORK,
    "normalized": as_functions(lambda rngs: MLP(6, [16], 4, norm="layer", rngs=rngs)),
    "one output": as_functions(lambda rngs: MLP(6, [4], 1, rngs=rngs)),
    "number": NETWORK._replace(
        init=lambda key: {"p": jnp.array(0.5)}, apply=lambda params, x: jnp.full((x.shape[0], 1), params["p"])
    ),
}
ADAM = optax.adam(2e-2)
INPUTS = jax.random.normal(jax.random.key(10), (24, 6))
KEY = jax.random.key(0)


@functools.cache
def compiled(name, optimizer, **options):
    return jax.jit(
        lambda inputs, params, key: plasticity_probe(
            NETWORKS[name], params, optimizer, key=key, inputs=inputs, **options
        )
    )


def probe(params, key=KEY, inputs=INPUTS, network="plain", optimizer=ADAM, steps=60, batch_size=12, **options):
    """The probe, compiled once for each kind."""
    return compiled(network, optimizer, steps=steps, batch_size=batch_size, **options)(inputs, params, key)


def dead(params):
    """All units far below zero on every input."""
    params = jax.tree.map(lambda leaf: leaf, params)
    params["hidden"][0]["bias"][...] = jnp.full(32, -1e3)
    return params


@pytest.mark.parametrize("targets", ["labels", "regression"])
def test_the_fresh_network_itself_has_no_gap(targets):
    fresh = jax.jit(NETWORK.init)(jax.random.split(KEY, 3)[0])
    found = probe(fresh, targets=targets)
    assert float(found.gap) == 0.0
    assert float(found.loss) == float(found.fresh_loss)


def test_another_fresh_network_has_a_gap_near_zero():
    """Over 16 probes the mean gap is within three standard errors of 0, and well below what training gains."""
    params = jax.vmap(NETWORK.init)(jax.random.split(jax.random.key(1), 16))
    keys = jax.random.split(jax.random.key(2), 16)
    found = jax.vmap(probe)(params, keys)
    gaps = np.asarray(found.gap)
    assert abs(gaps.mean()) < 3 * gaps.std(ddof=1) / 4
    assert np.all(gaps != 0)
    assert abs(gaps.mean()) < 0.1 * (np.log(4) - np.mean(found.fresh_loss))


@pytest.mark.parametrize("targets", ["labels", "regression"])
def test_a_dead_network_has_a_gap(targets):
    """Only its output bias still learns: with labels it ends near the entropy of the labels' frequencies, log 4."""
    params = jax.jit(NETWORK.init)(jax.random.key(1))
    found = probe(dead(params), targets=targets)
    assert float(found.gap) > 0.5
    assert float(found.gap) == pytest.approx(float(found.loss - found.fresh_loss))
    if targets == "labels":
        assert 1.1 < float(found.loss) < 1.5
        assert float(found.fresh_loss) < 0.5


def test_gradient_descent_on_one_number_by_hand():
    """Output p for one input, loss (p - t)^2, steps of 1/4: the distance to t halves each time.

    From p = 100 and p = -100, three steps leave (100 - t) / 8 and (100 + t) / 8: together 25 whatever t is.
    """
    options = {"network": "number", "optimizer": optax.sgd(0.25), "inputs": jnp.zeros((1, 1)), "targets": "regression"}
    above, below = (probe({"p": jnp.array(p)}, steps=3, batch_size=3, **options) for p in (100.0, -100.0))
    left, right = np.sqrt(above.loss), np.sqrt(below.loss)
    assert left + right == pytest.approx(25, rel=1e-5)
    target = (right - left) * 4
    assert abs(target) < 5
    assert float(above.fresh_loss) == pytest.approx(((0.5 - target) / 8) ** 2, rel=1e-2)


def test_the_optimizer_starts_anew_for_both():
    """One that ends at half of what it was initialized with: 50 - t and 50 + t away from the target, 0.25 - t fresh."""

    def update(gradients, initial, params):
        return jax.tree.map(lambda first, now: first / 2 - now, initial, params), initial

    halving = optax.GradientTransformation(lambda params: params, update)
    options = {
        "network": "number",
        "optimizer": halving,
        "inputs": jnp.zeros((1, 1)),
        "targets": "regression",
        "steps": 2,
    }
    above, below = (probe({"p": jnp.array(p)}, **options) for p in (100.0, -100.0))
    left, right = np.sqrt(above.loss), np.sqrt(below.loss)
    assert left + right == pytest.approx(100, rel=1e-5)
    assert float(above.fresh_loss) == pytest.approx((0.25 - (right - left) / 2) ** 2, rel=1e-3)


def test_with_projection():
    """The whole of it traces with the optimizer that this library is about."""
    fresh = jax.jit(NETWORKS["normalized"].init)(jax.random.split(KEY, 3)[0])
    found = probe(fresh, network="normalized", optimizer=nap.normalize_and_project(ADAM))
    assert float(found.gap) == 0.0
    assert float(found.loss) < 1.0 < np.log(4)


def test_under_vmap_over_params():
    params = jax.jit(NETWORK.init)(jax.random.key(1))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, dead(params))
    together = jax.vmap(probe)(both)
    for i, member in enumerate((params, dead(params))):
        np.testing.assert_allclose([field[i] for field in together], probe(member), rtol=1e-4, atol=1e-5)


def test_params_are_left_alone_and_keys_matter():
    params = jax.jit(NETWORK.init)(jax.random.key(1))
    before = jax.tree.map(np.array, params)
    first, second = (probe(params, jax.random.key(k)) for k in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert float(first.fresh_loss) != float(second.fresh_loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "label"}, "targets must be one of 'labels', 'regression', got 'label'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_input(options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    params = jax.jit(NETWORK.init)(jax.random.key(1))
    with pytest.raises(ValueError, match=message):
        probe(params, **options)


def test_labels_need_two_outputs():
    params = jax.jit(NETWORKS["one output"].init)(jax.random.key(0))
    with pytest.raises(ValueError, match="labels need a network of at least 2 outputs"):
        probe(params, network="one output")
