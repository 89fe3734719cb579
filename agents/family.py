"""The agents of the DQN family by name: which ingredients each one has, and the pieces these stand for.

dqn         Mnih et al. (2015)         action values, uniform replay
double-dqn  van Hasselt et al. (2016)  the online network chooses the bootstrap action; one bias for all actions
c51         Bellemare et al. (2017)    categorical distributions of the return
qr-dqn      Dabney et al. (2018a)      quantiles of the return
iqn         Dabney et al. (2018b)      quantiles at any probability
rainbow     Hessel et al. (2018)       c51 with double, dueling, noisy layers, priorities and 3-step returns
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import optax

from agents import values
from agents.dqn import Agent, make_agent
from agents.prioritized import make_prioritized_replay
from agents.replay import Replay, make_replay
from nap.networks import Network, Recipe

Distribution = Literal["none", "categorical", "quantile", "implicit-quantile"]

READ: dict[Distribution, Callable[[], values.Values]] = {
    "none": values.scalar,
    "categorical": values.categorical,
    "quantile": values.quantile,
    "implicit-quantile": values.implicit_quantile,
}
"""How the outputs of a network are read."""


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """What an agent is made of.

    Attributes:
        distribution: what it learns of the return beside its expectation.
        double: the online network chooses the bootstrap action.
        dueling: streams for value and advantages.
        noisy: exploration by noisy layers, instead of epsilon-greedy.
        shared_bias: one bias for all outputs of the last layer.
        prioritized: replay by priority.
        n_step: rewards summed before bootstrapping.
    """

    distribution: Distribution = "none"
    double: bool = False
    dueling: bool = False
    noisy: bool = False
    shared_bias: bool = False
    prioritized: bool = False
    n_step: int = 1


AgentName = Literal["dqn", "double-dqn", "c51", "qr-dqn", "iqn", "rainbow"]

FAMILY: dict[AgentName, Ingredients] = {
    "dqn": Ingredients(),
    "double-dqn": Ingredients(double=True, shared_bias=True),
    "c51": Ingredients("categorical"),
    "qr-dqn": Ingredients("quantile"),
    "iqn": Ingredients("implicit-quantile"),
    "rainbow": Ingredients("categorical", double=True, dueling=True, noisy=True, prioritized=True, n_step=3),
}


def network_recipe(ingredients: Ingredients, actions: int, **options: Any) -> Recipe:
    """How the agent's network is made; `options` are further arguments of `nap.networks.QNetwork`."""
    options |= READ[ingredients.distribution]().network
    options |= {"dueling": ingredients.dueling, "noisy": ingredients.noisy, "shared_bias": ingredients.shared_bias}
    return Recipe("QNetwork", {"actions": actions, **options})


def make_network(ingredients: Ingredients, actions: int, **options: Any) -> Network:
    """The agent's network; see `network_recipe`."""
    return network_recipe(ingredients, actions, **options).functions()


def assemble(
    ingredients: Ingredients,
    network: Network,
    optimizer: optax.GradientTransformation,
    target_period: int,
    target_phase: int = 0,
) -> Agent:
    """The agent's functions, with the network of `make_network`; see `agents.dqn.make_agent`."""
    read = READ[ingredients.distribution]()
    return make_agent(
        network,
        optimizer,
        read=read,
        double=ingredients.double,
        target_period=target_period,
        target_phase=target_phase,
    )


def make_replay_for(
    ingredients: Ingredients,
    capacity: int,
    num_envs: int,
    batch_size: int,
    frame_shape: tuple[int, ...],
    *,
    priority_exponent: float,
    uniform_probability: float,
) -> Replay:
    """The agent's replay; see `agents.replay.make_replay` and `agents.prioritized.make_prioritized_replay`."""
    sizes: dict[str, Any] = {
        "capacity": capacity, "num_envs": num_envs, "batch_size": batch_size, "n_step": ingredients.n_step,
        "frame_shape": frame_shape,
    }  # fmt: skip
    if ingredients.prioritized:
        return make_prioritized_replay(**sizes, exponent=priority_exponent, uniform_probability=uniform_probability)
    return make_replay(**sizes)
