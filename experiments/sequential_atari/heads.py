"""What happens at a switch from one game to the next, and the output layers that tasks may have of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from agents.dqn import AgentState
from agents.replay import ReplayState
from experiments.harness.rivals import output_layers
from experiments.sequential_atari.config import Config
from nap import paths
from nap.interventions.units import reset_entries
from nap.networks import Network

Heads = dict[str, jax.Array]
"""The output layers of all tasks, with a leading axis of tasks, by path; empty where they share one."""


def make_switch(
    config: Config,
    network: Network,
    optimizer: optax.GradientTransformation,
    empty: Callable[[], ReplayState],
) -> Callable[..., tuple[AgentState, ReplayState, Heads]]:
    """What happens to one seed at a switch, as `config` says.

    Returns:
        `switch(agent, replay, heads, leaving, entering)`, with the places of the two tasks.
    """

    def switch(
        agent: AgentState, replay: ReplayState, heads: Heads, leaving: jax.Array, entering: jax.Array
    ) -> tuple[AgentState, ReplayState, Heads]:
        params, opt_state = agent.params, agent.opt_state
        if heads:
            now = paths.leaves(params)
            heads = {path: bank.at[leaving].set(now[path]) for path, bank in heads.items()}
            params = with_head(params, heads, entering)
            masks = paths.map_leaves(lambda path, leaf: jnp.asarray(path in heads), params)
            opt_state = reset_entries(optimizer, opt_state, params, masks)
        target = params if config.target == "copy" else with_head(agent.target_params, heads, entering)
        target = jax.tree.map(jnp.copy, target)
        replay = empty() if config.replay == "clear" else replay
        return AgentState(params, target, opt_state, agent.updates), replay, heads

    return switch


def with_head(params: Any, heads: Heads, place: jax.Array | int) -> Any:
    """The parameters with the output layer of a task."""
    return paths.map_leaves(lambda path, leaf: heads[path][place] if path in heads else leaf, params)


def fresh_heads(config: Config, network: Network, key: jax.Array) -> Heads:
    """An output layer for each task, or none where they share one."""
    if config.head == "shared":
        return {}
    layers = tuple(f"{layer}/" for layer in output_layers(network))
    drawn = jax.vmap(network.init)(jax.random.split(key, len(config.sequence.tasks)))
    return {path: leaf for path, leaf in paths.leaves(drawn).items() if path.startswith(layers)}
