"""A tree of sums, to draw indices in proportion to priorities that change all the time.

An array of 2 * leaves numbers: node 1 is the root, the children of node i are 2i and 2i + 1, and the leaves are the
last half. A parent is always computed anew as the sum of its two children, so that rounding never adds up however often
priorities change. (flashbax adds differences to the parents instead: its float32 sums drift, and then it draws rows of
priority zero.)
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Tree = Float[Array, " nodes"]


def make_tree(size: int) -> Tree:
    """A tree of at least `size` leaves, all zero, float32; their number is rounded up to a power of two."""
    return jnp.zeros(2 * leaves_for(size), jnp.float32)


def leaves_for(size: int) -> int:
    """The leaves of a tree that `make_tree(size)` makes."""
    return 2 ** math.ceil(math.log2(max(size, 2)))


def set_leaves(tree: Tree, index: Int[Array, " n"], values: Float[Array, " n"]) -> Tree:
    """The tree with other values, 0 or more, at some leaves; of an index that is given twice the larger one counts."""
    node = index + tree.size // 2
    tree = tree.at[node].set(0).at[node].max(values)
    for _ in range(_depth(tree)):
        node = node // 2
        tree = tree.at[node].set(tree[2 * node] + tree[2 * node + 1])
    return tree


def draw(tree: Tree, key: Key[Array, ""], count: int) -> Int[Array, " {count}"]:
    """Indices of leaves, each drawn with probability value / sum of all values, with replacement.

    A coin is tossed at every node on the way down, so each choice is as exact as a float32, and never leads where all
    is zero. If the whole tree is zero, what comes is leaf 0.
    """
    node = jnp.ones(count, jnp.int32)
    for coin in jax.random.uniform(key, (_depth(tree), count)):
        left, right = tree[2 * node], tree[2 * node + 1]
        node = 2 * node + ((right > 0) & (coin * (left + right) >= left))
    return node - tree.size // 2


def _depth(tree: Tree) -> int:
    return int(math.log2(tree.size)) - 1
