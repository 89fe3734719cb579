"""The agents of the DQN family as pure functions over an agent's state.

`make_agent` joins a Q-network, an optimizer and what the network's outputs mean (`agents.values`). `agents.family` has
the published combinations. Normalize-and-Project comes in by the first two alone: a network with normalizations, an
optimizer wrapped by `nap.normalize_and_project`; nothing here knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

import nap
from agents import values
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


class Learned(NamedTuple):
    """What an update found in its batch, with the parameters before it.

    Attributes:
      loss: averaged over the valid transitions, by their weights.
      priorities: of each transition, for replay; 0 for one that is not valid.
    """

    loss: Float[Array, ""]
    priorities: Float[Array, " batch"]


class Agent(NamedTuple):
    """An agent's functions; none is jitted yet.

    Attributes:
      init: `init(key)`, a fresh state.
      act: `act(params, observations, epsilon, key)`, epsilon-greedy actions for a batch of observations, by a noisy
        network with noise.
      play: the same without a noisy network's noise, for evaluation.
      learn: `learn(state, batch, key)`, the state after one update, and what it found. The key is for networks that
        draw.
      measure: `measure(state, batch, key)`, the same update, what it found, and its `measures`.
    """

    init: Callable[[jax.Array], AgentState]
    act: Callable[[PyTree, UInt8[Array, "n *shape"], Float[Array, ""], jax.Array], Int[Array, " n"]]
    play: Callable[[PyTree, UInt8[Array, "n *shape"], Float[Array, ""], jax.Array], Int[Array, " n"]]
    learn: Callable[[AgentState, Transition, jax.Array], tuple[AgentState, Learned]]
    measure: Callable[[AgentState, Transition, jax.Array], tuple[AgentState, Learned, dict[str, Float[Array, ""]]]]


class _Update(NamedTuple):
    """An update: the state after it, and what it saw before."""

    state: AgentState
    learned: Learned
    steps: PyTree
    q_tm1: Array
    activations: dict[str, Array]


def layer_of(path: str) -> str:
    """The layer, as `measures` names it, of a weight's path; "a+b" is a weight and the noise on it."""
    return path.partition("+")[0].removesuffix("/kernel")


def measures(
    params: PyTree, steps: PyTree, q_tm1: Float[Array, "batch actions"], activations: Mapping[str, Array]
) -> dict[str, Float[Array, ""]]:
    """What is logged of an update, as a flat dictionary of scalars.

    Args:
      params: the parameters before it.
      steps: what it adds to them.
      q_tm1: the action values of its batch.
      activations: the hidden layers' on its batch, by layer.
    """
    measured = {"mean_action_value": jnp.mean(q_tm1)}
    for path, rate in nap.effective_learning_rates(steps, params, nap.roles(params)).items():
        layer = layer_of(path)
        measured[f"weight_norm/{layer}"] = rate.weight_norm
        measured[f"update_norm/{layer}"] = rate.update_norm
        measured[f"elr/{layer}"] = rate.ratio
        measured[f"angle/{layer}"] = rate.angle
    for layer, activation in activations.items():
        for tau, fraction in dormant_fraction(activation).items():
            measured[f"dormant_fraction_{tau:g}/{layer}"] = fraction
    return measured


LARGEST_PRIORITY = 100.0
"""Priorities are clipped here, as in DQN Zoo's Rainbow."""


def epsilon_greedy(q: Float[Array, "n actions"], epsilon: Float[Array, ""], key: Key[Array, ""]) -> Int[Array, " n"]:
    """The best actions, and with probability epsilon random ones."""
    explore_key, action_key = jax.random.split(key)
    explore = jax.random.uniform(explore_key, q.shape[:1]) < epsilon
    random = jax.random.randint(action_key, q.shape[:1], 0, q.shape[1])
    return jnp.where(explore, random, jnp.argmax(q, axis=1))


