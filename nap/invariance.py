"""The audit: does the network you have satisfy what Normalize-and-Project assumes?

Projection is harmless where the function does not depend on a weight's scale and a real constraint where it does; and a
scale-invariant weight that is *not* projected keeps its implicit schedule. Neither can be seen from the code of a large
network with certainty, so the audit tries: it multiplies each weight by a few constants and compares the outputs.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from nap import paths
from nap.checks import check_choice
from nap.norms import vector_norm
from nap.paths import PyTree
from nap.projection import Affine, RoleSpec
from nap.roles import OUTPUT_AFFINE, Role, affine_groups, weight_groups
from nap.roles import roles as find_roles
from nap.tables import format_table

SCALES = (0.5, 2.0, 4.0)
"""The constants by which `audit` multiplies a parameter."""


class Verdict(enum.StrEnum):
    """What the audit says of a parameter."""

    FINE = "fine"
    CONSTRAINED = "projected but not invariant: a real constraint"
    IMPLICIT = "invariant but not projected: an implicit schedule stays"
    UNUSED = "no effect on the output for these inputs"


@dataclasses.dataclass(frozen=True)
class AuditRow:
    """The audit of one parameter.

    Attributes:
      path: the parameter.
      role: its role.
      change: the largest change of the output when the parameter (with those that share its radius) is multiplied by a
        constant, relative to the change when it is replaced by something else.
      invariant: whether `change` is below the tolerance.
      projected: whether NaP projects it; what is all zeros at first has no norm to go back to, so it does not.
      joined: whether it is scaled, and projected if at all, together with another: scale and offset of one
        normalization, or a weight and the noise on it.
      verdict: what follows.
    """

    path: str
    role: Role
    change: float
    invariant: bool
    projected: bool
    joined: bool
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Audit:
    """The audit of a network; prints as a table that explains itself."""

    rows: tuple[AuditRow, ...]
    tolerance: float

    @property
    def clean(self) -> bool:
        """Whether nothing is projected without being invariant, nor invariant without being projected."""
        return all(row.verdict is Verdict.FINE for row in self.rows)

    def __getitem__(self, path: str) -> AuditRow:
        """The row of one parameter; KeyError with the nearest path where there is none."""
        by_path = {row.path: row for row in self.rows}
        if path not in by_path:
            raise KeyError(f"no parameter {path!r}{paths.nearest(path, list(by_path))}")
        return by_path[path]

    def __iter__(self) -> Iterator[AuditRow]:
        """The rows, in the tree's order."""
        return iter(self.rows)

    def __str__(self) -> str:
        """The table, what its columns mean, and a summary line."""
        rows = [
            [
                row.path,
                row.role,
                f"{row.change:.0e}",
                "yes" if row.invariant else "no",
                ("jointly" if row.joined else "yes") if row.projected else "no",
                row.verdict,
            ]
            for row in self.rows
        ]
        bad = sum(row.verdict is not Verdict.FINE for row in self.rows)
        summary = (
            f"{bad} of {len(self.rows)} parameters need a look before you trust Normalize-and-Project here."
            if bad
            else "All fine: projection changes no function here, and the learning rate you set is the one you get."
        )
        table = format_table(["parameter", "role", "change", "invariant", "projected", "verdict"], rows, right=[2])
        scales = ", ".join(f"{scale:g}" for scale in SCALES)
        return (
            f"{table}\n\n"
            f"change: of the output when the parameter is multiplied by {scales} (the largest),\n"
            f"  relative to the change when it is replaced by something else;\n"
            f"invariant: change below {self.tolerance:g}; "
            f"jointly: scale and offset of a normalization, or a weight and the noise on it, as one.\n{summary}"
        )


def audit(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    *inputs: PyTree,
    roles: RoleSpec = None,
    affine: Affine = "project",
    tolerance: float = 1e-2,
) -> Audit:
    """Test every parameter for scale invariance and hold that against what would be projected.

    Parameters that are all zeros (fresh biases and offsets) are first set to small random values, since multiplying
    zero shows nothing; the audit is of the network at that point.

    Args:
      apply_fn: `apply_fn(params, *inputs)` returns the output, an array or a pytree of arrays. It must be
        deterministic.
      params: a pytree of parameters.
      *inputs: representative inputs: a normalization's epsilon shows where its input is tiny, as with near-empty
        images.
      roles: as in `normalize_and_project`.
      affine: as in `normalize_and_project`.
      tolerance: change below which a parameter counts as invariant. Scaling a layer that is not normalized has an
        effect of the order of replacing it, the epsilon of one that is far less than a hundredth of that.

    Returns:
      An `Audit`; print it.

    Raises:
      ValueError: an unknown `affine`; the output is zero or not finite.
    """
    check_choice("affine", affine, Affine)
    resolved = find_roles(params, roles)
    values = {path: leaf for path, leaf in paths.leaves(params).items() if paths.is_weight_array(leaf)}
    zero = {path for path, value in values.items() if not jnp.any(value != 0)}
    for i, (path, value) in enumerate(values.items()):
        noise = 0.1 * jax.random.normal(jax.random.key(i), value.shape, value.dtype)
        values[path] = noise if path in zero else value

    @jax.jit
    def outputs(values: dict[str, jax.Array]) -> jax.Array:
        y = apply_fn(paths.replace(params, values), *inputs)
        parts = [half for part in jax.tree.leaves(y) for half in _real_parts(part)]
        return jnp.concatenate([half.astype(jnp.float32).ravel() for half in parts])

    def effect(changed: dict[str, jax.Array]) -> float:
        return float(vector_norm(outputs(values | changed) - reference))

    reference = outputs(values)
    if not 0 < float(vector_norm(reference)) < float("inf"):
        raise ValueError(
            "audit: the output is zero or not finite for these inputs, so there is nothing to compare with"
        )
    affine_of = {path: group for group in affine_groups(resolved) for path in group}
    output_of = {path: group for group in affine_groups(resolved, OUTPUT_AFFINE) for path in group}
    weights_of = {path: group for group in weight_groups(resolved) for path in group}
    rows = []
    for leaf in resolved:
        if leaf.path not in values:
            continue
        group = (affine_of | output_of | weights_of).get(leaf.path, (leaf.path,))
        # Without a random key a noise weight has no effect of its own: what counts is that of the two.
        exchanged = weights_of.get(leaf.path, (leaf.path,))
        replaced = effect({path: _something_else(values[path]) for path in exchanged})
        scaled = max(effect({path: scale * values[path] for path in group}) for scale in SCALES)
        change = scaled / replaced if replaced else 0.0
        invariant = change < tolerance
        projected = leaf.path in weights_of or (affine == "project" and leaf.path in affine_of)
        projected = projected and not zero.issuperset(group)
        held = projected or (affine == "regularize" and leaf.path in affine_of)
        if not replaced:  # noise is without effect where the function given draws none
            verdict = Verdict.FINE if leaf.role is Role.OUTPUT_NOISE else Verdict.UNUSED
        elif projected and not invariant:
            verdict = Verdict.CONSTRAINED
        elif invariant and not held:
            verdict = Verdict.IMPLICIT
        else:
            verdict = Verdict.FINE
        rows.append(AuditRow(leaf.path, leaf.role, change, invariant, projected, len(group) > 1, verdict))
    return Audit(tuple(rows), tolerance)


def _real_parts(x: jax.Array) -> tuple[jax.Array, ...]:
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def _something_else(value: jax.Array) -> jax.Array:
    return (jnp.flip(value) * jnp.linspace(-1, 1, value.size).reshape(value.shape)).astype(value.dtype)
