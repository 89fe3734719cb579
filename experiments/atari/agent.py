"""What is trained: the agent of a configuration, its network, its optimizer and its replay."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from agents.dqn import Agent
from agents.family import READ, assemble, make_replay_for, network_recipe
from agents.loops import Functions, make_functions
from agents.replay import Replay, transitions
from envs.games import GAMES
from envs.sequence import Task
from experiments.atari.config import FRAME_SKIP, STACK, Config
from experiments.atari.devices import on_mesh
from experiments.atari.matching import Multipliers
from experiments.harness.methods import adapt_recipe, learning_rate, make_optimizer, norm_of, parse_method
from experiments.harness.rivals import Setting
from experiments.harness.stage import Stage
from experiments.harness.trained import Choice, Saved, Trained
from nap.networks import Network, Recipe


def network_of(config: Config, num_actions: int, observation: tuple[int, ...]) -> Network:
    """The agent's network, as its method trains it."""
    return recipe_of(config, num_actions, observation).functions()


def recipe_of(config: Config, num_actions: int, observation: tuple[int, ...]) -> Recipe:
    """How that network is made."""
    method = parse_method(config.method)
    recipe = network_recipe(
        config.ingredients,
        num_actions,
        observation=(math.prod(observation[:-2]), *observation[-2:]),
        **_body(config, observation),
        norm=norm_of(method, config.nap),
        norm_axes=config.norm_axes,
        activation=method.activation,
        dtype=config.dtype,
    )
    return adapt_recipe(method, recipe)


def _body(config: Config, observation: tuple[int, ...]) -> dict[str, Any]:
    """What of the network depends on the game: for MinAtar's planes, the sizes of Young & Tian (2019)."""
    planes = len(observation) == 4
    own = "minatar" if planes else "flat"
    return {
        "torso": own if config.game in GAMES else config.torso,
        "hidden": config.hidden or (128 if planes else 512),
    }


def action_values(config: Config) -> Callable[[Any], jax.Array]:
    """What the network's outputs for a batch say of each action's return."""
    return jax.vmap(READ[config.ingredients.distribution]().action_values)


def trained(config: Config, saved: Saved, choice: Choice) -> Trained:
    """What a run has trained; see `experiments.harness.trained`."""
    protocol = None if config.game in GAMES else config.environment
    stage = Stage(Task(config.game, config.frames), STACK, protocol, config.evaluation_epsilon)
    with contextlib.closing(stage.open(1, config.seed)) as environments:
        recipe = recipe_of(config, environments.num_actions, environments.observation_shape)
    return Trained(recipe, saved.read("0/agent/params"), values=action_values(config), stage=stage)


class Span(NamedTuple):
    """The updates that an agent is made for.

    Attributes:
        updates: of the whole run.
        task_updates: of each task; 0 where there are none, or of different lengths.
        rate: the learning rate at each update.
        importance: the exponent of importance weights at each update.
        forget_at: updates behind which the optimizer forgets its moments.
    """

    updates: int
    task_updates: int
    rate: optax.Schedule
    importance: optax.Schedule
    forget_at: tuple[int, ...] = ()


def _span_of(config: Config) -> Span:
    updates = config.total_updates
    return Span(updates, 0, learning_rate(config.optimizer, updates), importance_exponent(config, updates))


def importance_exponent(config: Config, updates: int) -> optax.Schedule:
    """How far drawing by priority is corrected for, at each of some updates."""
    return optax.linear_schedule(config.importance_exponent, 1.0, updates)


def optimizer_of(
    config: Config, network: Network, multipliers: Multipliers | None = None, span: Span | None = None
) -> optax.GradientTransformationExtraArgs:
    """The agent's optimizer; `span` is for a run of several tasks."""
    span = span or _span_of(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    setting = Setting(network, key, span.updates, span.task_updates, span.forget_at)
    method = parse_method(config.method)
    return make_optimizer(method, config.optimizer, config.nap, config.rivals, setting, multipliers, span.rate)


def make_learner(
    config: Config,
    num_actions: int,
    observation: tuple[int, ...],
    network: Network | None = None,
    multipliers: Multipliers | None = None,
    span: Span | None = None,
) -> Agent:
    """The agent, with its own network or another one; a matching schedule needs its multipliers."""
    network = network or network_of(config, num_actions, observation)
    optimizer = optimizer_of(config, network, multipliers, span)
    # As DQN Zoo, which copies at multiples of so many frames, those before the first update included.
    phase = config.min_replay_frames // (FRAME_SKIP * config.update_period)
    return assemble(config.ingredients, network, optimizer, config.target_period, phase)


def replay_of(config: Config, observation: tuple[int, ...]) -> Replay:
    """The agent's replay."""
    return make_replay_for(
        config.ingredients,
        config.replay_capacity,
        config.num_envs,
        config.batch_size,
        observation[1:],
        priority_exponent=config.priority_exponent,
        uniform_probability=config.uniform_probability,
    )


def build(
    config: Config,
    num_actions: int,
    observation: tuple[int, ...],
    multipliers: Multipliers | None = None,
    span: Span | None = None,
    mesh: Mesh | None = None,
) -> Functions:
    """The agent and its replay, as jitted functions; a matching schedule needs its multipliers."""
    replay, n_step = replay_of(config, observation), config.ingredients.n_step
    clip = config.reward == "clipped"
    one = functools.partial(transitions, stack=STACK, n_step=n_step, gamma=config.gamma, clip_reward=clip)
    span = span or _span_of(config)
    learner = make_learner(config, num_actions, observation, multipliers=multipliers, span=span)
    if mesh is not None:
        learner, replay = on_mesh(learner, replay, mesh)
    return make_functions(learner, replay, one, span.importance)
