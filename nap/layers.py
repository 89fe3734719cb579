"""Flax NNX layers for Normalize-and-Project: linear map, normalization, nonlinearity, as one block.

A block has no bias before its normalization (the normalization would remove it), normalizes before the nonlinearity,
and declares the role of each of its variables, so that `nap.roles` need not infer them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nap.activations import Activation, ActivationName, make_activation
from nap.axes import last_axes
from nap.checks import check_choice
from nap.linear_maps import Padding, convolve, multiply
from nap.roles import Role
from nap.steps import wide

Norm = Literal["none", "layer", "rms"]
"""Normalization before a nonlinearity: none, LayerNorm (centre, then scale) or RMSNorm (scale only)."""

ConvNorm = Literal["none", "layer", "rms", "group", "batch"]
"""Those, and what only convolutions have: GroupNorm and BatchNorm."""

NormAxes = Literal["channels", "all"]
"""What a convolution's LayerNorm or RMSNorm averages over: the channels of each position, or height, width and
channels."""

EPSILON = 1e-6
"""Added to the mean square before the root. Scale invariance needs pre-activations whose square is far above it."""


def normalize(x: Float[Array, "..."], norm: Norm, axes: Sequence[int] = (-1,)) -> Float[Array, "..."]:
    """LayerNorm or RMSNorm of `x` over `axes`, without scale and offset; computed in float32 at least.

    LayerNorm: (x - mean) / sqrt(variance + eps), RMSNorm: x / sqrt(mean(x^2) + eps), eps = 1e-6.
    """
    if norm == "none":
        return x
    full = wide(x)
    if norm == "layer":
        full = full - jnp.mean(full, axis=axes, keepdims=True)
    return (full * jax.lax.rsqrt(jnp.mean(jnp.square(full), axis=axes, keepdims=True) + EPSILON)).astype(x.dtype)


class Normalization(nnx.Module):
    """LayerNorm or RMSNorm with a learned scale and offset for each channel.

    Both kinds have an offset: the bias-free layer before it has no other way to move a unit's threshold.

    Args:
      features: size of the last axis.
      norm: "layer" or "rms".
      axes: the axes averaged over, without the batch axis.
      before_output: whether only an output layer reads the result. Scaling scale and offset together would then scale
        the output, so the two declare the roles "output scale" and "output offset" and are never projected.
    """

    def __init__(self, features: int, *, norm: Norm, axes: Sequence[int] = (-1,), before_output: bool = False):
        self.scale, self.offset = _affine(features, before_output)
        self.norm, self.axes = norm, tuple(axes)

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Normalize over the axes, then scale and shift each channel."""
        return _scale_and_shift(self, normalize(x, self.norm, self.axes))


