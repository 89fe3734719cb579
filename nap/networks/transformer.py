"""A decoder-only transformer, with the normalizations that make all its hidden matrices scale-invariant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer

from nap.activations import Activation, ActivationName
from nap.checks import check_choice
from nap.layers import Linear, Norm, Normalization, Output, identity
from nap.networks.attention import Attention, AttentionKernel
from nap.roles import Role

Placement = Literal["every", "pre"]
"""Where a block normalizes. pre: what attention and MLP read, as GPT-2 and Llama do. every: also before the
nonlinearity of the MLP, and what attention and MLP write onto the residual stream (as Gemma 2 does, "peri-LN")."""

TransformerNorm = Literal["layer", "rms"]

MLPKind = Literal["gelu", "swiglu", "squared-relu"]
"""gelu: the exact x Phi(x). swiglu: silu(x W) * (x V), the first factor the gate (Shazeer, 2020). squared-relu:
max(x, 0)^2 (So et al., 2021)."""

Positions = Literal["rotary", "learned"]


def squared_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0)^2, positively homogeneous of degree 2."""
    return jnp.square(jax.nn.relu(x))


_ACTIVATIONS: dict[str, Activation | ActivationName] = {
    "gelu": "gelu", "swiglu": jax.nn.silu, "squared-relu": squared_relu,
}  # fmt: skip


