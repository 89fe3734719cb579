"""The projection: norms held, for every kind of tree, type and axis."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from projected_trees import assert_held, linen, nnx_state, random_gradients, train

import nap
from nap import paths
from nap.networks import MLP, as_functions
from nap.roles import Role


def equinox(key: jax.Array) -> Any:
    return eqx.filter(eqx.nn.MLP(8, 3, 16, 2, key=key), eqx.is_inexact_array)


def plain(key: jax.Array) -> Any:
    keys = jax.random.split(key, 3)
    shapes = [(8, 16), (16, 12), (12, 3)]
    return {f"w{i}": jax.random.normal(k, shape) for i, (k, shape) in enumerate(zip(keys, shapes, strict=True))}


TREES = pytest.mark.parametrize("make", [nnx_state, linen, equinox, plain])


@TREES
def test_every_kind_of_tree_in_jit_and_scan(make):
    params = make(jax.random.key(0))
    optimizer = nap.normalize_and_project(optax.adam(0.1))

    @jax.jit
    def run(params, state):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(random_gradients(params, key), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(1), 20))[0]

    trained, _ = run(params, optimizer.init(params))
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert_held(trained, params)
    before, after = paths.leaves(params), paths.leaves(trained)
    for path in nap.roles(params).paths(Role.OUTPUT):
        assert np.linalg.norm(after[path]) > 1.05 * np.linalg.norm(before[path])  # free to move


@TREES
def test_vmap_over_seeds_equals_one_by_one(make):
    keys = jax.random.split(jax.random.key(0), 3)
    optimizer = nap.normalize_and_project(optax.sgd(0.1))

    def one(key):
        params = make(key)
        updates, _ = optimizer.update(random_gradients(params, key), optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    together = jax.vmap(one)(keys)
    for i, key in enumerate(keys):
        alone = one(key)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=2e-6, atol=1e-7)
        assert_held(alone, make(key))


@TREES
def test_stacked_parameters_keep_one_norm_for_each_member(make):
    """Parameters stacked outside of vmap: leading axes are never reduced (declared where no vector shows them)."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(make)(keys)
    roles = nap.roles(params, stacked={"*": 1})
    optimizer = nap.normalize_and_project(optax.sgd(0.1), roles=roles)
    updates, _ = optimizer.update(random_gradients(params, keys[0]), optimizer.init(params), params)
    trained = optax.apply_updates(params, updates)
    for norm in nap.weight_norms(params, roles).values():
        assert norm.size == 3
    for i, key in enumerate(keys):
        assert_held(jax.tree.map(lambda x, i=i: x[i], trained), make(key))


def test_sharded_over_eight_devices_equals_one():
    params = nnx_state(jax.random.key(0))
    optimizer = nap.normalize_and_project(optax.adam(0.1))
    expected = train(optimizer, params)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

    def shard(x):
        spec = PartitionSpec("model") if x.shape and x.shape[0] % 8 == 0 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    sharded = jax.tree.map(shard, params)
    assert len(paths.leaves(sharded)["hidden/0/kernel"].sharding.device_set) == 8
    trained = jax.jit(lambda p: train(optimizer, p))(sharded)
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert_held(trained, params)


def test_bfloat16_weights_hold_the_norm_as_well_as_they_can():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx_state(jax.random.key(0)))
    trained = train(nap.normalize_and_project(optax.adam(0.1)), params, steps=50)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype(jnp.bfloat16)}
    assert_held(trained, params, tolerance=1e-3)


def test_float64_weights_keep_all_their_digits():
    with jax.enable_x64(True):
        weight = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)))
        params = {"kernel": weight}
        tx = nap.project_weights(roles={"kernel": "hidden weight"})
        step = {"kernel": jnp.full_like(weight, 1e-12)}  # far below what float32 can tell apart
        updates, state = tx.update(step, tx.init(params), params)
        moved = np.asarray(weight) + 1e-12
        expected = moved * np.linalg.norm(weight) / np.linalg.norm(moved) - np.asarray(weight)
        np.testing.assert_allclose(updates["kernel"], expected, atol=1e-15)
        assert state.target_norms["kernel"].dtype == jnp.float64


