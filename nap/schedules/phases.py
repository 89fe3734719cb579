"""From profiles to schedules: how often a profile is read, and how phases follow each other, branch and restart.

All that is returned is an ordinary optax schedule: update count -> value. The count is a Python int or an int32 array
of any shape; the first update of a run has count 0, so after n updates the value is that at n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from nap.checks import Number, is_known, not_negative, places_in_run, updates
from nap.schedules.profiles import Profile


def follow(
    peak: Number, steps: Number, profile: Profile, *, readings: int | Sequence[float] | None = None
) -> optax.Schedule:
    """peak * profile(count / steps); from `steps` on, peak * profile(1).

    Args:
      peak: what the profile multiplies.
      steps: updates in the run.
      profile: one of `schedules.profiles`, or any function of progress in [0, 1].
      readings: how often the profile is read; the value stays as it is in between. None: at every update. A number k:
        k times a run, at updates 0, steps / k, 2 steps / k, ... A sequence of shares, such as (0.5, 0.75): at the
        beginning and at these places. (REX, 2107.04197, takes schedules apart in this way: a step schedule is a
        profile that is rarely read.) Each reading is at the first whole update that is not before its place.

    Raises:
      ValueError: a peak below 0, steps that are no whole number of updates, readings outside of the run.
    """
    not_negative(peak=peak)
    steps = updates("steps", steps)
    progress = _at_every_update(steps) if readings is None else _rarely(steps, readings)
    return lambda count: peak * profile(progress(count))


def phases(peak: Number, parts: Sequence[tuple[Profile, Number]]) -> optax.Schedule:
    """Profiles one after another, each for so many updates; each goes on from the value at which the last one ended.

    So it is continuous: WSD is `phases(peak, [(warmup(), 100), (constant(), 800), (exponential(0.1), 100)])`. After
    the last phase its end stays. A phase of 0 updates is passed over, up to its end. At the first update of a phase
    the value is its first.

    Args:
      peak: what the profiles multiply.
      parts: (profile, updates) of each phase.

    Raises:
      ValueError: a peak below 0, no phase, or updates that are no whole number.
    """
    not_negative(peak=peak)
    if not parts:
        raise ValueError("at least one phase is needed, got none")
    lengths = [updates("the updates of a phase", length) for _, length in parts]
    schedules, level = [], peak
    for (profile, _), length in zip(parts, lengths, strict=True):
        schedules.append(follow(level, length, profile))
        level = level * profile(1.0)
    return optax.join_schedules(schedules, list(accumulate(lengths))[:-1])


def branch(trunk: optax.Schedule, at: Number, steps: Number, profile: Profile) -> optax.Schedule:
    """A run that leaves `trunk` at update `at`: its value there times the profile, over `steps` updates.

    Up to `at` it is the trunk, so a run resumed from the trunk's checkpoint after `at` updates goes on with the same
    count. One trunk has as many branches as one likes: for other data, another horizon, or an evaluation.

    Args:
      trunk: the schedule that is left.
      at: the update at which it is left.
      steps: updates of the branch; afterwards its end stays.
      profile: of the branch.

    Raises:
      ValueError: `at` or `steps` is no whole number of updates.
    """
    at, steps = updates("at", at), updates("steps", steps)
    progress = _at_every_update(steps)
    return optax.join_schedules([trunk, lambda count: trunk(at) * profile(progress(count))], [at])


def restarted(schedule: optax.Schedule, steps: Number | Sequence[Number]) -> optax.Schedule:
    """One schedule that starts over at every task: at a task's first update it is what it is at count 0.

    Args:
      schedule: of each task.
      steps: updates (not frames, nor epochs) of each task: one number, for tasks of equal length without an end; or a
        sequence, after whose last task the schedule goes on.

    Raises:
      ValueError: no task, or one without updates.
    """
    if isinstance(steps, Sequence):
        starts = _starts(steps)
        return lambda count: schedule(jnp.asarray(count) - _last_reached(starts, starts, count))
    every = updates("steps", steps, least=1)
    return lambda count: schedule(jnp.asarray(count) % every)


def consecutive(schedules: Sequence[optax.Schedule], steps: Sequence[Number]) -> optax.Schedule:
    """A schedule for each task, one after another: where tasks are of different lengths, each can end with its own.

    `consecutive([warmup_cosine(6.25e-4, n) for n in lengths], lengths)`; it is `optax.join_schedules`, given lengths.

    Args:
      schedules: of each task, each beginning at count 0.
      steps: updates (not frames, nor epochs) of each task; after the last one its schedule goes on.

    Raises:
      ValueError: no task, one without updates, or not as many schedules as tasks.
    """
    starts = _starts(steps)
    if len(schedules) != len(starts):
        raise ValueError(f"schedules must be as many as tasks, got {len(schedules)} for {len(starts)} tasks")
    return optax.join_schedules(schedules, starts[1:])


def _starts(steps: Sequence[Number]) -> list[Any]:
    """The first update of each task."""
    if not steps:
        raise ValueError("steps must be those of at least one task, got none")
    return list(accumulate((updates("the steps of a task", length, least=1) for length in steps), initial=0))[:-1]


def _at_every_update(steps: Any) -> Callable[[ArrayLike], Array]:
    def progress(count: ArrayLike) -> Array:
        # At the end it is 1, exactly: XLA multiplies by 1 / steps, and 41 * (1 / 41) is 0.99999994 in float32.
        count = jnp.asarray(count)
        return jnp.where(count >= steps, 1.0, jnp.clip(count / jnp.maximum(steps, 1), 0, 1))

    return progress


def _rarely(steps: Any, readings: int | Sequence[float]) -> Callable[[ArrayLike], Array]:
    if isinstance(readings, Sequence):
        places = np.array([0.0, *places_in_run("readings", readings), 1.0])
    elif readings >= 1:
        places = np.arange(readings + 1) / readings
    else:
        raise ValueError(f"readings must be at least 1 a run, got {readings}")
    # Whole updates, compared as such. 0.07 * 100 is 7.000000000000001, and is meant to be 7.
    exact = np.ceil(np.round(places * steps, 6)).astype(np.int32) if is_known(steps) else None
    first = jnp.ceil(places * steps * (1 - 1e-6)) if exact is None else exact
    return lambda count: _last_reached(first, places, count)


def _last_reached(first: Any, values: Any, count: ArrayLike) -> Array:
    """The value that belongs to the last of the increasing counts `first` that `count` has reached."""
    reached = jnp.searchsorted(jnp.asarray(first), jnp.asarray(count), side="right", method="compare_all")
    return jnp.asarray(values)[jnp.maximum(reached - 1, 0)]