class Transformer(nnx.Module):
    """A decoder-only transformer without biases; placement="every" with QK-norm is the one for NaP.

    Which parameters are scale-invariant then, and why (`python -m experiments audit --network transformer` shows it):
     - query and key: QK-norm follows, before the softmax, which is attention's nonlinearity. Projected.
     - value and output of attention: what they write is linear in each, and is normalized before it is added to the
       residual stream. Projected.
     - gate and up of the MLP: a normalization follows, before the nonlinearity. Projected.
     - down: like the output of attention, its result is normalized. Projected.
     - scale and offset of what a block reads: together they scale what only query, key, value, gate and up read.
       Projected jointly.
     - scale and offset before the MLP's nonlinearity: invariant jointly for squared ReLU (down's result is normalized),
       and for the ungated half of SwiGLU. GELU and the gate's SiLU are curved, so that projection would be a real
       constraint: take `affine="regularize"` in `nap.normalize_and_project` there.
     - scale and offset of what is written onto the stream: they set how much each block adds to the others. Free.
     - the scales of QK-norm: they set the softmax's temperature. Free.
     - embeddings: what the blocks write is added to them, so their scale counts. Free, as are the output and the
       normalization before it.
    Which matrices the NaP paper projected is not known. With placement="pre" value, output, gate, up and down are not
    invariant, and the audit says of each that to project it is a real constraint.

    Kernels start as truncated normals with variance 1 / fan in, embeddings as normals with variance 1 / width, and the
    embedded tokens are multiplied by sqrt(width), so that the stream starts at unit scale.

    Args:
      vocabulary: number of tokens.
      context: the longest sequence.
      layers: number of blocks.
      heads: heads of attention; they divide the width.
      width: features of the residual stream.
      mlp: see `MLPKind`.
      mlp_factor: units of an MLP, as a multiple of the width.
      positions: "rotary", or "learned": a table of embeddings.
      tied: whether the embedding is the output layer as well.
      norm: "layer" or "rms".
      placement: see `Placement`.
      qk_norm: whether the queries and keys of each head are normalized.
      attention: see `nap.networks.attention.AttentionKernel`.
      remat: whether the backward pass computes each block again instead of keeping its activations.
      scan_layers: whether the blocks are one stack, run by a loop: compilation takes as long as for one block, and each
        of its parameters has a leading axis of `layers`, over which no norm is taken.
      constrain: what the residual stream, [batch, time, width], goes through where each block begins and ends: the
        identity, or one that tells XLA how it lies on several devices.
      dtype: what is computed in; parameters and outputs are float32.
      rngs: NNX random streams.

    Raises:
      ValueError: a size below 1; heads that do not divide the width, or an odd number of features a head with rotary
        positions; an unknown `mlp`, `positions`, `norm`, `placement` or `attention`.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int = 256,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        mlp: MLPKind = "gelu",
        mlp_factor: float = 4.0,
        positions: Positions = "rotary",
        tied: bool = False,
        norm: TransformerNorm = "rms",
        placement: Placement = "every",
        qk_norm: bool = True,
        attention: AttentionKernel = "xla",
        remat: bool = False,
        scan_layers: bool = False,
        constrain: Callable[[jax.Array], jax.Array] = identity,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for argument, value, choices in (
            ("mlp", mlp, MLPKind), ("positions", positions, Positions), ("norm", norm, TransformerNorm),
            ("placement", placement, Placement), ("attention", attention, AttentionKernel),
        ):  # fmt: skip
            check_choice(argument, value, choices)
        hidden = round(mlp_factor * width)
        for argument, value in (
            ("vocabulary", vocabulary), ("context", context), ("layers", layers), ("width", width),
            ("mlp_factor * width", hidden),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}")
        self.embedding = _Embedding(vocabulary, width, rngs)
        self.positions = _Embedding(context, width, rngs) if positions == "learned" else None
        every = placement == "every"
        attend: dict[str, Any] = {
            "norm": norm if qk_norm else "none", "output_norm": norm if every else "none",
            "rotary": positions == "rotary", "kernel": attention,
        }  # fmt: skip

        def block(key: jax.Array) -> _Block:
            rngs = nnx.Rngs(key)
            return _Block(
                # Scaling what attention reads is harmless where queries, keys and what comes of the values are
                # normalized; of what the MLP reads, where its inner layers are.
                attention_norm=Normalization(width, norm=norm, before_output=not (every and qk_norm)),
                attention=Attention(width, heads, **attend, rngs=rngs),
                mlp_norm=Normalization(width, norm=norm, before_output=not every),
                mlp=_MLP(width, hidden, mlp, norm if every else "none", rngs),
            )

        keys = jax.random.split(rngs.params(), layers)  # the same blocks from a seed, scanned or not
        if scan_layers:
            graph = nnx.graphdef(nnx.eval_shape(lambda: block(jax.random.key(0))))
            self.blocks = nnx.merge(graph, jax.vmap(lambda key: nnx.state(block(key)))(keys))
        else:
            self.blocks = nnx.List(block(key) for key in keys)
        self.norm = Normalization(width, norm=norm, before_output=True)
        self.output = None if tied else Output(width, vocabulary, bias=False, rngs=rngs)
        self.context, self.layers, self.remat, self.dtype = context, layers, remat, jnp.dtype(dtype)
        self.scan_layers, self.constrain, self.gated = scan_layers, constrain, mlp == "swiglu"

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For the hidden layer of each MLP, the layer that takes its activations in; not told if gated or scanned."""
        if self.scan_layers or self.gated:
            return {}
        return {f"blocks/{i}/mlp/up": (f"blocks/{i}/mlp/down",) for i in range(self.layers)}

    def __call__(self, tokens: Integer[Array, "batch time"]) -> Float[Array, "batch time vocabulary"]:
        """The logits of the token after each position, from that position and those before it.

        A token outside 0 ... vocabulary - 1 makes those of its whole sequence NaN.

        Raises:
          ValueError: a sequence longer than the context.
        """
        return self._run(tokens, keep=False)[0]

    def with_activations(
        self, tokens: Integer[Array, "batch time"]
    ) -> tuple[Float[Array, "batch time vocabulary"], dict[str, jax.Array]]:
        """The logits, and the activations of the hidden layer of each MLP by its path, [batch, time, units].

        A gated MLP's are the products that `down` reads. The path is that of the blocks in a row also if they are
        scanned.
        """
        logits, hidden = self._run(tokens, keep=True)
        return logits, {f"blocks/{i}/mlp/up": hidden[i] for i in range(self.layers)}

    def _run(self, tokens: jax.Array, keep: bool) -> tuple[jax.Array, Any]:
        """The logits, and the MLPs' activations, [layers, batch, time, units], if they are to be kept."""
        time = tokens.shape[1]
        if time > self.context:
            raise ValueError(f"a sequence of {time} tokens is longer than the context, {self.context}")
        width = self.embedding.features
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(jnp.arange(time))[None]
        x = (math.sqrt(width) * x).astype(self.dtype)
        graph = nnx.graphdef(self.blocks if self.scan_layers else self.blocks[0])

        def step(x: jax.Array, block: Any) -> tuple[jax.Array, Any]:
            x, hidden = nnx.merge(graph, block).with_activations(self.constrain(x))
            return self.constrain(x), hidden if keep else None

        if self.remat:  # in a loop, nothing is there to be merged with what is computed again
            step = jax.checkpoint(step, prevent_cse=not self.scan_layers)
        if self.scan_layers:
            x, hidden = jax.lax.scan(step, x, nnx.state(self.blocks))
        else:
            hidden = []
            for block in self.blocks:
                x, kept = step(x, nnx.state(block))
                hidden.append(kept)
        x = self.norm(x)
        kernel = self.embedding.embedding[...].T if self.output is None else self.output.kernel[...]
        logits = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits, hidden


