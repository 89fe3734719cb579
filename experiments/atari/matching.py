"""The schedule that a run without projection makes by itself as its norms grow, written down for the one with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import optax

import nap
from agents.dqn import layer_of
from experiments import harness
from experiments.atari.config import Config
from experiments.harness.methods import ORDERS, NapConfig
from experiments.harness.processes import in_first
from nap.networks import Network
from nap.roles import weight_groups

Multipliers = Mapping[str, optax.Schedule]
"""Of the learning rate at a count of updates, by the path of a hidden weight: "a+b" for one and the noise on it."""


def free_of(config: Config) -> Config:
    """The run whose norms are followed: layernorm where the given one has nap, at a constant learning rate."""
    parts = ["layernorm" if part == "nap" else part for part in config.method.split("+")]
    return dataclasses.replace(
        config,
        method="+".join(parts),
        optimizer=dataclasses.replace(config.optimizer, schedule="constant"),
        nap=NapConfig(norm=config.nap.norm),  # its other options are of the projection
    )


def multipliers_of(config: Config, network: Network, free: Path) -> Multipliers:
    """The schedules of a run's hidden weights.

    Args:
        config: the run, with a schedule that is matching.
        network: its network.
        free: the folder of the finished run that `free_of` names.

    Returns:
        rho / ||W(t)|| of each hidden weight (squared for momentum and sgd), with the norms that the free run recorded,
        interpolated between its records; with global-matching, of the geometric mean of all norms.

    Raises:
        harness.UserError: the free run's records are damaged.
    """
    import polars as pl  # here: runs that follow no other start sooner

    from experiments.harness.read import load_runs

    roles = nap.roles(jax.eval_shape(network.init, jax.random.key(0)))
    names = {"+".join(group): f"weight_norm/{layer_of(group[0])}" for group in weight_groups(roles)}

    def read() -> dict[str, list[float]]:
        (run,) = load_runs([free])
        try:
            rows = run.records.select("updates", *names.values()).drop_nulls()
        except pl.exceptions.ColumnNotFoundError as error:
            raise harness.UserError(f"the run in {free} is damaged: {error}; --fresh runs it again") from None
        return {name: rows[name].to_list() for name in rows.columns}

    rows = {name: np.asarray(numbers) for name, numbers in in_first(read).items()}
    norms = {path: rows[name] for path, name in names.items()}
    if config.optimizer.schedule == "global-matching":
        norms = dict.fromkeys(norms, np.exp(np.mean([np.log(of_layer) for of_layer in norms.values()], axis=0)))
    # A record holds the norms before its own update, the first of which is number 1.
    return nap.matching_schedule(norms, ORDERS[config.optimizer.optimizer], rows["updates"] - 1)
