"""Multilayer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from nap.layers import Activation, Linear, Norm, Output


class MLP(nnx.Module):
    """Dense blocks and a linear output layer.

    Args:
      inputs: size of the (flattened) input.
      hidden: units of each hidden layer; at least one layer.
      outputs: size of the output.
      norm: normalization before each nonlinearity: "layer", "rms" or "none".
      activation: the nonlinearity.
      rngs: NNX random streams.

    Raises:
      ValueError: there is no hidden layer.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        norm: Norm = "layer",
        activation: Activation = nnx.relu,
        rngs: nnx.Rngs,
    ):
        if not hidden:
            raise ValueError("an MLP needs at least one hidden layer, got hidden=[]")
        self.hidden = nnx.List(
            Linear(inputs, units, norm=norm, activation=activation, before_output=i == len(hidden) - 1, rngs=rngs)
            for i, (inputs, units) in enumerate(itertools.pairwise([inputs, *hidden]))
        )
        self.output = Output(hidden[-1], outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch outputs"]:
        """Outputs for a batch; each input is flattened."""
        return self.with_activations(x)[0]

    def with_activations(
        self, x: Float[Array, "batch *shape"]
    ) -> tuple[Float[Array, "batch outputs"], dict[str, jax.Array]]:
        """Outputs, and the activations of each hidden layer by its path."""
        x = x.reshape(x.shape[0], -1)
        activations = {}
        for i, layer in enumerate(self.hidden):
            x = activations[f"hidden/{i}"] = layer(x)
        return self.output(x), activations
