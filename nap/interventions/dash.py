"""DASH: before training on new data, shrink what points elsewhere than that data's gradient (Shin et al., 2024)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nap import checks, paths
from nap.interventions.rarely import rarely
from nap.interventions.regularizers import needed, with_roles
from nap.interventions.weights import incoming_axes, layer_of
from nap.norms import vector_norm
from nap.paths import PyTree
from nap.projection import RoleSpec
from nap.roles import LeafRole, Role, attention_kernels
from nap.steps import landing, wide


class DashState(NamedTuple):
    """State of `dash`.

    Attributes:
      count: updates so far, those at which the weights are held still included.
      gradient: the moving average G of the gradient.
      inner: the wrapped optimizer's state.
    """

    count: Int[Array, ""]
    gradient: PyTree
    inner: optax.OptState


def dash(
    optimizer: optax.GradientTransformation,
    *,
    every: int,
    alpha: float = 0.3,
    shrink: float = 0.3,
    window: int,
    roles: RoleSpec = None,
) -> optax.GradientTransformationExtraArgs:
    """Direction-aware shrinking whenever new data arrive (Shin et al., 2024).

    New data are taken to arrive after each `every` updates. For the next `window` updates the weights and the
    optimizer's state are held still, while a moving average of the gradient is taken, G <- (1 - alpha) G + alpha g from
    G = 0. At the last of them vectors w in hidden and output layers are multiplied by clip(cos(w, -G), shrink, 1): what
    descending the loss on the new data would make longer stays, the rest fades. Where w = 0 or G = 0 the cosine is 0.
    As in the authors' code such a vector is a unit's incoming weights in a dense layer; in a convolution the weights
    over height and width between one input and one output channel; and a layer's whole bias. Then training goes on.
    Normalizations stay as they are.

    Under `nap.normalize_and_project` a hidden layer keeps its norm, so that only the proportions within it change.

    Args:
      optimizer: the optimizer to wrap.
      every: updates from one arrival of new data to the next, those of the window included.
      alpha: weight of the new gradient in the moving average.
      shrink: least factor; 1 shrinks nothing.
      window: updates over which the gradient is averaged; the authors' code makes one epoch of it over all data so far.
      roles: what is a weight: see `nap.roles`.

    Raises:
      ValueError: `alpha` not in 0 to 1 (0 excluded), `shrink` not in 0 to 1, or not 1 <= `window` < `every`.
    """
    checks.positive(alpha=alpha)
    checks.share("alpha", alpha)
    checks.share("shrink", shrink, " (1 shrinks nothing)")
    if not 1 <= window < every:
        raise ValueError(f"window must lie in 1 to {every - 1}, below every={every}, got {window}")
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: PyTree) -> DashState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return DashState(jnp.zeros([], jnp.int32), zeros, inner.init(params))

    def shrink_vectors(operand: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
        params, gradient, steps = operand
        weights, gradients, new = paths.leaves(params), paths.leaves(gradient), {}
        kernels = with_roles(params, roles, Role.HIDDEN, Role.OUTPUT)
        attention, layers = attention_kernels(params), {layer_of(leaf) for leaf in kernels}
        biases = [leaf for leaf in with_roles(params, roles, Role.BIAS) if layer_of(leaf) in layers]
        for leaf in [*kernels, *biases]:
            w, g = (wide(leaves[leaf.path]) for leaves in (weights, gradients))
            over = _vector_axes(leaf, leaf.path in attention)
            lengths = vector_norm(w, axis=over, keepdims=True) * vector_norm(g, axis=over, keepdims=True)
            product = jnp.sum(w * -g, axis=over, keepdims=True)
            cosine = jnp.where(lengths > 0, product / jnp.where(lengths > 0, lengths, 1), 0)
            new[leaf.path] = w * jnp.clip(cosine, shrink, 1)
        return params, gradient, landing(params, steps, new)

    def update_fn(updates, state, params=None, **extra):
        params = needed(params, "dash")
        held = (state.count >= every) & (state.count % every < window)
        first, last = state.count % every == 0, state.count % every == window - 1
        average = jax.tree.map(
            lambda old, new: jnp.where(first, 0, 1 - alpha) * old + alpha * new, state.gradient, updates
        )
        average = _where(held, average, state.gradient)
        steps, trained = inner.update(updates, state.inner, params, **extra)
        steps = _where(held, jax.tree.map(jnp.zeros_like, steps), steps)
        *_, steps = rarely(held & last, shrink_vectors, (params, average, steps))
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, DashState(count, average, _where(held, state.inner, trained))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _vector_axes(leaf: LeafRole, is_attention: bool) -> tuple[int, ...]:
    """The axes of a bias or a weight over which one of its vectors lies."""
    if leaf.role is Role.BIAS:
        return tuple(range(leaf.stacked, len(leaf.shape)))
    incoming = incoming_axes(leaf)
    if len(incoming) == 1 or is_attention:
        return incoming
    (outputs,) = leaf.unit_axes  # of a convolution; its inputs lie before them in Flax, behind them in PyTorch's layout
    return incoming[:-1] if outputs == len(leaf.shape) - 1 else incoming[1:]


def _where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
