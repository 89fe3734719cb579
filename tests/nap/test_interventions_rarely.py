"""`rarely`: what `lax.cond` gives, in every transformation, and no work while nobody needs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nap.interventions.rarely import rarely

OPERAND = {"x": jnp.array([1.0, 2.0]), "n": jnp.array(3)}


def branch(operand):
    return {"x": 10 * operand["x"] + operand["n"], "n": operand["n"] + 1}


def by_rarely(predicate, operand):
    return rarely(predicate, branch, operand)


def by_cond(predicate, operand):
    return jax.lax.cond(predicate, branch, lambda same: same, operand)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def operands(*shape):
    """Different operands for each member."""
    start = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(*shape, 1)
    return {"x": start + OPERAND["x"], "n": start[..., 0].astype(jnp.int32)}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_single(transform):
    taken = transform(by_rarely)(jnp.array(True), OPERAND)
    assert_same(taken, {"x": jnp.array([13.0, 23.0]), "n": jnp.array(4)})
    assert_same(transform(by_rarely)(jnp.array(False), OPERAND), OPERAND)


def test_vmap_takes_the_branch_for_exactly_those_that_need_it():
    due, members = jnp.array([True, False, True, False]), operands(4)
    assert_same(jax.vmap(by_rarely)(due, members), jax.vmap(by_cond)(due, members))


@pytest.mark.parametrize(
    "axes",
    [(0, None), (None, 0), (0, {"x": 0, "n": None}), (0, {"x": 1, "n": 0})],
    ids=["operand shared", "predicate shared", "a part shared", "another axis"],
)
def test_vmap_over_a_part_of_the_arguments(axes):
    members = operands(3)
    if axes[1] is None:
        members = OPERAND
    elif axes[1] != 0:
        members["n"] = jnp.array(3) if axes[1]["n"] is None else members["n"]
        members["x"] = jnp.moveaxis(members["x"], 0, axes[1]["x"])
    due = jnp.array(True) if axes[0] is None else jnp.array([False, True, True])
    assert_same(jax.vmap(by_rarely, axes)(due, members), jax.vmap(by_cond, axes)(due, members))


def test_nested_vmap_under_jit():
    due, members = jnp.array([[True, False], [False, False], [True, True]]), operands(3, 2)
    expected = jax.vmap(jax.vmap(by_cond))(due, members)
    assert_same(jax.jit(jax.vmap(jax.vmap(by_rarely)))(due, members), expected)


def test_scan_inside_of_vmap():
    """A reset every third update, as the interventions use it, each member with a period of its own."""

    def run(conditional, period, start):
        def step(carry, count):
            return conditional(count % period == 0, carry), carry["x"]

        return jax.lax.scan(step, start, jnp.arange(1, 8))

    periods, members = jnp.array([3, 4]), operands(2)
    actual = jax.jit(jax.vmap(lambda p, s: run(by_rarely, p, s)))(periods, members)
    assert_same(actual, jax.vmap(lambda p, s: run(by_cond, p, s))(periods, members))
    np.testing.assert_array_equal(actual[0]["n"], [0 + 2, 1 + 1])  # counts 3 and 6; count 4


@pytest.mark.parametrize("due", [[False, False, False], [False, True, False]])
def test_the_branch_is_not_computed_while_no_member_needs_it(due):
    seen = []

    def loud(operand):
        jax.debug.callback(lambda: seen.append(1))
        return branch(operand)

    @jax.jit
    def run(due, members):
        return jax.vmap(lambda d, m: rarely(d, loud, m))(due, members)

    jax.block_until_ready(run(jnp.array(due), operands(3)))
    jax.effects_barrier()
    assert bool(seen) == any(due)


def test_nor_under_two_vmaps():
    seen = []

    def loud(operand):
        jax.debug.callback(lambda: seen.append(1))
        return branch(operand)

    run = jax.jit(jax.vmap(jax.vmap(lambda d, m: rarely(d, loud, m))))
    jax.block_until_ready(run(jnp.zeros((2, 2), bool), operands(2, 2)))
    jax.effects_barrier()
    assert not seen
    jax.block_until_ready(run(jnp.array([[False, False], [True, False]]), operands(2, 2)))
    jax.effects_barrier()
    assert seen


def test_random_keys_pass_through():
    def draw(operand):
        key, x = operand
        next_key, now = jax.random.split(key)
        return next_key, jax.random.normal(now, x.shape)

    keys, x = jax.random.split(jax.random.key(0), 3), jnp.zeros((3, 2))
    due = jnp.array([True, False, True])
    new_keys, drawn = jax.jit(jax.vmap(lambda d, k, x: rarely(d, draw, (k, x))))(due, keys, x)
    assert jnp.issubdtype(new_keys.dtype, jax.dtypes.prng_key)
    for i in range(3):
        key, value = draw((keys[i], x[i])) if due[i] else (keys[i], x[i])
        assert (jax.random.key_data(new_keys[i]) == jax.random.key_data(key)).all()
        np.testing.assert_array_equal(drawn[i], value)


def test_a_branch_may_close_over_what_vmap_traces():
    """An optimizer that is made with a seed's own key, and made anew inside of the branch, does so."""

    def one(due, key, offset, x):
        return rarely(due, lambda x: x + offset + jax.random.normal(key, x.shape), x)

    due, keys = jnp.array([True, False, True]), jax.random.split(jax.random.key(0), 3)
    offsets, x = jnp.array([1.0, 2.0, 3.0]), jnp.zeros((3, 2))
    together = jax.jit(jax.vmap(one))(due, keys, offsets, x)
    np.testing.assert_array_equal(together[1], x[1])
    for i in (0, 2):
        np.testing.assert_allclose(together[i], offsets[i] + jax.random.normal(keys[i], (2,)), rtol=1e-6)
    nested = jax.vmap(jax.vmap(one))(due[None], keys[None], offsets[None], x[None])
    np.testing.assert_allclose(nested[0], together, rtol=1e-6)


def test_a_branch_that_changes_a_shape_is_an_error():
    with pytest.raises(TypeError, match="cond"):
        rarely(jnp.array(True), lambda x: x[:1], jnp.zeros(2))
