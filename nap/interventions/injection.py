"""Plasticity injection: a fresh head that learns on beside the frozen old one (Nikishin et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from nap import paths
from nap.interventions.rarely import rarely
from nap.interventions.regularizers import needed
from nap.interventions.resets import matching
from nap.interventions.units import reset_entries
from nap.networks.functions import Network
from nap.paths import PyTree


class InjectionState(NamedTuple):
    """State of `plasticity_injection`.

    Attributes:
      count: updates so far.
      inner: the wrapped optimizer's state.
    """

    count: Int[Array, ""]
    inner: optax.OptState


def with_injection(network: Network, head: Sequence[str]) -> Network:
    """The network with a second head in reserve, for `plasticity_injection`.

    With the network f and its parameters p, the outputs are f(p) + (f(p with the second head) - f(p with the second
    head's start)). The start does not learn, so as long as the second head has not learned either, the outputs are
    f(p), and injecting it changes nothing at first. The parameters are {"first": p, "second": the second head,
    "start": a copy of it}, heads as dictionaries from the leaves' paths in p to the leaves; each costs a pass through
    the network (of the shared layers' equal passes a compiler keeps one). The activations are those of f(p); names in
    `readers` are still those of the network.

    Args:
      network: the network.
      head: patterns of the head's parameter paths: ["hidden/1/*", "output/*"].

    Raises:
      ValueError: at `init`, a pattern that matches no parameter.
    """

    def init(key: jax.Array) -> PyTree:
        first_key, second_key = jax.random.split(key)
        first, other = network.init(first_key), network.init(second_key)
        names = matching(first, head)
        second = {path: node for path, node in _nodes(other).items() if path in names}
        return {"first": first, "second": second, "start": jax.tree.map(jnp.copy, second)}

    def added(params: PyTree, x: Shaped[Array, "batch ..."], *key: jax.Array) -> Float[Array, "batch *outputs"]:
        """What the second head has learned since its start."""
        start = jax.lax.stop_gradient(params["start"])
        second, start = (paths.replace(params["first"], paths.leaves(part)) for part in (params["second"], start))
        return network.apply(second, x, *key) - network.apply(start, x, *key)

    def apply(params: PyTree, x: Shaped[Array, "batch ..."], *key: jax.Array) -> Float[Array, "batch *outputs"]:
        return network.apply(params["first"], x, *key) + added(params, x, *key)

    def activations(
        params: PyTree, x: Shaped[Array, "batch ..."], *key: jax.Array
    ) -> tuple[Float[Array, "batch *outputs"], dict[str, jax.Array]]:
        outputs, hidden = network.activations(params["first"], x, *key)
        return outputs + added(params, x, *key), hidden

    return network._replace(init=init, apply=apply, activations=activations)


def plasticity_injection(optimizer: optax.GradientTransformation, *, at: int) -> optax.GradientTransformationExtraArgs:
    """Train a `with_injection` network: the first head for `at` updates, then the second one.

    Until then all of "first" learns. From then on the second head and the layers that the heads share learn, and the
    first head is frozen. What is frozen has zero gradients in the optimizer, for clipping and moments alike, and zero
    updates behind it. At the injection the optimizer's state for the second head starts anew; wrap
    `interventions.adam` so that this goes for step counts too. The shared layers get gradients through all three heads,
    the frozen ones too, as in timoklein/plasticity-injection-torch; Plasticine stops them at the third.

    Args:
      optimizer: the optimizer to wrap.
      at: updates before the injection.

    Raises:
      ValueError: `at` < 0; at the update, parameters that are not those of a `with_injection` network.
    """
    if at < 0:
        raise ValueError(f"at is a number of updates, at least 0, got {at}")
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: PyTree) -> InjectionState:
        return InjectionState(jnp.zeros([], jnp.int32), inner.init(params))

    def forget_second(operand: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, state = operand
        masks = paths.map_leaves(lambda path, _: jnp.asarray(path.startswith("second/")), params)
        return params, reset_entries(inner, state, params, masks)

    def update_fn(updates, state, params=None, **extra):
        params = needed(params, "plasticity_injection")
        if not isinstance(params, dict) or params.keys() != {"first", "second", "start"}:
            raise ValueError(
                "plasticity_injection needs the parameters of a network made by with_injection(network, head)"
            )
        head = paths.leaves(params["second"])
        injected = state.count >= at

        def learns(path: str) -> Array | bool:
            part, _, rest = path.partition("/")
            if part == "first" and rest not in head:
                return True
            return part != "start" and injected == (part == "second")

        def only_learning(tree: PyTree) -> PyTree:
            return paths.map_leaves(lambda path, leaf: jnp.where(learns(path), leaf, jnp.zeros_like(leaf)), tree)

        _, inner_state = rarely(state.count == at, forget_second, (params, state.inner))
        steps, inner_state = inner.update(only_learning(updates), inner_state, params, **extra)
        return only_learning(steps), InjectionState(jnp.asarray(optax.safe_increment(state.count)), inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _nodes(params: PyTree) -> dict[str, Any]:
    """The leaves by path, NNX variables as a whole: with them go the roles that they declare."""
    nodes = jax.tree.leaves(params, is_leaf=lambda node: hasattr(node, "get_metadata"))
    return dict(zip(paths.leaves(params), nodes, strict=True))
