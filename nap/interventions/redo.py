"""ReDo: recycle dormant units (Sokar et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from nap import checks
from nap.interventions.rarely import rarely
from nap.interventions.units import NOT_GIVEN, Readers, as_step, by_unit, count_units, recycle
from nap.paths import PyTree


class ReDoState(NamedTuple):
    """State of `redo`.

    Attributes:
      count: updates so far.
      key: the random key, folded with the count at each reset.
      activity: each unit's mean absolute activation, summed over the batches to be scored.
      inner: the wrapped optimizer's state.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    activity: dict[str, Float[Array, " units"]]
    inner: optax.OptState


def redo(
    optimizer: optax.GradientTransformation,
    *,
    readers: Readers,
    init: Callable[[jax.Array], PyTree],
    key: jax.Array,
    tau: float = 0.025,
    every: int = 1000,
    batches: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Recycle tau-dormant units every `every` updates (Sokar et al., 2023, algorithm 1).

    A unit is dormant if its mean absolute activation is at most tau times its layer's mean. It gets fresh incoming
    weights (its bias, scale and offset included, where they lie below the layer's own path, as in `nap.layers`) and no
    outgoing ones, and the optimizer forgets what it knew of both; wrap `interventions.adam` so that this goes for step
    counts too. Layers have a `kernel`, inputs before outputs, as Flax's do. Call `update(gradients, state, params,
    activations=...)` with the activations of the batch that the gradients are of.

    Outgoing weights are set to zero after all incoming ones are drawn: a recycled unit never reads another one, where
    in timoklein/redo the fresh weight between the two stays. That code also resets the step count of a whole tensor.
    Dopamine's draws from one distribution whatever the network's is, keeps the moments of biases and all step counts,
    and behind a flatten zeroes rows of other channels.

    Args:
      optimizer: the optimizer to wrap.
      readers: which layers read which; its keys are the layers whose units are scored.
      init: the network's initializer.
      key: random key for the fresh weights.
      tau: largest dormancy score of a dormant unit.
      every: updates between recyclings.
      batches: the scores are of so many batches, the last before a recycling; 1 is as published, where the batch has
        64 examples or more.

    Raises:
      ValueError: `tau` is NaN, `every` < 1 or `batches` not in 1 to `every`; at `init`, if `readers` does not fit the
        parameters.
    """
    checks.require("a number", lambda value: ~np.isnan(value), tau=tau)
    if every < 1:
        raise ValueError(f"every must be at least 1 update, got {every}")
    if not 1 <= batches <= every:
        raise ValueError(f"batches must lie in 1 to every={every}, got {batches}")
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: PyTree) -> ReDoState:
        units = count_units(params, readers)
        activity = {layer: jnp.zeros(number) for layer, number in units.items()}
        return ReDoState(jnp.zeros([], jnp.int32), jnp.copy(key), activity, inner.init(params))

    def update_fn(updates, state, params=None, *, activations: Mapping[str, Array] | None = None, **extra):
        if params is None or activations is None:
            raise ValueError(NOT_GIVEN)
        steps, inner_state = inner.update(updates, state.inner, params, activations=activations, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        scored = (every - count) % every < batches
        activity = {
            layer: total + scored * jnp.mean(jnp.abs(by_unit(activations, layer, total.size)), axis=(0, 1))
            for layer, total in state.activity.items()
        }

        def recycle_dormant(operand: PyTree) -> PyTree:
            count, key, activity, params, steps, inner_state = operand
            masks = {layer: total <= tau * jnp.maximum(jnp.mean(total), 1e-9) for layer, total in activity.items()}
            moved, inner_state = recycle(
                inner,
                optax.apply_updates(params, steps),
                inner_state,
                masks,
                readers=readers,
                init=init,
                key=jax.random.fold_in(key, count),
            )
            cleared = {layer: jnp.zeros_like(total) for layer, total in activity.items()}
            return count, key, cleared, params, as_step(params, steps, moved), inner_state

        operand = (count, state.key, activity, params, steps, inner_state)
        *_, activity, _, steps, inner_state = rarely(count % every == 0, recycle_dormant, operand)
        return steps, ReDoState(count, state.key, activity, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
