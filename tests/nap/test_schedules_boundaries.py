"""Every named schedule the update before, at and after each of its boundaries, against values worked by hand."""

import math

import jax
import numpy as np
import pytest

from nap import schedules
from nap.schedules import named


def cosine(z: float, end: float = 0.0) -> float:
    return end + (1 - end) * (1 + math.cos(math.pi * z)) / 2


FALL = (0.04 - 4e-6) / 15  # one_cycle's last phase, at each update

HELD = {
    "constant": (schedules.constant(2.0), {0: 2, 1: 2, 10**6: 2}),
    "linear": (schedules.linear(1.0, 100), {0: 1, 1: 0.99, 99: 0.01, 100: 0, 101: 0}),
    "cosine": (schedules.cosine(1.0, 100), {0: 1, 1: cosine(0.01), 99: cosine(0.99), 100: 0, 101: 0}),
    "rex": (schedules.rex(1.0, 100), {0: 1, 1: 0.99 / 0.995, 99: 0.01 / 0.505, 100: 0, 101: 0}),
    "step": (
        schedules.step(1.0, 100),
        {
            0: 1, 29: 1, 30: 0.1, 31: 0.1,
            59: 0.1, 60: 0.01, 61: 0.01,
            89: 0.01, 90: 0.001, 91: 0.001, 99: 0.001, 100: 0.001, 101: 0.001,
        },
    ),
    "one_cycle": (
        schedules.one_cycle(1.0, 100),
        {
            0: 0.04, 1: 0.072, 29: 0.968, 30: 1, 31: 1 - 0.96 / 55,
            84: 0.04 + 0.96 / 55, 85: 0.04, 86: 0.04 - FALL, 99: 4e-6 + FALL, 100: 4e-6, 101: 4e-6,
        },
    ),
    "inverse_sqrt": (schedules.inverse_sqrt(1.0, 100), {0: 0, 1: 0.01, 99: 0.99, 100: 1, 101: (100 / 101) ** 0.5}),
    "warmup_cosine": (
        schedules.warmup_cosine(1.0, 100, warmup=10, init_value=0.1, end_value=0.2),
        {
            0: 0.1, 1: 0.19, 9: 0.91, 10: 1, 11: cosine(1 / 90, 0.2),
            99: cosine(89 / 90, 0.2), 100: 0.2, 101: 0.2,
        },
    ),
    "cosine_restarts": (
        schedules.cosine_restarts(1.0, [10, 20]),
        {0: 1, 1: cosine(0.1), 9: cosine(0.9), 10: 1, 11: cosine(1 / 20), 29: cosine(19 / 20), 30: 0, 31: 0},
    ),
    "wsd": (  # warm-up 10, decay 100
        schedules.wsd(1.0, 1000),
        {
            0: 0, 1: 0.1, 9: 0.9, 10: 1, 11: 1, 899: 1, 900: 1, 901: 0.1**0.01,
            999: 0.1**0.99, 1000: 0.1, 1001: 0.1,
        },
    ),
    "wsd_s": (  # decays of 10 and 20
        schedules.wsd_s(1.0, [100, 200], warmup=10),
        {
            0: 0, 9: 0.9, 10: 1, 11: 1, 89: 1, 90: 1, 91: 1 / 1.9, 99: 1 / 9.1, 100: 1, 101: 1,
            179: 1, 180: 1, 181: 1 / 1.45, 199: 1 / 9.55, 200: 0.1, 201: 0.1,
        },
    ),
    "wsdc": (  # warm-up 10, decay 100, tail 100
        schedules.wsdc(1.0, 1000),
        {
            0: 0, 9: 0.9, 10: 1, 11: 1, 799: 1, 800: 1, 801: 0.991,
            899: 0.109, 900: 0.1, 901: 0.1, 999: 0.1, 1000: 0.1, 1001: 0.1,
        },
    ),
    "infinite": (  # warm-up 10, cooldown until 700
        schedules.infinite(1.0, 1000),
        {
            0: 0, 9: 0.9, 10: 1, 11: cosine(1 / 690, 0.55),
            699: cosine(689 / 690, 0.55), 700: 0.55, 701: 0.55, 1000: 0.55, 10**6: 0.55,
        },
    ),
    "rewarmed": (
        schedules.rewarmed(1.0, [100, 200], warmup=[10, 20]),
        {
            0: 0, 9: 0.9, 10: 1, 11: cosine(1 / 90, 0.1), 99: cosine(89 / 90, 0.1), 100: 0.1, 101: 0.145,
            119: 0.955, 120: 1, 121: cosine(1 / 180, 0.1), 299: cosine(179 / 180, 0.1), 300: 0.1, 301: 0.1,
        },
    ),
    "stable_then_decay": (
        schedules.stable_then_decay(1.0, 1000),
        {
            0: 1, 999: 1, 1000: 1, 1001: cosine(0.01, 0.1),
            1099: cosine(0.99, 0.1), 1100: 0.1, 1101: 0.1,
        },
    ),
    "slow_start_fast_decay": (  # epochs of 5
        schedules.slow_start_fast_decay(1.0, 50),
        {
            0: 0.25, 4: 0.25, 5: 0.5, 6: 0.5, 9: 0.5, 10: 0.75, 11: 0.75, 14: 0.75, 15: 1, 16: 1, 24: 1,
            25: 0.4, 26: 0.4, 29: 0.4, 30: 0.16, 31: 0.16, 34: 0.16, 35: 0.064, 36: 0.064,
            39: 0.064, 40: 0.0256, 41: 0.0256, 44: 0.0256, 45: 0.01024, 46: 0.01024,
            49: 0.01024, 50: 0.004096, 51: 0.004096,
        },
    ),
}  # fmt: skip


def test_every_named_schedule_is_held():
    public = {name for name, thing in vars(named).items() if getattr(thing, "__module__", "") == named.__name__}
    assert HELD.keys() == {name for name in public if not name.startswith("_")}


@pytest.mark.parametrize("name", HELD)
def test_before_at_and_after_each_boundary(name):
    schedule, values = HELD[name]
    counts = np.array(list(values), np.int32)
    expected = list(values.values())
    np.testing.assert_allclose(schedule(counts), expected, rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(jax.jit(schedule)(counts), expected, rtol=1e-6, atol=2e-7)
