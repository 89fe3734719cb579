"""Which parameter is what: the role of every leaf, decided by the structure of the network.

Normalize-and-Project holds the norm of *hidden* weights and leaves the output layer alone, so something has to tell
them apart. Name filters go wrong silently (a LayerNorm inside a `Sequential` has no "norm" in its path), so a role
comes, in this order, from

1. an override by the caller (`{"encoder/*/kernel": "hidden weight"}`),
2. the layer's own declaration (the layers of `nap.layers` declare the roles of their variables),
3. the leaf's place and rank: vectors against matrices and kernels, what stands beside it in its module, and which
   weight's outputs no other layer takes in.

Where that leaves no output layer, `roles` refuses and says what to name rather than guess.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nap import paths
from nap.paths import Key, PyTree
from nap.stacking import stacked_axes
from nap.tables import format_table


class Role(enum.StrEnum):
    """What a parameter does in its network."""

    HIDDEN = "hidden weight"  # a matrix or kernel inside the network: what NaP projects
    NOISE = "noise weight"  # how strong the noise on a hidden weight is: the two share one radius
    OUTPUT = "output weight"  # the last layer of a head: no normalization follows, never projected
    OUTPUT_NOISE = "output noise"  # how strong the noise on an output weight or its bias is: free, as they are
    EMBEDDING = "embedding"  # a table looked up by integers
    SCALE = "scale"  # a normalization layer's gain (gamma)
    OFFSET = "offset"  # a normalization layer's shift (beta)
    OUTPUT_SCALE = "output scale"  # the same two for the last normalization before an output layer: scaling them
    OUTPUT_OFFSET = "output offset"  # together scales the output, so like the output weight they stay free
    BIAS = "bias"  # a vector added without a normalization of its own
    ACTIVATION = "activation parameter"  # learned by an activation function (slope, coefficients); never projected
    OTHER = "not a weight"  # integers, random keys, activation functions


AFFINE = {Role.SCALE: 1.0, Role.OFFSET: 0.0}
"""The roles that `affine=` of `normalize_and_project` acts on, with their values at initialization."""

OUTPUT_AFFINE = (Role.OUTPUT_SCALE, Role.OUTPUT_OFFSET)
"""Those of a normalization that only output layers read."""

_WEIGHT_NAMES = frozenset({"kernel", "weight"})
_SCALE_NAMES = frozenset({"scale", "gamma"})
_OFFSET_NAMES = frozenset({"bias", "offset", "beta"})
_EMBEDDING_NAMES = frozenset({"embedding"})


@dataclasses.dataclass(frozen=True)
class LeafRole:
    """One row of the table.

    Attributes:
      path: the leaf's path, keys joined by "/".
      role: what it is.
      shape: the array's shape (empty for what is not an array).
      stacked: how many leading axes only stack layers or ensemble members; norms are never taken over them.
      why: what decided the role, in words.
      unit_axes: the axes that number a weight's units: the last one; in a `weight` of PyTorch's layout the first; in
        the kernel of attention's queries, keys or values the last two, heads and features.
    """

    path: str
    role: Role
    shape: tuple[int, ...]
    stacked: int
    why: str
    unit_axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Roles:
    """The role of every leaf of a network; prints as a table. Indexed by path: `roles["torso/0/kernel"].role`."""

    leaves: tuple[LeafRole, ...]

    def __getitem__(self, path: str) -> LeafRole:
        """The row of one leaf; KeyError with the nearest path where there is none."""
        if path not in self._by_path:
            raise KeyError(f"no parameter {path!r}{paths.nearest(path, list(self._by_path))}")
        return self._by_path[path]

    @functools.cached_property
    def _by_path(self) -> dict[str, LeafRole]:
        return {leaf.path: leaf for leaf in self.leaves}

    def __iter__(self) -> Iterator[LeafRole]:
        """The rows, in the tree's order."""
        return iter(self.leaves)

    def paths(self, *wanted: Role) -> list[str]:
        """The paths of all leaves that have one of these roles."""
        return [leaf.path for leaf in self.leaves if leaf.role in wanted]

    def __str__(self) -> str:
        """An aligned table: path, shape, role and what decided it."""
        rows = [
            [leaf.path, "×".join(map(str, leaf.shape)) or "scalar", str(leaf.stacked or ""), leaf.role, leaf.why]
            for leaf in self.leaves
        ]
        return format_table(["parameter", "shape", "stacked axes", "role", "because"], rows)


