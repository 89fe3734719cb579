"""Effective learning rates: how far an update turns a weight, and the schedule that a free run's norms imply.

A scale-invariant layer depends on its weight W only through the direction W / ||W||, so what counts is the size of an
update relative to the weight. For plain SGD (whose gradient shrinks as 1 / ||W||) the effective learning rate is
eta / ||W||^2; for updates of a size of their own (Adam, RMSProp, sign) it is eta / ||W||.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact

from nap import paths
from nap.norms import Joint, norms
from nap.paths import PyTree
from nap.projection import RoleSpec
from nap.roles import roles as find_roles
from nap.roles import weight_groups
from nap.steps import wide

Norms = ArrayLike | Sequence[float]
"""A weight's norm before each update, shape [steps]."""
Steps = ArrayLike | Sequence[int]
"""Counts of updates, shape [steps]."""


class EffectiveLearningRate(NamedTuple):
    """How one update moves one weight; scalars, float32 at least, or one value for each stacked layer.

    Attributes:
      weight_norm: ||W|| before the update.
      update_norm: ||dW||.
      ratio: ||dW|| / ||W||, the effective learning rate whatever the optimizer; 0 for a zero weight.
      angle: the angle between W and W + dW, in radians; 0 where either is zero.
    """

    weight_norm: Float[Array, "..."]
    update_norm: Float[Array, "..."]
    ratio: Float[Array, "..."]
    angle: Float[Array, "..."]


def effective_learning_rates(
    updates: PyTree, params: PyTree, roles: RoleSpec = None
) -> dict[str, EffectiveLearningRate]:
    """The effective learning rate of every parameter of rank 2 or more.

    Args:
      updates: what the optimizer returned: the steps that `optax.apply_updates` adds.
      params: the parameters before the update.
      roles: `nap.roles(params)`, or what that takes beside the parameters; if given, its stacked axes keep values of
        their own, vectors of stacked layers are left out, and a hidden weight and the noise weight beside it count as
        one.

    Returns:
      An `EffectiveLearningRate` by path ("layer/kernel+layer/noise" for two that count as one), output and embedding
      weights included.
    """
    steps, weights = paths.leaves(updates), paths.leaves(params)
    roles = None if roles is None else find_roles(params, roles)
    groups = {group[0]: group for group in weight_groups(roles)} if roles is not None else {}
    joined = {path for group in groups.values() for path in group[1:]}
    rates = {}
    for path, weight in weights.items():
        stacked = roles[path].stacked if roles is not None else 0
        if not paths.is_weight_array(weight) or weight.ndim < stacked + 2 or path in joined:
            continue
        group = groups.get(path, (path,))
        old, step = (jnp.stack([wide(tree[member]) for member in group], axis=-1) for tree in (weights, steps))
        over, new = tuple(range(stacked, old.ndim)), old + step
        kept = norms({"old": Joint([old], over), "step": Joint([step], over), "new": Joint([new], over)})
        # arccos of a dot product loses all digits of a small angle; half the chord between the unit vectors does not.
        chord = jnp.linalg.vector_norm(_unit(new, kept["new"]) - _unit(old, kept["old"]), axis=over)
        weight_norm, update_norm, new_norm = (jnp.squeeze(kept[name], over) for name in ("old", "step", "new"))
        angle = jnp.where((weight_norm > 0) & (new_norm > 0), 2 * jnp.arcsin(jnp.clip(chord / 2, 0, 1)), 0.0)
        ratio = update_norm / jnp.where(weight_norm > 0, weight_norm, jnp.inf)
        rates["+".join(group)] = EffectiveLearningRate(weight_norm, update_norm, ratio, angle)
    return rates


@overload
def matching_schedule(norms: Norms, optimizer_order: int, steps: Steps | None = None) -> optax.Schedule: ...
@overload
def matching_schedule(
    norms: Mapping[str, Norms], optimizer_order: int, steps: Steps | None = None
) -> dict[str, optax.Schedule]: ...
def matching_schedule(
    norms: Norms | Mapping[str, Norms], optimizer_order: int, steps: Steps | None = None
) -> optax.Schedule | dict[str, optax.Schedule]:
    """The explicit schedule that the growing norms of an unprojected run stand for.

    A run with projection whose learning rate for layer l is eta * (rho_l / ||W_l(t)||)^order makes the same function,
    step by step, as the run without whose norms ||W_l(t)|| these are (rho_l = ||W_l(0)||): exactly for plain SGD on
    scale-invariant layers, nearly for Adam, whose moments average gradients of several scales.

    Args:
      norms: the norm of a weight *before* update 0, 1, 2, ...; one sequence, or one for each path.
      optimizer_order: 2 for SGD, 1 for Adam, RMSProp and sign-like updates.
      steps: before which updates the norms were taken, if not before every one: an increasing sequence that starts at
        0. Between two of them the norm is interpolated linearly.

    Returns:
      A schedule of multipliers that starts at 1 (multiply it by your learning rate), or one for each path: hand these
      to `scale_by_schedules`. Past the last recorded step the last value stays.

    Raises:
      ValueError: another order, an empty sequence, a norm that is not positive, or steps that do not fit the norms.
    """
    if optimizer_order not in (1, 2):
        raise ValueError(f"optimizer_order is 2 for SGD or 1 for Adam-like optimizers, got {optimizer_order}")
    if isinstance(norms, Mapping):
        return {path: matching_schedule(sequence, optimizer_order, steps) for path, sequence in norms.items()}
    sequence = np.asarray(norms)
    if sequence.ndim != 1 or sequence.size == 0 or not np.all(sequence > 0):
        raise ValueError(f"norms must be a non-empty sequence of positive numbers, got shape {sequence.shape}")
    if steps is None:
        multipliers = jnp.asarray((sequence[0] / sequence) ** optimizer_order)
        return lambda step: multipliers[jnp.clip(step, 0, multipliers.size - 1)]
    places = np.asarray(steps)
    if places.shape != sequence.shape or places[0] != 0 or not np.all(np.diff(places) > 0):
        raise ValueError(f"steps must be as many as the norms ({sequence.size}), start at 0 and increase")
    growth = jnp.asarray(sequence / sequence[0], jnp.float32)

    def schedule(step: ArrayLike) -> Array:
        return 1 / jnp.interp(jnp.asarray(step), jnp.asarray(places), growth) ** optimizer_order

    return schedule


def scale_by_schedules(schedules: Mapping[str, optax.Schedule]) -> optax.GradientTransformation:
    """Multiply each parameter's update by a schedule of its own.

    Put it after the optimizer and before the projection. Parameters without a schedule are left as they are.

    Args:
      schedules: multipliers by path, such as `matching_schedule` returns them; "a+b" stands for both a and b.

    Raises:
      ValueError: at `init`, if a path is not among the parameters.
    """

    by_path = {path: schedule for group, schedule in schedules.items() for path in group.split("+")}

    def init_fn(params: PyTree) -> optax.ScaleByScheduleState:
        if not paths.is_stand_in(params) and (unknown := by_path.keys() - paths.leaves(params).keys()):
            raise ValueError(f"there is a schedule for {min(unknown)!r}, but the parameters have no such leaf")
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None):
        del params
        steps = paths.leaves(updates)
        scaled = {
            path: (steps[path] * schedule(state.count)).astype(steps[path].dtype) for path, schedule in by_path.items()
        }
        return paths.replace(updates, scaled), optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init_fn, update_fn)


def _unit(x: Inexact[Array, "..."], norm: Float[Array, "..."]) -> Inexact[Array, "..."]:
    return x / jnp.where(norm > 0, norm, 1.0)
