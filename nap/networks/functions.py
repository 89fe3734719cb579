"""An NNX network as pure functions of its parameters: what `jit`, `vmap`, `grad` and optax want."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx
from jaxtyping import Array, Float, Shaped

from nap.paths import PyTree


class Network(NamedTuple):
    """A network's functions.

    Attributes:
      init: the parameters from a random key; call it under `jax.jit` (eager initialization takes seconds).
      apply: the outputs for a batch.
      activations: the outputs, and the activations of every hidden layer by path, as the layers that read it take them
        in, shape [batch, *space, features], in the network's order. Where a unit has several features (CReLU, Fourier),
        the first of all units come before the second of all units. What goes through a JAX transformation comes back
        sorted by path; `readers` keeps the order.
      readers: for each hidden layer, in the network's order, the layers that take its activations in:
        {"hidden/0": ("hidden/1",), "hidden/1": ("output",)}. Empty if the network does not tell.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, Shaped[Array, "batch ..."]], Float[Array, "batch outputs"]]
    activations: Callable[
        [PyTree, Shaped[Array, "batch ..."]], tuple[Float[Array, "batch outputs"], dict[str, jax.Array]]
    ]
    readers: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})


class _Module(Protocol):
    def __call__(self, x: Any, /) -> Any: ...

    def with_activations(self, x: Any, /) -> tuple[Any, dict[str, jax.Array]]: ...


def as_functions(make: Callable[[nnx.Rngs], _Module]) -> Network:
    """Pure functions from a constructor such as `lambda rngs: NatureCNN(6, norm="layer", rngs=rngs)`.

    The module may hold parameters only (no batch statistics, no random streams of its own). The readers are those of
    its property `readers`, if it has one.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph = nnx.graphdef(module)

    def init(key: jax.Array) -> PyTree:
        return nnx.split(make(nnx.Rngs(key)), nnx.Param)[1]

    def apply(params: PyTree, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    def activations(params: PyTree, x: Any) -> Any:
        return nnx.merge(graph, params).with_activations(x)

    return Network(init, apply, activations, getattr(module, "readers", {}))


def in_a_row(layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The readers where each layer is read by the next one, and the last by "output"."""
    return {layer: (reader,) for layer, reader in itertools.pairwise([*layers, "output"])}