def roles(
    params: PyTree,
    overrides: Mapping[str, Role | str] | Roles | None = None,
    *,
    stacked: Mapping[str, int] | None = None,
) -> Roles:
    """The role of every leaf of `params`.

    Args:
      params: any pytree of parameters: an NNX `State`, a Linen or plain dictionary, an Equinox module.
      overrides: roles by path or path pattern (`*` matches anything, "/" included; the last match wins), or a finished
        `Roles`, which is returned as it is.
      stacked: the number of leading axes that only stack layers or ensemble members, by path pattern. They are
        recognised by themselves where a bias or a norm's scale stands beside the weights (they have them too).

    Returns:
      `Roles`, printable as a table.

    Raises:
      ValueError: a pattern matches nothing; a role that does not exist; no output layer can be told apart; a name with
        a "+".
    """
    if isinstance(overrides, Roles):
        return overrides
    names = [paths.join(keys) for keys, _ in paths.keys_and_leaves(params)]
    if "" in names:
        raise ValueError("roles need a tree with named leaves: got a bare array; wrap it, e.g. {'kernel': array}")
    if joined := [name for name in names if "+" in name]:
        raise ValueError(f"{joined[0]!r} has a '+' in its name, which joins paths here: rename it")
    nodes, decided, fixed = _decide_without_weights(params, overrides, stacked)
    _decide_weights(nodes, decided)
    _decide_output_norms(nodes, decided, fixed)
    rows = [(n.path, decided[n.path][0], n.shape, n.stacked, decided[n.path][1], n.unit_axes) for n in nodes]
    return Roles(tuple(itertools.starmap(LeafRole, rows)))


def _decide_without_weights(
    params: PyTree, overrides: Mapping[str, Role | str] | None, stacked: Mapping[str, int] | None
) -> tuple[list[_Node], dict[str, tuple[Role, str]], set[str]]:
    """The nodes; the roles of all but undeclared matrices and kernels; the paths whose role was given or declared."""
    entries = paths.keys_and_leaves(params)
    names = [paths.join(keys) for keys, _ in entries]
    given = {path: Role(role) for path, role in _match(overrides or {}, names, Role).items()}
    depths = {**stacked_axes(entries, _SCALE_NAMES | _OFFSET_NAMES), **_match(stacked or {}, names, int)}
    nodes = _with_attention([_Node.of(keys, leaf, depths[paths.join(keys)]) for keys, leaf in entries])
    declared = paths.metadata(params, "role")
    decided: dict[str, tuple[Role, str]] = {}
    for node in nodes:
        if node.path in given:
            decided[node.path] = given[node.path], "override"
        elif not node.is_array:
            decided[node.path] = Role.OTHER, "no array of floats"
        elif node.path in declared:
            decided[node.path] = Role(declared[node.path]), "declared by its layer"
        elif (kind := _kind(node, nodes)) is not None:
            decided[node.path] = kind
    return nodes, decided, given.keys() | declared.keys()


def normalization_parameters(params: PyTree, overrides: Mapping[str, Role | str] | Roles | None = None) -> set[str]:
    """The paths of all scales and offsets of normalizations; unlike `roles`, it needs no output layer to be found."""
    if isinstance(overrides, Roles):
        return set(overrides.paths(*AFFINE, *OUTPUT_AFFINE))
    if hasattr(params, "shape"):  # a bare array
        return set()
    _, decided, _ = _decide_without_weights(params, overrides, None)
    return {path for path, (role, _) in decided.items() if role in (*AFFINE, *OUTPUT_AFFINE)}


def attention_kernels(params: PyTree) -> list[str]:
    """The paths of kernels with an axis of attention's heads."""
    nodes = _with_attention([_Node.of(keys, leaf, 0) for keys, leaf in paths.keys_and_leaves(params)])
    return [node.path for node in nodes if node.heads is not None]


def weight_groups(roles: Roles) -> list[tuple[str, ...]]:
    """The hidden weights, each with its noise weight where it has one: W and the noise on it are scaled as one.

    A noise weight belongs to the hidden weight of its shape in the same module.

    Raises:
      ValueError: there is none, or more than one.
    """
    noise = {}
    for path in roles.paths(Role.NOISE):
        module = path.rpartition("/")[0]
        owners = [
            owner
            for owner in roles.paths(Role.HIDDEN)
            if owner.rpartition("/")[0] == module and roles[owner].shape == roles[path].shape
        ]
        if len(owners) != 1:
            raise ValueError(
                f"the noise weight {path!r} needs one hidden weight beside it, and there are {len(owners)}"
            )
        noise[owners[0]] = path
    return [(path, noise[path]) if path in noise else (path,) for path in roles.paths(Role.HIDDEN)]


