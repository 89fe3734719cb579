"""Q-networks for Atari frames: a convolutional torso and the heads of the DQN family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from nap.activations import Activation, ActivationName, features_per_unit, make_activation
from nap.axes import last_axes
from nap.checks import check_choice
from nap.layers import Conv, Linear, Norm, NormAxes, Output, identity, uniform_fan_in
from nap.noisy import NoisyLinear, NoisyOutput

Torso = Literal["nature", "impala", "minatar", "flat"]
"""nature: convolutions 32 of 8x8 by 4, 64 of 4x4 by 2, 64 of 3x3, all VALID (Mnih et al., 2015). impala: three sections
of 16, 32 and 32 channels, each a 3x3 convolution, a max-pool by 2 and two residual blocks (Espeholt et al., 2018).
minatar: one convolution, 16 of 3x3, VALID (Young & Tian, 2019). flat: none, for small observations."""

_CONVOLUTIONS = {"nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)), "minatar": ((16, 3, 1),), "flat": ()}
"""Units, kernel and stride of each layer of the torsos that are nothing but VALID convolutions."""

COSINES = 64
"""How many cosines an implicit quantile network describes a quantile by (Dabney et al., 2018)."""


class Quantiles(NamedTuple):
    """What an implicit quantile network puts out.

    Attributes:
      values: the return's quantiles for each action.
      taus: at which probabilities.
    """

    values: Float[Array, "*batch actions samples"]
    taus: Float[Array, "*batch samples"]


class QNetwork(nnx.Module):
    """The networks of DQN, Rainbow and their relatives, with a normalization before each nonlinearity.

    A torso, 512 units and a linear output. Without normalization weights and biases start uniformly in
    +-1/sqrt(fan in), as in DQN Zoo. With one the hidden layers have no bias, that of the output layer starts at 0, and
    the output layer's weights 100 times smaller: its inputs have unit scale, and without that the first values would be
    so large (a standard deviation of 0.4) that unlearning them kills channels. The output layer is never projected.

    In the IMPALA torso each convolution is followed by its normalization, also those that write onto the residual
    stream, so that every kernel is scale-invariant; the scales and offsets of the latter stay free.

    Args:
      actions: number of actions.
      atoms: numbers that describe the return of each action: logits of a categorical distribution, or quantiles; 0 for
        the action's value alone.
      quantile_samples: quantiles that an implicit quantile network is asked for; 0 for any other network.
      dueling: a stream for the state's value and one for the advantages (Wang et al., 2016), whose outputs are
        value + advantage - mean advantage.
      noisy: noisy layers in the place of dense ones (Fortunato et al., 2018), which draw from the random key given.
      shared_bias: one bias for all outputs of an output layer (van Hasselt et al., 2016); noisy ones have none.
      torso: see `Torso`.
      observation: channels of an observation (its frames, times the planes of one), height and width.
      hidden: units of each hidden dense layer.
      norm: "layer", "rms" or "none".
      norm_axes: see `nap.layers.Conv`.
      activation: the nonlinearity: a name or a function, see `nap.activations`.
      dtype: what is computed in; the parameters and the outputs are float32.
      rngs: NNX random streams.

    Raises:
      ValueError: `atoms` together with `quantile_samples`; an unknown `torso`, `norm`, `norm_axes` or `activation`; an
        observation too small for the torso.
    """

    def __init__(
        self,
        actions: int,
        *,
        atoms: int = 0,
        quantile_samples: int = 0,
        dueling: bool = False,
        noisy: bool = False,
        shared_bias: bool = False,
        torso: Torso = "nature",
        observation: tuple[int, int, int] = (4, 84, 84),
        hidden: int = 512,
        norm: Norm = "layer",
        norm_axes: NormAxes = "channels",
        activation: Activation | ActivationName = "relu",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("torso", torso, Torso)
        if atoms and quantile_samples:
            raise ValueError("a network has atoms or quantile_samples, not both")
        common: dict[str, Any] = {
            "norm": norm, "activation": activation, "kernel_init": uniform_fan_in, "rngs": rngs,
        }  # fmt: skip
        channels, height, width = observation
        if torso == "impala":
            self.torso, shape = _impala(channels, (height, width), norm_axes, common)
        else:
            self.torso, shape = _convolutions(_CONVOLUTIONS[torso], channels, (height, width), norm_axes, common)
        features = math.prod(shape)
        if features <= 0:
            raise ValueError(f"an observation of {height}x{width} is too small for the torso {torso!r}")
        if quantile_samples:
            self.quantile = Linear(COSINES, features // features_per_unit(activation), **common)
        of_output: dict[str, Any] = {"kernel_init": uniform_fan_in if norm == "none" else _small, "rngs": rngs}
        if not noisy:
            of_output["shared_bias"] = shared_bias
        linear, output = (NoisyLinear, NoisyOutput) if noisy else (Linear, Output)
        self.streams = {"value_": 1, "advantage_": actions} if dueling else {"": actions}
        for stream, size in self.streams.items():
            setattr(self, f"{stream}hidden", linear(features, hidden, before_output=True, **common))
            width_out = size * max(atoms, 1)
            setattr(self, f"{stream}output", output(features_per_unit(activation) * hidden, width_out, **of_output))
        if norm == "none":
            _draw_biases(self, rngs)
        self.actions, self.atoms, self.quantile_samples = actions, atoms, quantile_samples
        self.noisy, self.dtype = noisy, jnp.dtype(dtype)

    @property
    def draws(self) -> bool:
        """Whether the network uses a random key."""
        return self.noisy or self.quantile_samples > 0

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For each hidden layer, the layers that take its activations in; of residual blocks the inner layer alone."""
        heads = {f"{stream}hidden": (f"{stream}output",) for stream in self.streams}
        found: dict[str, tuple[str, ...]] = {}
        for i, layer in enumerate(self.torso):
            if isinstance(layer, _Section):
                found |= {f"torso/{i}/{inner}": (outer,) for inner, outer in layer.readers(f"torso/{i}").items()}
            else:
                found[f"torso/{i}"] = (f"torso/{i + 1}",) if i + 1 < len(self.torso) else tuple(heads)
        if self.quantile_samples:
            found["quantile"] = tuple(heads)
        return found | heads

    def __call__(
        self, frames: UInt8[Array, "batch stack *planes height width"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch actions *atoms"] | Quantiles:
        """Outputs for a batch of stacked grey frames, 0 to 255, the oldest first; each may have several planes.

        Args:
          frames: the observations.
          key: for noise and quantiles, other ones for each example. Without it there is no noise, and the quantiles are
            evenly spaced, (i + 1/2) / samples.

        Returns:
          Action values, [batch, actions]; with atoms, [batch, actions, atoms]; `Quantiles` with samples.
        """
        return self.with_activations(frames, key)[0]

    def with_activations(
        self, frames: UInt8[Array, "batch stack *planes height width"], key: Key[Array, ""] | None = None
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Outputs, and the activations of each hidden layer by its path."""
        quantile_key, *keys = [None] * 5 if key is None else jax.random.split(key, 5)
        batch = frames.shape[0]
        frames = frames.reshape(batch, -1, *frames.shape[-2:])  # planes are channels as frames are
        x = jnp.moveaxis(frames, 1, -1).astype(self.dtype) / 255  # channels last from here
        activations: dict[str, jax.Array] = {}
        for i, layer in enumerate(self.torso):
            if isinstance(layer, _Section):
                x = layer(x, f"torso/{i}", activations)
            else:
                x = activations[f"torso/{i}"] = layer(x)
        x = x.reshape(batch, -1)
        taus = None
        if self.quantile_samples:
            taus = _probabilities(quantile_key, batch, self.quantile_samples)
            multiples = last_axes(jnp.pi * jnp.arange(1, COSINES + 1), taus[..., None])
            cosines = jnp.cos(multiples * taus[..., None]).astype(self.dtype)
            activations["quantile"] = self.quantile(cosines)
            x = (x[:, None] * activations["quantile"]).reshape(batch * self.quantile_samples, -1)
        outputs = []
        for stream, size in self.streams.items():
            h = getattr(self, f"{stream}hidden")(x, *self._noise(keys))
            y = getattr(self, f"{stream}output")(h, *self._noise(keys))
            activations[f"{stream}hidden"] = h if taus is None else h.reshape(batch, self.quantile_samples, -1)
            outputs.append(y.astype(jnp.float32).reshape(-1, size, max(self.atoms, 1)))
        q = outputs[-1]
        if len(outputs) == 2:
            q = outputs[0] + q - jnp.mean(q, axis=1, keepdims=True)
        if taus is not None:
            values = q.reshape(batch, self.quantile_samples, self.actions)
            return Quantiles(jnp.moveaxis(values, 1, 2), taus), activations
        return (q if self.atoms else q[..., 0]), activations

    def _noise(self, keys: list[Any]) -> tuple[Any, ...]:
        """What a head's layer takes beside its input: a key of its own if it is noisy, and there is one."""
        return (keys.pop(),) if self.noisy else ()


class _Section(nnx.Module):
    """A section of the IMPALA torso: convolution, max-pool, residual blocks; the last ends in a nonlinearity."""

    def __init__(self, inputs: int, channels: int, norm_axes: NormAxes, common: dict[str, Any], *, last: bool):
        activation = common["activation"]
        inner: dict[str, Any] = {**common, "norm_axes": norm_axes, "padding": "SAME"}
        # These write onto the residual stream: no nonlinearity, and scaling their affine parameters is not harmless.
        writing: dict[str, Any] = {**inner, "activation": identity, "before_output": True}
        features = features_per_unit(activation) * channels
        self.conv = Conv(inputs, channels, 3, **writing)
        self.enter = nnx.List([_Activation(activation, channels) for _ in range(2 + last)])
        self.first = nnx.List([Conv(features, channels, 3, **inner) for _ in range(2)])
        self.second = nnx.List([Conv(features, channels, 3, **writing) for _ in range(2)])

    def readers(self, path: str) -> dict[str, str]:
        return {f"first/{i}": f"{path}/second/{i}" for i in range(2)}

    def __call__(
        self, x: Float[Array, "batch height width inputs"], path: str, activations: dict[str, jax.Array]
    ) -> Float[Array, "batch h w features"]:
        x = nnx.max_pool(self.conv(x), (3, 3), (2, 2), padding="SAME")
        for i in range(2):
            y = activations[f"{path}/first/{i}"] = self.first[i](self.enter[i](x))
            x = x + self.second[i](y)
        return self.enter[2](x) if len(self.enter) == 3 else x


class _Activation(nnx.Module):
    """A nonlinearity as a module, so that a list can hold it whether or not it has parameters."""

    def __init__(self, activation: Activation | ActivationName, units: int):
        self.function = make_activation(activation, units)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


def _convolutions(
    wanted: Sequence[tuple[int, int, int]],
    channels: int,
    size: tuple[int, int],
    norm_axes: NormAxes,
    common: dict[str, Any],
) -> tuple[Any, tuple[int, int, int]]:
    """The torso, and the height, width and channels of its activations."""
    k, layers, inputs, (height, width) = features_per_unit(common["activation"]), [], channels, size
    for units, kernel, stride in wanted:
        layers.append(Conv(inputs, units, kernel, stride, norm_axes=norm_axes, **common))
        inputs = k * units
        height, width = ((n - kernel) // stride + 1 for n in (height, width))
        if min(height, width) < 1:
            return nnx.List(layers), (0, 0, 0)
    return nnx.List(layers), (height, width, inputs)


def _impala(
    channels: int, size: tuple[int, int], norm_axes: NormAxes, common: dict[str, Any]
) -> tuple[Any, tuple[int, int, int]]:
    """The torso, and the height, width and channels of its activations."""
    sections, inputs, (height, width) = [], channels, size
    for i, units in enumerate((16, 32, 32)):
        sections.append(_Section(inputs, units, norm_axes, common, last=i == 2))
        inputs = units
        height, width = -(-height // 2), -(-width // 2)
    return nnx.List(sections), (height, width, features_per_unit(common["activation"]) * inputs)


def _probabilities(key: jax.Array | None, batch: int, samples: int) -> Float[Array, "batch samples"]:
    if key is None:
        return jnp.broadcast_to((jnp.arange(samples) + 0.5) / samples, (batch, samples))
    return jax.random.uniform(key, (batch, samples))


def _draw_biases(network: nnx.Module, rngs: nnx.Rngs) -> None:
    """Has every bias start as the weights beside it do, instead of at 0."""
    layers: list[Any] = [module for _, module in nnx.iter_modules(network)]
    for layer in layers:
        if (bias := getattr(layer, "bias", None)) is not None:
            bound = 1 / math.sqrt(math.prod(layer.kernel.shape[:-1]))
            bias[...] = jax.random.uniform(rngs.params(), bias.shape, minval=-bound, maxval=bound)


def _small(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    return 0.01 * uniform_fan_in(key, shape)
