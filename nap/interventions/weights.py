"""Interventions on the weights that an update leads to. They stand behind the optimizer and before the projection.

Each changes the update so that `optax.apply_updates(params, updates)` lands on the new weights. Under
`nap.normalize_and_project` the projection then has the last word on the norms of hidden weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from nap import checks, paths
from nap.interventions.rarely import rarely
from nap.interventions.regularizers import SpectralState, first_vectors, follow_spectra, needed, with_roles
from nap.norms import vector_norm
from nap.paths import PyTree
from nap.projection import RoleSpec, factor_to
from nap.roles import LeafRole, Role
from nap.steps import landing, moved, wide


class RandomState(NamedTuple):
    """State of `shrink_and_perturb` and `noisy_updates`.

    Attributes:
      count: updates so far.
      key: the random key, folded with the count at each draw.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]


class HareAndTortoiseState(NamedTuple):
    """State of `hare_and_tortoise`.

    Attributes:
      count: updates so far.
      tortoise: the moving average of the parameters, float32 at least.
    """

    count: Int[Array, ""]
    tortoise: PyTree


def shrink_and_perturb(
    *, shrink: float, perturb: float, init: Callable[[jax.Array], PyTree], key: jax.Array, every: int = 1
) -> optax.GradientTransformation:
    """Set theta <- shrink * theta + perturb * fresh for every floating-point parameter (Ash & Adams, 2020).

    `fresh` is a new draw of the network's initializer, each time another one. As published there are two ways: hard,
    shrink = perturb = 0.5 at the start of each task; and soft, 1 - 1e-6 and 1e-6 at every update, where drawing the
    weights anew each time is what the method costs. The optimizer's state is left as it is. The codes of DASH and UPGD
    add Gaussian noise of one size for all layers instead of a fresh draw.

    Args:
      shrink: factor on the weights; 1 keeps them.
      perturb: factor on the fresh draw; 0 adds nothing.
      init: the network's initializer.
      key: a random key.
      every: updates from one time to the next.

    Raises:
      ValueError: `shrink` outside 0 to 1, `perturb` < 0, `every` < 1; at the update, if `init` draws other parameters.
    """
    checks.share("shrink", shrink, " (1 keeps the weights)")
    checks.not_negative(perturb=perturb)
    if every < 1:
        raise ValueError(f"every must be at least 1 update, got {every}")

    def shrunk(operand: tuple[Array, jax.Array, PyTree, PyTree]) -> tuple[Array, jax.Array, PyTree, PyTree]:
        count, key, params, updates = operand
        fresh = fresh_leaves(init, jax.random.fold_in(key, count), params)
        new = {path: shrink * weight + perturb * fresh[path] for path, weight in moved(params, updates).items()}
        return count, key, params, landing(params, updates, new)

    def update_fn(updates, state, params=None):
        params = needed(params, "shrink_and_perturb")
        count = jnp.asarray(optax.safe_increment(state.count))
        operand = (count, state.key, params, updates)
        *_, updates = shrunk(operand) if every == 1 else rarely(count % every == 0, shrunk, operand)
        return updates, RandomState(count, state.key)

    return optax.GradientTransformation(lambda params: _random_state(key), update_fn)


def noisy_updates(scale: optax.ScalarOrSchedule, key: jax.Array) -> optax.GradientTransformation:
    """Add Gaussian noise N(0, scale^2) to every entry of the update: behind SGD, perturbed gradient descent.

    The published noise is added to the gradient; behind SGD with learning rate a, noise of standard deviation sigma on
    the gradient is `scale = a * sigma` here.

    Args:
      scale: standard deviation, in units of the weights, or a schedule of it.
      key: a random key.

    Raises:
      ValueError: `scale` < 0.
    """
    if not callable(scale):
        checks.not_negative(scale=scale)

    def update_fn(updates, state, params=None):
        del params
        deviation = scale(state.count) if callable(scale) else scale
        noise = optax.tree.random_like(jax.random.fold_in(state.key, state.count), updates)
        updates = jax.tree.map(lambda u, n: u + (deviation * n).astype(u.dtype), updates, noise)
        return updates, RandomState(jnp.asarray(optax.safe_increment(state.count)), state.key)

    return optax.GradientTransformation(lambda params: _random_state(key), update_fn)


