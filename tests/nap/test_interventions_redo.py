"""ReDo: which units are recycled, and when; numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recycled_networks import CASES, READERS, STILL, drive, normal_init, one_layer

import nap
from nap import paths
from nap.interventions.adam import adam
from nap.interventions.redo import redo

# Mean absolute activations of the four units: 0, 0.02, 0.08, 3.9; their mean is 1, so these are the scores.
SCORED = [[0.0, 0.04, -0.06, 3.8], [0.0, 0.0, 0.1, -4.0]]


@pytest.mark.parametrize(("tau", "expected"), [(0.0, [0]), (0.025, [0, 1]), (0.1, [0, 1, 2])])
def test_redo_by_known_scores_every_every_updates_and_at_no_other(tau, expected):
    init, params = one_layer(4)
    optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), tau=tau, every=3)
    gone, weights, states = drive(optimizer, params, [SCORED] * 7)
    assert gone == [[], [], expected, [], [], expected, []]
    assert states[-1].count == 7
    first, second = weights[2]["a"]["kernel"], weights[5]["a"]["kernel"]
    assert np.all(first[:, expected] != second[:, expected])  # each time other weights
    np.testing.assert_array_equal(second[:, 3], params["a"]["kernel"][:, 3])


def test_redo_scores_channels_over_batch_and_space_and_both_features_of_a_unit():
    """Unit 1's only activation is at one place of one example, in its second feature."""
    shapes = {"a/kernel": (1, 1, 1, 3), "output/kernel": (12, 2)}
    init = normal_init(shapes)
    hidden = jnp.zeros((2, 1, 2, 6)).at[1, 0, 1, 3 + 1].set(8.0).at[..., 2].set(0.5)
    optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), tau=0.0, every=10)
    params = init(jax.random.key(0))
    state = optimizer.init(params)._replace(count=jnp.array(8))
    zero = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zero, state, params, activations={"a": hidden})
    np.testing.assert_array_equal(state.activity["a"], [0, 0, 0])  # not the batch before the recycling
    updates, state = optimizer.update(zero, state, params, activations={"a": hidden})
    np.testing.assert_array_equal(jnp.any(updates["a"]["kernel"] != 0, axis=(0, 1, 2)), [True, False, False])
    wide = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), every=10, batches=10)
    _, state = wide.update(zero, wide.init(params), params, activations={"a": hidden})
    np.testing.assert_allclose(state.activity["a"], [0, 8 / 8, 0.5 / 2])


def test_redo_scores_the_last_batches_before_a_recycling():
    """Unit 1 is loud until the window of two batches begins, unit 2 loud once inside of it."""
    loud, window_1, window_2 = [[1.0, 9.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 1.0]], [[1.0, 0.0, 9.0, 1.0]]
    init, params = one_layer(4)

    def recycled_with(batches):
        optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), every=4, batches=batches)
        gone, _, (*_, state) = drive(optimizer, params, [loud, loud, window_2, window_1] * 2)
        np.testing.assert_array_equal(state.activity["a"], 0)
        assert gone[:3] == gone[4:7] == [[], [], []]
        assert gone[3] == gone[7]
        return gone[3]

    assert recycled_with(1) == [1, 2]
    assert recycled_with(2) == [1]


def test_redo_recycles_all_of_an_all_silent_layer():
    init, params = one_layer(4)
    optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), tau=0.0, every=1)
    gone, (params,), _ = drive(optimizer, params, [np.zeros((2, 4))])
    assert gone == [[0, 1, 2, 3]]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_projection_around_redo_keeps_the_target_norms():
    case = CASES["normalized"]
    init = normal_init(case.shapes)
    params = start = init(jax.random.key(2))
    optimizer = nap.normalize_and_project(
        redo(adam(0.05), readers=case.readers, init=init, key=jax.random.key(0), tau=0.5, every=2)
    )
    state = optimizer.init(params)
    targets, hidden = state[-1].target_norms, {"a": jnp.ones((1, 4)), "b": jnp.array([[0.0, 1, 1, 1, 1]])}

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.cos, params), state, params, activations=hidden)
        return optax.apply_updates(params, updates), state

    for count in range(1, 5):
        params, state = step(params, state)
        assert np.all(np.asarray(params["output"]["kernel"])[0] == 0) == (count % 2 == 0)
    for path, target in state[-1].target_norms.items():
        assert target == targets[path]
    for path, norm in nap.weight_norms(params).items():
        np.testing.assert_allclose(norm, np.linalg.norm(paths.leaves(start)[path]), rtol=1e-5)