def affine_groups(roles: Roles, wanted: Iterable[Role] = tuple(AFFINE)) -> list[tuple[str, ...]]:
    """The scale and the offset of each normalization layer with the roles `wanted`, as one group of paths each."""
    groups: dict[str, list[str]] = {}
    for path in roles.paths(*wanted):
        groups.setdefault(path.rpartition("/")[0], []).append(path)
    return [tuple(group) for group in groups.values()]


@dataclasses.dataclass(frozen=True)
class _Node:
    keys: tuple[Key, ...]
    is_array: bool
    shape: tuple[int, ...]
    stacked: int
    heads: int | None = None  # the axis of attention's heads, within `inner`

    @staticmethod
    def of(keys: tuple[Key, ...], leaf: Any, stacked: int) -> _Node:
        is_array = paths.is_weight_array(leaf)
        return _Node(keys, is_array, tuple(leaf.shape) if is_array else (), stacked)

    @property
    def path(self) -> str:
        return paths.join(self.keys)

    @property
    def name(self) -> Key:
        return self.keys[-1]

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape of one layer, without the stacked axes."""
        return self.shape[self.stacked :]

    @property
    def fan(self) -> tuple[int, int]:
        """Features in and out. PyTorch and Equinox call their weight `weight` and store it (out, in, ...)."""
        if self.name == "weight":
            return self.inner[1], self.inner[0]
        if self.heads is not None:
            inputs = 1 if self.heads else 2
            return math.prod(self.inner[:inputs]), math.prod(self.inner[inputs:])
        return self.inner[-2], self.inner[-1]

    @property
    def unit_axes(self) -> tuple[int, ...]:
        """The axes of `shape` that number the units."""
        if self.name == "weight":
            return (self.stacked,)
        rank = len(self.shape)
        return (rank - 2, rank - 1) if self.heads else (rank - 1,)


def _with_attention(nodes: list[_Node]) -> list[_Node]:
    """The nodes, of which the kernels of attention know their axis of heads.

    A kernel of rank 3 is one of these, as Flax has them, or a convolution's in one dimension. Attention has three of
    [inputs, heads, features], in modules beside that of one of [heads, features, outputs]; keys and values may have
    fewer heads than queries.
    """
    kernels = [node for node in nodes if node.name == "kernel" and len(node.inner) == 3]
    heads = {}
    for out in kernels:
        beside = [
            node
            for node in kernels
            if node is not out
            and node.keys[:-2] == out.keys[:-2]
            and node.inner[2] == out.inner[1]
            and out.inner[0] % node.inner[1] == 0
        ]
        if len(beside) == 3 and any(node.inner[1] == out.inner[0] for node in beside):
            heads |= {node.path: 1 for node in beside} | {out.path: 0}
    return [dataclasses.replace(node, heads=heads.get(node.path)) for node in nodes]


def _kind(node: _Node, nodes: list[_Node]) -> tuple[Role, str] | None:
    """The role of what is not a matrix or kernel; None for those."""
    siblings = [other for other in nodes if other.keys[:-1] == node.keys[:-1] and other is not node]
    has_weight = any(s.is_array and len(s.inner) >= 2 and s.name in _WEIGHT_NAMES for s in siblings)
    if node.name in _EMBEDDING_NAMES:
        return Role.EMBEDDING, "an embedding table"
    if node.name in _SCALE_NAMES and not has_weight:
        return Role.SCALE, "the scale of a normalization"
    if node.name == "weight" and len(node.inner) == 1:
        return Role.SCALE, "a weight of rank 1: the scale of a normalization"
    if node.name in _OFFSET_NAMES and not has_weight:
        beside = [s for s in siblings if s.name in _SCALE_NAMES or (s.name == "weight" and len(s.inner) == 1)]
        if beside:
            return Role.OFFSET, f"beside {beside[0].name!r} in a normalization"
    if len(node.inner) < 2 or node.name in _OFFSET_NAMES:
        return Role.BIAS, "beside a weight" if has_weight else "a vector"
    return None


def _decide_weights(nodes: list[_Node], decided: dict[str, tuple[Role, str]]) -> None:
    """Hidden or output: an output weight is one whose outputs no later layer takes in."""
    matrices = [n for n in nodes if n.is_array and len(n.inner) >= 2]
    tables = [n for n in matrices if decided.get(n.path, (None,))[0] is Role.EMBEDDING]
    biases = [n for n in matrices if decided.get(n.path, (None,))[0] is Role.BIAS]  # attention's have two axes
    weights = [n for n in matrices if n not in (*tables, *biases)]  # a table takes integers
    norms = [n for n in nodes if decided.get(n.path, (None,))[0] in (Role.SCALE, Role.OUTPUT_SCALE)]
    undecided = [n for n in weights if n.path not in decided]
    for node in undecided:
        if node.heads == 1:
            decided[node.path] = Role.HIDDEN, "attention's queries, keys or values"
            continue
        takers = [w for w in weights if w is not node and _feeds(node, w)]
        takers += [n for n in norms if n.inner[-1] == node.fan[1] and not _stands_before(n.keys, node.keys)]
        if takers:
            decided[node.path] = Role.HIDDEN, f"its {node.fan[1]} outputs go into {takers[0].path}"
        else:
            decided[node.path] = Role.OUTPUT, f"no other parameter takes its {node.fan[1]} outputs"
    # A tied table is the output layer itself, unless one of the weights has as many outputs as it has rows.
    rows = {table.inner[0] for table in tables}
    tied = bool(tables) and not any(node.fan[1] in rows for node in undecided)
    if undecided and not tied and not any(role is Role.OUTPUT for role, _ in decided.values()):
        raise ValueError(
            "no output layer can be told apart from the hidden ones by its shape; name it, e.g. "
            f"roles={{{undecided[-1].path!r}: 'output weight'}} (weights: {', '.join(n.path for n in undecided)})"
        )


def _decide_output_norms(nodes: list[_Node], decided: dict[str, tuple[Role, str]], fixed: set[str]) -> None:
    """A normalization whose activations only output layers read is part of the output."""
    weights = [n for n in nodes if decided[n.path][0] in (Role.HIDDEN, Role.OUTPUT)]
    for node in nodes:
        if decided[node.path][0] is not Role.SCALE or node.path in fixed or not node.inner:
            continue
        readers = [w for w in weights if w.fan[0] == node.inner[-1] and not _stands_before(w.keys, node.keys)]
        if readers and all(decided[w.path][0] is Role.OUTPUT for w in readers):
            for other in nodes:
                role = decided[other.path][0]
                if other.keys[:-1] == node.keys[:-1] and role in AFFINE and other.path not in fixed:
                    decided[other.path] = Role(f"output {role}"), f"read only by {readers[0].path}"


def _feeds(node: _Node, other: _Node) -> bool:
    """Whether `other` can take in what `node` puts out, as far as shapes and order say."""
    if _stands_before(other.keys, node.keys):
        return False
    out, into = node.fan[1], other.fan[0]
    is_convolution = len(node.inner) >= 3 and node.heads is None
    if len(other.inner) >= 4:  # a 2-D convolution takes feature maps (grouped ones a part of them), not a dense layer's
        return is_convolution and out % into == 0
    return into == out or (is_convolution and len(other.inner) == 2 and into % out == 0)  # through a flatten


def _stands_before(first: tuple[Key, ...], second: tuple[Key, ...]) -> bool:
    """Whether numbering says that `first` comes earlier: layers/0 before layers/1, Dense_2 before Dense_10."""
    for a, b in zip(first, second, strict=False):
        if a == b:
            continue
        if isinstance(a, int) and isinstance(b, int):
            return a < b
        (stem_a, number_a), (stem_b, number_b) = _numbered(str(a)), _numbered(str(b))
        return stem_a == stem_b and -1 < number_a < number_b
    return False


@functools.lru_cache(maxsize=4096)
def _numbered(key: str) -> tuple[str, int]:
    """A name and the number at its end, -1 where there is none."""
    found = re.fullmatch(r"(.*?)(\d+)", key)
    return (found[1], int(found[2])) if found else (key, -1)


def _match(patterns: Mapping[str, Any], names: list[str], kind: type) -> dict[str, Any]:
    """The value for each path that a pattern matches; the last match wins."""
    matched = {}
    for pattern, value in patterns.items():
        hits = paths.matching(pattern, names)
        if not hits:
            raise ValueError(f"no parameter matches {pattern!r}{paths.nearest(pattern, names)}")
        try:
            matched.update(dict.fromkeys(hits, kind(value)))
        except ValueError:
            known = ", ".join(repr(str(role)) for role in Role)
            raise ValueError(f"{pattern!r}: {value!r} is no role; the roles are {known}") from None
    return matched
