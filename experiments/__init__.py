"""The studies: one file an experiment, read top to bottom. `python -m experiments` lists them.

What a run has trained is had again by `load`:

    import experiments

    run = experiments.load("runs/atari/pong-rainbow-nap-seed0-1b2c3d4e")
    run.config.optimizer.lr, run.records, run.summary
    values = run.apply(run.params, observations)  # [batch, actions]
    action = run.act(observation)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.harness.trained import TrainedRun

__all__ = ["load"]


def load(folder: str | os.PathLike[str], *, seed: int | None = None, task: str = "") -> TrainedRun:
    """A run from its folder: its configuration, its records, and the network that it has trained.

    Args:
        folder: the run's folder. The run may be finished, or unfinished with a checkpoint; also one of a sweep, of
            several games or of several seeds.
        seed: which seed, where the run has several; None for the first.
        task: which task, where each has an output layer of its own (`sequential-atari --head own`); "" for the last one
            trained on.

    Returns:
        The run, with

        - `config`: the experiment's own `Config`
        - `records`: a polars frame; `summary`: a dictionary
        - `params`, and `apply(params, inputs)`: action values of observations; outputs of other networks
        - `act(observation)`: an agent's best action

        Only what is asked for is read.

    Raises:
        UserError: there is no such run; later: it has no checkpoint, or one of other code. It is a ValueError, of one
            line.
    """
    from experiments.harness.trained import load  # here, so that listing the experiments does not import JAX

    return load(os.fspath(folder), seed=seed, task=task)