def clip_weights(kappa: float, *, include_output: bool = True, roles: RoleSpec = None) -> optax.GradientTransformation:
    """Clip every weight to +-kappa / sqrt(fan in) after each update (Elsayed et al., 2024).

    1 / sqrt(fan in) is the bound of the uniform initialization of PyTorch's and DQN Zoo's layers. A bias has its
    layer's fan in, that of the weight beside it. Embeddings, the parameters of activation functions and biases without
    a weight beside them stay as they are, and so do normalizations, which the authors' code clips too, by the fan in of
    the layer before: a scale of 1 to kappa / 4 behind 16 inputs.

    Args:
      kappa: largest weight, in bounds; published are 1 to 5, for residual networks 10 to 20.
      include_output: whether the output layer is clipped too.
      roles: what is a weight and what a bias: see `nap.roles`.

    Raises:
      ValueError: `kappa` <= 0.
    """
    checks.positive(kappa=kappa)
    clipped = (Role.HIDDEN, Role.OUTPUT) if include_output else (Role.HIDDEN,)

    def update_fn(updates, state, params=None):
        params = needed(params, "clip_weights")
        fan_in = {layer_of(leaf): _fan_in(leaf) for leaf in with_roles(params, roles, *clipped)}
        weights, new = moved(params, updates), {}
        for leaf in with_roles(params, roles, *clipped, Role.BIAS):
            if layer_of(leaf) in fan_in:
                bound = kappa / math.sqrt(fan_in[layer_of(leaf)])
                new[leaf.path] = jnp.clip(weights[leaf.path], -bound, bound)
        return landing(params, updates, new), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def spectral_normalization(radius: float = 1.0, *, roles: RoleSpec = None) -> optax.GradientTransformation:
    """Divide every hidden weight by its largest singular value after each update: W <- radius W / sigma.

    Published spectral normalization (Miyato et al., 2018) divides inside of the network, so that gradients flow through
    sigma; here the weights themselves are projected. As there, a weight of norm below the radius is scaled up.
    sigma comes from one step of power iteration at each update, from the last update's vector (30 at `init`).

    Before `nap.normalize_and_project` it does nothing: that scales each weight as a whole, too, and comes last.

    Args:
      radius: the spectral norm of every hidden weight.
      roles: which weights are hidden: see `nap.roles`.

    Raises:
      ValueError: `radius` <= 0.
    """
    checks.positive(radius=radius)

    def init_fn(params: PyTree) -> SpectralState:
        return first_vectors(params, with_roles(params, roles, Role.HIDDEN))

    def update_fn(updates, state, params=None):
        params = needed(params, "spectral_normalization")
        weights = moved(params, updates)
        hidden = with_roles(params, roles, Role.HIDDEN)
        spectra, state = follow_spectra(weights, hidden, state)
        new = {}
        for leaf, spectrum in zip(hidden, spectra, strict=True):
            sigma = spectrum.sigma.reshape(spectrum.sigma.shape + (1,) * (len(leaf.shape) - leaf.stacked))
            new[leaf.path] = weights[leaf.path] * factor_to(radius, sigma)
        return landing(params, updates, new), state

    return optax.GradientTransformation(init_fn, update_fn)


