"""Residual networks for images: ResNet-18, ResNet-50, and smaller ones of the same family."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nap.activations import Activation, ActivationName, features_per_unit, make_activation
from nap.checks import check_choice
from nap.layers import Conv, ConvNorm, NormAxes, Output, identity, uniform_fan_in

Stem = Literal["cifar", "imagenet"]
"""cifar: a 3x3 convolution. imagenet: a 7x7 convolution by 2, then a 3x3 max-pool by 2 (He et al., 2016)."""

Block = Literal["basic", "bottleneck"]
"""basic: two 3x3 convolutions. bottleneck: 1x1, 3x3 and 1x1, the last with four times the channels."""

_SIZES: dict[str, tuple[int, ...]] = {"basic": (3, 3), "bottleneck": (1, 3, 1)}
_STRIDED = {"basic": 0, "bottleneck": 1}
"""Which convolution of a block halves height and width: in a bottleneck the 3x3 one, "version 1.5"."""

_he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nnx.Module):
    """A residual network (He et al., 2016), its nonlinearities after the additions, as published.

    Every convolution is bias-free and followed by a normalization, also those that write onto the residual stream and
    the 1x1 ones of the shortcuts, so every kernel is scale-invariant and is projected. Scales and offsets:
     - those before a nonlinearity inside a block, which only normalized convolutions read, are invariant jointly (the
       nonlinearity must be positively homogeneous, as ReLU is): NaP projects them;
     - those that write onto the stream set how much each block adds to the others and stay free, as does the stem's
       unless the first block has a 1x1 shortcut, as in ResNet-50, where only normalized convolutions read the stem.
       (All of a stage together would be invariant if the next stage follows: that common factor is not held.)
    With BatchNorm this holds in training, where the batch's statistics are used; for evaluation see
    `nap.layers.BatchNormalization`. With norm="none" convolutions have biases, nothing is invariant, and each block
    doubles the variance.

    Kernels start normal with variance 2 / fan out (He et al., 2015), the output layer uniform in +-1/sqrt(fan in).
    Padding is SAME, which for stride 2 on an even size puts the odd row and column of zeros at the bottom and right,
    where PyTorch has one at the top and left too: weights of one are off by half a pixel in the other.

    Args:
      outputs: size of the output: the number of classes.
      blocks: blocks in each stage. Each stage after the first halves height and width and doubles the channels.
      block: "basic" or "bottleneck".
      width: channels of the stem and of the first stage's 3x3 convolutions.
      channels: channels of the images.
      stem: "cifar" or "imagenet".
      norm: "batch", "group", "layer", "rms" or "none". "batch" keeps running statistics: use `as_stateful_functions`.
      norm_axes: see `nap.layers.Conv`.
      activation: the nonlinearity, one with one feature a unit: a name or a function, see `nap.activations`.
      dtype: what is computed in; parameters, statistics and outputs are float32.
      rngs: NNX random streams.

    Raises:
      ValueError: no stage, or one without blocks; an unknown `block`, `stem`, `norm`, `norm_axes` or `activation`; an
        activation with two features a unit.
    """

    def __init__(
        self,
        outputs: int,
        *,
        blocks: Sequence[int],
        block: Block = "basic",
        width: int = 64,
        channels: int = 3,
        stem: Stem = "cifar",
        norm: ConvNorm = "batch",
        norm_axes: NormAxes = "channels",
        activation: Activation | ActivationName = "relu",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("block", block, Block)
        check_choice("stem", stem, Stem)
        if not blocks or min(blocks) < 1:
            raise ValueError(f"a ResNet needs at least one stage, each with at least one block, got {list(blocks)}")
        if features_per_unit(activation) != 1:
            raise ValueError(
                f"activation {activation!r} makes two features of a unit, which do not fit a residual stream: "
                "take one with one, such as 'relu'"
            )
        common: dict[str, Any] = {
            "padding": "SAME", "norm": norm, "norm_axes": norm_axes, "kernel_init": _he_normal, "rngs": rngs,
        }  # fmt: skip
        on_stream = block == "basic"  # a bottleneck changes the number of channels, so its first shortcut is 1x1
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.stem = Conv(channels, width, size, stride, activation=activation, before_output=on_stream, **common)
        self.pool = stem == "imagenet"
        self.blocks = nnx.List()
        inputs = width
        for stage, number in enumerate(blocks):
            for i in range(number):
                stride = 2 if stage and not i else 1
                self.blocks.append(_Block(inputs, width * 2**stage, stride, block, activation, common))
                inputs = self.blocks[-1].features
        self.output = Output(inputs, outputs, kernel_init=uniform_fan_in, rngs=rngs)
        self.stem_is_inner, self.dtype = not on_stream, jnp.dtype(dtype)

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For each hidden layer that does not write onto the stream, the layers that take its activations in."""
        found: dict[str, tuple[str, ...]] = {}
        if self.stem_is_inner:
            found["stem"] = ("blocks/0/layers/0", "blocks/0/shortcut")
        for i, block in enumerate(self.blocks):
            for j in range(len(block.layers) - 1):
                found[f"blocks/{i}/layers/{j}"] = (f"blocks/{i}/layers/{j + 1}",)
        return found

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch outputs"]:
        """Outputs (logits) for a batch of images."""
        return self.with_activations(x)[0]

    def with_activations(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch outputs"], dict[str, jax.Array]]:
        """Outputs, and the activations by path of each hidden layer that does not write onto the residual stream."""
        x = self.stem(x.astype(self.dtype))
        if self.pool:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        activations = {"stem": x} if self.stem_is_inner else {}
        for i, block in enumerate(self.blocks):
            x = block(x, f"blocks/{i}", activations)
        return self.output(jnp.mean(x.astype(jnp.float32), axis=(1, 2))), activations


class _Block(nnx.Module):
    """A residual block: the nonlinearity of its convolutions' result plus its input, or a 1x1 convolution of that."""

    def __init__(
        self,
        inputs: int,
        units: int,
        stride: int,
        block: Block,
        activation: Activation | ActivationName,
        common: dict[str, Any],
    ):
        inner: dict[str, Any] = {**common, "activation": activation}
        writing: dict[str, Any] = {**common, "activation": identity, "before_output": True}
        *sizes, last = _SIZES[block]
        self.features = (4 if block == "bottleneck" else 1) * units
        self.layers = nnx.List()
        taken = inputs
        for i, size in enumerate(sizes):
            self.layers.append(Conv(taken, units, size, stride if i == _STRIDED[block] else 1, **inner))
            taken = units
        self.layers.append(Conv(units, self.features, last, **writing))
        fits = stride == 1 and inputs == self.features
        self.shortcut = None if fits else Conv(inputs, self.features, 1, stride, **writing)
        self.activation = make_activation(activation, self.features)

    def __call__(
        self, x: Float[Array, "batch height width inputs"], path: str, activations: dict[str, jax.Array]
    ) -> Float[Array, "batch h w features"]:
        *inner, writing = self.layers
        y = x
        for i, layer in enumerate(inner):
            y = activations[f"{path}/layers/{i}"] = layer(y)
        return self.activation(writing(y) + (x if self.shortcut is None else self.shortcut(x)))


resnet_18 = functools.partial(ResNet, blocks=(2, 2, 2, 2), block="basic")
"""ResNet-18: 11.69 million parameters with the ImageNet stem and 1000 classes, 11.17 with the CIFAR stem and 10."""

resnet_50 = functools.partial(ResNet, blocks=(3, 4, 6, 3), block="bottleneck")
"""ResNet-50: 25.56 million parameters with the ImageNet stem and 1000 classes."""
