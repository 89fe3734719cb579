"""How a network is made, as data: what a file can hold of it, where a constructor's closure could not be written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from nap.networks.atari import QNetwork
from nap.networks.cnn import CNN
from nap.networks.functions import Network, StatefulNetwork, as_functions, as_stateful_functions
from nap.networks.mlp import MLP
from nap.networks.resnet import ResNet
from nap.networks.transformer import Transformer

_CLASSES: dict[str, Callable[..., nnx.Module]] = {
    each.__name__: each for each in (CNN, MLP, QNetwork, ResNet, Transformer)
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A network of this package by name.

        recipe = Recipe("QNetwork", {"actions": 6, "norm": "layer"})
        network = recipe.functions()
        params = jax.jit(network.init)(jax.random.key(0))

    Args:
      network: the class: "CNN", "MLP", "QNetwork", "ResNet" or "Transformer".
      arguments: those of its constructor by name, as JSON has them: texts, numbers, tuples, a dtype or an activation by
        its name. Not `rngs`.
      injected: the head of a second head in reserve, as patterns of paths; see `nap.interventions.with_injection`.

    Raises:
      ValueError: there is no such class.
    """

    network: str
    arguments: Mapping[str, Any]
    injected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses an unknown class."""
        if self.network not in _CLASSES:
            raise ValueError(f"{self.network!r} is no network; there are {', '.join(_CLASSES)}")

    def make(self, rngs: nnx.Rngs, **others: Any) -> Any:
        """The module; `others` are arguments that no file holds, such as functions."""
        return _CLASSES[self.network](**self.arguments, **others, rngs=rngs)

    def functions(self) -> Network:
        """Its functions. Raises ValueError where it holds more than parameters, as with BatchNorm."""
        network = as_functions(self.make)
        if not self.injected:
            return network
        from nap.interventions import with_injection  # here: interventions are about networks, and import them

        return with_injection(network, self.injected)

    def stateful_functions(self, **others: Any) -> StatefulNetwork:
        """Its functions, with the state that it has beside its parameters; `others` as for `make`."""
        return as_stateful_functions(lambda rngs: self.make(rngs, **others))