def test_ten_thousand_adam_steps_do_not_drift():
    """Test (b): every projected norm within 1e-6 of its start, at the end and on the way."""
    params = nnx_state(jax.random.key(0))
    optimizer = nap.normalize_and_project(optax.adam(1e-2))
    apply = as_functions(lambda rngs: MLP(8, [16, 12], 3, rngs=rngs)).apply
    initial = nap.weight_norms(params)

    @jax.jit
    def run(params, state):
        def step(carry, key):
            params, state = carry
            x = jax.random.normal(key, (16, 8))
            gradients = jax.grad(lambda p: jnp.mean(jnp.square(apply(p, x) - jnp.sin(3 * x[:, :3]))))(params)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), nap.weight_norms(params)

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(1), 10_000))

    (trained, _), norms = run(params, optimizer.init(params))
    assert_held(trained, params, tolerance=1e-6)
    for name, sequence in norms.items():
        assert np.max(np.abs(sequence / initial[name] - 1)) < 1e-6
        drift = np.mean(sequence[-1000:]) / np.mean(sequence[:1000]) - 1
        assert abs(drift) < 2e-7


def test_every_k_equals_projecting_by_hand():
    """Test (e), first half."""
    params = linen(jax.random.key(0))
    targets = nap.weight_norms(params)
    optimizer, plain_adam = nap.normalize_and_project(optax.adam(0.1), every=3, affine="free"), optax.adam(0.1)
    state, plain_state, by_hand = optimizer.init(params), plain_adam.init(params), params
    for i in range(1, 8):
        gradients = random_gradients(params, jax.random.key(i))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        updates, plain_state = plain_adam.update(gradients, plain_state, by_hand)
        by_hand = optax.apply_updates(by_hand, updates)
        if i % 3 == 0:
            by_hand = nap.project(by_hand, targets)
            assert_held(params, linen(jax.random.key(0)))
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(by_hand), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_radii_survive_a_checkpoint_and_are_not_recomputed(tmp_path):
    """Test (e), second half: the state restored beside *trained* weights still holds the initial norms."""
    from orbax.checkpoint import v1 as ocp

    params = nnx_state(jax.random.key(0))
    optimizer = nap.normalize_and_project(optax.adam(0.1), every=1000)
    state = optimizer.init(params)
    drifted, initial = params, params
    for i in range(5):
        updates, state = optimizer.update(random_gradients(drifted, jax.random.key(i)), state, drifted)
        drifted = optax.apply_updates(drifted, updates)
    assert float(nap.weight_norms(drifted)["hidden/0/kernel"]) > 1.1 * float(
        nap.weight_norms(initial)["hidden/0/kernel"]
    )
    ocp.save(tmp_path / "checkpoint", {"params": drifted, "state": state})
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), {"params": drifted, "state": state}
    )
    restored = ocp.load(tmp_path / "checkpoint", abstract)
    targets = optax.tree.get(restored["state"], "target_norms")
    assert targets.keys() == optax.tree.get(state, "target_norms").keys()
    assert_held(nap.project(restored["params"], targets), initial)


@pytest.mark.parametrize("axes", [-1, (1,), (0, 1)])
def test_axes_keep_norms_of_their_own(axes):
    params = {"w0": jax.random.normal(jax.random.key(0), (8, 16)), "w1": jnp.ones((16, 3))}
    norms = nap.weight_norms(params, axes=axes)
    kept = {-1: (1, 16), (1,): (1, 16), (0, 1): (8, 16)}[axes]
    assert norms["w0"].shape == kept
    expected = (
        np.sqrt(np.sum(np.square(params["w0"]), axis=0, keepdims=True)) if kept == (1, 16) else np.abs(params["w0"])
    )
    np.testing.assert_allclose(norms["w0"], expected, rtol=1e-6)
    optimizer = optax.chain(optax.sgd(0.3), nap.project_weights(axes=axes))
    trained = train(optimizer, params)
    np.testing.assert_allclose(nap.weight_norms(trained, axes=axes)["w0"], norms["w0"], rtol=1e-6)


def test_conv_kernels_are_projected_as_one_tensor():
    params = {"c0": jax.random.normal(jax.random.key(0), (3, 3, 4, 8)), "c1": jnp.ones((128, 3))}
    trained = train(optax.chain(optax.sgd(0.3), nap.project_weights()), params)
    assert np.linalg.norm(trained["c0"]) == pytest.approx(np.linalg.norm(params["c0"]), rel=1e-6)
    assert not np.allclose(np.square(trained["c0"]).sum((0, 1, 2)), np.square(params["c0"]).sum((0, 1, 2)), rtol=1e-3)


