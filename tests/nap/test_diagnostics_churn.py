"""Churn by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nap.diagnostics import output_churn, policy_churn

BEFORE = jnp.array([[1.0, 2.0, 3.0], [5.0, 0.0, 0.0], [0.0, 1.0, 0.0], [4.0, 4.5, 0.0]])
AFTER = jnp.array([[1.0, 4.0, 3.0], [6.0, 0.0, 0.0], [0.0, 1.0, 0.0], [4.0, 3.0, 0.0]])


def test_churn_by_hand():
    """Greedy actions 2, 0, 1, 1 become 1, 0, 1, 0; changes of 2, 1 and 1.5 among 12 values."""
    assert float(policy_churn(BEFORE, AFTER)) == 0.5
    assert float(output_churn(BEFORE, AFTER)) == pytest.approx(4.5 / 12)


def test_no_change_is_no_churn():
    assert float(policy_churn(BEFORE, BEFORE)) == float(output_churn(BEFORE, BEFORE)) == 0.0


def test_a_shift_of_all_values_leaves_the_policy():
    assert float(policy_churn(BEFORE, BEFORE + 10)) == 0.0
    assert float(output_churn(BEFORE, BEFORE + 10)) == pytest.approx(10.0)


def test_under_jit_and_vmap():
    pair = jnp.stack([AFTER, BEFORE])
    np.testing.assert_allclose(jax.jit(jax.vmap(policy_churn, in_axes=(None, 0)))(BEFORE, pair), [0.5, 0.0])
