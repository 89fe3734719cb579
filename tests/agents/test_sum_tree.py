"""The sum tree: frequencies of its draws, and no drift of its sums however often it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flashbax.buffers import sum_tree as flashbax_tree

from agents.sum_tree import draw, leaves_for, make_tree, set_leaves


def leaves_of(tree) -> np.ndarray:
    return np.asarray(tree)[tree.size // 2 :]


def test_parents_are_the_sums_of_their_children_by_hand():
    tree = set_leaves(make_tree(4), jnp.array([0, 2, 3]), jnp.array([1.0, 2.0, 4.0]))
    assert tree.tolist() == [0, 7, 1, 6, 1, 0, 2, 4]
    assert set_leaves(tree, jnp.array([3]), jnp.array([0.0])).tolist() == [0, 3, 1, 2, 1, 0, 2, 0]


def test_of_an_index_given_twice_the_larger_value_counts():
    tree = set_leaves(make_tree(4), jnp.array([1, 1]), jnp.array([9.0, 8.0]))
    for values in ([3.0, 5.0, 1.0], [5.0, 3.0, 1.0]):
        again = set_leaves(tree, jnp.array([1, 1, 2]), jnp.array(values))
        assert again.tolist() == [0, 6, 5, 1, 0, 5, 1, 0]


@pytest.mark.parametrize(("size", "leaves"), [(1, 2), (2, 2), (3, 4), (1024, 1024), (1025, 2048)])
def test_the_number_of_leaves_is_a_power_of_two(size, leaves):
    assert leaves_for(size) == leaves and make_tree(size).shape == (2 * leaves,)


@pytest.mark.parametrize("size", [3, 5, 64])
def test_frequencies_are_proportional_to_the_values(size):
    values = 10 ** np.random.default_rng(size).uniform(-2, 0, size)
    values[1] = 0
    tree = set_leaves(make_tree(size), jnp.arange(size), jnp.asarray(values, jnp.float32))
    counts = np.bincount(draw(tree, jax.random.key(size), 100_000), minlength=size)
    assert counts.size == size and counts[1] == 0
    wanted = 1e5 * values / values.sum()
    assert scipy.stats.chisquare(np.delete(counts, 1), np.delete(wanted, 1)).pvalue > 1e-4


def test_draws_are_independent_of_each_other():
    tree = set_leaves(make_tree(4), jnp.arange(4), jnp.array([1.0, 2.0, 3.0, 4.0]))
    drawn = np.asarray(draw(tree, jax.random.key(0), 20_000)).reshape(-1, 2)
    pairs = scipy.stats.contingency.crosstab(drawn[:, 0], drawn[:, 1]).count
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-4


LEAVES, CHANGES, AT_ONCE = 16, 1_000_000, 50


def changes(key) -> tuple[jax.Array, jax.Array]:
    """Some indices, and values over 20 magnitudes, a third of them zero."""
    index_key, size_key, zero_key = jax.random.split(key, 3)
    values = 10.0 ** jax.random.uniform(size_key, (AT_ONCE,), minval=-14, maxval=6)
    values = jnp.where(jax.random.uniform(zero_key, (AT_ONCE,)) < 1 / 3, 0, values)
    return jax.random.randint(index_key, (AT_ONCE,), 0, LEAVES), values


def after_many_changes(tree, change, drawn_of, leaf_of):
    """The tree after a million changes, and how many of the draws on the way were of a leaf of value 0."""

    def body(tree, key):
        tree = change(tree, *changes(key))
        return tree, (leaf_of(tree, drawn_of(tree, key)) <= 0).sum()

    keys = jax.random.split(jax.random.key(0), CHANGES // AT_ONCE)
    tree, wrong = jax.jit(lambda tree: jax.lax.scan(body, tree, keys))(tree)
    return tree, int(wrong.sum())


def test_a_million_changes_leave_exact_sums_and_no_draw_of_priority_zero():
    tree, wrong = after_many_changes(
        make_tree(LEAVES),
        set_leaves,
        lambda tree, key: draw(tree, key, 8),
        lambda tree, index: tree[LEAVES + index],
    )
    assert wrong == 0
    for node in range(1, LEAVES):
        assert tree[node] == tree[2 * node] + tree[2 * node + 1], node
    assert tree[1] == pytest.approx(leaves_of(tree).sum(dtype=np.float64), rel=1e-6)


def test_flashbax_draws_priority_zero_under_the_same_load():
    """Why the tree is ours: it adds differences to the parents, and these sums drift."""
    _, wrong = after_many_changes(
        flashbax_tree.init(LEAVES),
        flashbax_tree.set_batch_bincount,
        lambda tree, key: flashbax_tree.stratified_sample(tree, 8, key),
        flashbax_tree.get_batch,
    )
    assert wrong > 0


def test_an_empty_tree_gives_leaf_0():
    assert draw(make_tree(8), jax.random.key(0), 3).tolist() == [0, 0, 0]
