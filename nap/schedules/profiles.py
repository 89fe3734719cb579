"""Profiles: how a value falls or rises with progress, whatever the peak and the number of updates.

A profile maps progress z in [0, 1] (float32, any shape) to a multiplier of the same shape. Each function here makes
one. `end` is always the multiplier at z = 1; all start at 1, except for what begins with a rise (`warmup`, `one_cycle`,
`slow_start_fast_decay`). A function of your own does as well: `lambda z: 1 - z**3`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array

from nap.checks import Number, is_known, not_negative, positive, require
from nap.schedules.arguments import Numbers, places

Profile = Callable[[Number], Number]
"""Progress in [0, 1] -> multiplier."""


def constant() -> Profile:
    """1."""
    return lambda z: jnp.ones_like(z, dtype=float)


def warmup(start: Number = 0.0) -> Profile:
    """start + (1 - start) z: the linear rise to 1 that other phases follow."""
    not_negative(start=start)
    return lambda z: start + (1 - start) * jnp.asarray(z)


def linear(end: Number = 0.0) -> Profile:
    """1 - (1 - end) z. To 0 it is what the worst case asks for (Defazio et al., 2310.07831)."""
    not_negative(end=end)
    return _falling(lambda z: 1 - z, end)


def cosine(end: Number = 0.0) -> Profile:
    """end + (1 - end) (1 + cos(pi z)) / 2 (Loshchilov & Hutter, 1608.03983)."""
    not_negative(end=end)
    return _falling(lambda z: (1 + jnp.cos(jnp.pi * z)) / 2, end)


def exponential(end: Number = 0.1) -> Profile:
    """end**z; over n updates the half-life is n / log2(1 / end) updates."""
    positive(end=end)
    return lambda z: jnp.power(end, jnp.asarray(z))


def polynomial(power: Number = 2.0, end: Number = 0.0) -> Profile:
    """end + (1 - end) (1 - z)**power."""
    positive(power=power)
    not_negative(end=end)
    return _falling(lambda z: (1 - z) ** power, end)


def one_minus_sqrt(end: Number = 0.0) -> Profile:
    """1 - (1 - end) sqrt(z): the cooldown of Hägele et al. (2405.18392)."""
    not_negative(end=end)
    return _falling(lambda z: 1 - jnp.sqrt(z), end)


def inverse_sqrt(end: Number = 0.0, rate: Number = 10.0) -> Profile:
    """1 - (1 - end) h(z) / h(1), h(z) = 1 - 1 / sqrt(1 + rate z) (Ibrahim et al., 2403.08763).

    With end = 1 / sqrt(1 + rate) it is 1 / sqrt(1 + rate z), not rescaled; see `schedules.inverse_sqrt` for the one
    without a horizon.
    """
    positive(rate=rate)
    not_negative(end=end)
    last = (1 + rate) ** -0.5
    return _falling(lambda z: ((1 + rate * z) ** -0.5 - last) / (1 - last), end)


def reciprocal(end: Number = 0.1) -> Profile:
    """1 / (1 + (1 / end - 1) z), linear in 1 / value: the decay of WSD-S (Wen et al., 2410.05192)."""
    positive(end=end)
    return lambda z: 1 / (1 + (1 / end - 1) * jnp.asarray(z))


def rex(end: Number = 0.0, hold: Number = 0.5) -> Profile:
    """end + (1 - end) (1 - z) / (1 - hold z): the reflected exponential (Chen et al., 2107.04197).

    The paper's hold is 1/2, there written (1 - z) / (1/2 + (1 - z) / 2); 0 is the linear profile, and towards 1 it
    stays longer near its beginning.
    """
    require("in [0, 1)", lambda value: (value >= 0) & (value < 1), hold=hold)
    not_negative(end=end)
    return _falling(lambda z: (1 - z) / (1 - hold * z), end)


def step(at: Numbers = (0.3, 0.6, 0.9), factor: Number = 0.1) -> Profile:
    """factor**(how many of `at` are reached): the 30-60-90 schedule. `schedules.step` steps at whole updates."""
    shares = places("at", at)
    not_negative(factor=factor)
    return lambda z: jnp.asarray(factor) ** jnp.sum(jnp.asarray(z)[..., None] >= jnp.asarray(shares, float), axis=-1)


def one_cycle(rise: Number = 0.3, fall: Number = 0.85, start: Number = 1 / 25, end: Number = 1 / 250_000) -> Profile:
    """Three lines: start to 1 at z = rise, back to start at z = fall, to end at z = 1 (Smith & Topin, 1708.07120).

    The defaults are those of `optax.linear_onecycle_schedule`, which it equals (there, the two places are rounded down
    to whole updates).
    """
    if is_known(rise) and is_known(fall) and not 0 < rise < fall < 1:
        raise ValueError(f"0 < rise < fall < 1 must hold, got rise={rise} and fall={fall}")
    not_negative(start=start, end=end)
    values = jnp.stack([jnp.asarray(value, float) for value in (start, 1.0, start, end)])
    return lambda z: jnp.interp(jnp.asarray(z), jnp.array([0.0, rise, fall, 1.0]), values)


def slow_start_fast_decay(epochs: Number = 10, rising: Number = 4, factor: Number = 0.4) -> Profile:
    """(e + 1) / rising until epoch e = z epochs is `rising` - 1, 1 for an epoch, then factor**(e - rising).

    For fine-tuning a trained network on adversarial examples (Jeddi et al., 2012.13628). The paper's exact formula is
    not public; this is one slow rise over 40 % and one fast decay. `schedules.slow_start_fast_decay` reads it once an
    epoch, so that z epochs is a whole number.
    """
    if is_known(epochs) and is_known(rising) and not 1 <= rising <= epochs:
        raise ValueError(f"rising must lie in 1 to epochs={epochs}, got {rising}")
    positive(factor=factor)

    def profile(z: Number) -> Array:
        epoch = jnp.asarray(z) * epochs
        return jnp.minimum((epoch + 1) / rising, 1) * jnp.asarray(factor) ** jnp.maximum(epoch - rising, 0)

    return profile


def table(multipliers: Number | Sequence[Number]) -> Profile:
    """The multipliers of a finished run [updates], such as `refine` returns; linear between them.

    Raises:
      ValueError: less than two, or one below 0.
    """
    values = jnp.asarray(multipliers, float)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"multipliers must be a sequence of at least 2 numbers, got shape {values.shape}")
    not_negative(multipliers=values)
    return lambda z: jnp.interp(jnp.asarray(z), jnp.linspace(0, 1, values.size), values)


def _falling(shape: Callable[[Array], Number], end: Number) -> Profile:
    """From 1 to `end` as `shape` goes from 1 to 0."""
    return lambda z: end + (1 - end) * shape(jnp.asarray(z))
