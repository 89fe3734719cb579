"""Continual backprop: replace a few of the least useful units all the time (Dohare et al., 2021, 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from nap import paths
from nap.axes import last_axes
from nap.interventions.rarely import rarely
from nap.interventions.units import NOT_GIVEN, Readers, UnitMasks, as_step, by_unit, count_units, outgoing, recycle
from nap.paths import PyTree


class UnitRecord(NamedTuple):
    """What continual backprop keeps of one layer.

    Attributes:
      ages: updates since each unit's start.
      utility: the running mean of each unit's utility, without bias correction.
      mean_activation: the running mean of each unit's features, without bias correction; behind a flatten of each at
        each place.
      due: units to be replaced, the fraction that is left over from earlier updates included.
    """

    ages: Int[Array, " units"]
    utility: Float[Array, " units"]
    mean_activation: Float[Array, "places k units"]
    due: Float[Array, ""]


class ContinualBackpropState(NamedTuple):
    """State of `continual_backprop`.

    Attributes:
      count: updates so far.
      key: the random key, folded with the count at each replacement.
      units: a record for each layer.
      inner: the wrapped optimizer's state.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    units: dict[str, UnitRecord]
    inner: optax.OptState


def continual_backprop(
    optimizer: optax.GradientTransformation,
    *,
    readers: Readers,
    init: Callable[[jax.Array], PyTree],
    key: jax.Array,
    rate: float = 1e-4,
    maturity: int = 100,
    decay: float = 0.99,
    features: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Replace the least useful mature units at a steady rate (Dohare et al., 2024, algorithm 1).

    A unit's utility is that of Dohare et al. (2021), "adaptable contribution" in their code: the running mean of
    |outgoing weight| x mean |activation - its running mean|, averaged over the outgoing weights, / mean |incoming
    weight|. Behind a convolution each position counts with its own weights where a flatten gives it some. After every
    update, `rate` x (number of units older than `maturity`) more units of a layer are due; of the mature ones those
    with the least utility get fresh incoming and no outgoing weights. What they gave on average is added to the biases
    of the layers that read them (a layer with a normalization has none, and its pre-activations change). The optimizer
    forgets what it knew of the unit; wrap `interventions.adam` so that this goes for step counts too. Call
    `update(gradients, state, params, activations=...)`.

    The authors' code differs in four things: it clears the running mean before it hands it over, which adds 0 to the
    biases (for convolutions it hands nothing over); it lets a fresh unit read another one that is replaced at the same
    time; of a convolution's channels `rate` x all are due once one is mature; and a fresh bias is 0, not the
    initializer's. Their later code, for larger networks, has no running mean in the utility and takes the activations
    of a single batch.

    Args:
      optimizer: the optimizer to wrap.
      readers: which layers read which; its keys are the layers whose units are replaced.
      init: the network's initializer.
      key: random key for the fresh weights.
      rate: share of the mature units of a layer that is replaced at each update.
      maturity: updates before a unit may be replaced.
      decay: of the running means.
      features: features of a unit: 2 for CReLU and Fourier features.

    Raises:
      ValueError: `rate` outside 0 to 1, `decay` outside 0 to 1 (1 excluded), `maturity` < 0; at `init`, if `readers`
        does not fit the parameters.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is a share of the units, 0 to 1, got {rate}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in 0 to 1, below 1, got {decay}")
    if maturity < 0:
        raise ValueError(f"maturity must be at least 0 updates, got {maturity}")
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: PyTree) -> ContinualBackpropState:
        units, leaves = {}, paths.leaves(params)
        for layer, number in count_units(params, readers, features).items():
            kernels = [leaves[f"{reader}/kernel"] for reader in readers[layer] if number]
            places = max((kernel.shape[0] // (features * number) for kernel in kernels if kernel.ndim == 2), default=1)
            ages, utility = jnp.zeros(number, jnp.int32), jnp.zeros(number)
            units[layer] = UnitRecord(ages, utility, jnp.zeros((places, features, number)), jnp.zeros([]))
        return ContinualBackpropState(jnp.zeros([], jnp.int32), jnp.copy(key), units, inner.init(params))

    def update_fn(updates, state, params=None, *, activations: Mapping[str, Array] | None = None, **extra):
        if params is None or activations is None:
            raise ValueError(NOT_GIVEN)
        steps, inner_state = inner.update(updates, state.inner, params, activations=activations, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        moved = optax.apply_updates(params, steps)
        leaves = paths.leaves(moved)
        units = {layer: _observe(record, activations, leaves, layer) for layer, record in state.units.items()}

        def replace(operand: PyTree) -> PyTree:
            count, key, units, params, steps, inner_state = operand
            masks = {layer: _least_useful(record) for layer, record in units.items()}
            moved = _hand_over(optax.apply_updates(params, steps), units, masks)
            moved, inner_state = recycle(
                inner, moved, inner_state, masks, readers=readers, init=init, key=jax.random.fold_in(key, count)
            )
            units = {layer: _begin_anew(record, masks[layer]) for layer, record in units.items()}
            return count, key, units, params, as_step(params, steps, moved), inner_state

        operand = (count, state.key, units, params, steps, inner_state)
        any_due = jnp.any(jnp.stack([record.due >= 1 for record in units.values()]))
        *_, units, _, steps, inner_state = rarely(any_due, replace, operand)
        return steps, ContinualBackpropState(count, state.key, units, inner_state)

    def _observe(
        record: UnitRecord, activations: Mapping[str, Array], leaves: Mapping[str, Array], layer: str
    ) -> UnitRecord:
        values = by_unit(activations, layer, record.ages.size)
        if values.shape[1] != features:
            raise ValueError(f"a unit of {layer} has {values.shape[1]} features, but features={features}")
        ages, places = record.ages + 1, record.mean_activation
        by_place = values.reshape(-1, math.prod(activations[layer].shape[1:-1]), *values.shape[1:])
        given = jnp.mean(by_place, axis=0)  # by one mean where pooling or a window leaves places and positions apart
        given = given if len(given) == len(places) else jnp.broadcast_to(jnp.mean(given, axis=0), places.shape)
        mean = decay * places + (1 - decay) * given
        usual = jnp.mean(mean, axis=0)
        usual = usual / last_axes(1 - decay**ages, usual)
        swing = jnp.mean(jnp.abs(by_place - last_axes(usual, by_place)), axis=0)
        parts = [_contribution(leaves[f"{reader}/kernel"], swing) for reader in readers[layer]]
        out = sum(total for total, _ in parts) / sum(weights for _, weights in parts)
        into = leaves[f"{layer}/kernel"]
        incoming = jnp.mean(jnp.abs(into), axis=tuple(range(into.ndim - 1)))
        now = jnp.sum(out, axis=0) / jnp.maximum(incoming, 1e-12)
        mature = jnp.sum(ages > maturity)
        return UnitRecord(ages, decay * record.utility + (1 - decay) * now, mean, record.due + rate * mature)

    def _least_useful(record: UnitRecord) -> Array:
        utility = jnp.where(record.ages > maturity, record.utility / (1 - decay**record.ages), jnp.inf)
        rank = jnp.argsort(jnp.argsort(utility))
        return (rank < jnp.floor(record.due)) & jnp.isfinite(utility)

    def _begin_anew(record: UnitRecord, mask: Array) -> UnitRecord:
        ages, utility, mean = (jnp.where(last_axes(mask, part), 0, part) for part in record[:3])
        return UnitRecord(ages, utility, mean, record.due - jnp.floor(record.due))

    def _hand_over(params: PyTree, units: dict[str, UnitRecord], masks: UnitMasks) -> PyTree:
        """Adds what the replaced units gave on average to the biases of the layers that read them."""
        leaves = dict(paths.leaves(params))
        for layer, record in units.items():
            mask, known = (last_axes(of, record.mean_activation) for of in (masks[layer], 1 - decay**record.ages))
            mean = jnp.where(mask, record.mean_activation / known, 0)
            for reader in readers[layer]:
                if f"{reader}/bias" in leaves:
                    rows, met = _meet(leaves[f"{reader}/kernel"], mean)
                    bias = leaves[f"{reader}/bias"]
                    leaves[f"{reader}/bias"] = (bias + jnp.einsum("pkuo,pku->o", rows, met)).astype(bias.dtype)
        return paths.replace(params, leaves)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _contribution(
    kernel: Float[Array, "*space inputs outputs"], swing: Float[Array, "positions k units"]
) -> tuple[Float[Array, "k units"], int]:
    """The sum of |weight| x swing over a reader's weights for each feature of each unit, and how many these are."""
    rows, met = _meet(kernel, swing)
    return jnp.sum(jnp.sum(jnp.abs(rows), axis=-1) * met, axis=0), rows.shape[0] * rows.shape[-1]


def _meet(
    kernel: Float[Array, "*space inputs outputs"], values: Float[Array, "positions k units"]
) -> tuple[Float[Array, "places k units outputs"], Float[Array, "places k units"]]:
    """A reader's weights, and what of a layer's values meets them.

    Behind a flatten each position has weights of its own. A convolution's window meets all positions alike, and where
    positions were pooled on the way, which met which is not known: there it is the mean over positions.
    """
    rows = outgoing(kernel, *values.shape[1:])
    if kernel.ndim == 2 and len(rows) == len(values):
        return rows, values
    return rows, jnp.broadcast_to(jnp.mean(values, axis=0), rows.shape[:-1])
