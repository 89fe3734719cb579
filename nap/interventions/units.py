"""Units and what belongs to them: their activations, their incoming and outgoing weights, their optimizer state.

A unit of the layer "hidden/0" owns a slice of everything under "hidden/0/": a column of its kernel (Flax layout,
outputs on the last axis), an entry of its bias, or of its normalization's scale and offset. Its outgoing weights are
rows of the kernels that read the layer. Through a flatten it has a row for each position; CReLU and Fourier features
give it two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from nap import paths
from nap.axes import last_axes
from nap.paths import PyTree
from nap.roles import attention_kernels

Readers = Mapping[str, Sequence[str]]
"""For each hidden layer, the layers that take its activations in: {"hidden/0": ("hidden/1",), "hidden/1": ("output",)}.

The networks of `nap.networks` offer theirs as `network.readers`."""

UnitMasks = dict[str, Bool[Array, " units"]]
"""Some units of each layer."""


NOT_GIVEN = "units are recycled by their activations: call update(gradients, state, params, activations=...)"


def count_units(params: PyTree, readers: Readers, features: int = 1) -> dict[str, int]:
    """The number of units of each layer that `readers` names; 0 where `optax.tree.map_params` asks.

    Args:
      params: the parameters.
      readers: which layers read which.
      features: at least so many features a unit.

    Raises:
      ValueError: `readers` is empty, or names a layer whose kernel the parameters do not have, or whose kernel does not
        take the layer's units in, or which is a part of attention.
    """
    if not readers:
        raise ValueError("readers are empty, so there is no unit to recycle: pass network.readers, or name the layers")
    if paths.is_stand_in(params):
        return dict.fromkeys(readers, 0)
    leaves, attention = paths.leaves(params), attention_kernels(params)
    units = {}
    for layer, reading in readers.items():
        if isinstance(reading, str):
            raise ValueError(f"the readers of {layer!r} must be a list of layers, got {reading!r}: write [{reading!r}]")
        for name in (layer, *reading):
            if f"{name}/kernel" not in leaves:
                known = ", ".join(path.removesuffix("/kernel") for path in leaves if path.endswith("/kernel"))
                there = f"layers: {known}" if known else "no parameter is called kernel, as Flax's weights are"
                raise ValueError(f"readers name the layer {name!r}, but there is no {name}/kernel ({there})")
            if f"{name}/kernel" in attention:
                of = "units of dense and convolutional layers can be recycled"
                raise ValueError(f"readers name the layer {name!r}, which is a part of attention: {of}")
        units[layer] = leaves[f"{layer}/kernel"].shape[-1]
        for name in reading:
            inputs = leaves[f"{name}/kernel"].shape[-2]
            if inputs % (features * units[layer]):
                of = f"{units[layer]} units of {layer}" + (f" with {features} features each" if features > 1 else "")
                raise ValueError(f"{name} takes {inputs} inputs, no multiple of the {of}")
    return units


def by_unit(
    activations: Mapping[str, Float[Array, "batch *space features"]], layer: str, units: int
) -> Float[Array, "samples k units"]:
    """A layer's activations with one row a sample (and position, in a convolution), and a unit's k features apart.

    Raises:
      ValueError: there are none of this layer, or of another number of units.
    """
    if layer not in activations:
        raise ValueError(f"the activations lack the layer {layer!r} (they have {', '.join(activations) or 'none'})")
    features = activations[layer].shape[-1]
    if features % units:
        raise ValueError(f"the activations of {layer} have {features} features, no multiple of its {units} units")
    return activations[layer].reshape(-1, features // units, units)


def outgoing(
    kernel: Float[Array, "*space inputs outputs"], k: int, units: int
) -> Float[Array, "places k units outputs"]:
    """A reader's kernel with one row for each of a unit's `k` features at each place (of a window, or of a flatten)."""
    return kernel.reshape(-1, k, units, kernel.shape[-1])


def recycle(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    state: optax.OptState,
    masks: UnitMasks,
    *,
    readers: Readers,
    init: Callable[[jax.Array], PyTree],
    key: jax.Array,
) -> tuple[PyTree, optax.OptState]:
    """Give some units new incoming weights and no outgoing ones, and forget what the optimizer knew of either.

    What reads a recycled unit does not depend on it at first. In a layer with a normalization the unit's new
    pre-activation is still part of the mean and variance that the other units are normalized by.

    Args:
      optimizer: the optimizer that `state` belongs to.
      params: the parameters.
      state: the optimizer's state.
      masks: which units of each layer to recycle.
      readers: which layers read which.
      init: the network's initializer; the new incoming weights, biases, scales and offsets are its draw from `key`.
      key: a random key.

    Returns:
      The parameters, and the optimizer's state with the entries of all changed weights as after `optimizer.init`.
    """
    leaves, fresh = paths.leaves(params), paths.leaves(init(key))
    changed: dict[str, Array] = {path: jnp.zeros((1,) * leaf.ndim, bool) for path, leaf in leaves.items()}
    new = dict(leaves)
    for layer, mask in masks.items():
        for path in _owned(leaves, layer, mask.size):
            of_unit = last_axes(mask, leaves[path])
            changed[path] = changed[path] | of_unit
            new[path] = jnp.where(of_unit, fresh[path].astype(leaves[path].dtype), new[path])
    for layer, mask in masks.items():  # after all incoming weights: a new unit must not read a recycled one
        for reader in readers[layer]:
            path = f"{reader}/kernel"
            kernel = leaves[path]
            rows = last_axes(jnp.tile(mask, kernel.shape[-2] // mask.size)[:, None], kernel)
            changed[path] = changed[path] | rows
            new[path] = jnp.where(rows, 0, new[path])
    after = paths.replace(params, new)
    return after, reset_entries(optimizer, state, after, paths.replace(params, changed))


def reset_entries(
    optimizer: optax.GradientTransformation, state: optax.OptState, fresh_params: PyTree, masks: PyTree
) -> optax.OptState:
    """An optimizer's state with some entries as they would be after `optimizer.init(fresh_params)`.

    The parts of the state that mirror the parameters (moments, traces, the counts of `interventions.adam`) are known by
    their paths and shapes: a subtree belongs to them if every leaf of it has the path and the shape of a parameter, so
    that also a part of the parameters is found, as `optax.partition` keeps it. What has no entry for each parameter,
    such as the single step count of `optax.adam`, stays.

    Args:
      optimizer: the optimizer that `state` belongs to.
      state: its state.
      fresh_params: the parameters that the entries shall be initialized for.
      masks: which entries to reset: booleans in the parameters' structure, broadcastable to the leaves.
    """
    shapes = {path: jnp.shape(leaf) for path, leaf in paths.leaves(fresh_params).items()}
    marks = paths.leaves(masks)

    def mirrors(node: PyTree) -> bool:
        leaves = paths.leaves(node)
        return bool(leaves) and all(shapes.get(path) == jnp.shape(leaf) for path, leaf in leaves.items())

    def reset(old: PyTree, fresh: PyTree) -> PyTree:
        if not mirrors(old):
            return old
        begun = paths.leaves(fresh)
        return paths.map_leaves(lambda path, leaf: jnp.where(marks[path], begun[path], leaf), old)

    return jax.tree.map(reset, state, optimizer.init(fresh_params), is_leaf=mirrors)


def start_over(optimizer: optax.GradientTransformation, state: optax.OptState, params: PyTree) -> optax.OptState:
    """An optimizer's state as after `optimizer.init(params)`, but that its schedules go on.

    These are `optax.scale_by_schedule` (and so `scale_by_learning_rate`) and the numbers that
    `optax.inject_hyperparams` holds; what counts for a schedule in another way starts over.
    """

    def renew(old: PyTree, fresh: PyTree) -> PyTree:
        if isinstance(old, optax.ScaleByScheduleState):
            return old
        if isinstance(old, optax.InjectStatefulHyperparamsState):
            return old._replace(inner_state=renewed(old.inner_state, fresh.inner_state))
        return fresh

    def renewed(old: optax.OptState, fresh: optax.OptState) -> optax.OptState:
        return jax.tree.map(renew, old, fresh, is_leaf=lambda node: isinstance(node, _WITH_SCHEDULES))

    return renewed(state, optimizer.init(params))


_WITH_SCHEDULES = (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)


def as_step(params: PyTree, steps: PyTree, new: PyTree) -> PyTree:
    """The update that takes `params` to `new`; an entry that `steps` leads there keeps its step, to the last bit."""

    def replace(old: Array, step: Array, moved: Array, after: Array) -> Array:
        return jnp.where(after == moved, step, (after - old).astype(step.dtype))

    return jax.tree.map(replace, params, steps, optax.apply_updates(params, steps), new)


def _owned(leaves: Mapping[str, Array], layer: str, units: int) -> list[str]:
    """The leaves with an entry for each unit of a layer; an activation function's parameters are not a unit's own."""
    return [
        path
        for path, leaf in leaves.items()
        if path.startswith(f"{layer}/") and leaf.shape[-1:] == (units,) and not path.startswith(f"{layer}/activation/")
    ]
