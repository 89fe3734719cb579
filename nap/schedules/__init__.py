"""Learning-rate schedules: a profile, how often it is read, and the phases it is joined to.

    schedule = nap.schedules.rex(1e-3, 10_000)                        # an ordinary optax schedule, peak value first
    optimizer = nap.normalize_and_project(optax.adam(schedule))       # whose learning rate is the effective one

    from nap.schedules import phases, profiles                        # ... and one of your own
    phases(1e-3, [(profiles.warmup(), 500), (profiles.constant(), 8000), (profiles.one_minus_sqrt(), 1500)])

    name                   what it does                                               source
    constant               stays                                                      -
    linear, cosine         decays                                                     -; Loshchilov & Hutter, 2017
    rex                    decays late, without hyperparameters                       Chen et al., 2022
    step                   a tenth at 30, 60 and 90 %                                 -
    one_cycle              rises, falls, and falls far                                Smith & Topin, 2017
    inverse_sqrt           warms up and decays without a horizon                      Vaswani et al., 2017
    warmup_cosine          warms up and decays, as in NaP's sequential runs           Lyle et al., 2024
    cosine_restarts        decays and returns to the peak, cycle by cycle             Loshchilov & Hutter, 2017
    wsd                    warms up, stays, decays                                    Hu et al., 2024
    wsd_s                  decays before each of several budgets, all in one run      Wen et al., 2024
    wsdc                   warms up, stays, decays, stays                             Deng et al., 2025
    infinite               warms up, cools down, stays; annealed on a `branch`        Singh et al., 2025
    rewarmed               warms up and decays again in every stage                   Ibrahim et al., 2024
    stable_then_decay      stays, then decays on branches                             Wang et al., 2025
    slow_start_fast_decay  rises slowly and decays fast, for adversarial fine-tuning  Jeddi et al., 2020

    what they are made of
    profiles.*             progress in [0, 1] -> multiplier: rex, reciprocal, one_minus_sqrt, table, ...
    follow                 a profile over so many updates, read at every one or rarely
    phases                 profiles one after another
    branch                 leaves a schedule at some update
    restarted              one schedule, started over at every task
    consecutive            a schedule for each task
    refine                 the multipliers that a finished run's gradient norms ask for (Defazio et al., 2023)

A schedule maps the update count (a Python int, or an int32 array of any shape) to a value, as optax's do, so it works
in `optax.inject_hyperparams`, under `jit`, `vmap` and `scan`. Its numbers may be traced, but for how often a profile is
read: `vmap` over peaks, lengths or ends. What can be looked at beforehand is checked, and a ValueError says what must
be. "Profile, sampling, phases" is how the REX paper takes schedules apart.
"""

from nap.schedules import profiles
from nap.schedules.named import (
    constant,
    cosine,
    cosine_restarts,
    infinite,
    inverse_sqrt,
    linear,
    one_cycle,
    rewarmed,
    rex,
    slow_start_fast_decay,
    stable_then_decay,
    step,
    warmup_cosine,
    wsd,
    wsd_s,
    wsdc,
)
from nap.schedules.phases import branch, consecutive, follow, phases, restarted
from nap.schedules.refinement import refine, refine_by_bound

__all__ = [
    "branch",
    "consecutive",
    "constant",
    "cosine",
    "cosine_restarts",
    "follow",
    "infinite",
    "inverse_sqrt",
    "linear",
    "one_cycle",
    "phases",
    "profiles",
    "refine",
    "refine_by_bound",
    "restarted",
    "rewarmed",
    "rex",
    "slow_start_fast_decay",
    "stable_then_decay",
    "step",
    "warmup_cosine",
    "wsd",
    "wsd_s",
    "wsdc",
]
