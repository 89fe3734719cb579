"""Regularizers: each adds the gradient of its penalty to the gradients, so it stands before the optimizer.

A weight counts as a matrix with one row for each input and one column for each unit: a Flax kernel as it is, a
convolution's kernel with height, width and inputs as rows, a PyTorch or Equinox `weight` transposed. In attention each
feature of each head is a unit of the queries, keys and values, and an input of the output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nap import checks, paths
from nap.norms import vector_norm
from nap.paths import PyTree
from nap.projection import RoleSpec, resolve
from nap.roles import LeafRole, Role, normalization_parameters
from nap.steps import wide

_WARM_UP = 30
"""Steps of the power iteration at `init`, where it has no earlier vectors to start from."""


class L2InitState(NamedTuple):
    """State of `l2_init`.

    Attributes:
      initial: the parameters that `init` was given.
    """

    initial: PyTree


class W2InitState(NamedTuple):
    """State of `w2_init`.

    Attributes:
      initial: the initial values of each leaf, sorted, one leaf after the other. One array, in no way a copy of the
        parameters, so that a reset of single units does not mix it.
    """

    initial: Float[Array, " parameters"]


class SpectralState(NamedTuple):
    """State of `spectral_regularization` and `spectral_normalization`.

    Attributes:
      vectors: the estimate of each weight's first right singular vector (an entry a unit), one weight after the other.
        One array, for the reason told at `W2InitState`.
    """

    vectors: Float[Array, " units"]


class Spectrum(NamedTuple):
    """The largest singular value of a weight, with its vectors, as far as the power iteration knows them.

    Attributes:
      sigma: the singular value.
      left: the left singular vector, over the inputs.
      right: the right singular vector, over the units.
    """

    sigma: Float[Array, "*stacked"]
    left: Float[Array, "*stacked inputs"]
    right: Float[Array, "*stacked units"]


def l2(strength: checks.Number, *, roles: RoleSpec = None) -> optax.GradientTransformation:
    """Add the gradient of strength / 2 * ||theta||^2, which is strength * theta, for every floating-point parameter.

    So `strength` is what a weight decay inside of the gradient is, as that of PyTorch's SGD. Parameters of
    normalizations are left out, as in the code of L2 Init (Kumar et al., 2023). It passes through the optimizer, unlike
    decoupled weight decay: weights that are projected afterwards it does not turn behind SGD, but it does behind Adam,
    which scales every entry by itself.

    Args:
      strength: weight of the penalty.
      roles: what belongs to a normalization: see `nap.roles`.

    Raises:
      ValueError: `strength` < 0.
    """
    checks.not_negative(strength=strength)

    def update_fn(updates, state, params=None):
        params = needed(params, "l2")
        pulled = {path: strength * weight for path, weight in _all_but_normalizations(params, roles).items()}
        return _added(updates, pulled), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def l2_init(strength: checks.Number, *, roles: RoleSpec = None) -> optax.GradientTransformation:
    """Add the gradient of strength / 2 * ||theta - theta_0||^2, which is strength * (theta - theta_0).

    For every floating-point parameter but those of normalizations, as in the code of Kumar et al. (2023) and their
    appendix; the loss that the paper displays lacks the half. theta_0 are the parameters that `init` is given. Where a
    wrapper resets weights and the optimizer state that belongs to them, the new values become these weights' theta_0; a
    regularizer outside of the wrapper keeps the old ones.

    Args:
      strength: weight of the penalty; 1e-2 is the paper's best with Adam on most of its streams.
      roles: what belongs to a normalization: see `nap.roles`.

    Raises:
      ValueError: `strength` < 0.
    """
    checks.not_negative(strength=strength)

    def update_fn(updates, state, params=None):
        params = needed(params, "l2_init")
        weights, initial = _all_but_normalizations(params, roles), paths.leaves(state.initial)
        return _added(updates, {path: strength * (weight - initial[path]) for path, weight in weights.items()}), state

    return optax.GradientTransformation(lambda params: L2InitState(jax.tree.map(jnp.copy, params)), update_fn)


def w2_init(strength: checks.Number) -> optax.GradientTransformation:
    """Add the gradient of a Wasserstein penalty: the weights' distribution stays that of the initial weights.

    For each floating-point leaf, strength * sum_i (theta_(i) - theta_0(i))^2, where (i) means the i-th smallest value:
    the leaf's size times the squared Wasserstein-2 distance of the two empirical distributions (Lewandowski et al.,
    2023). The gradient is twice the difference, as there is no half here that `l2_init` has. Equal weights are paired
    in their order in memory.

    Args:
      strength: weight of the penalty.

    Raises:
      ValueError: `strength` < 0; at `init`, if a parameter is complex.
    """
    checks.not_negative(strength=strength)

    def init_fn(params: PyTree) -> W2InitState:
        if (path := paths.complex_path(params)) is not None:
            raise ValueError(f"w2_init orders weights by size, and {path!r} is complex: mask it (optax.masked)")
        floats = [leaf for leaf in jax.tree.leaves(params) if paths.is_weight_array(leaf)]
        return W2InitState(_concatenate([jnp.sort(leaf.reshape(-1)) for leaf in floats]))

    def update_fn(updates, state, params=None):
        params = needed(params, "w2_init")
        floats = {path: leaf for path, leaf in paths.leaves(params).items() if paths.is_weight_array(leaf)}
        pulls = {}
        for (path, weight), part in zip(floats.items(), _parts([leaf.size for leaf in floats.values()]), strict=True):
            values = weight.reshape(-1)
            target = jnp.zeros_like(state.initial[part]).at[jnp.argsort(values)].set(state.initial[part])
            pulls[path] = 2 * strength * (values - target).reshape(weight.shape)
        return _added(updates, pulls), state

    return optax.GradientTransformation(init_fn, update_fn)


def parseval(
    strength: checks.Number = 1e-3, scale: float = 2.0, *, width: int | None = 64, roles: RoleSpec = None
) -> optax.GradientTransformation:
    """Add the gradient of strength * (width / units)^2 * ||K^T K - scale * I||_F^2 for every hidden weight K.

    Parseval regularization (Chung et al., 2024): K^T K holds the inner products of the units' incoming weights (the
    paper writes W W^T with a row a unit); units are pushed to be orthogonal, with squared norm `scale`, the square of
    the gain of orthogonal initialization. A layer with more units than inputs cannot get there. The authors' code
    multiplies the strength by (64 / the network's width)^2; here each layer has its own number of units.

    Args:
      strength: weight of the penalty.
      scale: squared norm of a unit's incoming weights.
      width: the number of units at which `strength` is meant; None: it is that of every layer, whatever its width.
      roles: which weights are hidden: see `nap.roles`.

    Raises:
      ValueError: `strength` < 0 or `width` < 1.
    """
    checks.not_negative(strength=strength)
    if width is not None and width < 1:
        raise ValueError(f"width is a number of units, at least 1, got {width}")

    def update_fn(updates, state, params=None):
        params = needed(params, "parseval")
        weights, pulls = paths.leaves(params), {}
        for leaf in with_roles(params, roles, Role.HIDDEN):
            matrix = as_matrix(weights[leaf.path], leaf)
            units = matrix.shape[-1]
            products = jnp.einsum("...nu,...nv->...uv", matrix, matrix) - scale * jnp.eye(units)
            share = 1 if width is None else (width / units) ** 2
            pulls[leaf.path] = strength * share * from_matrix(4 * matrix @ products, weights[leaf.path], leaf)
        return _added(updates, pulls), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def spectral_regularization(
    strength: checks.Number, power: int = 2, *, roles: RoleSpec = None
) -> optax.GradientTransformation:
    """Pull the largest singular value of every weight to 1, and every bias to 0 (Lewandowski et al., 2024).

    Adds the gradient of strength * (sum over hidden and output weights of (sigma^power - 1)^2 + sum over biases of
    ||b||^(2 power)). sigma comes from one step of power iteration at each update, from the last update's vector (30 at
    `init`), and its gradient is the outer product of the two singular vectors. Parameters of normalizations are left
    alone.

    Args:
      strength: weight of the penalty.
      power: the exponent k of the singular values.
      roles: what is a weight and what a bias: see `nap.roles`.

    Raises:
      ValueError: `strength` < 0 or `power` < 1.
    """
    checks.not_negative(strength=strength)
    if power < 1:
        raise ValueError(f"power must be at least 1, got {power}")

    def init_fn(params: PyTree) -> SpectralState:
        return first_vectors(params, with_roles(params, roles, Role.HIDDEN, Role.OUTPUT))

    def update_fn(updates, state, params=None):
        params = needed(params, "spectral_regularization")
        weights, pulls = paths.leaves(params), {}
        matrices = with_roles(params, roles, Role.HIDDEN, Role.OUTPUT)
        spectra, state = follow_spectra(params, matrices, state)
        for leaf, (sigma, left, right) in zip(matrices, spectra, strict=True):
            slope = 2 * (sigma**power - 1) * power * sigma ** (power - 1)
            outer = slope[..., None, None] * left[..., :, None] * right[..., None, :]
            pulls[leaf.path] = strength * from_matrix(outer, weights[leaf.path], leaf)
        for leaf in with_roles(params, roles, Role.BIAS):
            bias = wide(weights[leaf.path])
            square = jnp.sum(jnp.square(bias), axis=tuple(range(leaf.stacked, bias.ndim)), keepdims=True)
            pulls[leaf.path] = strength * 2 * power * square ** (power - 1) * bias
        return _added(updates, pulls), state

    return optax.GradientTransformation(init_fn, update_fn)


def _all_but_normalizations(params: PyTree, roles: RoleSpec) -> dict[str, Array]:
    """The floating-point parameters by path, without scales and offsets of normalizations."""
    left_out, leaves = normalization_parameters(params, roles), paths.leaves(params)
    return {path: leaf for path, leaf in leaves.items() if paths.is_weight_array(leaf) and path not in left_out}


def _added(updates: PyTree, pulls: Mapping[str, Any]) -> PyTree:
    """The gradients with those of a penalty added, in the gradients' own dtypes."""
    steps = paths.leaves(updates)
    return paths.replace(updates, {path: steps[path] + pull.astype(steps[path].dtype) for path, pull in pulls.items()})


