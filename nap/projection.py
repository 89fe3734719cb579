"""Weight projection: hold the norm of every hidden weight at a fixed radius, as an optax transformation.

A normalized layer's output does not depend on the scale of its weights, so growing norms only shrink the effective
learning rate. Projecting each weight back to its initial norm after every update, W <- rho W / ||W||, takes that
implicit schedule away (Normalize-and-Project, arXiv 2407.01800).

Norms are keyed by path. A key may join several paths by "+": those leaves then share one radius, and are scaled
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from nap import paths
from nap.checks import check_choice
from nap.norms import Joint, norms
from nap.paths import PyTree
from nap.roles import AFFINE, Role, Roles, affine_groups, weight_groups
from nap.roles import roles as find_roles
from nap.steps import landing, moved, wide

RoleSpec = Mapping[str, Role | str] | Roles | None
"""What every `roles=` argument takes: overrides by path pattern, a finished `Roles`, or None (decide by structure)."""

Affine = Literal["project", "regularize", "free"]

Norms = dict[str, Float[Array, "..."]]

_OF_STAND_IN: Any = 0.0
"""The norms of what stands in for parameters: a leaf, so that all of the real ones count as one."""


class ProjectionState(NamedTuple):
    """State of `project_weights`: checkpoints carry the radii, so that nothing recomputes them from trained weights.

    Attributes:
      count: updates so far.
      target_norms: the radius of each projected weight (or group of weights), float32 at least, by path. To
        `optax.tree.map_params`, which does not know the paths, they are a single value beside the parameters.
    """

    count: Int[Array, ""]
    target_norms: Norms


def weight_norms(params: PyTree, roles: RoleSpec = None, axes: int | Sequence[int] | None = None) -> Norms:
    """Frobenius norms of the hidden weights: of exactly those leaves that `project_weights` projects.

    Args:
      params: a pytree of parameters.
      roles: see `nap.roles`; a weight is hidden if its role is `Role.HIDDEN`. With a noise weight (`Role.NOISE`) beside
        it, as in a noisy layer, the two have one joint norm.
      axes: the axes of one layer's weight whose entries have norms of their own; `axes=-1` gives one norm for each
        output unit of a Flax kernel (but of attention's queries, keys and values, whose units have two axes). None: one
        norm for the whole tensor. Stacked leading axes always keep norms of their own.

    Returns:
      Norms by path ("layer/kernel+layer/noise" for a joint one), float32 at least: scalars, or, where axes are kept,
      arrays with the reduced axes left at size 1.
    """
    resolved = resolve(params, roles)
    leaves = paths.leaves(params)
    joints = {}
    for group in weight_groups(resolved):
        if all(path in leaves for path in group):
            weights, first = [wide(leaves[path]) for path in group], resolved[group[0]]
            joints["+".join(group)] = Joint(weights, _reduced_axes(weights[0].ndim, first.stacked, axes))
    return norms(joints)


def project(params: PyTree, target_norms: Norms) -> PyTree:
    """Scale weights to the given norms; every other leaf is returned as it is.

    Norms are computed in float32 at least. The result has the weights' own dtype: bfloat16 weights hold a norm to 1e-3,
    float32 weights to 1e-6, however small or large their entries are. A weight is left unchanged where it or its target
    is zero, or its norm, or what it would have to be multiplied by, is out of the range of its floats.

    Args:
      params: a pytree of parameters.
      target_norms: as `weight_norms` returns them. The shape of a target says what is scaled as one: a scalar the whole
        tensor, otherwise each slice over the axes that have size 1.

    Returns:
      The same pytree with projected weights.

    Raises:
      ValueError: a target names a leaf that `params` does not have.
    """
    leaves = paths.leaves(params)
    joints = {}
    for group, target in target_norms.items():
        members = group.split("+")
        missing = [path for path in members if path not in leaves]
        if missing:
            raise ValueError(f"there is a target norm for {missing[0]!r}, but the parameters have no such leaf")
        axes = None if target.ndim == 0 else [i for i, n in enumerate(target.shape) if n == 1]
        joints[group] = Joint([wide(leaves[path]) for path in members], axes)
    found = norms(joints, needed={group: target > 0 for group, target in target_norms.items()})
    projected = {}
    for group, target in target_norms.items():
        factor = factor_to(target, found[group])
        for path, tensor in zip(group.split("+"), joints[group].tensors, strict=True):
            projected[path] = (tensor * factor).astype(leaves[path].dtype)
    return paths.replace(params, projected)


def factor_to(target: Float[Array, "..."] | float, norm: Float[Array, "..."]) -> Float[Array, "..."]:
    """What takes `norm` to `target`; 1 where either is zero, the norm is not finite, or the factor no normal float."""
    usable = (norm > 0) & jnp.isfinite(norm) & (target > 0)
    factor = target / jnp.where(usable, norm, 1.0)
    usable &= jnp.isfinite(factor) & (factor >= jnp.finfo(factor.dtype).tiny)
    return jnp.where(usable, factor, 1.0)


def project_weights(
    every: int = 1, roles: RoleSpec = None, axes: int | Sequence[int] | None = None
) -> optax.GradientTransformation:
    """Project hidden weights to their initial norms after every update (or every `every` updates).

    It changes the update so that `optax.apply_updates(params, updates)` lands on the sphere, so it **must be the last
    transformation in a chain**: whatever follows it moves the weights off again. `normalize_and_project` puts it there.
    With gradient accumulation, wrap the whole chain: `optax.MultiSteps(optax.chain(..., project_weights()), k)`.

    Inside `optax.partition` or `optax.masked` a part of the tree is hidden from it, so that roles can't be decided
    there: pass the roles of the whole tree, `project_weights(roles=nap.roles(params))`.

    Args:
      every: project at every `every`-th update. In between norms drift, and with them the effective learning rate.
      roles: which leaves are hidden weights: see `nap.roles`.
      axes: axes that keep norms of their own: see `weight_norms`.

    Returns:
      An optax transformation whose state is a `ProjectionState`; its `init` fixes the radii.

    Raises:
      ValueError: `every` < 1; at `init`, if there is nothing to project.
    """
    return _projection(every, roles, axes, affine="free")


def normalize_and_project(
    optimizer: optax.GradientTransformation,
    *,
    affine: Affine = "project",
    affine_strength: float = 0.01,
    every: int = 1,
    roles: RoleSpec = None,
    axes: int | Sequence[int] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Normalize-and-Project around any optax optimizer: its update, then projection, in the one right order.

    The network brings the other half of the method: a normalization before every nonlinearity (`nap.layers`, or your
    own; `nap.audit` checks it). Leave weight decay off: on a projected weight it does nothing.

    Args:
      optimizer: the complete optimizer, learning rate, clipping and interventions included.
      affine: what happens to the scale and offset of hidden normalization layers. "project": scale and offset are one
        vector, projected to its initial norm (sqrt(d) for scale 1, offset 0), which leaves the function unchanged where
        a ReLU-like activation and another normalized layer follow. "regularize": pulled to their initial values, mostly
        1 and 0, by a quadratic penalty, for other activations. "free": left alone.
      affine_strength: weight of that penalty, added to the gradient as `affine_strength * (value - initial)`.
      every: as in `project_weights`.
      roles: as in `project_weights`.
      axes: as in `project_weights`.

    Returns:
      An optax transformation. The radii are fixed by its `init`.

    Raises:
      ValueError: an unknown `affine`, `every` < 1; at `init`, if there is nothing to project.
    """
    check_choice("affine", affine, Affine)
    before = [_pull_affine(affine_strength, roles)] if affine == "regularize" else []
    chain = optax.chain(*before, optimizer, _projection(every, roles, axes, affine))
    return optax.with_extra_args_support(chain)


def _projection(
    every: int, roles: RoleSpec, axes: int | Sequence[int] | None, affine: Affine
) -> optax.GradientTransformation:
    if every < 1:
        raise ValueError(f"every must be at least 1 (project at every update), got {every}")

    def init_fn(params: PyTree) -> ProjectionState:
        if paths.is_stand_in(params):
            return ProjectionState(jnp.zeros([], jnp.int32), _OF_STAND_IN)
        resolved = resolve(params, roles)
        targets = weight_norms(params, resolved, axes)
        if not targets:
            raise ValueError(f"there is no hidden weight to project; the roles are\n{resolved}")
        if affine == "project":
            leaves, affines = paths.leaves(params), {}
            for group in affine_groups(resolved):
                if all(path in leaves for path in group):
                    tensors = [wide(leaves[path]) for path in group]
                    over = _reduced_axes(tensors[0].ndim, resolved[group[0]].stacked, None)
                    affines["+".join(group)] = Joint(tensors, over)
            targets |= norms(affines)
        return ProjectionState(jnp.zeros([], jnp.int32), targets)

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError(_NO_PARAMS)
        count = jnp.asarray(optax.safe_increment(state.count))

        def onto_sphere(updates: PyTree) -> PyTree:
            return _toward(params, updates, state.target_norms)

        if every > 1:
            updates = jax.lax.cond(count % every == 0, onto_sphere, lambda same: same, updates)
        else:
            updates = onto_sphere(updates)
        return updates, ProjectionState(count, state.target_norms)

    return optax.GradientTransformation(init_fn, update_fn)


_NO_PARAMS = "projection needs the parameters: call update(grads, state, params)"


def _toward(params: PyTree, updates: PyTree, target_norms: Norms) -> PyTree:
    """The updates that take `params` to the projection of `params + updates`."""
    members = [path for group in target_norms for path in group.split("+")]
    return landing(params, updates, project(moved(params, updates, members), target_norms))


def _pull_affine(strength: float, roles: RoleSpec) -> optax.GradientTransformation:
    """Add the gradient of strength/2 ||value - initial||^2 for scales and offsets; the state is the initial values."""

    def init_fn(params: PyTree) -> PyTree:
        if paths.is_stand_in(params):
            return _OF_STAND_IN
        values = paths.leaves(params)
        return {path: jnp.copy(values[path]) for path in resolve(params, roles).paths(*AFFINE) if path in values}

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError(_NO_PARAMS)
        values, steps = paths.leaves(params), paths.leaves(updates)
        pulled = {
            path: steps[path] + (strength * (values[path] - initial)).astype(steps[path].dtype)
            for path, initial in state.items()
        }
        return paths.replace(updates, pulled), state

    return optax.GradientTransformation(init_fn, update_fn)


def resolve(params: PyTree, roles: RoleSpec) -> Roles:
    """The roles that a transformation goes by.

    Raises:
      ValueError: as `nap.roles`; a part of the tree is hidden; or finished roles are of another tree.
    """
    hidden = any(
        isinstance(node, optax.MaskedNode)
        for node in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    )
    if hidden and not isinstance(roles, Roles):
        raise ValueError(
            "a part of the parameters is masked (optax.partition or masked), so roles can't be decided from here: "
            "pass roles=nap.roles(params), made from the whole tree"
        )
    resolved, leaves = find_roles(params, roles), paths.leaves(params)
    if leaves and not hidden and not any(leaf.path in leaves for leaf in resolved):
        raise ValueError(f"the roles are of another tree: they have no {next(iter(leaves))!r}\n{resolved}")
    return resolved


def _reduced_axes(rank: int, stacked: int, kept: int | Sequence[int] | None) -> list[int] | None:
    """The axes a norm is taken over; None for all of them."""
    keep = set(range(stacked))
    if kept is not None:
        inner = rank - stacked
        for axis in (kept,) if isinstance(kept, int) else kept:
            if not -inner <= axis < inner:
                raise ValueError(f"axes={kept} is out of range for a weight of rank {inner}")
            keep.add(stacked + axis % inner)
    return [axis for axis in range(rank) if axis not in keep] if keep else None
