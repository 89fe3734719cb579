"""Churn: how much a network's outputs on a held-out batch change from one update to the next."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from nap.steps import wide


def policy_churn(before: Float[Array, "batch actions"], after: Float[Array, "batch actions"]) -> Float[Array, ""]:
    """The share of states whose greedy action changes (Schaul et al., 2022).

    Args:
      before: action values or logits before the update.
      after: the same states' after it.
    """
    return jnp.mean(jnp.argmax(before, axis=-1) != jnp.argmax(after, axis=-1))


def output_churn(before: Float[Array, "batch *outputs"], after: Float[Array, "batch *outputs"]) -> Float[Array, ""]:
    """The mean absolute change of the outputs; of action values, the value churn of Tang & Berseth (2024).

    Args:
      before: outputs before the update.
      after: the same inputs' after it.
    """
    return jnp.mean(jnp.abs(wide(after) - wide(before)))
