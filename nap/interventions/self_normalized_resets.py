"""Self-normalized resets: recycle a unit that has been silent for longer than it ever is (Farias & Jozefiak, 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from nap.interventions.rarely import rarely
from nap.interventions.units import NOT_GIVEN, Readers, as_step, by_unit, count_units, recycle
from nap.paths import PyTree

BINS_PER_DOUBLING = 2
"""The silences of a unit are counted in bins whose edges grow by a factor of sqrt(2)."""


class FiringRecord(NamedTuple):
    """What self-normalized resets keep of one layer.

    Attributes:
      silence: updates since each unit fired or began anew.
      histogram: how often a silence ended in each bin, since the thresholds were last set.
      greatest: the longest of these silences in each bin.
      threshold: the silence, in updates, at which a unit is recycled.
    """

    silence: Int[Array, " units"]
    histogram: Int[Array, "units bins"]
    greatest: Int[Array, "units bins"]
    threshold: Float[Array, " units"]


class SelfNormalizedResetsState(NamedTuple):
    """State of `self_normalized_resets`.

    Attributes:
      count: updates so far.
      key: the random key, folded with the count at each recycling.
      units: a record for each layer.
      inner: the wrapped optimizer's state.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    units: dict[str, FiringRecord]
    inner: optax.OptState