def project_units(
    radius: float = 1.0, *, include_output: bool = False, roles: RoleSpec = None
) -> optax.GradientTransformation:
    """Scale every hidden unit's incoming weights to norm `radius` after each update (SimbaV2, Lee et al., 2025).

    SimbaV2 projects its first weights too; here the first update does. It also projects its output layers, as
    `include_output` does, and has a softmax or tanh behind them; elsewhere that bounds outputs by the features' norm.
    Incoming weights of zero stay zero.

    Args:
      radius: the norm of a column of a dense kernel, or of a filter.
      include_output: whether the output layer is projected too.
      roles: which weights are hidden: see `nap.roles`.

    Raises:
      ValueError: `radius` <= 0.
    """
    checks.positive(radius=radius)
    projected = (Role.HIDDEN, Role.OUTPUT) if include_output else (Role.HIDDEN,)

    def update_fn(updates, state, params=None):
        params = needed(params, "project_units")
        weights = moved(params, updates)
        new = {}
        for leaf in with_roles(params, roles, *projected):
            norm = vector_norm(weights[leaf.path], axis=incoming_axes(leaf), keepdims=True)
            new[leaf.path] = weights[leaf.path] * factor_to(radius, norm)
        return landing(params, updates, new), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def hare_and_tortoise(*, momentum: float = 0.999, every: int) -> optax.GradientTransformation:
    """Set the parameters to their own moving average now and then (Lee et al., 2024).

    After each update the tortoise <- momentum * tortoise + (1 - momentum) * parameters, from the initial parameters on;
    every `every` updates the parameters (the hare) are set to the tortoise. The optimizer's state is left as it is.
    Behind this transformation a projection moves the hare only: the tortoise averages what the updates lead to.

    In the authors' code the two share their storage after a reset, so that the tortoise has the next update in full; it
    averages batch statistics too, and counts epochs.

    Args:
      momentum: of the moving average; 0 does nothing.
      every: updates from one time to the next.

    Raises:
      ValueError: `momentum` outside 0 to 1, or `every` < 1.
    """
    checks.share("momentum", momentum)
    if every < 1:
        raise ValueError(f"every must be at least 1 update, got {every}")

    def average_of(leaf: Array) -> Array:  # wide: a share of 1 - momentum would be lost in a narrower type
        return jnp.copy(wide(leaf) if paths.is_weight_array(leaf) else leaf)

    def init_fn(params: PyTree) -> HareAndTortoiseState:
        return HareAndTortoiseState(jnp.zeros([], jnp.int32), jax.tree.map(average_of, params))

    def update_fn(updates, state, params=None):
        params = needed(params, "hare_and_tortoise")
        count = jnp.asarray(optax.safe_increment(state.count))
        hare, before = moved(params, updates), paths.leaves(state.tortoise)
        tortoise = {path: momentum * before[path] + (1 - momentum) * weight for path, weight in hare.items()}
        new = {path: jnp.where(count % every == 0, tortoise[path], weight) for path, weight in hare.items()}
        return landing(params, updates, new), HareAndTortoiseState(count, paths.replace(state.tortoise, tortoise))

    return optax.GradientTransformation(init_fn, update_fn)


def fresh_leaves(init: Callable[[jax.Array], PyTree], key: jax.Array, params: PyTree) -> dict[str, Array]:
    """The leaves of a new draw of the initializer, by path.

    Raises:
      ValueError: it lacks one of the parameters, or draws it in another shape.
    """
    fresh = paths.leaves(init(key))
    for path, leaf in paths.leaves(params).items():
        if path not in fresh or fresh[path].shape != leaf.shape:
            drawn = f"draws shape {fresh[path].shape}" if path in fresh else "draws no such leaf"
            raise ValueError(f"{path!r} has shape {leaf.shape}, but init {drawn}")
    return fresh


def incoming_axes(leaf: LeafRole) -> tuple[int, ...]:
    """The axes of a weight over which one unit's incoming weights lie."""
    return tuple(axis for axis in range(leaf.stacked, len(leaf.shape)) if axis not in leaf.unit_axes)


def _fan_in(leaf: LeafRole) -> int:
    return math.prod(leaf.shape[axis] for axis in incoming_axes(leaf))


def layer_of(leaf: LeafRole) -> str:
    """The path of the layer that a weight or bias belongs to."""
    return leaf.path.rpartition("/")[0]


def _random_state(key: jax.Array) -> RandomState:
    return RandomState(jnp.zeros([], jnp.int32), jnp.copy(key))
