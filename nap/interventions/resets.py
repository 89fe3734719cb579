"""Resets: draw layers anew, or forget the optimizer's state, every so many updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from nap import paths
from nap.interventions.rarely import rarely
from nap.interventions.regularizers import needed
from nap.interventions.units import reset_entries, start_over
from nap.interventions.weights import fresh_leaves
from nap.paths import PyTree
from nap.steps import landing


class ResetState(NamedTuple):
    """State of `reset_layers`.

    Attributes:
      count: updates so far.
      key: the random key, folded with the count at each reset.
      inner: the wrapped optimizer's state.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    inner: optax.OptState


class OptimizerResetState(NamedTuple):
    """State of `reset_optimizer_state`.

    Attributes:
      count: updates so far.
      inner: the wrapped optimizer's state.
    """

    count: Int[Array, ""]
    inner: optax.OptState


def reset_layers(
    optimizer: optax.GradientTransformation,
    *,
    layers: Sequence[str],
    every: int,
    init: Callable[[jax.Array], PyTree],
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Draw some layers anew every `every` updates (Nikishin et al., 2022: the last layers, the replay buffer is kept).

    The optimizer forgets what it knew of exactly these weights: moments, and the step counts of `interventions.adam`,
    which is the one to wrap: the single count of `optax.adam` goes on, where the authors' code starts it over. Where
    all weights are drawn anew its whole state starts over, single step counts too; its learning-rate schedule goes on
    (see `reset_optimizer_state`).

    Args:
      optimizer: the optimizer to wrap.
      layers: patterns of parameter paths; `*` is anything, "/" included: ["output/*"], or ["*"] for the whole network.
      every: updates from one reset to the next.
      init: the network's initializer.
      key: random key for the fresh weights.

    Raises:
      ValueError: `every` < 1; at `init`, a pattern that matches no parameter; at the update, if `init` draws other
        parameters.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1 update, got {every}")
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: PyTree) -> ResetState:
        matching(params, layers)
        return ResetState(jnp.zeros([], jnp.int32), jnp.copy(key), inner.init(params))

    def reset(operand: PyTree) -> PyTree:
        count, key, params, steps, state = operand
        fresh = fresh_leaves(init, jax.random.fold_in(key, count), params)
        drawn = matching(params, layers)
        steps = landing(params, steps, {path: fresh[path] for path in drawn})
        after = optax.apply_updates(params, steps)
        if len(drawn) == len(paths.leaves(params)):
            state = start_over(inner, state, after)
        else:
            masks = paths.map_leaves(lambda path, _: jnp.asarray(path in drawn), params)
            state = reset_entries(inner, state, after, masks)
        return count, key, params, steps, state

    def update_fn(updates, state, params=None, **extra):
        params = needed(params, "reset_layers")
        steps, inner_state = inner.update(updates, state.inner, params, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        operand = (count, state.key, params, steps, inner_state)
        *_, steps, inner_state = rarely(count % every == 0, reset, operand)
        return steps, ResetState(count, state.key, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def reset_optimizer_state(
    optimizer: optax.GradientTransformation, *, every: int | Sequence[int]
) -> optax.GradientTransformationExtraArgs:
    """Start the optimizer's state over every `every` updates; the weights stay.

    The state becomes that of `optimizer.init` at the current parameters: moments, step counts, and the initial
    parameters of an `l2_init` inside. Learning-rate schedules go on, those of `optax.scale_by_schedule`,
    `scale_by_learning_rate` and `inject_hyperparams`: they are not what an optimizer remembers. What else shall go on
    belongs outside of the wrapper.

    Args:
      optimizer: the optimizer to wrap.
      every: updates from one time to the next; or, as a sequence, the updates behind which it happens: (100, 250) means
        after the 100th and after the 250th.

    Raises:
      ValueError: `every` < 1, or one of a sequence.
    """
    times = (every,) if isinstance(every, int) else tuple(every)
    if any(time < 1 for time in times):
        raise ValueError(f"every must be at least 1 update, got {every}")
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: PyTree) -> OptimizerResetState:
        return OptimizerResetState(jnp.zeros([], jnp.int32), inner.init(params))

    def begin_anew(operand: PyTree) -> PyTree:
        after, state = operand
        return after, start_over(inner, state, after)

    def update_fn(updates, state, params=None, **extra):
        params = needed(params, "reset_optimizer_state")
        steps, inner_state = inner.update(updates, state.inner, params, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        operand = (optax.apply_updates(params, steps), inner_state)
        due = count % every == 0 if isinstance(every, int) else jnp.isin(count, jnp.asarray(times, jnp.int32))
        _, inner_state = rarely(due, begin_anew, operand)
        return steps, OptimizerResetState(count, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def matching(params: PyTree, patterns: Iterable[str]) -> set[str]:
    """The paths of all leaves that a pattern matches.

    Raises:
      ValueError: a single text; a pattern that matches nothing (in a tree without leaves, such as optax's stand-in for
        the parameters, none has to).
    """
    if isinstance(patterns, str):
        raise ValueError(f"patterns must be a list of them, got the text {patterns!r}: write [{patterns!r}]")
    names = list(paths.leaves(params))
    found: set[str] = set()
    for pattern in patterns:
        hits = paths.matching(pattern, names)
        if names and not hits:
            raise ValueError(f"no parameter matches {pattern!r}; the parameters are {', '.join(names)}")
        found.update(hits)
    return found
