"""Arrays of differing ranks are never combined in silence: all works where JAX is told to refuse that.

What is refused is refused while a function is traced, so nothing is compiled here.
"""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from test_interventions_common import ENTRIES, EVERY_ENTRY, NETWORKS, advance

import nap
from nap import diagnostics
from nap.activations import ActivationName
from nap.layers import Conv, ConvNorm, Linear, Norm, Output
from nap.networks import CNN, MLP, QNetwork, ResNet, Transformer, as_functions
from nap.noisy import NoisyLinear, NoisyOutput

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def refuse_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def shape_of(make: Any, *inputs: Any) -> tuple[int, ...]:
    """The shape of what a module makes of some inputs; its gradient is traced too."""

    def outputs(key: jax.Array) -> jax.Array:
        graph, params, rest = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            # A copy of the rest: batch statistics are written where they were made.
            found = nnx.merge(graph, params, jax.tree.map(jnp.copy, rest))(*inputs)
            return jnp.sum(found), found

        (_, found), _ = jax.value_and_grad(loss, has_aux=True)(params)
        return found

    return jax.eval_shape(outputs, KEY).shape


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("activation", get_args(ActivationName))
def test_dense_layers(norm, activation):
    x, width = jnp.ones((2, 8)), 8 if activation in ("crelu", "fourier") else 4
    assert shape_of(lambda rngs: Linear(8, 4, norm=norm, activation=activation, rngs=rngs), x) == (2, width)
    assert shape_of(lambda rngs: NoisyLinear(8, 4, norm=norm, activation=activation, rngs=rngs), x, KEY) == (2, width)


@pytest.mark.parametrize("norm", get_args(ConvNorm))
def test_convolutions(norm):
    assert shape_of(lambda rngs: Conv(3, 4, 3, norm=norm, rngs=rngs), jnp.ones((2, 8, 8, 3))) == (2, 6, 6, 4)


def test_outputs():
    x = jnp.ones((2, 8))
    assert shape_of(lambda rngs: Output(8, 4, shared_bias=True, rngs=rngs), x) == (2, 4)
    assert shape_of(lambda rngs: NoisyOutput(8, 4, rngs=rngs), x, KEY) == (2, 4)


FRAMES, IMAGES, TOKENS = jnp.zeros((2, 4, 84, 84), jnp.uint8), jnp.zeros((2, 32, 32, 3)), jnp.zeros((2, 7), jnp.int32)
NETWORKS_AND_INPUTS = {
    "mlp": (lambda rngs: MLP(8, [6, 6], 3, activation="prelu", rngs=rngs), (jnp.ones((2, 8)),)),
    "cnn": (lambda rngs: CNN((32, 32, 3), 10, channels=[4, 4], hidden=[8], rngs=rngs), (IMAGES,)),
    "resnet": (lambda rngs: ResNet(10, blocks=[1, 1], width=4, rngs=rngs), (IMAGES,)),
    "dqn": (lambda rngs: QNetwork(6, norm="none", rngs=rngs), (FRAMES,)),
    "rainbow": (lambda rngs: QNetwork(6, atoms=5, dueling=True, noisy=True, rngs=rngs), (FRAMES, KEY)),
    "impala": (lambda rngs: QNetwork(6, torso="impala", activation="prelu", rngs=rngs), (FRAMES,)),
    "gpt": (lambda rngs: Transformer(11, width=8, heads=2, positions="learned", tied=True, rngs=rngs), (TOKENS,)),
    "llama": (lambda rngs: Transformer(11, width=8, heads=2, mlp="swiglu", scan_layers=True, rngs=rngs), (TOKENS,)),
}


@pytest.mark.parametrize("name", NETWORKS_AND_INPUTS)
def test_networks(name):
    make, inputs = NETWORKS_AND_INPUTS[name]
    assert shape_of(make, *inputs)[0] == 2


def test_implicit_quantiles():
    network = as_functions(lambda rngs: QNetwork(6, quantile_samples=5, rngs=rngs))
    assert jax.eval_shape(lambda key: network.apply(network.init(key), FRAMES), KEY).values.shape == (2, 6, 5)


@EVERY_ENTRY
def test_interventions_under_projection(name):
    entry = ENTRIES[name]
    network = NETWORKS[entry.network]

    def updated(key: jax.Array) -> Any:
        optimizer, params = nap.normalize_and_project(entry.make(key)), network.init(key)
        return advance(network, optimizer, params, optimizer.init(params))

    jax.eval_shape(updated, KEY)


@pytest.mark.parametrize("options", [{}, {"affine": "regularize"}, {"axes": -1, "every": 2}], ids=str)
def test_projection_and_what_is_measured(options):
    network = as_functions(lambda rngs: MLP(8, [6, 6], 3, rngs=rngs))

    def measured(key: jax.Array) -> Any:
        optimizer, params = nap.normalize_and_project(optax.adam(0.1), **options), network.init(key)
        steps, _ = optimizer.update(params, optimizer.init(params), params)
        outputs, activations = network.activations(params, jnp.ones((5, 8)))
        features = activations["hidden/1"]
        return (
            nap.effective_learning_rates(steps, params),
            nap.weight_norms(params, axes=options.get("axes")),
            diagnostics.leaf_norms(params), diagnostics.distance_to_init(steps, params), diagnostics.ranks(features),
            diagnostics.dormant_fraction(features), diagnostics.linearized_unit_fraction(features),
            diagnostics.policy_churn(outputs, 2 * outputs),
        )  # fmt: skip

    jax.eval_shape(measured, KEY)


def test_the_audit():
    network = as_functions(lambda rngs: MLP(4, [3], 2, rngs=rngs))
    assert nap.audit(network.apply, network.init(KEY), jax.random.normal(KEY, (5, 4))).clean
