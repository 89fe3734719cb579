"""DQN (Mnih et al., 2015) and double DQN (van Hasselt et al., 2016) as pure functions over an agent's state.

`make_agent` joins a Q-network and an optimizer. Normalize-and-Project comes in by these two alone: a network with
normalizations, an optimizer wrapped by `nap.normalize_and_project`; nothing here knows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

import nap
from agents.losses import double_q_error
from agents.replay import Transition
from nap.diagnostics import dormant_fraction
from nap.networks import Network
from nap.paths import PyTree


class AgentState(NamedTuple):
    """All that learning changes.

    Attributes:
      params: the Q-network's parameters.
      target_params: the older copy that targets are computed with.
      opt_state: the optimizer's state, the projection's radii included.
      updates: how many updates have been made.
    """

    params: PyTree
    target_params: PyTree
    opt_state: optax.OptState
    updates: Int[Array, ""]


class Agent(NamedTuple):
    """An agent's functions; none is jitted yet.

    Attributes:
      init: `init(key)`, a fresh state.
      act: `act(params, observations, epsilon, key)`, epsilon-greedy actions for a batch of observations.
      learn: `learn(state, batch)`, the state after one update, and the loss before it.
      measure: `measure(state, batch)`, the same update with what is logged of it: a flat dictionary of scalars.
    """

    init: Callable[[jax.Array], AgentState]
    act: Callable[[PyTree, UInt8[Array, "n *shape"], Float[Array, ""], jax.Array], Int[Array, " n"]]
    learn: Callable[[AgentState, Transition], tuple[AgentState, Float[Array, ""]]]
    measure: Callable[[AgentState, Transition], tuple[AgentState, dict[str, Float[Array, ""]]]]


class _Update(NamedTuple):
    """An update: the state after it, and what it saw before."""

    state: AgentState
    loss: Array
    steps: PyTree
    q_tm1: Array
    activations: dict[str, Array]


def make_agent(
    network: Network, optimizer: optax.GradientTransformation, *, double: bool = True, target_period: int
) -> Agent:
    """A DQN agent.

    The loss is the Huber loss (delta 1) of the TD error, averaged over the valid transitions of the batch. The target
    network becomes a copy of the online one after every `target_period` updates; a copy has the norms of its original,
    so it needs no projection of its own.

    Args:
      network: maps observations to action values, shape [batch, actions].
      optimizer: the complete optimizer. Its update is also told the online network's activations for `s_tm1`, by layer,
        as `activations=...`, for interventions such as ReDo.
      double: choose the bootstrap action by the online network (double DQN), not by the target network.
      target_period: updates between copies.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def init(key: jax.Array) -> AgentState:
        params = network.init(key)
        return AgentState(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros([], jnp.int32))

    def act(params: PyTree, observations: Array, epsilon: Array, key: jax.Array) -> Array:
        values = network.apply(params, observations)
        explore_key, action_key = jax.random.split(key)
        explore = jax.random.uniform(explore_key, values.shape[:1]) < epsilon
        random = jax.random.randint(action_key, values.shape[:1], 0, values.shape[1])
        return jnp.where(explore, random, jnp.argmax(values, axis=1))

    def loss_of(
        params: PyTree, target_params: PyTree, batch: Transition
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        q_t_target = network.apply(target_params, batch.s_t)
        q_t_selector = network.apply(params, batch.s_t) if double else q_t_target
        q_tm1, activations = network.activations(params, batch.s_tm1)
        errors = jax.vmap(double_q_error)(q_tm1, batch.a_tm1, batch.r_t, batch.discount_t, q_t_target, q_t_selector)
        losses = optax.losses.huber_loss(errors)
        loss = jnp.sum(batch.weight * losses) / jnp.maximum(jnp.sum(batch.weight), 1)
        return loss, (q_tm1, activations)

    def update(state: AgentState, batch: Transition) -> _Update:
        grad_fn = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (q_tm1, activations)), gradients = grad_fn(state.params, state.target_params, batch)
        steps, opt_state = optimizer.update(gradients, state.opt_state, state.params, activations=activations)
        params = optax.apply_updates(state.params, steps)
        updates = state.updates + 1
        target_params = optax.periodic_update(params, state.target_params, updates, target_period)
        return _Update(AgentState(params, target_params, opt_state, updates), loss, steps, q_tm1, activations)

    def learn(state: AgentState, batch: Transition) -> tuple[AgentState, Array]:
        made = update(state, batch)
        return made.state, made.loss

    def measure(state: AgentState, batch: Transition) -> tuple[AgentState, dict[str, Array]]:
        made = update(state, batch)
        measured = {"loss": made.loss, "mean_action_value": jnp.mean(made.q_tm1)}
        for path, rate in nap.effective_learning_rates(made.steps, state.params).items():
            layer = path.removesuffix("/kernel")
            measured[f"weight_norm/{layer}"] = rate.weight_norm
            measured[f"update_norm/{layer}"] = rate.update_norm
            measured[f"elr/{layer}"] = rate.ratio
            measured[f"angle/{layer}"] = rate.angle
        for layer, activation in made.activations.items():
            for tau, fraction in dormant_fraction(activation).items():
                measured[f"dormant_fraction_{tau:g}/{layer}"] = fraction
        return made.state, measured

    return Agent(init, act, learn, measure)
