"""Temporal-difference errors and losses, one sample at a time: `jax.vmap` at the call site makes a batch.

The names follow rlax: `_tm1` is time t-1, where the action was taken, and `_t` is what came of it. `r_t` and
`discount_t` may span several steps, as `agents.replay.transitions` makes them. `q_t_selector` are the action values
that choose the bootstrap action: those of the network that learns in double Q-learning, else of the target network;
the first of equals is taken. Only what has `_tm1` in its name receives a gradient.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def double_q_error(
    q_tm1: Float[Array, " actions"],
    a_tm1: Int[Array, ""],
    r_t: Float[Array, ""],
    discount_t: Float[Array, ""],
    q_t_value: Float[Array, " actions"],
    q_t_selector: Float[Array, " actions"],
) -> Float[Array, ""]:
    """Double Q-learning error, `r_t + discount_t * q_t_value[argmax(q_t_selector)] - q_tm1[a_tm1]`.

    Plain Q-learning, as DQN has it, is the case where one array serves as both `q_t_value` and `q_t_selector`.

    Args:
        q_tm1: values at time t-1 by the network that learns.
        a_tm1: the action taken at time t-1.
        r_t: the reward that followed, or the discounted sum of n of them.
        discount_t: what the value at time t counts for: gamma, or gamma^n, and 0 after a termination.
        q_t_value: values at time t that the chosen action is judged by (the target network's).
        q_t_selector: values at time t that choose the action.

    Returns:
        The error in units of the reward: positive where `q_tm1[a_tm1]` is too low.

    Source: van Hasselt, Guez and Silver (2016), arXiv:1509.06461, section "Double DQN".
    """
    target_tm1 = r_t + discount_t * q_t_value[q_t_selector.argmax()]
    return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]


def categorical_projection(
    support: Float[Array, " from_atoms"], probabilities: Float[Array, " from_atoms"], onto: Float[Array, " atoms"]
) -> Float[Array, " atoms"]:
    """The distribution on other atoms: each atom's probability goes to its two neighbours, the nearer one gets more.

    What lies beyond the ends of `onto` goes to the end. The mean is kept for all that lies between them.

    Args:
        support: where the probabilities are.
        probabilities: they sum to 1.
        onto: evenly spaced, ascending.

    Source: Bellemare, Dabney and Munos (2017), arXiv:1707.06887, equation 7.
    """
    low, high = onto[0], onto[-1]
    # Not by the difference of two atoms, whose rounding error would be multiplied by the number of atoms.
    places = (jnp.clip(support, low, high) - low) / (high - low) * (onto.size - 1)
    shares = jnp.clip(1 - jnp.abs(places[:, None] - jnp.arange(onto.size)), 0, 1)
    return probabilities @ shares


def categorical_double_q_loss(
    atoms: Float[Array, " atoms"],
    logits_tm1: Float[Array, "actions atoms"],
    a_tm1: Int[Array, ""],
    r_t: Float[Array, ""],
    discount_t: Float[Array, ""],
    logits_t: Float[Array, "actions atoms"],
    q_t_selector: Float[Array, " actions"],
) -> Float[Array, ""]:
    """Cross-entropy of the predicted distribution of returns against the projected Bellman target (C51).

    Args:
        atoms: the returns that the distributions are over, evenly spaced.
        logits_tm1: of the network that learns, at time t-1.
        a_tm1, r_t, discount_t: as in `double_q_error`.
        logits_t: of the target network, at time t.
        q_t_selector: values at time t that choose the action.

    Source: Bellemare, Dabney and Munos (2017), arXiv:1707.06887, algorithm 1.
    """
    probabilities_t = jax.nn.softmax(logits_t[q_t_selector.argmax()])
    target_tm1 = categorical_projection(r_t + discount_t * atoms, probabilities_t, atoms)
    return optax.losses.softmax_cross_entropy(logits_tm1[a_tm1], jax.lax.stop_gradient(target_tm1))


def quantile_double_q_loss(
    quantiles_tm1: Float[Array, "actions quantiles"],
    taus_tm1: Float[Array, " quantiles"],
    a_tm1: Int[Array, ""],
    r_t: Float[Array, ""],
    discount_t: Float[Array, ""],
    quantiles_t: Float[Array, "actions targets"],
    q_t_selector: Float[Array, " actions"],
) -> Float[Array, ""]:
    """Quantile regression with the Huber loss (delta 1): summed over the predicted quantiles, averaged over targets.

    Args:
        quantiles_tm1: quantiles of the return, of the network that learns, at time t-1.
        taus_tm1: the probabilities they are at.
        a_tm1, r_t, discount_t: as in `double_q_error`.
        quantiles_t: of the target network, at time t; at any probabilities that stand for the whole distribution.
        q_t_selector: values at time t that choose the action.

    Source: Dabney et al. (2018), arXiv:1710.10044, algorithm 1; arXiv:1806.06923, equation 3.
    """
    target_tm1 = r_t + discount_t * quantiles_t[q_t_selector.argmax()]
    errors = jax.lax.stop_gradient(target_tm1)[None, :] - quantiles_tm1[a_tm1][:, None]
    weights = jnp.abs(taus_tm1[:, None] - (jax.lax.stop_gradient(errors) < 0))
    return jnp.sum(jnp.mean(weights * optax.losses.huber_loss(errors), axis=1))
