"""What a run takes of memory at least, known before its environments and its agent are made."""

from __future__ import annotations

import math

import jax

from envs.games import GAMES
from experiments.atari.agent import build
from experiments.atari.config import STACK, Config
from experiments.atari.matching import Multipliers
from experiments.harness.memory import bytes_of, require_memory
from experiments.harness.sizes import Sized, what_fits

EMULATOR_BYTES = 500_000
"""Of one environment of ale-py's, with its screens: some 0.9 MB were measured."""


def check_environments(config: Config) -> None:
    """Raises UserError where the environments do not fit into the host's memory."""

    def needs(config: Config) -> dict[str, int]:
        one = STACK * math.prod(GAMES[config.game]().shape) if config.game in GAMES else EMULATOR_BYTES
        return {"environments": config.num_envs * one}

    require_memory(needs(config), None, what_fits(config, needs, [Sized("num_envs")]))


def sized(config: Config) -> list[Sized]:
    """The options that `memory_needed` depends on."""
    fewest = config.num_envs * (STACK + config.ingredients.n_step)
    return [Sized("replay_capacity", least=fewest), Sized("batch_size"), Sized("hidden", now=512)]


def memory_needed(
    num_actions: int, observation: tuple[int, ...], multipliers: Multipliers, copies: int, config: Config
) -> dict[str, int]:
    """What replay, agent and a batch of sequences take of a device's memory.

    Args:
        num_actions: of the game.
        observation: the shape of one.
        multipliers: of the learning rate, as `experiments.atari.agent.build` wants them.
        copies: of replay and agent that share a memory.
        config: of the run.
    """
    functions = build(config, num_actions, observation, multipliers)
    shapes = jax.eval_shape(functions.init, jax.random.key(0))
    sequence = (STACK + config.ingredients.n_step) * math.prod(observation[1:])  # one byte a pixel
    return {
        "replay": copies * bytes_of(shapes.replay),
        "network and optimizer": copies * bytes_of(shapes.agent),
        "a batch": config.batch_size * sequence,
    }
