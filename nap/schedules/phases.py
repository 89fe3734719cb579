"""From profiles to schedules: how often a profile is read, and how phases follow each other, branch and restart.

All that is returned is an ordinary optax schedule: update count -> value. The count is a Python int or an int32 array
of any shape; the first update of a run has count 0, so after n updates the value is that at n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from nap.checks import Number, is_known, not_negative, require, updates
from nap.schedules.arguments import Numbers, listed, places
from nap.schedules.profiles import Profile


def follow(
    peak: Number, steps: Number, profile: Profile, *, readings: Number | Numbers | None = None
) -> optax.Schedule:
    """peak * profile(count / steps); from `steps` on, peak * profile(1).

    Args:
      peak: what the profile multiplies.
      steps: updates in the run.
      profile: one of `schedules.profiles`, or any function of progress in [0, 1].
      readings: how often the profile is read; the value stays as it is in between. None: at every update. A number k:
        k times a run, at updates 0, steps / k, 2 steps / k, ..., which must be known. A sequence of shares, such as
        (0.5, 0.75): at the beginning and at these places. (REX, 2107.04197, takes schedules apart in this way: a step
        schedule is a profile that is rarely read.) Each reading is at the first whole update that is not before its
        place; of traced places, to a millionth of it.

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


def restarted(schedule: optax.Schedule, steps: Number | Numbers) -> optax.Schedule:
    """One schedule that starts over at every task: at a task's first update it is what it is at count 0.

    Args:
      schedule: of each task.
      steps: updates (not frames, nor epochs) of each task: one number, for tasks of equal length without an end; or a
        sequence, after whose last task the schedule goes on.

    Raises:
      ValueError: no task, or one without updates.
    """
    lengths = listed(steps)
    if isinstance(lengths, list):
        starts = _starts(lengths)
        return lambda count: schedule(jnp.asarray(count) - _last_reached(starts, starts, count))
    every = updates("steps", lengths, least=1)
    return lambda count: schedule(jnp.asarray(count) % every)


def consecutive(schedules: Sequence[optax.Schedule], steps: Numbers) -> optax.Schedule:
    """A schedule for each task, one after another: where tasks are of different lengths, each can end with its own.

    `consecutive([warmup_cosine(6.25e-4, n) for n in lengths], lengths)`; it is `optax.join_schedules`, given lengths.

    Args:
      schedules: of each task, each beginning at count 0.
      steps: updates (not frames, nor epochs) of each task; after the last one its schedule goes on.

    Raises:
      ValueError: no task, one without updates, or not as many schedules as tasks.
    """
    starts = _starts(list(steps))
    if len(schedules) != len(starts):
        raise ValueError(f"schedules must be as many as tasks, got {len(schedules)} for {len(starts)} tasks")
    return optax.join_schedules(schedules, starts[1:])


def _starts(steps: list[Any]) -> list[Any]:
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


_FINEST = 2**20
"""Places are taken as fractions whose denominator is at most this, with which `_first_updates` stays below 2**31."""


def _rarely(steps: Any, readings: Any) -> Callable[[ArrayLike], Array]:
    given = listed(readings)
    if not isinstance(given, list):
        if not is_known(readings):
            raise ValueError("readings must be known, or be places in the run: how many there are can't be traced")
        what = f"a whole number from 1 to {_FINEST:,} a run"
        require(what, lambda value: (value >= 1) & (value <= _FINEST) & (value == np.floor(value)), readings=readings)
        shares = [Fraction(i, int(readings)) for i in range(int(readings) + 1)]
        values = np.array(shares, float)
        first = _first_updates(steps, shares)
    elif all(map(is_known, given)):
        values = np.array([0.0, *places("readings", given), 1.0])
        first = _first_updates(steps, [Fraction(value).limit_denominator(_FINEST) for value in values.tolist()])
    else:
        values = jnp.asarray([0.0, *places("readings", given), 1.0], float)
        first = jnp.ceil(values * steps * (1 - 1e-6))
    return lambda count: _last_reached(first, values, count)


def _first_updates(steps: Any, shares: Sequence[Fraction]) -> Any:
    """The first whole update that is not before each share of the steps.

    In whole numbers, the same whether the steps are known or traced: 0.07 * 100 is 7.000000000000001, and is meant to
    be 7, and float32 has no 900,002.7.
    """
    steps = steps if is_known(steps) else jnp.asarray(steps).astype(jnp.int32)
    above = np.array([share.numerator for share in shares], np.int32)
    below = np.array([share.denominator for share in shares], np.int32)
    # above * rest / below, the upper and the lower ten bits of `above` one after the other, in 31 bits.
    whole, rest = steps // below, steps % below
    upper = above // 1024 * rest
    lower = upper % below * 1024 + above % 1024 * rest
    return above * whole + upper // below * 1024 - (-lower // below)


def _last_reached(first: Any, values: Any, count: ArrayLike) -> Array:
    """The value that belongs to the last of the increasing counts `first` that `count` has reached."""
    reached = jnp.searchsorted(jnp.asarray(first), jnp.asarray(count), side="right", method="compare_all")
    return jnp.asarray(values)[jnp.maximum(reached - 1, 0)]
