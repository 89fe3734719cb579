"""Pytrees of parameters as flat dictionaries: one readable path a leaf, whatever library made the tree.

A path joins the keys from the root to the leaf by "/", so `{"torso": [{"kernel": k}]}` has the path "torso/0/kernel".
Flax NNX `State`, Linen dictionaries, Equinox modules, tuples and dataclasses all flatten this way.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

Key = str | int
PyTree = Any


def _plain(key: Any) -> Key:
    """The text or number inside one of JAX's key objects."""
    if isinstance(key, GetAttrKey):
        return key.name
    if isinstance(key, SequenceKey):
        return key.idx
    if isinstance(key, DictKey | FlattenedIndexKey):
        return key.key if isinstance(key.key, int) else str(key.key)
    return str(key)


def _is_variable(node: Any) -> bool:
    """Whether a node is an NNX variable, or a box of Linen's: known by what it offers, so that this needs no Flax."""
    return hasattr(node, "get_metadata") or (hasattr(node, "unbox") and hasattr(node, "add_axis"))


def keys_and_leaves(tree: PyTree) -> list[tuple[tuple[Key, ...], Any]]:
    """Every leaf with the keys that lead to it, in JAX's flattening order.

    The attribute under which an NNX variable, or a box such as Linen's `Partitioned`, holds its array is left out:
    "conv/kernel", not "conv/kernel/value".
    """
    variables = {
        tuple(_plain(key) for key in keys)
        for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
        if _is_variable(node)
    }
    entries = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = tuple(_plain(key) for key in keys)
        entries.append((path[:-1] if path[:-1] in variables else path, leaf))
    return entries


def metadata(tree: PyTree, name: str) -> dict[str, Any]:
    """What the NNX variables of a tree declare under `name`, by path; empty for every other kind of tree."""
    declared = {}
    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable):
        if hasattr(node, "get_metadata") and (value := node.get_metadata().get(name)) is not None:
            declared[join(_plain(key) for key in keys)] = value
    return declared


def join(keys: Iterable[Key]) -> str:
    """A path as text."""
    return "/".join(map(str, keys))


def leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {join(keys): leaf for keys, leaf in keys_and_leaves(tree)}


def replace(tree: PyTree, new: dict[str, Any]) -> PyTree:
    """The same tree with the leaves named in `new` exchanged; every other leaf is kept as it is."""
    structure = jax.tree_util.tree_structure(tree)
    return structure.unflatten([new.get(join(keys), leaf) for keys, leaf in keys_and_leaves(tree)])


def map_leaves(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """The same tree with every leaf replaced by `function(path, leaf)`."""
    return replace(tree, {path: function(path, leaf) for path, leaf in leaves(tree).items()})


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The paths that a pattern means: the one that it is, or else those it matches, `*` being anything, "/" included.

    Where nothing matches `[...]` as a choice of letters, brackets are letters, as in "conv[0]/*".
    """
    names = list(names)
    if pattern in names:
        return [pattern]
    for tried in (pattern, pattern.replace("[", "[[]")):
        if hits := [name for name in names if fnmatch.fnmatchcase(name, tried)]:
            return hits
    return []


def nearest(path: str, known: list[str]) -> str:
    """The end of a message: which path comes nearest; "" where there is none."""
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return f"; the nearest path is {close[0]!r}" if close else ""


def is_stand_in(params: PyTree) -> bool:
    """Whether these are no parameters, but what `optax.tree.map_params` gives to an `init` to see where they go.

    It has no leaves. A state made from it must have the structure of the real one, where a leaf may stand for a subtree
    in which nothing has the parameters' structure.
    """
    return isinstance(params, _stand_in_type())


@functools.cache
def _stand_in_type() -> type:
    seen = []

    def init(params: PyTree) -> PyTree:
        seen.append(type(params))
        return params

    optax.tree.map_params(init, lambda leaf: leaf, ())
    return seen[0]


def is_weight_array(leaf: Any) -> bool:
    """Whether a leaf is an array of real or complex floats: activation functions, integers and random keys are not."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def complex_path(tree: PyTree) -> str | None:
    """The path of the first complex leaf, or None."""
    found = (path for path, leaf in leaves(tree).items() if is_weight_array(leaf) and jnp.iscomplexobj(leaf))
    return next(found, None)
