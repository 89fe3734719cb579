"""What the compiled loop costs on games in JAX: against the sum of its parts, and for many seeds.

The parts are acting, stepping, adding to replay and learning, each compiled into a loop of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp

from agents.loops import Log
from agents.replay import Step
from envs.games import GAMES
from experiments.atari import environment_of
from experiments.atari.config import FRAME_SKIP
from experiments.harness.seeds import use_all_cores
from experiments.harness.timing import Goal, Row, interleaved, rates, scaled
from experiments.sequential_atari import schedule_of, span_of
from experiments.sequential_atari.config import PRESETS, Config, resolve
from experiments.sequential_atari.players import InJax

UPDATES = 200  # in each repeat: two stretches
SEEDS = (1, 8, 64)


def rows(repeats: int) -> Iterator[Row]:
    """All of it, in a process of its own, where each core of a CPU becomes a device."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=use_all_cores) as process:
        for part in (against_its_parts, many_seeds):
            yield from process.submit(part, repeats).result()


def config_of(game: str, seeds: int) -> Config:
    """One game with the settings of the preset `quick`, and its default agent."""
    steps = UPDATES * PRESETS["quick"].update_period * FRAME_SKIP
    return resolve(
        dataclasses.replace(
            PRESETS["quick"], tasks=game, passes=1, seeds=seeds, iteration_frames=steps, frames=1000 * steps
        )
    )


def against_its_parts(repeats: int, game: str = "bricks") -> list[Row]:
    """A round of the loop (a step of all environments and an update) against its parts, each looped by itself."""
    config = config_of(game, 1)
    player = InJax(config, span_of(config))
    functions, environment = player.functions, environment_of(GAMES[game]())
    begun = player.init().loop
    agent, replay = jax.tree.map(lambda leaf: leaf[0], (begun.agent, begun.replay))
    key = jax.random.key(0)
    playing = jax.vmap(environment.start)(jax.random.split(key, config.num_envs))
    observation = environment.observe(playing)
    numbers = jnp.ones(config.num_envs)
    step = Step(observation[:, -1], numbers.astype(jnp.int32), numbers, numbers, numbers > 1)
    for _ in range(config.min_replay_frames // (FRAME_SKIP * config.num_envs)):
        replay = functions.add(replay, step)

    def looped(one: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        return jax.jit(lambda carry: jax.lax.fori_loop(0, UPDATES, lambda i, carry: one(i, carry), carry))

    def act(i: Any, actions: Any) -> Any:
        seen = jnp.where(actions[0] < 0, 0, observation)  # else the loop would compute the values once
        return functions.act(agent.params, seen, 0.1, key, i)

    parts = {
        "act": (looped(act), step.action),
        "step": (looped(lambda i, playing: jax.vmap(environment.advance)(playing, step.action)[0]), playing),
        "add": (looped(lambda i, replay: functions.add(replay, step)), replay),
        "learn": (looped(lambda i, carry: functions.learn(*carry, key)[:2]), (agent, replay)),
    }
    sides: dict[str, Callable[[], Any]] = {
        name: functools.partial(loop, start) for name, (loop, start) in parts.items()
    }
    sides["loop"] = training_of(config, player)
    times = interleaved(sides, repeats=repeats)
    together = tuple(sum(values) for values in zip(*(times[name] for name in parts), strict=True))
    microseconds = 1e6 / UPDATES
    return [
        Row(
            f"compiled loop, {game}: an update and its steps, vs its parts",
            "µs",
            scaled(times["loop"], microseconds),
            scaled(together, microseconds),
            Goal(1.15),
        ),
        *(Row(f"  {name}", "µs", scaled(times[name], microseconds)) for name in parts),
    ]


def many_seeds(repeats: int, game: str = "bricks") -> list[Row]:
    """Agent steps of all seeds together in a second, for some numbers of seeds."""
    configs = {seeds: config_of(game, seeds) for seeds in SEEDS}
    sides = {str(seeds): training_of(config, InJax(config, span_of(config))) for seeds, config in configs.items()}
    times = interleaved(sides, repeats=repeats)
    steps = UPDATES * configs[1].update_period
    return [
        Row(
            f"compiled loop, {game}, {seeds} seed{'s' * (seeds > 1)}",
            "steps/s",
            rates(times[str(seeds)], seeds * steps),
        )
        for seeds in SEEDS
    ]


def training_of(config: Config, player: InJax) -> Callable[[], Any]:
    """A function that trains all seeds for `UPDATES` more updates; the steps before the first one are taken here."""
    visit, schedule, iterations = config.sequence.visits[0], schedule_of(config, config.sequence.visits[0]), count()
    state = player.train(player.init(), visit, schedule, next(iterations), _Deaf())

    def train() -> Any:
        nonlocal state
        state = player.train(state, visit, schedule, next(iterations), _Deaf())
        return state.loop.agent

    return train


class _Deaf:
    """Whom training tells nothing."""

    def on_step(self, agent_steps: int) -> None:
        """Ignored."""

    def on_log(self, seed: int, log: Log) -> None:
        """Ignored."""

    def on_evaluation(self, agent_steps: int) -> None:
        """Ignored."""

    def on_state(self, now: Callable[[], Any] | None) -> None:
        """Ignored."""
