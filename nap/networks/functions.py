"""An NNX network as pure functions of its parameters: what `jit`, `vmap`, `grad` and optax want."""

from __future__ import annotations

from collections.abc import Callable
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
      activations: the outputs, and the activations of every hidden layer by path.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, Shaped[Array, "batch ..."]], Float[Array, "batch outputs"]]
    activations: Callable[
        [PyTree, Shaped[Array, "batch ..."]], tuple[Float[Array, "batch outputs"], dict[str, jax.Array]]
    ]


class _Module(Protocol):
    def __call__(self, x: Any, /) -> Any: ...

    def with_activations(self, x: Any, /) -> tuple[Any, dict[str, jax.Array]]: ...


def as_functions(make: Callable[[nnx.Rngs], _Module]) -> Network:
    """Pure functions from a constructor such as `lambda rngs: NatureCNN(6, norm="layer", rngs=rngs)`.

    The module may hold parameters only (no batch statistics, no random streams of its own).
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: jax.Array) -> PyTree:
        return nnx.split(make(nnx.Rngs(key)), nnx.Param)[1]

    def apply(params: PyTree, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    def activations(params: PyTree, x: Any) -> Any:
        return nnx.merge(graph, params).with_activations(x)

    return Network(init, apply, activations)
