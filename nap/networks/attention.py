"""Causal self-attention with normalized queries and keys, and rotary positions."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nap.axes import last_axes
from nap.layers import Linear, Norm, identity, normalize
from nap.roles import Role
from nap.steps import wide

AttentionKernel = Literal["xla", "cudnn"]
"""Which of JAX's implementations of attention: "xla" runs everywhere; "cudnn" is flash attention on NVIDIA GPUs, in
bfloat16 or float16, for heads of a multiple of 8 features, at most 128."""

ROTARY_BASE = 10_000.0
"""The slowest pair of features turns by about 1 / 10,000 of a radian a position (Su et al., 2021)."""


class HeadNormalization(nnx.Module):
    """QK-norm (Henry et al., 2020; Dehghani et al., 2023): a normalization of each head's queries or keys.

    Its scale is shared by the heads. There is no offset, which for keys would have no effect without rotary positions:
    adding the same to all keys adds the same to all logits of a query. The scales set the temperature of the softmax,
    which no normalization follows, so they stay free (`Role.OUTPUT_SCALE`).

    Args:
      features: features of a head.
      norm: "layer" or "rms".
    """

    def __init__(self, features: int, *, norm: Norm):
        self.scale = nnx.Param(jnp.ones(features), role=Role.OUTPUT_SCALE)
        self.norm = norm

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Normalize over the last axis, then scale."""
        return normalize(x, self.norm) * last_axes(self.scale[...].astype(x.dtype), x)


class Attention(nnx.Module):
    """Multi-head causal self-attention, without biases.

    Args:
      width: features of the input and the output.
      heads: number of heads, which divides the width.
      norm: normalization of queries and keys: "layer", "rms" or "none".
      output_norm: normalization of the output, before it is added to the residual stream: "layer", "rms" or "none".
      rotary: whether queries and keys are turned by their position.
      kernel: see `AttentionKernel`.
      rngs: NNX random streams.

    Raises:
      ValueError: the heads do not divide the width; rotary positions with an odd number of features a head.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        norm: Norm,
        output_norm: Norm,
        rotary: bool,
        kernel: AttentionKernel = "xla",
        rngs: nnx.Rngs,
    ):
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width, got heads={heads} for width={width}")
        features = width // heads
        if rotary and features % 2:
            raise ValueError(f"rotary positions turn pairs of features, so a head needs an even number, got {features}")
        linear: dict[str, Any] = {"bias": False, "activation": identity, "rngs": rngs}
        self.query, self.key, self.value = (Linear(width, width, norm="none", **linear) for _ in range(3))
        self.output = Linear(width, width, norm=output_norm, before_output=True, **linear)
        self.query_norm, self.key_norm = (
            identity if norm == "none" else HeadNormalization(features, norm=norm) for _ in range(2)
        )
        self.heads, self.rotary, self.kernel = heads, rotary, kernel

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """What the block adds to its residual stream; a position reads itself and those before it."""
        by_head = (*x.shape[:-1], self.heads, -1)
        q, k, v = (layer(x).reshape(by_head) for layer in (self.query, self.key, self.value))
        q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        read = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=self.kernel)
        return self.output(read.reshape(x.shape))


def rotate(x: Float[Array, "*batch time heads features"]) -> Float[Array, "*batch time heads features"]:
    """Rotary positions (Su et al., 2021): each pair of features turned by an angle proportional to its position.

    At position t the pair (i, i + features / 2) turns by t * base^(-2 i / features), base = 10,000. The product of a
    query and a key then depends on the difference of their positions alone. Computed in float32 at least.
    """
    time, features = x.shape[-3], x.shape[-1]
    frequencies = ROTARY_BASE ** (-jnp.arange(0, features, 2) / features)
    angles = (jnp.arange(time)[:, None] * frequencies[None])[:, None]  # [time, 1, features / 2]
    first, second = jnp.split(wide(x), 2, axis=-1)
    cos, sin = (last_axes(of, first) for of in (jnp.cos(angles), jnp.sin(angles)))
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)
