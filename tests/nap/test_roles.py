"""Roles: decided by structure, overridden by pattern, refused where nothing tells the output layer apart."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nap
from nap.networks import MLP, QNetwork
from nap.roles import Role

HIDDEN, OUTPUT = Role.HIDDEN, Role.OUTPUT


def zeros(**shapes):
    return {name.replace("__", "/"): jnp.zeros(shape) for name, shape in shapes.items()}


def nested(**shapes):
    tree = {}
    for name, shape in shapes.items():
        *parents, leaf = name.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.zeros(shape)
    return tree


def of(params, **kwargs):
    return {leaf.path: leaf.role for leaf in nap.roles(params, **kwargs)}


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for channels in (8, 16):
            x = nn.relu(nn.LayerNorm()(nn.Conv(channels, (3, 3), use_bias=False)(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.LayerNorm()(nn.Dense(32, use_bias=False)(x)))
        return nn.Dense(4)(x)  # as many outputs as the first convolution has inputs


def test_a_linen_convolutional_network():
    params = jax.eval_shape(LinenCNN().init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)))["params"]
    assert of(params) == {
        "Conv_0/kernel": HIDDEN,
        "Conv_1/kernel": HIDDEN,
        "Dense_0/kernel": HIDDEN,
        "Dense_1/kernel": OUTPUT,
        "Dense_1/bias": Role.BIAS,
        "LayerNorm_0/scale": Role.SCALE,
        "LayerNorm_0/bias": Role.OFFSET,
        "LayerNorm_1/scale": Role.SCALE,
        "LayerNorm_1/bias": Role.OFFSET,
        "LayerNorm_2/scale": Role.OUTPUT_SCALE,
        "LayerNorm_2/bias": Role.OUTPUT_OFFSET,
    }


def test_numbers_order_layers_of_one_size():
    """Dense_10 comes after Dense_2, though not in the alphabet; the last of equally large layers is the output."""
    params = nested(**{f"Dense_{i}__kernel": (8, 8) for i in range(11)})
    roles = of(params)
    assert roles.pop("Dense_10/kernel") == OUTPUT
    assert set(roles.values()) == {HIDDEN}


def test_equinox_stores_outputs_first():
    mlp = eqx.nn.MLP(5, 2, 7, 2, key=jax.random.key(0))
    assert of(mlp) == {
        "layers/0/weight": HIDDEN,
        "layers/0/bias": Role.BIAS,
        "layers/1/weight": HIDDEN,
        "layers/1/bias": Role.BIAS,
        "layers/2/weight": OUTPUT,
        "layers/2/bias": Role.BIAS,
        "activation": Role.OTHER,
        "final_activation": Role.OTHER,
    }


def test_a_layernorm_whose_path_has_no_norm_in_it():
    """The trap of name filters: in a Sequential the LayerNorm is only a number."""
    params = nested(
        layers__0__weight=(16, 8), layers__1__weight=(16,), layers__1__bias=(16,), layers__2__weight=(3, 16)
    )
    roles = of(params)
    assert roles["layers/1/weight"] == Role.OUTPUT_SCALE  # only the output layer reads it
    assert roles["layers/1/bias"] == Role.OUTPUT_OFFSET
    assert (roles["layers/0/weight"], roles["layers/2/weight"]) == (HIDDEN, OUTPUT)


class Attending(nnx.Module):
    """Three heads of four features, and three outputs, between layers of plain Flax."""

    def __init__(self, *, bias, rngs):
        self.embed = nnx.Linear(5, 12, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, 12, use_bias=bias, normalize_qk=True, decode=False, rngs=rngs)
        self.output = nnx.Linear(12, 3, rngs=rngs)


@pytest.mark.parametrize("bias", [True, False])
def test_attention_of_plain_flax(bias):
    params = nnx.state(Attending(bias=bias, rngs=nnx.Rngs(0)), nnx.Param)
    found = nap.roles(params)
    kernels = {leaf.path: leaf for leaf in found if leaf.path.endswith("kernel")}
    assert {path for path, leaf in kernels.items() if leaf.role is not HIDDEN} == {"output/kernel"}
    assert found["norm/scale"].role is Role.SCALE  # attention reads it, not the output alone
    of_heads = [f"attention/{name}/kernel" for name in ("key", "query", "value")]
    assert {path: leaf.unit_axes for path, leaf in kernels.items()} == {
        "embed/kernel": (1,), "attention/out/kernel": (2,), "output/kernel": (1,), **dict.fromkeys(of_heads, (1, 2))
    }  # fmt: skip
    stacked = nap.roles(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params), stacked={"*": 1})
    assert [stacked[path].unit_axes for path in (*of_heads, "attention/out/kernel")] == [(2, 3)] * 3 + [(3,)]


def test_keys_may_have_fewer_heads_and_convolutions_in_one_dimension_have_none():
    grouped = nested(a__q__kernel=(8, 4, 2), a__k__kernel=(8, 2, 2), a__v__kernel=(8, 2, 2), a__o__kernel=(4, 2, 8))
    found = nap.roles(grouped | nested(output__kernel=(8, 3)))
    assert [found[f"a/{name}/kernel"].unit_axes for name in "qkvo"] == [(1, 2)] * 3 + [(2,)]
    assert found.paths(HIDDEN) == [f"a/{name}/kernel" for name in "koqv"]
    chain = nested(c__0__kernel=(3, 3, 8), c__1__kernel=(3, 8, 8), c__2__kernel=(3, 8, 8), output__kernel=(8, 2))
    assert {leaf.unit_axes for leaf in nap.roles(chain) if len(leaf.shape) == 3} == {(2,)}


def test_several_heads_are_all_outputs():
    params = nested(torso__kernel=(8, 16), value__kernel=(16, 1), advantage__kernel=(16, 6))
    assert of(params) == {"torso/kernel": HIDDEN, "value/kernel": OUTPUT, "advantage/kernel": OUTPUT}


def test_embeddings_are_seen():
    params = nested(embed__embedding=(100, 8), hidden__kernel=(8, 16), out__kernel=(16, 100))
    assert of(params)["embed/embedding"] == Role.EMBEDDING


class Language(nn.Module):
    """A decoder's skeleton, its head not tied to the table."""

    vocabulary: int = 50
    width: int = 12

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.width, use_bias=False)(x)))
        return nn.Dense(self.vocabulary, use_bias=False, name="lm_head")(x)


