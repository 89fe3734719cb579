"""The plasticity probe: what a network can still learn, against a fresh one of its kind."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

from nap.networks import Network
from nap.paths import PyTree

Targets = Literal["labels", "regression"]
"""What the probe trains on: random labels with cross-entropy, or random normal outputs with squared error."""


class Probe(NamedTuple):
    """What came of the probe, float32 scalars.

    Attributes:
      loss: mean loss over the inputs after training a copy of the network.
      fresh_loss: the same for a newly initialized network.
      gap: loss - fresh_loss, the loss of plasticity: above 0 where the network learns less than a fresh one would.
    """

    loss: Float[Array, ""]
    fresh_loss: Float[Array, ""]
    gap: Float[Array, ""]


def plasticity_probe(
    network: Network,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    inputs: Shaped[Array, "n ..."],
    steps: int,
    batch_size: int,
    targets: Targets = "labels",
) -> Probe:
    """Train a copy of a network on a new random task and compare with a fresh network after the same training.

    The loss of plasticity as a difference of what an optimizer reaches within a budget (arXiv 2411.04832, definition
    2.1). Every input gets a random target: a label among the network's outputs, with cross-entropy, or a standard
    normal vector, with squared error averaged over the outputs. Both networks see the same targets in the same batches,
    drawn with replacement. One probe is one draw of task and fresh network: average over several keys. With regression
    targets a network whose outputs lie far from 0 has to unlearn them first, and that counts.

    Both trainings are a `lax.scan`, in which XLA's CPU backend computes convolutions many times slower than outside
    one. Works under `vmap` over `params`, `key`, or both; call it under `jit`.

    Args:
      network: the functions.
      params: the network's parameters; left as they are.
      optimizer: initialized anew for both networks; it gets gradients and parameters, nothing else. A projection in it
        holds the copy at the norms it has now.
      key: draws targets, batches and the fresh network: `network.init(jax.random.split(key, 3)[0])`.
      inputs: the examples, as the network takes them; the final loss is computed on all of them at once.
      steps: updates.
      batch_size: examples in an update.
      targets: "labels" or "regression".

    Raises:
      ValueError: other targets, `steps` or `batch_size` below 1, or labels for a network of fewer than 2 outputs.
    """
    if targets not in get_args(Targets):
        raise ValueError(f"targets must be one of {', '.join(map(repr, get_args(Targets)))}, got {targets!r}")
    for name, count in (("steps", steps), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    init_key, target_key, batch_key = jax.random.split(key, 3)
    shape = jax.eval_shape(network.apply, params, inputs).shape
    if targets == "labels" and shape[-1] < 2:
        raise ValueError("labels need a network of at least 2 outputs; this one has 1: use targets='regression'")
    if targets == "labels":
        wanted = jax.random.randint(target_key, shape[:-1], 0, shape[-1])
    else:
        wanted = jax.random.normal(target_key, shape)

    def loss_of(params: PyTree, x: Array, y: Array) -> Array:
        outputs = network.apply(params, x).astype(jnp.float32)
        if targets == "labels":
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))
        return jnp.mean(jnp.square(outputs - y))

    def final_loss(params: PyTree) -> Array:
        def update(carry: tuple[PyTree, PyTree], step_key: jax.Array) -> tuple[tuple[PyTree, PyTree], None]:
            params, state = carry
            batch = jax.random.randint(step_key, (batch_size,), 0, inputs.shape[0])
            gradients = jax.grad(loss_of)(params, inputs[batch], wanted[batch])
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(batch_key, steps))
        return loss_of(params, inputs, wanted)

    # One after the other by the same compiled code, so that equal networks get equal losses.
    both = jax.tree.map(lambda *pair: jnp.stack(pair), params, network.init(init_key))
    loss, fresh_loss = jax.lax.map(final_loss, both)
    return Probe(loss, fresh_loss, loss - fresh_loss)
