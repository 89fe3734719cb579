"""Audit a network of this repository: which parameters are scale-invariant, which are projected, what is wrong.

For a network of your own, call `nap.audit(apply_fn, params, inputs)`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from experiments import harness
from nap.layers import Norm, NormAxes
from nap.projection import Affine


@dataclasses.dataclass(frozen=True)
class Options:
    """The network, and what would be done to it."""

    network: Literal["nature", "impala", "rainbow", "mlp"] = "nature"
    """nature: DQN's convolutional network; impala: with IMPALA's residual torso; rainbow: dueling streams of noisy
    layers, with the noise on; mlp: two hidden layers."""
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
    options = harness.parse_options(Options, argv, name="audit", description=__doc__)
    import jax
    import jax.numpy as jnp

    import nap
    from nap.networks import MLP, QNetwork, as_functions

    harness.enable_compilation_cache()
    key = jax.random.key(0)
    if options.network == "mlp":
        network = as_functions(lambda rngs: MLP(16, [64, 64], 4, norm=options.norm, rngs=rngs))
        inputs = (jax.random.normal(key, (64, 16)),)
    else:
        special: dict[str, Any] = {
            "impala": {"torso": "impala"}, "rainbow": {"atoms": 51, "dueling": True, "noisy": True},
        }.get(options.network, {})  # fmt: skip
        special |= {"norm": options.norm, "norm_axes": options.norm_axes}
        network = as_functions(lambda rngs: QNetwork(6, **special, rngs=rngs))
        inputs = (jax.random.randint(key, (8, 4, 84, 84), 0, 256).astype(jnp.uint8),)
    if network.draws:
        inputs += (key,)
    params = jax.jit(network.init)(key)
    print(nap.audit(network.apply, params, *inputs, affine=options.affine))
