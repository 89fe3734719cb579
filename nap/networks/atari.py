"""Networks for Atari frames."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from nap.activations import Activation, ActivationName, features_per_unit
from nap.layers import Conv, Linear, Norm, NormAxes, Output, uniform_fan_in
from nap.networks.functions import in_a_row


class NatureCNN(nnx.Module):
    """The convolutional Q-network of Mnih et al. (2015), with a normalization before each of its nonlinearities.

    Convolutions 32 of 8x8 by 4, 64 of 4x4 by 2, 64 of 3x3, then 512 units and a linear output, all VALID, initialized
    uniformly in +-1/sqrt(fan in) as in DQN Zoo. The hidden layers have no bias if they are normalized, and the output
    layer then starts 100 times smaller: its inputs have unit scale, and without that the first values would be so large
    (a standard deviation of 0.4) that unlearning them kills channels. The output layer is never projected.

    Args:
      outputs: size of the output: the number of actions.
      norm: "layer", "rms" or "none".
      norm_axes: see `nap.layers.Conv`.
      activation: the nonlinearity: a name or a function, see `nap.activations`.
      stack: frames in an observation.
      rngs: NNX random streams.
    """

    def __init__(
        self,
        outputs: int,
        *,
        norm: Norm = "layer",
        norm_axes: NormAxes = "channels",
        activation: Activation | ActivationName = "relu",
        stack: int = 4,
        rngs: nnx.Rngs,
    ):
        k = features_per_unit(activation)

        def conv(inputs: int, channels: int, size: int, stride: int) -> Conv:
            return Conv(
                inputs,
                channels,
                size,
                stride,
                norm=norm,
                norm_axes=norm_axes,
                activation=activation,
                kernel_init=uniform_fan_in,
                rngs=rngs,
            )

        self.torso = nnx.List([conv(stack, 32, 8, 4), conv(k * 32, 64, 4, 2), conv(k * 64, 64, 3, 1)])
        self.hidden = Linear(
            7 * 7 * k * 64,
            512,
            norm=norm,
            activation=activation,
            before_output=True,
            kernel_init=uniform_fan_in,
            rngs=rngs,
        )
        self.output = Output(k * 512, outputs, kernel_init=uniform_fan_in if norm == "none" else _small, rngs=rngs)

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For each hidden layer, the layers that take its activations in."""
        return in_a_row(["torso/0", "torso/1", "torso/2", "hidden"])

    def __call__(self, frames: UInt8[Array, "batch stack 84 84"]) -> Float[Array, "batch outputs"]:
        """Outputs (action values) for a batch of stacked grey frames, 0 to 255, the oldest first."""
        return self.with_activations(frames)[0]

    def with_activations(
        self, frames: UInt8[Array, "batch stack 84 84"]
    ) -> tuple[Float[Array, "batch outputs"], dict[str, jax.Array]]:
        """Outputs, and the activations of each hidden layer by its path."""
        x = jnp.moveaxis(frames, 1, -1).astype(jnp.float32) / 255  # channels last from here
        activations = {}
        for i, layer in enumerate(self.torso):
            x = activations[f"torso/{i}"] = layer(x)
        x = activations["hidden"] = self.hidden(x.reshape(x.shape[0], -1))
        return self.output(x), activations


def _small(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    return 0.01 * uniform_fan_in(key, shape)