def test_a_table_takes_no_outputs_in_so_a_head_beside_it_is_one():
    params = Language().init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    found = nap.roles(params)
    assert found["lm_head/kernel"].role is Role.OUTPUT and found["Embed_0/embedding"].role is Role.EMBEDDING
    assert set(nap.weight_norms(params)) == {"Dense_0/kernel", "Dense_1/kernel"}
    square = Language(vocabulary=12).init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    with pytest.raises(ValueError, match="no output layer can be told apart"):
        nap.roles(square)
    del params["lm_head"]  # the table is the output layer, too
    assert set(nap.weight_norms(params)) == {"Dense_0/kernel", "Dense_1/kernel"}


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel, scale, bias = (
            nn.with_partitioning(init, names)
            for init, names in (
                (nn.initializers.lecun_normal(), (None, "model")),
                (nn.initializers.ones, ("model",)),
                (nn.initializers.zeros, ("model",)),
            )
        )
        x = nn.LayerNorm(scale_init=scale, bias_init=bias)(nn.Dense(16, use_bias=False, kernel_init=kernel)(x))
        return nn.Dense(3)(nn.LayerNorm()(nn.Dense(12, use_bias=False)(nn.relu(x))))


def test_boxed_parameters_have_the_paths_and_roles_of_plain_ones():
    boxed = Boxed().init(jax.random.key(0), jnp.ones((1, 8)))["params"]
    plain = nn.meta.unbox(boxed)
    assert [(leaf.path, leaf.role) for leaf in nap.roles(boxed)] == [(o.path, o.role) for o in nap.roles(plain)]
    optimizer = nap.project_weights()
    moved = jax.tree.map(jnp.ones_like, boxed)
    updates, _ = optimizer.update(moved, optimizer.init(boxed), boxed)
    after = nap.weight_norms(nn.meta.unbox(optax.apply_updates(boxed, updates)))
    for path, norm in nap.weight_norms(plain).items():
        np.testing.assert_allclose(after[path], norm, rtol=1e-5)


def test_a_number_of_each_layer_does_not_hide_that_layers_are_stacked():
    def member(key):
        params = LinenMLPs().init(key, jnp.ones((1, 8)))["params"]
        return params | {"PReLU_0": {"negative_slope": jnp.ones(())}}

    found = nap.roles(jax.vmap(member)(jax.random.split(jax.random.key(0), 5)))
    assert {leaf.stacked for leaf in found} == {1}
    assert {leaf.stacked for leaf in nap.roles(member(jax.random.key(0)))} == {0}


class LinenMLPs(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 12):
            x = nn.relu(nn.LayerNorm()(nn.Dense(width, use_bias=False)(x)))
        return nn.Dense(3)(x)


def test_stacked_layers_are_seen_by_their_vectors():
    params = nested(
        blocks__up__kernel=(5, 8, 32),
        blocks__norm__scale=(5, 32),
        blocks__norm__bias=(5, 32),
        blocks__down__kernel=(5, 32, 8),
        out__kernel=(8, 3),
        out__bias=(3,),
    )
    roles = nap.roles(params)
    assert [roles[f"blocks/{name}"].stacked for name in ("up/kernel", "norm/scale", "down/kernel")] == [1, 1, 1]
    assert roles["out/kernel"].stacked == 0
    assert roles["blocks/up/kernel"].role == HIDDEN
    assert nap.weight_norms(params)["blocks/up/kernel"].shape == (5, 1, 1)


