"""The transformer's blocks in a scan, and computed again: the function, roles and norms of blocks in a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_transformer import KEY, LAYERS, TOKENS, WIDTH, network, random_params

import nap
from nap import paths


def unstacked(tree, path: str) -> jax.Array:
    """What scanned blocks hold for a leaf of blocks in a row: of "blocks/1/..." the second of "blocks/..."."""
    first, *rest = path.split("/")
    leaves = paths.leaves(tree)
    return leaves["/".join([first, *rest[1:]])][int(rest[0])] if first == "blocks" else leaves[path]


def assert_equal_layer_by_layer(scanned, row, **tolerance) -> None:
    for path, leaf in paths.leaves(row).items():
        np.testing.assert_allclose(unstacked(scanned, path), leaf, **tolerance, err_msg=path)


def test_scanned_blocks_have_the_parameters_roles_and_norms_of_blocks_in_a_row():
    """From one seed, at the start and after a projected update."""
    row, scanned = network(mlp="swiglu", norm="layer"), network(mlp="swiglu", norm="layer", scan_layers=True)
    params, stacked = jax.jit(row.init)(KEY), jax.jit(scanned.init)(KEY)
    assert_equal_layer_by_layer(stacked, params, rtol=1e-5, atol=1e-6)

    roles, stacked_roles = nap.roles(params), nap.roles(stacked)
    assert {leaf.stacked for leaf in roles} == {0}
    assert {leaf.path: leaf.stacked for leaf in stacked_roles} == {
        leaf.path: int(leaf.path.startswith("blocks")) for leaf in stacked_roles
    }
    for leaf in roles:
        first, *rest = leaf.path.split("/")
        assert stacked_roles["/".join([first, *rest[first == "blocks" :]])].role == leaf.role

    optimizer = nap.normalize_and_project(optax.sgd(1.0))
    stacked_steps = random_params(scanned)
    steps = paths.map_leaves(lambda path, leaf: unstacked(stacked_steps, path), params)
    updates, _ = jax.jit(optimizer.update)(steps, optimizer.init(params), params)
    stacked_updates, _ = jax.jit(optimizer.update)(stacked_steps, optimizer.init(stacked), stacked)
    assert_equal_layer_by_layer(stacked_updates, updates, rtol=1e-4, atol=1e-5)

    norms, after = nap.weight_norms(params), nap.weight_norms(optax.apply_updates(params, updates))
    stacked_norms = nap.weight_norms(stacked)
    assert {norm.shape for norm in stacked_norms.values()} == {(LAYERS, 1, 1)}
    assert len(norms) == LAYERS * len(stacked_norms)
    for path, norm in norms.items():
        np.testing.assert_allclose(unstacked(stacked_norms, path)[0, 0], norm, rtol=1e-5, err_msg=path)
        np.testing.assert_allclose(after[path], norm, rtol=1e-5, err_msg=path)
    assert norms["blocks/0/mlp/up/kernel"] != norms["blocks/1/mlp/up/kernel"]

    rates = nap.effective_learning_rates(updates, params, roles)
    stacked_rates = nap.effective_learning_rates(stacked_updates, stacked, stacked_roles)
    for i in range(LAYERS):
        angle = stacked_rates["blocks/mlp/up/kernel"].angle[i]
        np.testing.assert_allclose(angle, rates[f"blocks/{i}/mlp/up/kernel"].angle, rtol=1e-4)


def test_scanned_and_computed_again_the_blocks_are_the_same_function():
    """Logits, activations and gradients; the program says whether it computes blocks again."""
    plain, other = network(mlp="squared-relu"), network(mlp="squared-relu", scan_layers=True, remat=True)
    stacked = random_params(other)
    params = paths.map_leaves(lambda path, _: unstacked(stacked, path), jax.eval_shape(plain.init, KEY))

    def results(made, params):
        def loss(params):
            logits, activations = made.activations(params, TOKENS)
            return jnp.sum(jnp.square(logits)), (logits, activations)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (logits, activations) = jax.jit(functools.partial(results, plain))(params)
    stacked_gradient, (again, stacked_activations) = jax.jit(functools.partial(results, other))(stacked)
    np.testing.assert_allclose(again, logits, rtol=1e-3, atol=1e-3)
    assert stacked_activations.keys() == activations.keys()
    for path, value in activations.items():
        np.testing.assert_allclose(stacked_activations[path], value, rtol=1e-3, atol=1e-3)
    assert_equal_layer_by_layer(stacked_gradient, gradient, rtol=2e-3, atol=1e-3 * optax.tree.norm(gradient))
    for options in ({}, {"remat": True}, {"scan_layers": True}, {"scan_layers": True, "remat": True}):
        made = network(mlp="squared-relu", **options)
        program = str(jax.make_jaxpr(functools.partial(results, made))(stacked if "scan_layers" in options else params))
        assert ("checkpoint" in program or "remat" in program) == options.get("remat", False)
        assert ("scan[" in program) == options.get("scan_layers", False)


def test_seeds_of_scanned_blocks_are_two_stacked_axes():
    params = jax.eval_shape(jax.vmap(network(scan_layers=True).init), jax.random.split(KEY, 3))
    roles = nap.roles(params)
    assert {
        roles[f"blocks/{p}"].stacked for p in ("mlp/up/kernel", "attention/query_norm/scale", "mlp_norm/offset")
    } == {2}
    assert roles["output/kernel"].stacked == 1


def test_the_stream_is_constrained_where_each_block_begins_and_ends():
    for options in ({}, {"remat": True}, {"scan_layers": True}, {"scan_layers": True, "remat": True}):
        shapes = []

        def constrain(x: jax.Array, shapes=shapes) -> jax.Array:
            shapes.append(x.shape)
            return jnp.zeros_like(x)

        made = network(**options, constrain=constrain)
        logits = made.apply(random_params(made), TOKENS)
        # JAX looks once into blocks that are scanned or computed again.
        assert shapes == 2 * (1 if options else LAYERS) * [(*TOKENS.shape, WIDTH)]
        # What no block has written onto, or read, is the same everywhere.
        np.testing.assert_array_equal(logits, jnp.broadcast_to(logits[0, 0], logits.shape))