def with_roles(params: PyTree, roles: RoleSpec, *wanted: Role) -> list[LeafRole]:
    """The leaves of some roles; none in a tree without leaves, such as optax's stand-in for the parameters.

    Raises:
      ValueError: one is complex, for which interventions have no rule.
    """
    leaves = paths.leaves(params)
    if not leaves:
        return []
    chosen = [leaf for leaf in resolve(params, roles) if leaf.role in wanted and leaf.path in leaves]
    for leaf in chosen:
        if jnp.iscomplexobj(leaves[leaf.path]):
            left_out = f"roles={{{leaf.path!r}: 'not a weight'}}"
            raise ValueError(
                f"interventions are for real weights, and {leaf.path!r} is complex: leave it out, {left_out}"
            )
    return chosen


def as_matrix(weight: Float[Array, "..."], leaf: LeafRole) -> Float[Array, "*stacked inputs units"]:
    """A weight, float32 at least, as matrices with a column for each unit; stacked axes stay in front."""
    moved = _units_last(wide(weight), leaf)
    return moved.reshape(*moved.shape[: leaf.stacked], -1, _units(leaf))


def from_matrix(
    matrix: Float[Array, "*stacked inputs units"], weight: Float[Array, "..."], leaf: LeafRole
) -> Float[Array, "..."]:
    """The inverse of `as_matrix`, in the shape of `weight`."""
    axes = range(-len(leaf.unit_axes), 0)
    return jnp.moveaxis(matrix.reshape(_units_last(weight, leaf).shape), axes, leaf.unit_axes)


