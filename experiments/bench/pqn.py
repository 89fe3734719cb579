"""How fast PQN trains on MinAtar, with and without projection, and how long its paper's ten million steps take.

The game needs pgx, which is optional: the extra `jaxenvs`.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from envs.games import GAMES
from experiments.bench.games import SEEDS
from experiments.harness.seeds import Seeds, use_all_cores
from experiments.harness.timing import Row, interleaved, left_out, rates
from experiments.pqn import PRESETS, build, resolve

ROLLOUTS = 4  # in each repeat, with their updates
PUBLISHED_STEPS = 10_000_000


def rows(repeats: int) -> Iterator[Row]:
    """All of it, in a process of its own, where each core of a CPU becomes a device."""
    game = PRESETS["minatar"].game
    try:
        GAMES[game]()
    except ValueError as error:  # no pgx
        left_out("pqn", str(error))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=use_all_cores) as process:
        yield from process.submit(rows_of, repeats, game).result()


def rows_of(repeats: int, game: str) -> list[Row]:
    """Agent steps of all seeds together in a second, of training alone, without evaluations."""
    sides = {f"nap, {seeds}": _training(game, "nap", seeds) for seeds in SEEDS}
    sides["layernorm"] = _training(game, "layernorm", 1)
    times = interleaved(sides, repeats=repeats)
    steps = ROLLOUTS * PRESETS["minatar"].pqn.agent_steps
    speeds = {seeds: rates(times[f"nap, {seeds}"], seeds * steps) for seeds in SEEDS}
    minutes = tuple(PUBLISHED_STEPS / speed / 60 for speed in speeds[1])
    return [
        Row(f"PQN, {game}, nap vs layernorm", "agent steps/s", speeds[1], rates(times["layernorm"], steps)),
        Row(f"  {PUBLISHED_STEPS:,} agent steps", "minutes", minutes),
        *(Row(f"  {seeds} seeds", "agent steps/s", speeds[seeds]) for seeds in SEEDS[1:]),
    ]


def _training(game: str, method: str, seeds: int) -> Callable[[], Any]:
    """A function that makes some rollouts more, with their updates, for all seeds."""
    config = resolve(dataclasses.replace(PRESETS["minatar"], game=game, method=method, seeds=seeds))
    spread = Seeds(seeds)
    pqn = build(config, functools.partial(spread.map, at_once=spread.per_device))
    running = pqn.begin((), spread.keys(0))

    def train() -> Any:
        nonlocal running
        running, told = pqn.learn((), running, np.int32(ROLLOUTS))
        return told.loss

    return train
