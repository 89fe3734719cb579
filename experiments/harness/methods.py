"""What `--method`, `--optimizer`, `--lr` and `--schedule` stand for: one place for every experiment."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

import nap
from nap.layers import Norm
from nap.projection import Affine

Method = Literal["none", "layernorm", "nap"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    optimizer: Literal["adam", "rmsprop", "sgd"] = "adam"
    """adam; rmsprop (centred, decay 0.95, as DQN has it); sgd (plain)."""
    lr: float = 6.25e-5
    """Learning rate, at its peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes from its peak to `lr_end` over the run's updates."""
    lr_end: float = 0.01
    """Where the linear and the cosine schedule end, as a fraction of the peak."""
    optimizer_epsilon: float = 1.5e-4
    """Added to the root of the second moment (adam), or inside the root (rmsprop)."""
    clip: float = 10.0
    """Largest global norm of the gradient; 0 for no clipping."""


@dataclasses.dataclass(frozen=True)
class NapConfig:
    """Normalize-and-Project's own choices; no other method reads them, except `norm` (layernorm does)."""

    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm before every nonlinearity."""
    affine: Affine = "project"
    """Scale and offset of hidden normalizations: projected jointly, regularized to 1 and 0, or left free."""
    project_every: int = 1
    """Project after every so many updates."""


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The learning rate at each update of a run of `updates` updates."""
    if config.schedule == "linear":
        return optax.linear_schedule(config.lr, config.lr * config.lr_end, updates)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.lr, updates, alpha=config.lr_end)
    return optax.constant_schedule(config.lr)


def norm_of(method: Method, config: NapConfig) -> Norm:
    """The normalization that a method's network has."""
    return "none" if method == "none" else config.norm


def make_optimizer(
    method: Method, config: OptimizerConfig, nap_config: NapConfig, updates: int
) -> optax.GradientTransformation:
    """The complete optimizer of a method: clipping, the optimizer, and projection if the method has it.

    Args:
      method: "none" and "layernorm" only differ in the network.
      config: the optimizer.
      nap_config: the projection.
      updates: length of the run, for the learning-rate schedule.
    """
    rate = learning_rate(config, updates)
    if config.optimizer == "adam":
        step = optax.adam(rate, eps=config.optimizer_epsilon)
    elif config.optimizer == "rmsprop":
        step = optax.rmsprop(rate, decay=0.95, eps=config.optimizer_epsilon, centered=True)
    else:
        step = optax.sgd(rate)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), step) if config.clip else step
    if method == "nap":
        return nap.normalize_and_project(optimizer, affine=nap_config.affine, every=nap_config.project_every)
    return optimizer