def test_zero_nan_and_empty_leaves():
    """Test (h): a zero weight stays zero, a zero radius leaves the weight free, NaN stays where it was, nothing new."""
    params = {
        "a0": jnp.zeros((4, 4)),  # its radius is zero: it can't be projected
        "a1": jnp.ones((4, 4)),
        "a2": jnp.zeros((0, 4)),
        "a3": jnp.ones((4, 4)).at[0, 0].set(jnp.nan),
        "a4": jnp.ones((4, 2)),
    }
    optimizer = optax.chain(optax.identity(), nap.project_weights(roles={f"a{i}": Role.HIDDEN for i in range(4)}))
    state = optimizer.init(params)
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 0.5), params)
    updates["a1"] = -params["a1"]  # straight to zero
    steps, _ = optimizer.update(updates, state, params)
    after = optax.apply_updates(params, steps)
    np.testing.assert_array_equal(after["a0"], 0.5)
    np.testing.assert_array_equal(after["a1"], 0.0)
    assert after["a2"].shape == (0, 4)
    assert int(np.isnan(after["a3"]).sum()) == 1
    huge = nap.project({"w": jnp.full((4,), 1e30)}, {"w": jnp.float32(1.0)})  # its square overflows
    assert np.all(np.isfinite(huge["w"]))


def test_affine_projection_keeps_sqrt_d_and_the_function():
    """Test (g): (scale, offset) as one vector goes back to norm sqrt(d); the function does not change."""
    network = as_functions(lambda rngs: MLP(8, [16, 12], 3, rngs=rngs))
    params = network.init(jax.random.key(0))
    leaves = paths.leaves(params)
    moved = paths.replace(
        params,
        {
            "hidden/0/norm/scale": 1 + 0.5 * jax.random.normal(jax.random.key(1), (16,)),
            "hidden/0/norm/offset": jax.random.normal(jax.random.key(2), (16,)),
        },
    )
    optimizer = nap.normalize_and_project(optax.identity())
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, moved), optimizer.init(params), moved)
    projected = optax.apply_updates(moved, updates)
    after = paths.leaves(projected)
    vector = np.concatenate([after["hidden/0/norm/scale"], after["hidden/0/norm/offset"]])
    assert np.linalg.norm(vector) == pytest.approx(4.0, rel=1e-6)  # sqrt(16)
    x = jax.random.normal(jax.random.key(3), (32, 8))
    np.testing.assert_allclose(network.apply(projected, x), network.apply(moved, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        after["hidden/1/norm/scale"], leaves["hidden/1/norm/scale"]
    )  # before the output: free


def test_affine_regularization_pulls_to_one_and_zero():
    params = nnx_state(jax.random.key(0))
    start = paths.replace(params, {"hidden/0/norm/scale": jnp.full(16, 3.0), "hidden/0/norm/offset": jnp.full(16, 2.0)})
    optimizer = nap.normalize_and_project(optax.sgd(1.0), affine="regularize", affine_strength=0.1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, start), optimizer.init(params), start)
    after = paths.leaves(optax.apply_updates(start, updates))
    np.testing.assert_allclose(after["hidden/0/norm/scale"], 3.0 - 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(after["hidden/0/norm/offset"], 2.0 - 0.1 * 2.0, rtol=1e-6)


def test_averages_of_projected_weights_can_be_projected_again():
    params = nnx_state(jax.random.key(0))
    optimizer = nap.normalize_and_project(optax.adam(0.3))
    trained = train(optimizer, params, steps=10)
    average = jax.tree.map(lambda a, b: (a + b) / 2, params, trained)
    name = "hidden/0/kernel"
    assert float(nap.weight_norms(average)[name]) < 0.97 * float(nap.weight_norms(params)[name])
    targets = optax.tree.get(optimizer.init(params), "target_norms")
    assert_held(nap.project(average, targets), params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nap.project_weights(every=0), "every must be at least 1"),
        (lambda: nap.normalize_and_project(optax.sgd(1.0), affine="norm"), "affine must be one of"),  # pyrefly: ignore
        (lambda: nap.project_weights().init({"w": jnp.ones((3, 2))}), "no hidden weight"),
        (
            lambda: nap.project_weights(roles=nap.roles(nnx_state(jax.random.key(0)))).init({"w": jnp.ones((3, 2))}),
            "of another tree",
        ),
        (lambda: nap.project({"w": jnp.ones(3)}, {"v": jnp.ones([])}), "no such leaf"),
        (lambda: nap.weight_norms({"w0": jnp.ones((2, 3)), "w1": jnp.ones((3, 1))}, axes=2), "out of range"),
        (
            lambda: optax.chain(nap.project_weights()).update({"w": 1.0}, (nap.ProjectionState(0, {}),)),
            "needs the parameters",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(Exception, match=message):
        call()