def self_normalized_resets(
    optimizer: optax.GradientTransformation,
    *,
    readers: Readers,
    init: Callable[[jax.Array], PyTree],
    key: jax.Array,
    percentile: float = 0.99,
    threshold: int = 1000,
    every: int = 1000,
    expansion: float = 2.0,
    shortest: int = 16,
    longest: int = 20_000,
) -> optax.GradientTransformationExtraArgs:
    """Recycle units whose silence reaches the longest that is usual for them (Farias & Jozefiak, 2024).

    A unit fires at an update if it is positive for any example of the batch, at any position. The updates between two
    firings are a silence; one that reaches the unit's threshold ends by recycling the unit, and is counted too. Every
    `every` updates each threshold is set anew: to the `percentile` of the unit's silences since the last time where
    that is below the threshold, otherwise to `expansion` times the threshold. A unit that fired at every update gets
    the least threshold; one that never did keeps its own. The optimizer forgets what it knew of a recycled unit; wrap
    `interventions.adam` so that this goes for step counts too. Call `update(gradients, state, params,
    activations=...)`.

    These are the rules of the authors' code: firings in a row are no silences of 0, and the percentile itself recycles,
    so that a unit whose silences are all alike is recycled at each of them in every other period. What differs here:

    - The code keeps a count of every length for each unit. Here silences are counted in bins of growing width (edges
      at powers of sqrt(2)), and the percentile is the longest one in the bin that holds it: exact where a unit's
      silences are alike, too long by a factor of sqrt(2) at most.
    - `shortest` is one update there, of 100 examples. Of small batches a healthy unit often misses one or two in a row.
    - `every` is 16 tasks there; an optimizer knows of no tasks.
    - A unit that was silent for a whole period gets the least threshold there, so it is recycled before its time.
    - A recycled unit's bias is the initializer's draw, there 0, and step counts of its weights start over.

    Args:
      optimizer: the optimizer to wrap.
      readers: which layers read which; its keys are the layers whose units are watched.
      init: the network's initializer.
      key: random key for the fresh weights.
      percentile: share of a unit's silences that are as long as its threshold or shorter; 1 recycles nothing.
      threshold: the threshold, in updates, to begin with.
      every: updates between new thresholds.
      expansion: factor by which a threshold grows that too many silences reach.
      shortest: least threshold, in updates.
      longest: greatest threshold, in updates.

    Raises:
      ValueError: `percentile` outside 0 to 1, `expansion` < 1, or not 1 <= `shortest` <= `threshold` <= `longest`; at
        `init`, if `readers` does not fit the parameters.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile is a share of the silences, above 0 and at most 1, got {percentile}")
    if every < 1:
        raise ValueError(f"every must be at least 1 update, got {every}")
    if expansion < 1:
        raise ValueError(f"expansion must be at least 1, got {expansion}")
    if not 1 <= shortest <= threshold <= longest:
        raise ValueError(f"needs 1 <= shortest <= threshold <= longest, got {shortest}, {threshold}, {longest}")
    inner = optax.with_extra_args_support(optimizer)
    bins = math.floor(BINS_PER_DOUBLING * math.log2(longest)) + 2
    edges = jnp.array([math.ceil(2 ** ((i + 1) / BINS_PER_DOUBLING)) for i in range(bins)])

    def init_fn(params: PyTree) -> SelfNormalizedResetsState:
        units = {
            layer: FiringRecord(
                jnp.zeros(number, jnp.int32),
                jnp.zeros((number, bins), jnp.int32),
                jnp.zeros((number, bins), jnp.int32),
                jnp.full(number, threshold, jnp.float32),
            )
            for layer, number in count_units(params, readers).items()
        }
        return SelfNormalizedResetsState(jnp.zeros([], jnp.int32), jnp.copy(key), units, inner.init(params))

    def update_fn(updates, state, params=None, *, activations: Mapping[str, Array] | None = None, **extra):
        if params is None or activations is None:
            raise ValueError(NOT_GIVEN)
        steps, inner_state = inner.update(updates, state.inner, params, activations=activations, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        units, masks = {}, {}
        for layer, record in state.units.items():
            fired = jnp.any(by_unit(activations, layer, record.silence.size) > 0, axis=(0, 1))
            silence = jnp.where(fired, record.silence, record.silence + 1)
            masks[layer] = ~fired & (silence >= record.threshold) & (percentile < 1)
            ended, length = fired | masks[layer], jnp.minimum(silence, longest)[:, None]
            reached = jnp.searchsorted(edges, length, side="right")
            arrived = ended[:, None] & (length > 0) & (jnp.arange(bins)[None] == reached)
            units[layer] = FiringRecord(
                jnp.where(ended, 0, silence),
                record.histogram + arrived,
                jnp.maximum(record.greatest, jnp.where(arrived, length, 0)),
                record.threshold,
            )
        units = rarely(count % every == 0, _new_thresholds, units)

        def recycle_silent(operand: PyTree) -> PyTree:
            count, key, masks, params, steps, inner_state = operand
            moved = optax.apply_updates(params, steps)
            moved, inner_state = recycle(
                inner, moved, inner_state, masks, readers=readers, init=init, key=jax.random.fold_in(key, count)
            )
            return count, key, masks, params, as_step(params, steps, moved), inner_state

        operand = (count, state.key, masks, params, steps, inner_state)
        any_silent = jnp.any(jnp.concatenate(list(masks.values())))
        *_, steps, inner_state = rarely(any_silent, recycle_silent, operand)
        return steps, SelfNormalizedResetsState(count, state.key, units, inner_state)

    def _new_thresholds(units: dict[str, FiringRecord]) -> dict[str, FiringRecord]:
        return {layer: _new_threshold(record) for layer, record in units.items()}

    def _new_threshold(record: FiringRecord) -> FiringRecord:
        counted = jnp.cumsum(record.histogram, axis=1)
        total = counted[:, -1:]
        reached = jnp.argmax(counted / jnp.maximum(total, 1) >= percentile, axis=1)  # the first bin that has it
        usual = jnp.take_along_axis(record.greatest, reached[:, None], axis=1)[:, 0].astype(jnp.float32)
        threshold = jnp.where(usual < record.threshold, usual, expansion * record.threshold)
        without_silences = jnp.where(record.silence < every, shortest, record.threshold)  # it fired, or it did not
        threshold = jnp.clip(jnp.where(total[:, 0] > 0, threshold, without_silences), shortest, longest)
        none = jnp.zeros_like(record.histogram)
        return FiringRecord(record.silence, none, none, threshold)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
