"""Audit a network of this repository: which parameters are scale-invariant, which are projected, what is wrong.

For a network of your own, call `nap.audit(apply_fn, params, inputs)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import nap
from experiments import harness
from experiments.harness.bounds import read_if
from nap.layers import ConvNorm, NormAxes
from nap.networks import MLP, QNetwork, ResNet, Transformer, as_functions, as_stateful_functions
from nap.projection import Affine


@dataclasses.dataclass(frozen=True)
class Options:
    """The network, and what would be done to it."""

    network: Literal["nature", "impala", "rainbow", "mlp", "resnet", "transformer"] = "nature"
    """nature: DQN's convolutional network; impala: with IMPALA's residual torso; rainbow: dueling streams of noisy
    layers, with the noise on; mlp: two hidden layers; resnet: two residual blocks, in training; transformer: two blocks
    with GELU, QK-norm and rotary positions."""
    norm: ConvNorm | None = None
    """Normalization before every nonlinearity; group and batch are for the resnet alone. If not given, the network's
    usual one: batch for the resnet, rms for the transformer, else layer."""
    norm_axes: Annotated[
        NormAxes,
        read_if(lambda options: options.network not in ("mlp", "transformer"), "networks with convolutions"),
    ] = "channels"
    """What a convolution's normalization averages over."""
    affine: Affine | None = None
    """What NaP does with scale and offset. If not given, what suits the activation: regularize for the transformer's,
    which is curved, else project."""


class _Audited(NamedTuple):
    """A network at its initial parameters, and representative inputs."""

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]


def main(argv: list[str]) -> int:
    """Print the audit; the exit code is 0 whatever it says."""
    return harness.exit_code_of(lambda: _main(argv))


def _main(argv: list[str]) -> None:
    options = harness.parse_options(Options, argv, name="audit", description=__doc__)
    harness.enable_compilation_cache()
    usual: dict[str, tuple[ConvNorm, Affine]] = {"resnet": ("batch", "project"), "transformer": ("rms", "regularize")}
    norm, affine = usual.get(options.network, ("layer", "project"))
    try:
        made = _NETWORKS[options.network](options.norm or norm, options.norm_axes)
    except ValueError as error:
        raise harness.UserError(f"--network {options.network}: {error}") from None
    print(nap.audit(made.apply, made.params, *made.inputs, affine=options.affine or affine))


def _q_network(norm: Any, norm_axes: NormAxes, **special: Any) -> _Audited:
    key = jax.random.key(0)
    network = as_functions(lambda rngs: QNetwork(6, norm=norm, norm_axes=norm_axes, **special, rngs=rngs))
    frames = jax.random.randint(key, (8, 4, 84, 84), 0, 256).astype(jnp.uint8)
    return _Audited(network.apply, jax.jit(network.init)(key), (frames, key) if network.draws else (frames,))


def _mlp(norm: Any, norm_axes: NormAxes) -> _Audited:
    key = jax.random.key(0)
    network = as_functions(lambda rngs: MLP(16, [64, 64], 4, norm=norm, rngs=rngs))
    return _Audited(network.apply, jax.jit(network.init)(key), (jax.random.normal(key, (64, 16)),))


def _resnet(norm: Any, norm_axes: NormAxes) -> _Audited:
    key = jax.random.key(0)
    network = as_stateful_functions(
        lambda rngs: ResNet(10, blocks=(1, 1), width=16, norm=norm, norm_axes=norm_axes, rngs=rngs)
    )
    params, rest = jax.jit(network.init)(key)
    images = jax.random.normal(key, (16, 16, 16, 3))
    return _Audited(lambda params, x: network.train(params, rest, x)[0], params, (images,))


def _transformer(norm: Any, norm_axes: NormAxes) -> _Audited:
    key = jax.random.key(0)
    network = as_functions(lambda rngs: Transformer(64, layers=2, width=64, norm=norm, rngs=rngs))
    return _Audited(network.apply, jax.jit(network.init)(key), (jax.random.randint(key, (8, 32), 0, 64),))


_NETWORKS: Mapping[str, Callable[..., _Audited]] = MappingProxyType(
    {
        "nature": _q_network,
        "impala": lambda norm, norm_axes: _q_network(norm, norm_axes, torso="impala"),
        "rainbow": lambda norm, norm_axes: _q_network(norm, norm_axes, atoms=51, dueling=True, noisy=True),
        "mlp": _mlp,
        "resnet": _resnet,
        "transformer": _transformer,
    }
)