def test_seeds_of_stacked_layers_are_two_stacked_axes():
    params = nested(
        blocks__up__kernel=(7, 5, 8, 32), blocks__up__bias=(7, 5, 32), out__kernel=(7, 32, 3), out__bias=(7, 3)
    )
    roles = nap.roles(params)
    assert roles["blocks/up/kernel"].stacked == 2
    assert roles["out/kernel"].stacked == 1


def test_a_norm_with_a_scale_for_each_position_is_not_stacked():
    params = nested(
        conv__kernel=(3, 3, 4, 8), norm__scale=(6, 6, 8), norm__bias=(6, 6, 8), out__kernel=(288, 2), out__bias=(2,)
    )
    roles = nap.roles(params)
    assert {leaf.stacked for leaf in roles} == {0}
    assert roles["norm/scale"].role == Role.SCALE
    assert roles["conv/kernel"].role == HIDDEN


def test_stacking_can_be_declared():
    params = nested(a__kernel=(5, 8, 8), b__kernel=(5, 8, 2))
    assert nap.weight_norms(params, nap.roles(params, stacked={"*": 1}))["a/kernel"].shape == (5, 1, 1)


def test_overrides_win_and_the_last_match_counts():
    params = nnx.split(MLP(8, [16, 12], 3, rngs=nnx.Rngs(0)))[1]
    roles = nap.roles(params, {"hidden/*": "embedding", "hidden/1/kernel": Role.OUTPUT})
    assert roles["hidden/0/kernel"].role == Role.EMBEDDING
    assert roles["hidden/1/kernel"].role == OUTPUT
    assert roles["output/kernel"].role == OUTPUT


def test_a_name_is_taken_as_it_is_before_it_is_a_pattern():
    params = {"conv[0]": {"kernel": jnp.ones((4, 4))}, "conv0": {"kernel": jnp.ones((4, 4))}}
    params["out"] = {"kernel": jnp.ones((4, 2))}
    roles = nap.roles(params, {"conv[0]/kernel": "embedding"})
    assert roles.paths(Role.EMBEDDING) == ["conv[0]/kernel"]
    assert nap.roles(params, {"conv[0]/*": "embedding"}).paths(Role.EMBEDDING) == [
        "conv0/kernel"
    ]  # a choice of letters
    del params["conv0"]
    assert nap.roles(params, {"conv[0]/*": "embedding"}).paths(Role.EMBEDDING) == ["conv[0]/kernel"]
    assert nap.roles(params, stacked={"conv[0]/kernel": 1})["conv[0]/kernel"].stacked == 1


def test_the_layers_of_this_library_declare_their_roles():
    params = nnx.split(QNetwork(4, rngs=nnx.Rngs(0)))[1]
    roles = nap.roles(params)
    assert {leaf.why for leaf in roles} == {"declared by its layer"}
    assert roles.paths(HIDDEN) == ["hidden/kernel", "torso/0/kernel", "torso/1/kernel", "torso/2/kernel"]
    assert roles.paths(OUTPUT) == ["output/kernel"]
    assert roles.paths(Role.OUTPUT_SCALE) == ["hidden/norm/scale"]


def test_regularization_knows_what_init_was_told_where_updates_see_bare_arrays():
    """`nnx.Optimizer` gives `update` no variables, only arrays, which declare nothing."""
    model = MLP(8, [16, 16], 16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, nap.normalize_and_project(optax.sgd(1.0), affine="regularize", affine_strength=0.1), wrt=nnx.Param
    )
    for layer in model.hidden:
        layer.norm.scale[...] = jnp.full(16, 3.0)
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(model.hidden[0].norm.scale[...], 3.0 - 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(model.hidden[1].norm.scale[...], 3.0)  # before the output: free


def test_the_table_can_be_read():
    text = str(nap.roles(nested(w0__kernel=(8, 16), w1__kernel=(16, 2))))
    lines = text.splitlines()
    assert lines[0].split() == ["parameter", "shape", "stacked", "axes", "role", "because"]
    assert lines[2].split()[:4] == ["w0/kernel", "8×16", "hidden", "weight"]
    assert "goes into" in text or "outputs go into w1/kernel" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nap.roles(nested(a__kernel=(8, 8), b__kernel=(8, 8))), "no output layer can be told apart"),
        (
            lambda: nap.roles(nested(a__kernel=(8, 2)), {"b/*": "hidden weight"}),
            "no parameter matches 'b/\\*'.*a/kernel",
        ),
        (
            lambda: nap.roles(nested(a__kernel=(8, 2)), {"a/*": "hiden"}),
            "'hiden' is no role; the roles are 'hidden weight'",
        ),
        (lambda: nap.roles(jnp.ones((2, 2))), "bare array"),
        (lambda: nap.roles({"a+b": {"kernel": jnp.ones((2, 3))}}), r"'a\+b/kernel' has a '\+' in its name"),
        (lambda: nap.roles(nested(a__kernel=(8, 2)))["a/kernal"], "nearest path is 'a/kernel'"),
    ],
)
def test_bad_input_is_told_in_one_line(call, message):
    with pytest.raises((ValueError, KeyError), match=message):
        call()
