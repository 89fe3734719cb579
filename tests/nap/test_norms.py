"""Norms over the whole range of floats, and complex weights, which are measured and projected by the norm of |z|."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from nap import diagnostics, interventions, norms
from nap.networks import MLP, as_functions
from nap.roles import Role

SCALES = pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e-10, 1.0, 1e10, 1e20, 1e30])
ROLES = {"a/kernel": "hidden weight", "b/kernel": "output weight"}


def tree(scale: float) -> dict:
    return {"a": {"kernel": jnp.full((4, 4), scale)}, "b": {"kernel": jnp.ones((4, 2))}}


@SCALES
@pytest.mark.parametrize("way", ["eager", "jit", "vmap"])
def test_projection_reaches_the_norm_from_far_away(scale, way):
    targets = nap.weight_norms(tree(1.0), ROLES)
    assert targets["a/kernel"] == 4.0
    call = {"eager": nap.project, "jit": jax.jit(nap.project), "vmap": jax.jit(jax.vmap(nap.project))}[way]
    inputs = (tree(scale), targets)
    if way == "vmap":
        inputs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), inputs)
    kernel = call(*inputs)["a"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(np.asarray(kernel, np.float64), axis=(-2, -1)), 4.0, rtol=1e-6)


@SCALES
def test_radii_of_any_size_are_held_in_training(scale):
    params = tree(scale)
    optimizer = nap.normalize_and_project(optax.sgd(0.5), roles=ROLES)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            gradients = jax.tree.map(lambda w: -w * jnp.arange(1.0, 1 + w.size).reshape(w.shape), params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 5)[0]

    trained, state = run(params)
    (radius,) = optax.tree.get(state, "target_norms").values()
    np.testing.assert_allclose(float(radius) / scale, 4.0, rtol=1e-6)
    kernel = np.asarray(trained["a"]["kernel"], np.float64)
    np.testing.assert_allclose(np.linalg.norm(kernel) / scale, 4.0, rtol=1e-6)
    assert kernel[3, 3] > 10 * kernel[0, 0] > 0


@SCALES
def test_all_that_is_measured(scale):
    params, steps = tree(scale), jax.tree.map(lambda w: 1e-3 * w, tree(scale))
    of_unit = nap.weight_norms(params, ROLES, axes=-1)["a/kernel"]
    np.testing.assert_allclose(np.asarray(of_unit) / scale, np.full((1, 4), 2.0), rtol=1e-6)
    rates = jax.jit(nap.effective_learning_rates)(steps, params)["a/kernel"]
    np.testing.assert_allclose(rates.ratio, 1e-3, rtol=1e-5)
    assert float(rates.angle) == pytest.approx(0.0, abs=1e-6)
    turned = {"a": {"kernel": params["a"]["kernel"].at[:, :2].multiply(-1)}, "b": params["b"]}
    across = jax.tree.map(lambda new, old: new - old, turned, params)
    np.testing.assert_allclose(nap.effective_learning_rates(across, params)["a/kernel"].angle, np.pi / 2, rtol=1e-6)
    np.testing.assert_allclose(float(diagnostics.leaf_norms(params)["a/kernel"].l2) / scale, 4.0, rtol=1e-6)
    distance = diagnostics.distance_to_init(params, jax.tree.map(jnp.zeros_like, params))["a/kernel"]
    np.testing.assert_allclose(float(distance) / scale, 1.0, rtol=1e-6)
    np.testing.assert_allclose(float(diagnostics.feature_norm(params["a"]["kernel"])) / scale, 2.0, rtol=1e-6)


@SCALES
@pytest.mark.parametrize("name", ["project_units", "spectral_normalization"])
def test_interventions_that_scale_weights(scale, name):
    optimizer = getattr(interventions, name)(roles=ROLES)
    params = tree(min(scale, 1.0))
    updates = jax.tree.map(lambda old, new: new - old, params, tree(scale))
    updates, _ = optimizer.update(updates, optimizer.init(params), params)
    kernel = optax.apply_updates(params, updates)["a"]["kernel"]
    largest = {"project_units": 2.0, "spectral_normalization": 1.0}[name]  # of a matrix of equal entries
    np.testing.assert_allclose(np.linalg.norm(kernel, 2), largest, rtol=1e-6)


def test_two_tensors_with_one_norm_of_very_different_sizes():
    tensors = {
        "far": [jnp.full(9, 1e25), jnp.full(16, 1e25)], "near": [jnp.array([3.0, 4.0])],
        "apart": [jnp.full(4, 1e-25), jnp.full(4, 3.0)], "empty": [jnp.zeros((0, 4))],
    }  # fmt: skip
    found = jax.jit(lambda of: norms.norms({name: norms.Joint(each) for name, each in of.items()}))(tensors)
    np.testing.assert_allclose(found["far"] / 1e25, 5.0, rtol=1e-6)
    assert [float(found[name]) for name in ("near", "apart", "empty")] == [5.0, 6.0, 0.0]


def test_slices_of_very_different_sizes():
    x = jnp.array([[3e-30, 3.0, 3e30, 0.0, jnp.inf], [4e-30, 4.0, 4e30, 0.0, 1.0]])
    found = jax.jit(functools.partial(norms.vector_norm, axis=0))(x)
    np.testing.assert_allclose(found, [5e-30, 5.0, 5e30, 0.0, np.inf], rtol=1e-6)
    assert np.isnan(norms.vector_norm(jnp.array([1.0, jnp.nan])))


def test_usual_norms_are_the_plain_ones_bit_for_bit():
    x = jax.random.normal(jax.random.key(0), (3, 50, 40))
    with_small = x.at[0].multiply(1e-25)
    for axes in (None, (1, 2), -1):
        plain = jax.jit(functools.partial(jnp.linalg.vector_norm, axis=axes))(x)
        ours = jax.jit(functools.partial(norms.vector_norm, axis=axes))
        np.testing.assert_array_equal(ours(x), plain)
        if axes is not None:  # beside others that are taken again, too
            np.testing.assert_array_equal(ours(with_small)[1:], plain[1:])


def test_projection_asks_once_whether_a_norm_has_to_be_taken_again():
    network = as_functions(lambda rngs: MLP(8, [16, 16, 16], 3, rngs=rngs))
    params = network.init(jax.random.key(0))
    optimizer = nap.normalize_and_project(optax.sgd(0.1))
    state = optimizer.init(params)
    assert str(jax.make_jaxpr(optimizer.update)(params, state, params)).count(" cond[") == 1


def test_a_factor_beyond_floats_leaves_the_weight_alone():
    params = {"w": jnp.full((4,), 1e-30)}
    np.testing.assert_array_equal(nap.project(params, {"w": jnp.float32(1e30)})["w"], params["w"])
    np.testing.assert_array_equal(
        nap.project({"w": jnp.full((4,), 1e30)}, {"w": jnp.float32(1e-20)})["w"], np.float32(1e30)
    )


# --- Complex weights --------------------------------------------------------------------------------------------------


def complex_tree() -> dict:
    return {
        "fft": {"kernel": (1 + 2j) * jnp.ones((4, 4), jnp.complex64)},
        "hidden": {"kernel": jnp.ones((4, 4))},
        "out": {"kernel": jnp.ones((4, 2))},
    }


def test_a_complex_kernel_is_a_hidden_weight():
    params = complex_tree()
    assert nap.roles(params).paths(Role.HIDDEN) == ["fft/kernel", "hidden/kernel"]
    np.testing.assert_allclose(nap.weight_norms(params)["fft/kernel"], 4 * np.sqrt(5), rtol=1e-6)
    optimizer = nap.normalize_and_project(optax.sgd(0.5))
    gradients = jax.tree.map(lambda w: w * jnp.arange(16.0).reshape(4, 4)[:, : w.shape[1]], params)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    kernel = optax.apply_updates(params, updates)["fft"]["kernel"]
    assert kernel.dtype == jnp.complex64
    np.testing.assert_allclose(np.linalg.norm(kernel), 4 * np.sqrt(5), rtol=1e-6)
    rates = nap.effective_learning_rates(
        jax.tree.map(lambda w: 1e-3j * w, {"fft": params["fft"]}), {"fft": params["fft"]}
    )
    np.testing.assert_allclose(rates["fft/kernel"].ratio, 1e-3, rtol=1e-5)
    np.testing.assert_allclose(rates["fft/kernel"].angle, 1e-3, rtol=1e-3)
    np.testing.assert_allclose(diagnostics.leaf_norms(params)["fft/kernel"].l2, 4 * np.sqrt(5), rtol=1e-6)


def test_the_audit_of_a_complex_layer():
    params = {"fft": {"kernel": jax.random.normal(jax.random.key(0), (4, 4), jnp.complex64)}}
    params["out"] = {"kernel": jax.random.normal(jax.random.key(1), (4, 2), jnp.complex64)}

    def apply(params, x):
        z = x @ params["fft"]["kernel"]
        return (z / jnp.linalg.vector_norm(z, axis=-1, keepdims=True)) @ params["out"]["kernel"]

    found = nap.audit(apply, params, jax.random.normal(jax.random.key(2), (5, 4)))
    assert found.clean and [row.role for row in found] == [Role.HIDDEN, Role.OUTPUT]


@pytest.mark.parametrize(
    "make",
    [interventions.project_units, interventions.parseval, lambda: interventions.w2_init(0.1)],
    ids=["project-units", "parseval", "w2-init"],
)
def test_interventions_for_real_weights_name_the_complex_one(make):
    params = complex_tree()
    with pytest.raises(ValueError, match="'fft/kernel' is complex"):
        optimizer = make()
        optimizer.update(params, optimizer.init(params), params)


def test_what_is_left_out_by_name_is_left_alone():
    params, roles = complex_tree(), {"fft/kernel": "not a weight"}
    assert "fft/kernel" not in nap.weight_norms(params, roles)
    optimizer = interventions.project_units(roles=roles)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["fft"]["kernel"], params["fft"]["kernel"])
