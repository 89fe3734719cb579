"""Supervised learning as pure functions of a state: what the studies of plasticity repeat over tasks and seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

import nap
from nap import diagnostics
from nap.networks import Network
from nap.paths import PyTree

Loss = Literal["cross-entropy", "squared-error"]


class LearnerState(NamedTuple):
    """All that learning changes.

    Attributes:
      params: the network's parameters.
      opt_state: the optimizer's state, the projection's radii included.
      initial: the parameters at the start, for the distance to them.
    """

    params: PyTree
    opt_state: optax.OptState
    initial: PyTree


class Score(NamedTuple):
    """How well some examples are predicted, on average. `accuracy` is NaN in a regression."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


class Learner(NamedTuple):
    """A learner's functions; none is jitted yet.

    Attributes:
      init: `init(key)`, a fresh state.
      update: `update(state, x, y)`, the state after one update, and the score of the batch before it.
      measure: `measure(state, x, y)`, the same update with what is logged of it: a flat dictionary of scalars.
      score: `score(params, x, y, weight)`, of any examples; those of weight 0 do not count.
      inspect: `inspect(params, x)`, what is logged of the features of some examples: a flat dictionary of scalars.
    """

    init: Callable[[jax.Array], LearnerState]
    update: Callable[[LearnerState, Array, Array], tuple[LearnerState, Score]]
    measure: Callable[[LearnerState, Array, Array], tuple[LearnerState, Score, dict[str, Array]]]
    score: Callable[[PyTree, Array, Array, Array], Score]
    inspect: Callable[[PyTree, Array], dict[str, Array]]


def make_learner(
    network: Network,
    make_optimizer: Callable[[jax.Array], optax.GradientTransformation],
    loss: Loss,
    *,
    features_per_unit: int = 1,
) -> Learner:
    """A learner.

    Args:
      network: maps a batch of inputs to outputs.
      make_optimizer: the complete optimizer from a random key, which only its `init` uses.
      loss: of the outputs: cross-entropy of class labels, or half the squared error of values.
      features_per_unit: of the hidden layers: 2 for CReLU and Fourier features.
    """
    optimizer = optax.with_extra_args_support(make_optimizer(jax.random.key(0)))

    def init(key: jax.Array) -> LearnerState:
        network_key, optimizer_key = jax.random.split(key)
        params = network.init(network_key)
        return LearnerState(params, make_optimizer(optimizer_key).init(params), jax.tree.map(jnp.copy, params))

    def of_examples(outputs: Array, y: Array) -> tuple[Array, Array]:
        """The loss and the correctness of each example."""
        if loss == "squared-error":
            errors = 0.5 * jnp.sum(jnp.square(outputs - y), axis=-1)
            return errors, jnp.full_like(errors, jnp.nan)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
        return losses, (jnp.argmax(outputs, axis=-1) == y).astype(jnp.float32)

    def loss_of(params: PyTree, x: Array, y: Array) -> tuple[Array, tuple[Score, dict[str, Array]]]:
        outputs, activations = network.activations(params, x)
        losses, correct = of_examples(outputs, y)
        mean = jnp.mean(losses)
        return mean, (Score(mean, jnp.mean(correct)), activations)

    def step(state: LearnerState, x: Array, y: Array) -> tuple[LearnerState, Score, PyTree, PyTree]:
        gradients, (score, activations) = jax.grad(loss_of, has_aux=True)(state.params, x, y)
        steps, opt_state = optimizer.update(gradients, state.opt_state, state.params, activations=activations)
        params = optax.apply_updates(state.params, steps)
        return LearnerState(params, opt_state, state.initial), score, gradients, steps

    def update(state: LearnerState, x: Array, y: Array) -> tuple[LearnerState, Score]:
        return step(state, x, y)[:2]

    def measure(state: LearnerState, x: Array, y: Array) -> tuple[LearnerState, Score, dict[str, Array]]:
        new, score, gradients, steps = step(state, x, y)
        measured = {}
        gradient_norms = diagnostics.leaf_norms(gradients)
        distances = diagnostics.distance_to_init(new.params, state.initial)
        for path, rate in nap.effective_learning_rates(steps, state.params).items():
            layer = path.removesuffix("/kernel")
            measured[f"weight_norm/{layer}"] = rate.weight_norm
            measured[f"gradient_norm/{layer}"] = gradient_norms[path].l2
            measured[f"update_norm/{layer}"] = rate.update_norm
            measured[f"elr/{layer}"] = rate.ratio
            measured[f"angle/{layer}"] = rate.angle
            measured[f"distance_to_init/{layer}"] = distances[path]
        return new, score, measured

    def score(params: PyTree, x: Array, y: Array, weight: Float[Array, " n"]) -> Score:
        losses, correct = of_examples(network.apply(params, x), y)
        total = jnp.maximum(jnp.sum(weight), 1e-9)
        return Score(jnp.sum(weight * losses) / total, jnp.sum(weight * correct) / total)

    def inspect(params: PyTree, x: Array) -> dict[str, Array]:
        _, activations = network.activations(params, x)
        inspected = {}
        for layer, features in activations.items():
            each = {"features_per_unit": features_per_unit}
            for tau, fraction in diagnostics.dormant_fraction(features, **each).items():
                inspected[f"dormant_fraction_{tau:g}/{layer}"] = fraction
            inspected[f"dead_fraction/{layer}"] = diagnostics.dead_fraction(features, **each)
            inspected[f"linearized_fraction/{layer}"] = diagnostics.linearized_unit_fraction(features, **each)
        last = list(activations.values())[-1].reshape(x.shape[0], -1)
        inspected["feature_norm"] = diagnostics.feature_norm(last)
        return inspected | diagnostics.ranks(last)

    return Learner(init, update, measure, score, inspect)
