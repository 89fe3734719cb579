"""A small convolutional network for image classification."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nap.activations import Activation, ActivationName, features_per_unit
from nap.layers import Conv, Linear, Norm, NormAxes, Output, uniform_fan_in
from nap.networks.functions import in_a_row


class CNN(nnx.Module):
    """The convolutional network of Kumar et al. (2023), with a normalization before each of its nonlinearities.

    Convolutions 16 of 5x5 and 16 of 5x5, each followed by a 2x2 max-pool, then two dense layers of 100 units and a
    linear output; kernels start uniform in +-1/sqrt(fan in), PyTorch's default. Two things differ from the published
    network: convolutions keep height and width (SAME padding), so that images of 8x8 fit, which on 32x32 makes the
    first dense layer read 8x8 positions instead of 5x5; and biases start at 0.

    Args:
      shape: height, width and channels of the images. A max-pool drops an odd last row or column.
      outputs: size of the output: the number of classes.
      channels: channels of each convolution; at least one convolution.
      size: height and width of the convolutions' kernels.
      hidden: units of each dense layer; at least one layer.
      norm: "layer", "rms" or "none".
      norm_axes: see `nap.layers.Conv`.
      activation: the nonlinearity: a name or a function, see `nap.activations`.
      rngs: NNX random streams.

    Raises:
      ValueError: a `shape` that is not height, width and channels; no convolution or no dense layer; images too small
        for so many max-pools.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        channels: Sequence[int] = (16, 16),
        size: int = 5,
        hidden: Sequence[int] = (100, 100),
        norm: Norm = "layer",
        norm_axes: NormAxes = "channels",
        activation: Activation | ActivationName = "relu",
        rngs: nnx.Rngs,
    ):
        if not channels or not hidden:
            raise ValueError(
                "a CNN needs at least one convolution and one dense layer, "
                f"got channels={list(channels)}, hidden={list(hidden)}"
            )
        if len(shape) != 3:
            raise ValueError(f"a CNN's shape is (height, width, channels) of an image, got {tuple(shape)}")
        height, width, inputs = shape
        smallest = 2 ** len(channels)
        if min(height, width) < smallest:
            raise ValueError(
                f"images of {height}x{width} are too small for {len(channels)} max-pools: "
                f"they must be {smallest}x{smallest} or larger, or have fewer channels=..."
            )
        k = features_per_unit(activation)
        self.torso = nnx.List()
        for units in channels:
            self.torso.append(
                Conv(
                    inputs,
                    units,
                    size,
                    padding="SAME",
                    norm=norm,
                    norm_axes=norm_axes,
                    activation=activation,
                    kernel_init=uniform_fan_in,
                    rngs=rngs,
                )
            )
            inputs = k * units
        inputs *= (height // smallest) * (width // smallest)
        self.hidden = nnx.List()
        for i, units in enumerate(hidden):
            self.hidden.append(
                Linear(
                    inputs,
                    units,
                    norm=norm,
                    activation=activation,
                    before_output=i == len(hidden) - 1,
                    kernel_init=uniform_fan_in,
                    rngs=rngs,
                )
            )
            inputs = k * units
        self.output = Output(inputs, outputs, kernel_init=uniform_fan_in, rngs=rngs)

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For each hidden layer, the layers that take its activations in."""
        return in_a_row(
            [f"torso/{i}" for i in range(len(self.torso))] + [f"hidden/{i}" for i in range(len(self.hidden))]
        )

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch outputs"]:
        """Outputs (logits) for a batch of images."""
        return self.with_activations(x)[0]

    def with_activations(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch outputs"], dict[str, jax.Array]]:
        """Outputs, and the activations of each hidden layer by its path, those of a convolution after its max-pool."""
        activations = {}
        for i, layer in enumerate(self.torso):
            x = activations[f"torso/{i}"] = max_pool(layer(x))
        x = x.reshape(x.shape[0], -1)
        for i, layer in enumerate(self.hidden):
            x = activations[f"hidden/{i}"] = layer(x)
        return self.output(x), activations


def max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w channels"]:
    """The maximum of each 2x2 window, stride 2; an odd last row or column is dropped.

    Two equal halves of a window share the gradient evenly, first its columns, then its rows.
    """
    # Not jnp.max, whose gradient divides by the number of entries equal to the maximum: a compiler that computes x
    # twice, and rounds otherwise the second time, finds none, and 0 / 0.
    height, width = x.shape[1] // 2, x.shape[2] // 2
    windows = x[:, : 2 * height, : 2 * width].reshape(x.shape[0], height, 2, width, 2, x.shape[3])
    rows = jnp.maximum(windows[:, :, 0], windows[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])
