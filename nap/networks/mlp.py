"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from nap.activations import Activation, ActivationName, features_per_unit
from nap.layers import Linear, Norm, Output
from nap.networks.functions import in_a_row


class MLP(nnx.Module):
    """Dense blocks and a linear output layer.

    With hidden=(100, 100), norm="none" and kernel_init=uniform_fan_in it is the MLP of Kumar et al. (2023), but for the
    biases, which start at 0 here.

    Args:
      inputs: size of the (flattened) input.
      hidden: units of each hidden layer; at least one layer.
      outputs: size of the output.
      norm: normalization before each nonlinearity: "layer", "rms" or "none".
      activation: the nonlinearity: a name or a function, see `nap.activations`.
      kernel_init: initializer of all kernels.
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
        activation: Activation | ActivationName = "relu",
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        rngs: nnx.Rngs,
    ):
        if not hidden:
            raise ValueError("an MLP needs at least one hidden layer, got hidden=[]")
        k = features_per_unit(activation)
        *widths, width = [inputs, *(k * units for units in hidden)]
        self.hidden = nnx.List(
            Linear(
                fan_in,
                units,
                norm=norm,
                activation=activation,
                before_output=i == len(hidden) - 1,
                kernel_init=kernel_init,
                rngs=rngs,
            )
            for i, (fan_in, units) in enumerate(zip(widths, hidden, strict=True))
        )
        self.output = Output(width, outputs, kernel_init=kernel_init, rngs=rngs)

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For each hidden layer, the layers that take its activations in."""
        return in_a_row([f"hidden/{i}" for i in range(len(self.hidden))])

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
