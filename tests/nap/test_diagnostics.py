"""Diagnostics on activations whose answer is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from nap.diagnostics import dormancy_scores, dormant_fraction


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


def test_a_silent_layer_is_all_dormant():
    assert float(dormant_fraction(jnp.zeros((4, 8)))[0.0]) == 1.0
