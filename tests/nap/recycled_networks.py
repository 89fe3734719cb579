"""Networks whose units are recycled, in plain JAX: nothing may depend on how nap.networks lays its networks out."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def normal_init(shapes: dict[str, tuple[int, ...]]) -> Callable[[jax.Array], Any]:
    """Kernels and biases that depend on the key, scales and offsets 1 and 0, as a nested dictionary.

    A sine at places that the key shifts: one draw of a random number instead of one a leaf keeps compilation short.
    """

    def init(key):
        tree: dict[str, Any] = {}
        shift = 100 * jax.random.uniform(key)
        for i, (path, shape) in enumerate(shapes.items()):
            *folders, name = path.split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            drawn = 2 * jnp.sin(shift + 10 * i + 1.7 * jnp.arange(math.prod(shape))).reshape(shape)
            node[name] = {"scale": jnp.ones(shape), "offset": jnp.zeros(shape)}.get(name, drawn)
        return tree

    return init


def layer_norm(z):
    z = z - z.mean(-1, keepdims=True)
    return z / jnp.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def crelu(z):
    return jnp.concatenate([jax.nn.relu(z), jax.nn.relu(-z)], -1)


def dense_apply(p, x):
    for layer in ("a", "b"):
        x = jax.nn.relu(x @ p[layer]["kernel"] + p[layer]["bias"])
    return x @ p["output"]["kernel"] + p["output"]["bias"]


def normalized_apply(p, x):
    for layer in ("a", "b"):
        x = jax.nn.relu(layer_norm(x @ p[layer]["kernel"]) * p[layer]["norm"]["scale"] + p[layer]["norm"]["offset"])
    return x @ p["output"]["kernel"]


def conv_apply(p, x):
    for layer in ("a", "b"):
        x = jax.nn.relu(convolve(x, p[layer]["kernel"]) + p[layer]["bias"])
    return x.reshape(len(x), -1) @ p["output"]["kernel"]


def crelu_apply(p, x):
    x = crelu(convolve(x, p["a"]["kernel"]))
    x = crelu(x.reshape(len(x), -1) @ p["b"]["kernel"])
    return x @ p["output"]["kernel"]


def dueling_apply(p, x):
    x = jax.nn.relu(x @ p["a"]["kernel"])
    return x @ p["value"]["kernel"] + x @ p["advantage"]["kernel"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and for a recycled unit of each layer the entries that must change, written out by hand."""

    shapes: dict[str, tuple[int, ...]]
    apply: Callable[[Any, jax.Array], jax.Array]
    inputs: tuple[int, ...]
    readers: dict[str, tuple[str, ...]]
    masks: dict[str, list[int]]
    incoming: dict[str, Any]  # path -> index of the entries drawn anew
    zeroed: dict[str, Any]  # path -> index of the entries set to zero


ALL = slice(None)
TWO_IN_A_ROW = {"a": ("b",), "b": ("output",)}
CASES = {
    "dense": Case(
        {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (4, 5), "b/bias": (5,), "output/kernel": (5, 2),
         "output/bias": (2,)},
        dense_apply, (3,), TWO_IN_A_ROW, {"a": [1], "b": [0, 4]},
        {"a/kernel": (ALL, [1]), "a/bias": [1], "b/kernel": (ALL, [0, 4]), "b/bias": [0, 4]},
        {"b/kernel": [1], "output/kernel": [0, 4]},
    ),
    "normalized": Case(
        {"a/kernel": (3, 4), "a/norm/scale": (4,), "a/norm/offset": (4,), "b/kernel": (4, 5), "b/norm/scale": (5,),
         "b/norm/offset": (5,), "output/kernel": (5, 2)},
        normalized_apply, (3,), TWO_IN_A_ROW, {"a": [], "b": [2]},
        {"b/kernel": (ALL, [2]), "b/norm/scale": [2], "b/norm/offset": [2]},
        {"output/kernel": [2]},
    ),
    "convolutions, then a flatten": Case(  # 5x5 -> 4x4 with 3 channels -> 3x3 with 2 channels -> 18 inputs
        {"a/kernel": (2, 2, 1, 3), "a/bias": (3,), "b/kernel": (2, 2, 3, 2), "b/bias": (2,), "output/kernel": (18, 4)},
        conv_apply, (5, 5, 1), TWO_IN_A_ROW, {"a": [2], "b": [1]},
        {"a/kernel": (..., [2]), "a/bias": [2], "b/kernel": (..., [1]), "b/bias": [1]},
        {"b/kernel": (ALL, ALL, [2]), "output/kernel": [1, 3, 5, 7, 9, 11, 13, 15, 17]},
    ),
    "two features a unit": Case(  # 3x3 -> 2x2 with 3 units, 6 channels -> 24 inputs; 4 units -> 8 features
        {"a/kernel": (2, 2, 1, 3), "b/kernel": (24, 4), "output/kernel": (8, 2)},
        crelu_apply, (3, 3, 1), TWO_IN_A_ROW, {"a": [1], "b": [0]},
        {"a/kernel": (..., [1]), "b/kernel": (ALL, [0])},
        {"b/kernel": [1, 4, 7, 10, 13, 16, 19, 22], "output/kernel": [0, 4]},
    ),
    "two readers": Case(
        {"a/kernel": (3, 4), "value/kernel": (4, 1), "advantage/kernel": (4, 2)},
        dueling_apply, (3,), {"a": ("value", "advantage")}, {"a": [0, 3]},
        {"a/kernel": (ALL, [0, 3])},
        {"value/kernel": [0, 3], "advantage/kernel": [0, 3]},
    ),
}  # fmt: skip


# One hidden layer, activations made up: for which unit is recycled, and when.


def one_layer(units: int, **more: tuple[int, ...]):
    shapes = {"a/kernel": (3, units), "a/bias": (units,), "output/kernel": (units, 2), "output/bias": (2,), **more}
    init = normal_init(shapes)
    return init, jax.jit(init)(jax.random.key(3))


STILL = optax.sgd(0.0)
READERS = {"a": ("output",)}


def drive(optimizer, params, batches, gradients=None):
    """Updates with made-up activations of layer a: the units that each recycled, and the weights and state after it."""
    zero = jax.tree.map(jnp.zeros_like, params) if gradients is None else gradients

    @jax.jit
    def step(state, params, hidden):
        updates, state = optimizer.update(zero, state, params, activations={"a": hidden})
        return optax.apply_updates(params, updates), state

    state, gone, weights, states = optimizer.init(params), [], [], []
    for hidden in np.asarray(batches, np.float32):
        before = params
        params, state = step(state, params, hidden)
        kernels = [np.asarray(tree["a"]["kernel"]) for tree in (params, before)]
        changed = np.any(kernels[0] != kernels[1], axis=tuple(range(kernels[0].ndim - 1)))
        rows = np.asarray(params["output"]["kernel"])
        np.testing.assert_array_equal(rows[np.tile(changed, len(rows) // len(changed))], 0)
        gone.append(np.flatnonzero(changed).tolist())
        weights.append(params)
        states.append(state)
    return gone, weights, states
