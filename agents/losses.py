"""Temporal-difference errors, one sample at a time: `jax.vmap` at the call site makes a batch.

The names follow rlax: `_tm1` is time t-1, where the action was taken, and `_t` is what came of it. `r_t` and
`discount_t` may span several steps, as `agents.replay.transitions` makes them. The loss on top is
`optax.losses.huber_loss(error)`.
"""

import jax
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

    Only `q_tm1` receives a gradient. Plain Q-learning, as DQN has it, is the case where one array serves as both
    `q_t_value` and `q_t_selector`.

    Args:
        q_tm1: values at time t-1 by the network that learns.
        a_tm1: the action taken at time t-1.
        r_t: the reward that followed, or the discounted sum of n of them.
        discount_t: what the value at time t counts for: gamma, or gamma^n, and 0 after a termination.
        q_t_value: values at time t that the chosen action is judged by (the target network's).
        q_t_selector: values at time t that choose the action (the learning network's). The first of equals is taken.

    Returns:
        The error in units of the reward: positive where `q_tm1[a_tm1]` is too low.

    Source: van Hasselt, Guez and Silver (2016), arXiv:1509.06461, section "Double DQN".
    """
    target_tm1 = r_t + discount_t * q_t_value[q_t_selector.argmax()]
    return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]