class GroupNormalization(nnx.Module):
    """GroupNorm (Wu and He, 2018): LayerNorm over height, width and a group of neighbouring channels.

    There are 32 groups, as published, or fewer: the largest power of two that leaves groups of equal size with at least
    two channels, since a group of one channel and one position would normalize to zero.

    Args:
      features: channels.
      before_output: see `Normalization`.
    """

    def __init__(self, features: int, *, before_output: bool = False):
        self.scale, self.offset = _affine(features, before_output)
        self.groups = max(1, math.gcd(2 * 32, features) // 2)

    def __call__(self, x: Float[Array, "*batch height width features"]) -> Float[Array, "*batch height width features"]:
        """Normalize each group of channels, then scale and shift each channel."""
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        return _scale_and_shift(self, normalize(grouped, "layer", (-4, -3, -1)).reshape(x.shape))


class BatchNormalization(nnx.Module):
    """BatchNorm (Ioffe and Szegedy, 2015) of feature maps; statistics in float32, variances those of the batch (1 / n).

    After `train()`, as at the start, a channel is normalized by the mean and variance of the batch, which also move the
    running ones: 0.9 of the old, 0.1 of the new. After `eval()` by the running ones.

    In training a layer is invariant to its kernel's scale. In evaluation it is not: the running statistics belong to
    kernels of the norm they were collected at. Projection at every update keeps that norm, and so serves evaluation;
    a kernel rescaled at once, as by projection at every 1000th update, needs its statistics collected again.

    Args:
      features: channels.
      before_output: see `Normalization`.
    """

    def __init__(self, features: int, *, before_output: bool = False):
        self.scale, self.offset = _affine(features, before_output)
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.variance = nnx.BatchStat(jnp.ones(features))
        self.use_running_average = False  # by this name NNX's train() and eval() set it

    def __call__(self, x: Float[Array, "batch height width features"]) -> Float[Array, "batch height width features"]:
        """Normalize, then scale and shift each channel; in training also move the running statistics."""
        full = wide(x)
        mean, variance = self.mean[...], self.variance[...]
        if not self.use_running_average:
            mean, variance = jnp.mean(full, axis=(0, 1, 2)), jnp.var(full, axis=(0, 1, 2))
            for running, new in ((self.mean, mean), (self.variance, variance)):
                running[...] = 0.9 * running[...] + 0.1 * new
        centered = full - last_axes(mean, full)
        return _scale_and_shift(self, (centered * last_axes(jax.lax.rsqrt(variance + EPSILON), full)).astype(x.dtype))


class Linear(nnx.Module):
    """A dense layer with its normalization and nonlinearity: activation(norm(x W)), or activation(x W + b) without
    norm.

    Args:
      inputs: size of the input's last axis.
      outputs: number of units.
      norm: "layer", "rms" or "none".
      bias: whether a layer without normalization has a bias; one with a normalization has none.
      activation: the nonlinearity: a name or a function, see `nap.activations`.
      before_output: see `Normalization`.
      kernel_init: initializer of the kernel; its norm at initialization is the radius that NaP keeps.
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
        bias: bool = True,
        activation: Activation | ActivationName = "relu",
        before_output: bool = False,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        rngs: nnx.Rngs,
    ):
        check_choice("norm", norm, Norm)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs)), role=Role.HIDDEN)
        self.norm, self.bias = norm_or_bias(outputs, norm, (-1,), before_output, bias=bias)
        self.activation = make_activation(activation, outputs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """The layer's activations: `features_per_unit` of the activation for each unit."""
        x = as_floats(x)
        return self.activation(finish(self, multiply(x, self.kernel[...].astype(x.dtype))))


class Conv(nnx.Module):
    """A convolution (channels last) with its normalization and nonlinearity.

    Args:
      inputs: input channels.
      outputs: output channels (units).
      size: height and width of the kernel.
      stride: step in both directions.
      padding: "VALID" or "SAME".
      norm: "layer", "rms", "group", "batch" or "none".
      norm_axes: for "layer" and "rms": "channels" normalizes each position by itself, "all" over height, width and
        channels together. Both make the layer invariant to the kernel's scale.
      activation: the nonlinearity: a name or a function, see `nap.activations`.
      before_output: see `Normalization`.
      kernel_init: initializer of the kernel, shape [size, size, inputs, outputs].
      rngs: NNX random streams.

    Raises:
      ValueError: a `norm`, `norm_axes`, `padding` or `activation` that does not exist.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        padding: Padding = "VALID",
        norm: ConvNorm = "layer",
        norm_axes: NormAxes = "channels",
        activation: Activation | ActivationName = "relu",
        before_output: bool = False,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        rngs: nnx.Rngs,
    ):
        check_choice("norm", norm, ConvNorm)
        check_choice("norm_axes", norm_axes, NormAxes)
        check_choice("padding", padding, Padding)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, inputs, outputs)), role=Role.HIDDEN)
        axes = (-1,) if norm_axes == "channels" else (-3, -2, -1)
        self.norm, self.bias = norm_or_bias(outputs, norm, axes, before_output)
        self.stride, self.padding = stride, padding
        self.activation = make_activation(activation, outputs)

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch h w features"]:
        """The layer's activations: `features_per_unit` of the activation for each unit."""
        x = as_floats(x)
        z = convolve(x, self.kernel[...].astype(x.dtype), self.stride, self.padding)
        return self.activation(finish(self, z))


class Output(nnx.Module):
    """A head's last layer: linear, no normalization, never projected.

    Args:
      inputs: size of the input's last axis.
      outputs: number of outputs.
      bias: whether it has a bias.
      shared_bias: whether that is one number for all outputs.
      kernel_init: initializer of the kernel.
      rngs: NNX random streams.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        shared_bias: bool = False,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs)), role=Role.OUTPUT)
        self.bias = nnx.Param(jnp.zeros(1 if shared_bias else outputs), role=Role.BIAS) if bias else None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The head's outputs."""
        x = as_floats(x)
        y = multiply(x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + last_axes(self.bias[...].astype(x.dtype), y)


def as_floats(x: Array) -> Float[Array, "..."]:
    """What a layer takes in: floating-point numbers as they are, in whose precision it computes; others in float32."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def uniform_fan_in(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Uniform in +-1/sqrt(fan in), the initializer of DQN Zoo and PyTorch; the fan in is all axes but the last."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def norm_or_bias(
    features: int, norm: ConvNorm, axes: Sequence[int], before_output: bool, *, bias: bool = True
) -> tuple[nnx.Module | None, nnx.Param | None]:
    """What follows the linear map of a block: a normalization, or else a bias (if there is to be one); never both."""
    if norm == "none":
        return None, nnx.Param(jnp.zeros(features), role=Role.BIAS) if bias else None
    if norm in ("group", "batch"):
        kind = GroupNormalization if norm == "group" else BatchNormalization
        return kind(features, before_output=before_output), None
    return Normalization(features, norm=norm, axes=axes, before_output=before_output), None


def finish(block: Any, z: jax.Array) -> jax.Array:
    """The pre-activations of a block from its linear map's result: with its normalization or bias."""
    if block.norm is not None:
        z = block.norm(z)
    if block.bias is not None:
        z = z + last_axes(block.bias[...].astype(z.dtype), z)
    return z


def identity(x: jax.Array) -> jax.Array:
    """The activation of a layer without nonlinearity."""
    return x


def _affine(features: int, before_output: bool) -> tuple[nnx.Param, nnx.Param]:
    """A normalization's scale and offset at initialization, with their roles."""
    scale, offset = (Role.OUTPUT_SCALE, Role.OUTPUT_OFFSET) if before_output else (Role.SCALE, Role.OFFSET)
    return nnx.Param(jnp.ones(features), role=scale), nnx.Param(jnp.zeros(features), role=offset)


def _scale_and_shift(norm: Any, x: jax.Array) -> jax.Array:
    """The second half of a normalization."""
    scale, offset = (last_axes(value[...].astype(x.dtype), x) for value in (norm.scale, norm.offset))
    return x * scale + offset
