"""Diagnostics of units, on activations whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nap.diagnostics import (
    active_fraction,
    dead_fraction,
    dormancy_scores,
    dormant_fraction,
    linearized_unit_fraction,
    saturated_fraction,
    zero_unit_fraction,
)


def test_dormancy_by_hand():
    """Mean sizes 0, 0.04, 2, 1.96: their mean is 1, so these are the scores."""
    activations = jnp.array([[0.0, 0.08, 1.0, -1.96], [0.0, 0.0, -3.0, 1.96]])
    np.testing.assert_allclose(dormancy_scores(activations), [0.0, 0.04, 2.0, 1.96], rtol=1e-6)
    fractions = dormant_fraction(activations)
    assert {tau: float(value) for tau, value in fractions.items()} == {0.0: 0.25, 0.025: 0.25, 0.1: 0.5}


def test_a_convolution_has_one_score_a_channel():
    """A channel that is active anywhere is not silent."""
    activations = jnp.zeros((2, 3, 3, 4)).at[1, 2, 0, 1].set(5.0)
    assert float(dormant_fraction(activations)[0.0]) == pytest.approx(0.75)
    assert float(zero_unit_fraction(activations)) == pytest.approx(0.75)


def test_a_silent_layer_is_all_dormant():
    assert float(dormant_fraction(jnp.zeros((4, 8)))[0.0]) == 1.0


def test_two_features_a_unit_are_one_unit():
    """CReLU of units with pre-activations (1, -3), (0, 0) and (2, 2): sizes of the units 1, 0, 1 (halves averaged)."""
    before = jnp.array([[1.0, 0.0, 2.0], [-3.0, 0.0, 2.0]])
    crelu = jnp.concatenate([jax.nn.relu(before), jax.nn.relu(-before)], axis=-1)
    np.testing.assert_allclose(dormancy_scores(crelu, features_per_unit=2), [1.5, 0.0, 1.5], rtol=1e-6)
    assert float(dormant_fraction(crelu, features_per_unit=2)[0.0]) == pytest.approx(1 / 3)
    assert float(dormant_fraction(crelu)[0.0]) == pytest.approx(3 / 6)  # as features: also the third unit's second half
    assert float(zero_unit_fraction(crelu, features_per_unit=2)) == pytest.approx(1 / 3)
    assert float(dead_fraction(crelu, features_per_unit=2)) == pytest.approx(1 / 3)
    assert float(linearized_unit_fraction(crelu, features_per_unit=2)) == pytest.approx(1 / 3)
    negative = jnp.concatenate([jax.nn.relu(-before), jax.nn.relu(before)], axis=-1)
    assert float(linearized_unit_fraction(negative, features_per_unit=2)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("features_per_unit", [0, -1, 4])
def test_features_have_to_divide_into_units(features_per_unit):
    with pytest.raises(ValueError, match=f"6 features can't have features_per_unit={features_per_unit}"):
        dormancy_scores(jnp.ones((2, 6)), features_per_unit)


def test_dead_units_by_hand():
    """Nonzero on 0, 1, 2, 3 and 200 of 200 samples; 2 of 200 is 1 %, which is not less than 1 %."""
    counts = np.array([0, 1, 2, 3, 200])
    activations = jnp.asarray((np.arange(200)[:, None] < counts) * -0.5)
    assert float(dead_fraction(activations)) == pytest.approx(2 / 5)
    assert float(dead_fraction(activations, below=0.5)) == pytest.approx(4 / 5)
    assert float(zero_unit_fraction(activations)) == pytest.approx(1 / 5)


def test_dead_units_of_a_convolution_are_counted_over_positions():
    """One nonzero position of 2 x 100: 0.5 %."""
    activations = jnp.zeros((2, 10, 10, 2)).at[0, 3, 4, 0].set(1.0).at[:, :2, :, 1].set(1.0)
    assert float(dead_fraction(activations)) == pytest.approx(1 / 2)


def test_dead_and_dormant_differ():
    """A unit that fires rarely but hugely is dead and not dormant; a small constant one is dormant and not dead."""
    activations = jnp.stack([jnp.zeros(200).at[0].set(1e4), jnp.full(200, 1e-3)], axis=1)
    np.testing.assert_array_equal(dormancy_scores(activations) <= 0.025, [False, True])
    assert float(dead_fraction(activations[:, :1])) == 1.0
    assert float(dead_fraction(activations[:, 1:])) == 0.0


def test_linearized_units_by_hand():
    activations = jnp.array([[1.0, 0.0, 2.0, 0.1], [3.0, 4.0, 0.0, 0.1]])
    assert float(linearized_unit_fraction(activations)) == pytest.approx(2 / 4)


def test_shares_of_activations_by_hand():
    activations = jnp.array([[0.995, -0.995, 0.5], [0.99, 0.0, -1.0]])
    assert float(saturated_fraction(activations)) == pytest.approx(3 / 6)
    assert float(saturated_fraction(activations, level=0.4)) == pytest.approx(5 / 6)
    assert float(active_fraction(activations)) == pytest.approx(3 / 6)


def test_under_jit_and_vmap():
    activations = jax.nn.relu(jax.random.normal(jax.random.key(0), (3, 16, 2, 2, 6)) - 1)
    for function in (dormancy_scores, dead_fraction, zero_unit_fraction, linearized_unit_fraction, active_fraction):
        together = jax.jit(jax.vmap(function))(activations)
        np.testing.assert_allclose(together, [function(member) for member in activations], rtol=1e-5)


def test_in_bfloat16():
    assert float(dead_fraction(jnp.ones((300, 4), jnp.bfloat16))) == 0.0
    assert dormancy_scores(jnp.ones((300, 4), jnp.bfloat16)).dtype == jnp.float32
