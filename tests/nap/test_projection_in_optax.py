"""The projection inside of optax's wrappers, and its state in the tools of optax and orbax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from projected_trees import assert_held, linen, nnx_state, random_gradients, train

import nap
from nap import paths

NAP = nap.normalize_and_project(optax.adam(0.1))
PARAMS = nnx_state(jax.random.key(0))
ROLES = nap.roles(PARAMS)
IS_KERNEL = paths.map_leaves(lambda path, _: path.endswith("kernel"), PARAMS)
WRAPPED = {
    "alone": NAP,
    "regularize": nap.normalize_and_project(optax.adam(0.1), affine="regularize"),
    "MultiSteps": optax.MultiSteps(NAP, 3),
    "inject_hyperparams": optax.inject_hyperparams(lambda rate: nap.normalize_and_project(optax.adam(rate)))(rate=0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), NAP),
    "apply_if_finite": optax.apply_if_finite(NAP, 3),
    "muon": nap.normalize_and_project(optax.contrib.muon(0.1)),
    "adamw": nap.normalize_and_project(optax.adamw(0.1, weight_decay=0.1)),
    "schedule": nap.normalize_and_project(optax.adam(optax.linear_schedule(0.1, 0.0, 10))),
    "flatten": nap.normalize_and_project(optax.flatten(optax.adam(0.1))),
    "masked": optax.chain(optax.adam(0.1), optax.masked(nap.project_weights(roles=ROLES), IS_KERNEL)),
    "multi_transform": optax.multi_transform(
        {True: nap.normalize_and_project(optax.adam(0.1), roles=ROLES, affine="free"), False: optax.sgd(0.1)}, IS_KERNEL
    ),
    "schedules of layers": optax.chain(
        optax.sgd(0.1), nap.scale_by_schedules({"hidden/0/kernel": lambda step: 0.5}), nap.project_weights()
    ),
}
# Optax's own `flatten` and `muon` can't be mapped over.
MAPPED = [name for name in WRAPPED if name not in ("flatten", "muon")]


@pytest.mark.parametrize("name", WRAPPED)
def test_inside_optax_wrappers(name):
    trained = train(WRAPPED[name], PARAMS, steps=6)
    assert_held(trained, PARAMS)
    weight = "hidden/0/kernel"
    assert not np.allclose(paths.leaves(trained)[weight], paths.leaves(PARAMS)[weight], atol=1e-3)


@pytest.mark.parametrize("name", MAPPED)
def test_optax_maps_over_what_mirrors_the_parameters(name):
    """As one makes the shardings of a state from those of the parameters."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    divided, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("model"), PartitionSpec()))
    of_params = jax.tree.map(lambda leaf: divided if leaf.shape[0] % 2 == 0 else whole, PARAMS)
    state = WRAPPED[name].init(PARAMS)
    shardings = optax.tree.map_params(
        WRAPPED[name],
        lambda _, sharding: sharding,
        state,
        of_params,
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    placed = jax.device_put(state, shardings)
    norms = [of for _, of in optax.tree.get_all_with_path(placed, "target_norms")]
    assert norms and all(leaf.sharding == whole for leaf in jax.tree.leaves(norms))
    for _, moments in optax.tree.get_all_with_path(placed, "mu"):
        assert paths.leaves(moments)["hidden/0/kernel"].sharding == divided


@pytest.mark.parametrize("name", WRAPPED)
def test_a_state_that_orbax_has_restored_makes_the_same_update(name, tmp_path):
    optimizer = WRAPPED[name]
    gradients = [random_gradients(PARAMS, jax.random.key(i)) for i in range(2)]
    updates, state = optimizer.update(gradients[0], optimizer.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    ocp.save(tmp_path / "state", state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    restored = ocp.load(tmp_path / "state", abstract)
    expected, _ = optimizer.update(gradients[1], state, params)
    found, _ = optimizer.update(gradients[1], restored, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_inside_partition_needs_the_roles_of_the_whole_tree():
    params = linen(jax.random.key(0))
    roles = nap.roles(params)
    labels = paths.map_leaves(lambda path, _: "body" if "Dense" in path else "rest", params)

    def build(**kwargs):
        body = nap.normalize_and_project(optax.adam(0.1), affine="free", **kwargs)
        return optax.partition({"body": body, "rest": optax.sgd(0.1)}, labels)

    assert_held(train(build(roles=roles), params), params)
    with pytest.raises(ValueError, match=r"roles=nap\.roles"):
        build().init(params)


def test_what_has_no_weights_is_refused_where_optax_does_not_ask():
    with pytest.raises(ValueError, match="no hidden weight to project"):
        nap.project_weights().init({})
    with pytest.raises(ValueError, match="got a bare array"):
        optax.flatten(nap.project_weights()).init({"kernel": jnp.ones((2, 2))})