def first_vectors(params: PyTree, weights: Sequence[LeafRole]) -> SpectralState:
    """A fixed random start for each of some weights, after 30 steps of power iteration."""
    sizes = [_vector_size(leaf) for leaf in weights]
    start = SpectralState(jax.random.normal(jax.random.key(0), (sum(sizes),)))
    return jax.lax.fori_loop(0, _WARM_UP, lambda _, state: follow_spectra(params, weights, state)[1], start)


def follow_spectra(
    params: PyTree, weights: Sequence[LeafRole], state: SpectralState
) -> tuple[list[Spectrum], SpectralState]:
    """One step of power iteration for each of some weights.

    A weight of zeros has sigma 0, left vector 0, and keeps its right vector.
    """
    leaves, spectra = paths.leaves(params), []
    for leaf, part in zip(weights, _parts([_vector_size(leaf) for leaf in weights]), strict=True):
        matrix = as_matrix(leaves[leaf.path], leaf)
        right = state.vectors[part].reshape(*matrix.shape[:-2], matrix.shape[-1])
        forth = jnp.einsum("...nu,...u->...n", matrix, right)
        length = vector_norm(forth, axis=-1, keepdims=True)
        left = jnp.where(length > 0, forth / jnp.where(length > 0, length, 1), 0)
        back = jnp.einsum("...nu,...n->...u", matrix, left)
        sigma = vector_norm(back, axis=-1, keepdims=True)
        right = jnp.where(sigma > 0, back / jnp.where(sigma > 0, sigma, 1), right)
        spectra.append(Spectrum(sigma[..., 0], left, right))
    return spectra, SpectralState(_concatenate([spectrum.right.reshape(-1) for spectrum in spectra]))


def needed(params: PyTree | None, name: str) -> PyTree:
    """The parameters; ValueError where `update` was called without them."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: call update(gradients, state, params)")
    return params


def _vector_size(leaf: LeafRole) -> int:
    return math.prod(leaf.shape[: leaf.stacked]) * _units(leaf)


def _units(leaf: LeafRole) -> int:
    return math.prod(leaf.shape[axis] for axis in leaf.unit_axes)


def _units_last(weight: Float[Array, "..."], leaf: LeafRole) -> Float[Array, "..."]:
    return jnp.moveaxis(weight, leaf.unit_axes, range(-len(leaf.unit_axes), 0))


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Where arrays of these sizes lie in their concatenation."""
    return itertools.starmap(slice, itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def _concatenate(arrays: Sequence[Array]) -> Array:
    return jnp.concatenate(arrays) if arrays else jnp.zeros(0)
