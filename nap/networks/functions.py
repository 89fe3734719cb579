"""An NNX network as pure functions of its parameters: what `jit`, `vmap`, `grad` and optax want."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

from nap import paths
from nap.paths import PyTree


class Network(NamedTuple):
    """A network's functions.

    Attributes:
      init: the parameters from a random key; call it under `jax.jit` (eager initialization takes seconds).
      apply: `apply(params, x)`, the outputs for a batch, shape [batch, outputs] unless the network says otherwise.
      activations: the outputs, and the activations of every hidden layer by path, as the layers that read it take them
        in, shape [batch, *space, features], in the network's order. Where a unit has several features (CReLU, Fourier),
        the first of all units come before the second of all units. What goes through a JAX transformation comes back
        sorted by path; `readers` keeps the order.
      readers: for each hidden layer, in the network's order, the layers that take its activations in:
        {"hidden/0": ("hidden/1",), "hidden/1": ("output",)}. Empty if the network does not tell.
      draws: whether `apply` and `activations` take a random key as a third argument (of noisy layers, or for the
        quantiles of an implicit quantile network), and without it draw nothing.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., Any]
    activations: Callable[..., tuple[Any, dict[str, jax.Array]]]
    readers: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})
    draws: bool = False


class StatefulNetwork(NamedTuple):
    """The functions of a network that keeps more than parameters, such as BatchNorm's running statistics.

    That other state is `rest`, a pytree to carry beside the parameters and the optimizer's state; it is empty for a
    network that has none, so that one training loop serves both kinds. Under `jax.grad` it is the auxiliary output:
    `jax.value_and_grad(loss, has_aux=True)`.

    Attributes:
      init: `init(key)`, the parameters and the rest from a random key; call it under `jax.jit`.
      train: `train(params, rest, x)`, the outputs for a batch and the new rest. BatchNorm uses the batch's statistics;
        this is what `nap.audit` should see: `lambda params, x: network.train(params, rest, x)[0]`.
      evaluate: `evaluate(params, rest, x)`, the outputs for a batch, with the statistics in `rest`.
      activations: `activations(params, rest, x)`, as `Network.activations`, in evaluation.
      readers: as in `Network`.
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    train: Callable[[PyTree, PyTree, Any], tuple[Any, PyTree]]
    evaluate: Callable[[PyTree, PyTree, Any], Any]
    activations: Callable[[PyTree, PyTree, Any], tuple[Any, dict[str, jax.Array]]]
    readers: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})


class _Module(Protocol):
    def __call__(self, x: Any, /) -> Any: ...

    def with_activations(self, x: Any, /) -> tuple[Any, dict[str, jax.Array]]: ...


def as_functions(make: Callable[[nnx.Rngs], _Module]) -> Network:
    """Pure functions from a constructor such as `lambda rngs: QNetwork(6, norm="layer", rngs=rngs)`.

    The module may hold parameters only (no batch statistics, no random streams of its own). The readers and whether it
    draws random numbers are those of its attributes `readers` and `draws`, if it has them.

    Raises:
      ValueError: the module holds more than parameters.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    if rest := paths.leaves(nnx.state(module, nnx.Not(nnx.Param))):
        raise ValueError(
            f"the network holds more than parameters ({next(iter(rest))}), so its outputs are not a function of them "
            "and the input alone: use as_stateful_functions"
        )
    graph = nnx.graphdef(module)

    def init(key: jax.Array) -> PyTree:
        return nnx.split(make(nnx.Rngs(key)), nnx.Param)[1]

    def apply(params: PyTree, x: Any, *key: jax.Array) -> Any:
        return nnx.merge(graph, params)(x, *key)

    def activations(params: PyTree, x: Any, *key: jax.Array) -> Any:
        return nnx.merge(graph, params).with_activations(x, *key)

    return Network(init, apply, activations, getattr(module, "readers", {}), getattr(module, "draws", False))


def as_stateful_functions(make: Callable[[nnx.Rngs], _Module]) -> StatefulNetwork:
    """Pure functions from a constructor such as `lambda rngs: resnet_18(10, rngs=rngs)`, batch statistics and all."""
    module: Any = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    module.train()
    training = nnx.graphdef(module)
    module.eval()
    evaluation = nnx.graphdef(module)

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        _, params, rest = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return params, rest

    def train(params: PyTree, rest: PyTree, x: Any) -> tuple[Any, PyTree]:
        # A copy: what is merged is written to, and may belong to another level of tracing.
        model = nnx.merge(training, params, rest, copy=True)
        return model(x), nnx.state(model, nnx.Not(nnx.Param))

    def evaluate(params: PyTree, rest: PyTree, x: Any) -> Any:
        return nnx.merge(evaluation, params, rest)(x)

    def activations(params: PyTree, rest: PyTree, x: Any) -> tuple[Any, dict[str, jax.Array]]:
        return nnx.merge(evaluation, params, rest).with_activations(x)

    return StatefulNetwork(init, train, evaluate, activations, getattr(module, "readers", {}))


def in_a_row(layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The readers where each layer is read by the next one, and the last by "output"."""
    return {layer: (reader,) for layer, reader in itertools.pairwise([*layers, "output"])}