class _Block(nnx.Module):
    """Attention and MLP, each added to the residual stream it reads."""

    def __init__(self, *, attention_norm: Normalization, attention: Attention, mlp_norm: Normalization, mlp: _MLP):
        self.attention_norm, self.attention, self.mlp_norm, self.mlp = attention_norm, attention, mlp_norm, mlp

    def with_activations(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The stream after the block, and the MLP's activations."""
        x = x + self.attention(self.attention_norm(x))
        written, hidden = self.mlp.with_activations(self.mlp_norm(x))
        return x + written, hidden


class _MLP(nnx.Module):
    """down(activation(up(x))) or down(silu(gate(x)) * up(x)), each normalized if there is a norm."""

    def __init__(self, width: int, hidden: int, kind: MLPKind, norm: Norm, rngs: nnx.Rngs):
        common: dict[str, Any] = {"norm": norm, "bias": False, "rngs": rngs}
        gated = kind == "swiglu"
        self.gate = Linear(width, hidden, activation=_ACTIVATIONS[kind], **common) if gated else None
        self.up = Linear(width, hidden, activation=identity if gated else _ACTIVATIONS[kind], **common)
        self.down = Linear(hidden, width, activation=identity, before_output=True, **common)

    def with_activations(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is added to the stream, and what `down` reads."""
        hidden = self.up(x) if self.gate is None else self.gate(x) * self.up(x)
        return self.down(hidden), hidden


class _Embedding(nnx.Module):
    """A table of vectors, looked up by integers; NaN outside it, where JAX would take the last or first row."""

    def __init__(self, number: int, features: int, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1 / math.sqrt(features))
        self.embedding = nnx.Param(init(rngs.params(), (number, features)), role=Role.EMBEDDING)
        self.features = features

    def __call__(self, indices: Integer[Array, "*batch"]) -> Float[Array, "*batch features"]:
        return self.embedding[...].at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def cross_entropy(
    logits: Float[Array, "*batch vocabulary"], targets: Integer[Array, "*batch"], *, z_loss: float = 0.0
) -> Float[Array, "*batch"]:
    """The cross-entropy of each token in nats, -log softmax(logits)[target], plus z_loss * (log Z)^2.

    Z is the sum of exp(logits). Without the second term nothing holds it: the softmax does not change when all logits
    move together (Chowdhery et al., 2022, with 1e-4). Computed in float32. A target outside 0 ... vocabulary - 1 gives
    NaN: what is not to count is for the caller to leave out.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.int32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    inside = jnp.where(targets < 0, logits.shape[-1], targets)  # -1 would be the last token
    target = jnp.take_along_axis(logits, inside[..., None], axis=-1, mode="fill")[..., 0]
    return log_z - target + z_loss * jnp.square(log_z)
