"""Schedules by name, as their papers have them: peak value first, then updates.

Whatever else has a default that the paper gives, or, where it gives none, one that is said to be ours. Lengths are
numbers of updates; None stands for the share of the steps that the docstring tells. The multipliers at a decay's end
are in its `profile`, as shares of the peak.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from nap.checks import Number, is_known, not_negative, positive, require, rest, updates, updates_or_share
from nap.schedules import profiles
from nap.schedules.arguments import Numbers, listed, one_for_each
from nap.schedules.phases import branch, consecutive, follow, phases, restarted
from nap.schedules.profiles import Profile


def constant(peak: Number) -> optax.Schedule:
    """The peak, always; `optax.constant_schedule` in the shape of the count."""
    return follow(peak, 0, profiles.constant())


def linear(peak: Number, steps: Number, *, end: Number = 0.0) -> optax.Schedule:
    """Linear decay to end * peak; `optax.linear_schedule`, but that the steps may be traced."""
    return follow(peak, steps, profiles.linear(end))


def cosine(peak: Number, steps: Number, *, end: Number = 0.0) -> optax.Schedule:
    """Cosine decay to end * peak; `optax.cosine_decay_schedule`, but that the steps may be traced."""
    return follow(peak, steps, profiles.cosine(end))


def rex(peak: Number, steps: Number, *, end: Number = 0.0, hold: Number = 0.5) -> optax.Schedule:
    """peak (1 - z) / (1/2 + (1 - z) / 2), z = count / steps (Chen et al., 2107.04197). See `profiles.rex`."""
    return follow(peak, steps, profiles.rex(end, hold))


def step(peak: Number, steps: Number, *, at: Numbers = (0.3, 0.6, 0.9), factor: Number = 0.1) -> optax.Schedule:
    """The peak times `factor` at each of these shares of the run: the 30-60-90 schedule."""
    return follow(peak, steps, profiles.step(at, factor), readings=at)


def one_cycle(
    peak: Number,
    steps: Number,
    *,
    rise: Number = 0.3,
    fall: Number = 0.85,
    start: Number = 1 / 25,
    end: Number = 1 / 250_000,
) -> optax.Schedule:
    """Up, down, and far down, in three lines (Smith & Topin, 1708.07120). See `profiles.one_cycle`."""
    return follow(peak, steps, profiles.one_cycle(rise, fall, start, end))


def inverse_sqrt(peak: Number, warmup: Number) -> optax.Schedule:
    """peak * min(count / warmup, sqrt(warmup / count)), without a horizon (Vaswani et al., 1706.03762)."""
    not_negative(peak=peak)
    warmup = updates("warmup", warmup, least=1)

    def schedule(count: ArrayLike) -> Array:
        progress = jnp.asarray(count) / warmup
        return jnp.asarray(peak) * jnp.minimum(progress, 1 / jnp.sqrt(jnp.maximum(progress, 1)))

    return schedule


def warmup_cosine(
    peak: Number,
    steps: Number,
    *,
    warmup: Number = 1000,
    init_value: Number = 1e-8,
    end_value: Number = 1e-6,
) -> optax.Schedule:
    """Linear rise from `init_value` to the peak, then cosine to `end_value` at `steps`.

    `restarted(warmup_cosine(6.25e-4, n), n)` is the schedule of the sequential Atari runs of Normalize-and-Project
    (Lyle et al., 2407.01800), whose other values are the defaults; n counts a task's updates, not its frames. It is
    `optax.warmup_cosine_decay_schedule(init_value, peak, warmup, steps, end_value)`, but that all numbers may be
    traced; as there, the values at both ends are values, not shares of the peak.

    Raises:
      ValueError: a peak of 0 or below one of the other values, another value below 0, or a warm-up that is longer than
        the steps.
    """
    positive(peak=peak)
    not_negative(init_value=init_value, end_value=end_value)
    least = max((np.max(value) for value in (init_value, end_value) if is_known(value)), default=0.0)
    require(f"at least {least}, as the values at both ends are", lambda value: value >= least, peak=peak)
    steps, warmup = updates("steps", steps), updates("warmup", warmup)
    left = rest(steps, warmup=warmup)
    return phases(peak, [(profiles.warmup(init_value / peak), warmup), (profiles.cosine(end_value / peak), left)])


def cosine_restarts(peak: Number, steps: Number | Numbers, *, end: Number = 0.0) -> optax.Schedule:
    """Cosine decay to end * peak, and back to the peak, in every cycle (SGDR, Loshchilov & Hutter, 1608.03983).

    Args:
      peak: at the beginning of each cycle.
      steps: updates of each cycle: one number, for cycles without an end; or a sequence, such as (10, 20, 40) for the
        paper's T_0 = 10 and T_mult = 2, after which the last value stays.
      end: multiplier at the end of a cycle, which is reached at the first update after it, if it is the last.
    """
    lengths = listed(steps)
    if isinstance(lengths, list):
        return consecutive([cosine(peak, length, end=end) for length in lengths], lengths)
    return restarted(cosine(peak, lengths, end=end), lengths)


def wsd(
    peak: Number,
    steps: Number,
    *,
    warmup: Number | None = None,
    decay: Number | None = None,
    profile: Profile | None = None,
) -> optax.Schedule:
    """Warm-up, stable, decay (MiniCPM, Hu et al., 2404.06395).

    Args:
      peak: the value of the stable phase.
      steps: updates in the run, warm-up and decay included.
      warmup: from 0; None: 1 % of the steps (ours).
      decay: its first update is at the peak; None: 10 % of the steps, which the paper finds to be enough (2.5 % are
        not), and two updates at least.
      profile: of the decay; None: exponential to a tenth. The paper tells a half-life instead, 5,000 updates in its
        2.4B run: `profiles.exponential(0.5 ** (decay / 5000))`.

    Raises:
      ValueError: a number that makes no sense, or warm-up and decay longer than the steps.
    """
    steps = updates("steps", steps)
    rise = updates_or_share("warmup", warmup, 0.01, steps)
    fall = _decay(decay, steps, room=steps - rise)
    return _wsd(peak, steps, rise, fall, profile or profiles.exponential(0.1))


def wsd_s(
    peak: Number,
    budgets: Numbers,
    *,
    warmup: Number | None = None,
    decay: Number | Numbers | None = None,
    profile: Profile | None = None,
) -> optax.Schedule:
    """WSD-S: one run, decayed at several budgets (Wen et al., 2410.05192).

    Before each budget the value decays; save the weights there. Right after it, it is back at the peak, and the run
    goes on from the decayed weights: nothing is rolled back, nothing warmed up again.

    Args:
      peak: the value outside of warm-up and decays.
      budgets: updates since the beginning of the run, increasing; after the last, its end stays.
      warmup: from 0; None: 1 % of the first budget (ours).
      decay: updates of the decay before each budget: one number, or one for each; None: 10 % of each budget, and two
        updates at least, as the first is at the peak.
      profile: of the decay; None: linear in 1 / value, to a tenth.

    Raises:
      ValueError: budgets that do not increase, or a decay that does not fit between two of them.
    """
    totals = [updates("a budget", budget, least=1) for budget in budgets]
    if not totals or any(is_known(b - a) and b <= a for a, b in pairwise(totals)):
        raise ValueError(f"budgets must be increasing numbers of updates, at least one, got {budgets}")
    decays = one_for_each("decay", "budget", decay, len(totals))
    lengths = [total - before for before, total in pairwise([0, *totals])]
    first_rise = updates_or_share("warmup", warmup, 0.01, totals[0])
    rises = [first_rise, *[0] * (len(totals) - 1)]
    falls = [
        _decay(fall, total, room=length - rise)
        for fall, total, length, rise in zip(decays, totals, lengths, rises, strict=True)
    ]
    last = profile or profiles.reciprocal(0.1)
    stages = [_wsd(peak, *stage, last) for stage in zip(lengths, rises, falls, strict=True)]
    return consecutive(stages, lengths)


def wsdc(
    peak: Number,
    steps: Number,
    *,
    warmup: Number | None = None,
    decay: Number | None = None,
    tail: Number | None = None,
    profile: Profile | None = None,
) -> optax.Schedule:
    """Warm-up, stable, decay, constant: WSD with a tail at the decayed value, for curated data (PLM, 2503.12167).

    The order of the phases is the paper's; their lengths and the shape of the decay are not public, and ours.

    Args:
      peak: the value of the stable phase.
      steps: updates in the run, tail included; afterwards its value stays.
      warmup: from 0; None: 1 % of the steps.
      decay: None: 10 % of the steps, and two updates at least, as the first is at the peak.
      tail: the constant phase; None: 10 % of the steps.
      profile: of the decay; None: linear to a tenth.

    Raises:
      ValueError: a number that makes no sense, or phases longer than the steps.
    """
    steps = updates("steps", steps)
    rise = updates_or_share("warmup", warmup, 0.01, steps)
    before_tail = rest(steps, tail=updates_or_share("tail", tail, 0.1, steps))
    fall = _decay(decay, steps, room=before_tail - rise)
    return _wsd(peak, before_tail, rise, fall, profile or profiles.linear(0.1))


def infinite(
    peak: Number,
    steps: Number,
    *,
    warmup: Number | None = None,
    cooldown: Number | None = None,
    profile: Profile | None = None,
) -> optax.Schedule:
    """Warm-up, cooldown, and a constant without an end, for task after task (Singh et al., 2503.02844).

    A model to evaluate or to deploy is annealed on a branch, and the next task goes on from the checkpoint before it:
    `branch(infinite(3e-4, 10_000), at=8000, steps=2000, profile=profiles.exponential(0.1 / 0.55))`.

    Args:
      peak: after the warm-up.
      steps: updates of the first task, of which the shares below are.
      warmup: from 0; None: 1 %.
      cooldown: after the warm-up; None: until 70 %.
      profile: of the cooldown; None: cosine to 0.55, so that a peak of 3e-4 goes to the constant 1.65e-4.
        `profiles.inverse_sqrt(0.55)` is the other of Ibrahim et al. (2403.08763).

    Raises:
      ValueError: a number that makes no sense, or a warm-up longer than 70 % where no cooldown is given.
    """
    steps = updates("steps", steps)
    rise = updates_or_share("warmup", warmup, 0.01, steps)
    if cooldown is None:
        cooldown = rest(updates_or_share("cooldown", None, 0.7, steps), warmup=rise)
    return phases(peak, [(profiles.warmup(), rise), (profile or profiles.cosine(0.55), cooldown)])


def rewarmed(
    peak: Number,
    steps: Numbers,
    *,
    warmup: Number | Numbers | None = None,
    profile: Profile | None = None,
) -> optax.Schedule:
    """Re-warmed and re-decayed in every stage, for continual pre-training (Ibrahim et al., 2403.08763).

    Each stage rises from where the last one ended (the first from 0) to the peak, and decays.

    Args:
      peak: of every stage.
      steps: updates of each stage; after the last, its end stays.
      warmup: updates of the rise: one number, or one for each stage; None: 1 % of each.
      profile: of the decay; None: cosine to a tenth.

    Raises:
      ValueError: no stage, or a warm-up longer than its stage.
    """
    lengths = [updates("the steps of a stage", length, least=1) for length in steps]
    warmups = one_for_each("warmup", "stage", warmup, len(lengths))
    decay = profile or profiles.cosine(0.1)
    stages = []
    for i, length in enumerate(lengths):
        rise = updates_or_share("warmup", warmups[i], 0.01, length)
        start = profiles.warmup(decay(1.0) if i else 0.0)
        stages.append(phases(peak, [(start, rise), (decay, rest(length, warmup=rise))]))
    return consecutive(stages, lengths)


def stable_then_decay(
    peak: Number, stable: Number, decay: Number | None = None, *, profile: Profile | None = None
) -> optax.Schedule:
    """A constant trunk, then a decaying branch: mid-training (OctoThinker, Wang et al., 2506.20512).

    Branches differ in their data, and all resume from the trunk's checkpoint after `stable` updates.

    Args:
      peak: of the trunk.
      stable: updates of the trunk.
      decay: updates of the branch; None: 10 % of the trunk, as in the paper (20B tokens after 200B).
      profile: of the branch; None: cosine to a tenth (ours).

    Raises:
      ValueError: a number that makes no sense.
    """
    stable = updates("stable", stable)
    fall = updates_or_share("decay", decay, 0.1, stable)
    return branch(constant(peak), at=stable, steps=fall, profile=profile or profiles.cosine(0.1))


def slow_start_fast_decay(
    peak: Number, steps: Number, *, epochs: Number = 10, rising: Number = 4, factor: Number = 0.4
) -> optax.Schedule:
    """Up slowly, down fast, an epoch a stair: adversarial fine-tuning (Jeddi et al., 2012.13628).

    The formula is ours (the paper's is not public): see `profiles.slow_start_fast_decay`.

    Args:
      peak: reached in epoch `rising` - 1, the first being 0, and held for another.
      steps: updates in the run.
      epochs: into how many of them the run is cut; must be known.
      rising: epochs of the rise.
      factor: of the decay, per epoch.
    """
    return follow(peak, steps, profiles.slow_start_fast_decay(epochs, rising, factor), readings=epochs)


def _decay(decay: Number | None, steps: Any, room: Any) -> Any:
    """The decay that is given; else 10 % of the steps, or two updates if there is room, of which one is decayed."""
    share = updates_or_share("decay", decay, 0.1, steps)
    if decay is not None:
        return share
    larger, smaller = (max, min) if is_known(share) and is_known(room) else (jnp.maximum, jnp.minimum)
    return larger(share, smaller(2, room))


def _wsd(peak: Number, steps: Any, warmup: Any, decay: Any, profile: Profile) -> optax.Schedule:
    stable = rest(steps, warmup=warmup, decay=decay)
    return phases(peak, [(profiles.warmup(), warmup), (profiles.constant(), stable), (profile, decay)])