def make_agent(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    read: values.Values | None = None,
    double: bool = True,
    target_period: int,
    target_phase: int = 0,
) -> Agent:
    """An agent of the DQN family.

    The loss is averaged over the valid transitions of the batch (those of weight above 0), each multiplied by its
    weight. The target network becomes a copy of the online one every `target_period` updates; a copy has the norms of
    its original, so it needs no projection of its own. A network that draws is given a key of its own for each of an
    update's passes: online at t-1, and at t the one that chooses the bootstrap action and the one that values it.

    Args:
      network: maps observations to outputs.
      optimizer: the complete optimizer. Its update is also told the online network's activations for `s_tm1`, by layer,
        as `activations=...`, for interventions such as ReDo.
      read: what the outputs mean; None: they are action values, shape [batch, actions].
      double: choose the bootstrap action by the online network (double DQN), not by the target network.
      target_period: updates between copies.
      target_phase: a copy is made when this and the count of updates sum up to a multiple of the period.
    """
    read = values.scalar() if read is None else read
    optimizer = optax.with_extra_args_support(optimizer)
    action_values = jax.vmap(read.action_values)

    def keys_for(key: jax.Array, count: int) -> list[tuple[jax.Array, ...]]:
        """The extra arguments of `count` passes through the network."""
        return [(k,) for k in jax.random.split(key, count)] if network.draws else [()] * count

    def init(key: jax.Array) -> AgentState:
        params = network.init(key)
        return AgentState(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros([], jnp.int32))

    def act(params: PyTree, observations: Array, epsilon: Array, key: jax.Array) -> Array:
        noise_key, epsilon_key = jax.random.split(key)
        (extra,) = keys_for(noise_key, 1)
        return epsilon_greedy(action_values(network.apply(params, observations, *extra)), epsilon, epsilon_key)

    def play(params: PyTree, observations: Array, epsilon: Array, key: jax.Array) -> Array:
        return epsilon_greedy(action_values(network.apply(params, observations)), epsilon, key)

    def loss_of(
        params: PyTree, target_params: PyTree, batch: Transition, key: jax.Array
    ) -> tuple[Array, tuple[Learned, Array, dict[str, Array]]]:
        at_tm1, at_t, target_at_t = keys_for(key, 3)
        outputs_t = selector = network.apply(target_params, batch.s_t, *target_at_t)
        if double or read.choose_apart:
            selector = network.apply(params if double else target_params, batch.s_t, *at_t)
        outputs_tm1, activations = network.activations(params, batch.s_tm1, *at_tm1)
        found = jax.vmap(read.loss)(
            outputs_tm1, batch.a_tm1, batch.r_t, batch.discount_t, outputs_t, action_values(selector)
        )
        valid = batch.weight > 0
        loss = jnp.sum(batch.weight * found.loss) / jnp.maximum(jnp.sum(valid), 1)
        priorities = jnp.where(valid, jnp.clip(found.priority, 0, LARGEST_PRIORITY), 0)
        return loss, (Learned(loss, priorities), action_values(outputs_tm1), activations)

    def update(state: AgentState, batch: Transition, key: jax.Array) -> _Update:
        grad_fn = jax.grad(loss_of, has_aux=True)
        gradients, (learned, q_tm1, activations) = grad_fn(state.params, state.target_params, batch, key)
        steps, opt_state = optimizer.update(gradients, state.opt_state, state.params, activations=activations)
        params = optax.apply_updates(state.params, steps)
        updates = state.updates + 1
        target_params = optax.periodic_update(params, state.target_params, updates + target_phase, target_period)
        return _Update(AgentState(params, target_params, opt_state, updates), learned, steps, q_tm1, activations)

    def learn(state: AgentState, batch: Transition, key: jax.Array) -> tuple[AgentState, Learned]:
        made = update(state, batch, key)
        return made.state, made.learned

    def measure(state: AgentState, batch: Transition, key: jax.Array) -> tuple[AgentState, Learned, dict[str, Array]]:
        made = update(state, batch, key)
        return made.state, made.learned, measures(state.params, made.steps, made.q_tm1, made.activations)

    return Agent(init, act, play, learn, measure)
