"""Audit a network of this repository: which parameters are scale-invariant, which are projected, what is wrong.

For a network of your own, call `nap.audit(apply_fn, params, inputs)`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from experiments import harness
from nap.layers import Norm, NormAxes
from nap.projection import Affine


@dataclasses.dataclass(frozen=True)
class Options:
    """The network, and what would be done to it."""

    network: Literal["nature", "mlp"] = "nature"
    """nature: the convolutional network for Atari; mlp: two hidden layers."""
    norm: Norm = "layer"
    """Normalization before every nonlinearity."""
    norm_axes: NormAxes = "channels"
    """What a convolution's normalization averages over."""
    affine: Affine = "project"
    """What NaP does with scale and offset."""


def main(argv: list[str]) -> int:
    """Print the audit; the exit code is 0 whatever it says."""
    return harness.exit_code_of(lambda: _main(argv))


def _main(argv: list[str]) -> None:
    import tyro

    options = tyro.cli(Options, args=argv, prog="python -m experiments audit", description=__doc__)
    import jax
    import jax.numpy as jnp

    import nap
    from nap.networks import MLP, NatureCNN, as_functions

    harness.enable_compilation_cache()
    key = jax.random.key(0)
    if options.network == "nature":
        network = as_functions(lambda rngs: NatureCNN(6, norm=options.norm, norm_axes=options.norm_axes, rngs=rngs))
        inputs = jax.random.randint(key, (8, 4, 84, 84), 0, 256).astype(jnp.uint8)
    else:
        network = as_functions(lambda rngs: MLP(16, [64, 64], 4, norm=options.norm, rngs=rngs))
        inputs = jax.random.normal(key, (64, 16))
    params = jax.jit(network.init)(key)
    print(nap.audit(network.apply, params, inputs, affine=options.affine))
