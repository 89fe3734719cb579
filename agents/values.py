"""What a Q-network's outputs say of the return, and the loss that goes with it: one sample at a time.

`scalar` is DQN's, `categorical` C51's and Rainbow's, `quantile` QR-DQN's, `implicit_quantile` IQN's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from agents.losses import categorical_double_q_loss, double_q_error, quantile_double_q_loss

Outputs = Any
"""Of one sample: [actions], [actions, atoms], or `nap.networks.Quantiles`."""


class Loss(NamedTuple):
    """Of one sample.

    Attributes:
        loss: what is minimised.
        priority: what its priority in replay should be, before clipping.
    """

    loss: Float[Array, ""]
    priority: Float[Array, ""]


class Values(NamedTuple):
    """How a network's outputs are read.

    Attributes:
        network: the arguments of `nap.networks.QNetwork` that make such outputs.
        action_values: `action_values(outputs)`, the expected return of each action, shape [actions].
        loss: `loss(outputs_tm1, a_tm1, r_t, discount_t, outputs_t, q_t_selector)`; for the names see `agents.losses`.
        choose_apart: whether the outputs that choose the bootstrap action are drawn apart from those that value it,
            also where one network makes both.
    """

    network: dict[str, int]
    action_values: Callable[[Outputs], Float[Array, " actions"]]
    loss: Callable[..., Loss]
    choose_apart: bool = False


def scalar() -> Values:
    """The expected return alone: Huber loss (delta 1) of the TD error, whose size is the priority."""

    def loss(outputs_tm1, a_tm1, r_t, discount_t, outputs_t, q_t_selector) -> Loss:
        error = double_q_error(outputs_tm1, a_tm1, r_t, discount_t, outputs_t, q_t_selector)
        return Loss(optax.losses.huber_loss(error), jnp.abs(error))

    return Values({}, lambda outputs: outputs, loss)


def categorical(atoms: int = 51, largest: float = 10.0) -> Values:
    """A categorical distribution over returns from -largest to largest; the priority is the loss, as in Rainbow."""
    support = jnp.linspace(-largest, largest, atoms)

    def loss(outputs_tm1, a_tm1, r_t, discount_t, outputs_t, q_t_selector) -> Loss:
        found = categorical_double_q_loss(support, outputs_tm1, a_tm1, r_t, discount_t, outputs_t, q_t_selector)
        return Loss(found, found)

    return Values({"atoms": atoms}, lambda outputs: jax.nn.softmax(outputs) @ support, loss)


def quantile(quantiles: int = 201) -> Values:
    """The returns at evenly spaced probabilities, (i + 1/2) / quantiles; the priority is the loss."""
    taus = (jnp.arange(quantiles) + 0.5) / quantiles

    def loss(outputs_tm1, a_tm1, r_t, discount_t, outputs_t, q_t_selector) -> Loss:
        found = quantile_double_q_loss(outputs_tm1, taus, a_tm1, r_t, discount_t, outputs_t, q_t_selector)
        return Loss(found, found)

    return Values({"atoms": quantiles}, lambda outputs: jnp.mean(outputs, axis=-1), loss)


def implicit_quantile(samples: int = 64) -> Values:
    """The returns at probabilities that are drawn anew each time; the priority is the loss.

    An action is chosen by other draws than it is valued by, as in DQN Zoo.
    """

    def loss(outputs_tm1, a_tm1, r_t, discount_t, outputs_t, q_t_selector) -> Loss:
        found = quantile_double_q_loss(
            outputs_tm1.values, outputs_tm1.taus, a_tm1, r_t, discount_t, outputs_t.values, q_t_selector
        )
        return Loss(found, found)

    return Values({"quantile_samples": samples}, lambda outputs: jnp.mean(outputs.values, axis=-1), loss, True)
