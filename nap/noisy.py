"""Noisy layers (Fortunato et al., 2018): exploration by learned noise on the weights, ready for Normalize-and-Project.

The noise is factorized: a weight W with noise strength S acts as W + S * (f(a) f(b)^T), with random vectors a for the
inputs and b for the outputs and f(x) = sign(x) sqrt|x|. Every layer draws its own, and so does every example of a
batch, whose noise then averages out in the gradient; DQN Zoo draws once for a whole batch.

A normalized noisy layer is invariant to a common scale of W and S, not to that of either: the two share one radius
(`Role.NOISE`). It has no biases, whose noise would break that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from nap.activations import Activation, ActivationName, make_activation
from nap.axes import last_axes
from nap.checks import check_choice
from nap.layers import Norm, as_floats, finish, norm_or_bias, uniform_fan_in
from nap.linear_maps import multiply
from nap.roles import Role

SIGMA = 0.1
"""Strength of the noise at initialization, times sqrt(fan in): DQN Zoo's (the paper has 0.5)."""


class NoisyLinear(nnx.Module):
    """A dense layer with noise on its weights, its normalization and its nonlinearity.

    Args:
      inputs: size of the input's last axis.
      outputs: number of units.
      norm: "layer", "rms" or "none"; without one the layer has a bias, with noise of its own.
      activation: the nonlinearity: a name or a function, see `nap.activations`.
      before_output: see `nap.layers.Normalization`.
      sigma: the noise's strength at initialization is sigma / sqrt(inputs).
      kernel_init: initializer of the kernel.
      rngs: NNX random streams.

    Raises:
      ValueError: a `norm` or `activation` that does not exist.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        norm: Norm = "layer",
        activation: Activation | ActivationName = "relu",
        before_output: bool = False,
        sigma: float = SIGMA,
        kernel_init: nnx.Initializer = uniform_fan_in,
        rngs: nnx.Rngs,
    ):
        check_choice("norm", norm, Norm)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs)), role=Role.HIDDEN)
        self.noise = nnx.Param(_strength((inputs, outputs), inputs, sigma), role=Role.NOISE)
        self.norm, self.bias = norm_or_bias(outputs, norm, (-1,), before_output)
        strength = _strength((outputs,), inputs, sigma) if norm == "none" else None
        self.noise_bias = None if strength is None else nnx.Param(strength, role=Role.BIAS)
        self.activation = make_activation(activation, outputs)

    def __call__(
        self, x: Float[Array, "*batch inputs"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch features"]:
        """The layer's activations; without a key there is no noise."""
        return self.activation(finish(self, _noisy_product(self, x, key)))


class NoisyOutput(nnx.Module):
    """A head's last layer with noise on its weights: no normalization, never projected.

    As in DQN Zoo it has no bias but the noise on one.

    Args:
      inputs: size of the input's last axis.
      outputs: number of outputs.
      sigma: as in `NoisyLinear`.
      kernel_init: initializer of the kernel.
      rngs: NNX random streams.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        sigma: float = SIGMA,
        kernel_init: nnx.Initializer = uniform_fan_in,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs)), role=Role.OUTPUT)
        self.noise = nnx.Param(_strength((inputs, outputs), inputs, sigma), role=Role.OUTPUT_NOISE)
        self.noise_bias = nnx.Param(_strength((outputs,), inputs, sigma), role=Role.OUTPUT_NOISE)

    def __call__(
        self, x: Float[Array, "*batch inputs"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch outputs"]:
        """The head's outputs; without a key there is no noise."""
        return _noisy_product(self, x, key)


def _noisy_product(
    layer: NoisyLinear | NoisyOutput, x: Float[Array, "*batch inputs"], key: Key[Array, ""] | None
) -> Float[Array, "*batch outputs"]:
    """x (W + S * f(a) f(b)^T), and the noise on the bias; as two products, so that examples have noise of their own."""
    x = as_floats(x)
    product = multiply(x, layer.kernel[...].astype(x.dtype))
    if key is None:
        return product
    shapes = [(*x.shape[:-1], n) for n in layer.kernel.shape]
    a, b = (factor(k, shape) for k, shape in zip(jax.random.split(key), shapes, strict=True))
    noise = multiply(x * a.astype(x.dtype), layer.noise[...].astype(x.dtype))
    if layer.noise_bias is not None:
        noise = noise + last_axes(layer.noise_bias[...].astype(x.dtype), noise)
    return product + noise * b.astype(x.dtype)


def factor(key: Key[Array, ""], shape: Sequence[int]) -> Float[Array, "..."]:
    """f(x) = sign(x) sqrt|x| of standard normal numbers; as in DQN Zoo these are truncated at two deviations."""
    x = jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape))
    # A barrier, as XLA's CPU backend takes eight times as long where it draws inside a loop over the features.
    return jax.lax.optimization_barrier(jnp.sign(x) * jnp.sqrt(jnp.abs(x)))


def _strength(shape: Sequence[int], inputs: int, sigma: float) -> Float[Array, "..."]:
    return jnp.full(tuple(shape), sigma / math.sqrt(inputs), jnp.float32)  # typed: else an update compiles twice
