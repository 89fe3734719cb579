"""A conditional that stays one under `vmap`: rare work is skipped while no member of the batch needs it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from nap.paths import PyTree


def rarely(predicate: Bool[Array, ""], branch: Callable[[PyTree], PyTree], operand: PyTree) -> PyTree:
    """`branch(operand)` where `predicate` holds, otherwise `operand` as it is.

    `jax.lax.cond` with a predicate that differs between the members of a `vmap` computes both branches at every call.
    Resets of a network draw all its weights anew, so that would cost more than the update itself. Here the branch is
    computed only when it is due for at least one member.

    Args:
      predicate: whether the work is due.
      branch: returns the same structure, shapes and dtypes as it is given.
      operand: any pytree of arrays.
    """

    closed, shapes = jax.make_jaxpr(branch, return_shape=True)(operand)
    structure = jax.tree.structure(shapes)

    def evaluate(known: list[Array], operand: PyTree) -> PyTree:
        return structure.unflatten(jax.core.eval_jaxpr(closed.jaxpr, known, *jax.tree.leaves(operand)))

    # What the branch closes over may be traced (the key that a seed's optimizer was made with): it goes in by hand.
    return _rarely(predicate, evaluate, list(closed.consts), operand)


def _rarely(
    predicate: Array, branch: Callable[[PyTree, PyTree], PyTree], known: list[PyTree], operand: PyTree
) -> PyTree:
    """`rarely` for a branch that reads `known` too and closes over nothing traced."""

    @jax.custom_batching.custom_vmap
    def run(predicate: Array, known: list[PyTree], operand: PyTree) -> PyTree:
        return jax.lax.cond(predicate, branch, lambda _, same: same, known, operand)

    @run.def_vmap
    def run_batched(axis_size: int, batched: list, predicate: Array, known: list[PyTree], operand: PyTree):
        due, members = _batched(axis_size, predicate, batched[0]), _batched(axis_size, operand, batched[2])
        axes = jax.tree.map(lambda has_axis: 0 if has_axis else None, batched[1])

        def where_due(due_and_known: list[PyTree], members: PyTree) -> PyTree:
            due, known = due_and_known
            new = jax.vmap(branch, in_axes=(axes, 0))(known, members)
            return jax.tree.map(lambda new, old: _where(due, new, old), new, members)

        members = _rarely(jnp.any(due), where_due, [due, known], members)
        return members, jax.tree.map(lambda _: True, members)

    return run(predicate, known, operand)


def _batched(axis_size: int, tree: PyTree, is_batched: PyTree) -> PyTree:
    """The tree with a leading axis on every leaf."""

    def broadcast(leaf: Array, has_axis: bool) -> Array:
        return leaf if has_axis else jnp.broadcast_to(leaf, (axis_size, *jnp.shape(leaf)))

    return jax.tree.map(broadcast, tree, is_batched)


def _where(due: Bool[Array, " members"], new: Array, old: Array) -> Array:
    return jnp.where(due.reshape(due.shape + (1,) * (new.ndim - 1)), new, old)
