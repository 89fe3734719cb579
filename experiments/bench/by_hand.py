"""The learning of `plasticity` by hand, in plain JAX: the yardstick of the harness.

One task of random labels: an MLP of two hidden layers with LayerNorm, softmax cross-entropy, Adam and projection, on
images that stay uint8. Nothing is recorded but the loss. Weights are a dictionary by the paths of `nap.networks.MLP`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Weights = dict[str, jax.Array]

HIDDEN = ("hidden/0", "hidden/1")
PROJECTED = (("hidden/0/kernel",), ("hidden/1/kernel",), ("hidden/0/norm/scale", "hidden/0/norm/offset"))
"""What is projected; what stands together is one vector. Only the output reads hidden/1: its scale stays free."""
CLASSES = 10
RATE, B1, B2, ADAM_EPSILON = 1e-3, 0.9, 0.999, 1e-8
NORM_EPSILON = 1e-6


class State(NamedTuple):
    """All that learning changes, and the radii.

    Attributes:
      weights: by path.
      first: Adam's mean of the gradients.
      second: Adam's mean of their squares.
      updates: how many there were.
      radii: the norms to project to, in the order of `PROJECTED`.
    """

    weights: Weights
    first: Weights
    second: Weights
    updates: jax.Array
    radii: tuple[jax.Array, ...]


def start(weights: Weights) -> State:
    """The state before the first update."""
    zeros = jax.tree.map(jnp.zeros_like, weights)
    radii = tuple(_norm([weights[path] for path in group]) for group in PROJECTED)
    return State(weights, zeros, zeros, jnp.zeros([], jnp.int32), radii)


def update(state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
    """The state after one update, and the loss before it. x is float32 [batch, pixels], y int32 [batch]."""
    loss, gradients = jax.value_and_grad(_loss)(state.weights, x, y)
    updates = state.updates + 1
    first = jax.tree.map(lambda mean, g: B1 * mean + (1 - B1) * g, state.first, gradients)
    second = jax.tree.map(lambda mean, g: B2 * mean + (1 - B2) * g * g, state.second, gradients)
    bias1, bias2 = 1 - B1**updates, 1 - B2**updates

    def stepped(weight: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
        return weight - RATE * (mean / bias1) / (jnp.sqrt(square / bias2) + ADAM_EPSILON)

    weights = jax.tree.map(stepped, state.weights, first, second)
    for group, radius in zip(PROJECTED, state.radii, strict=True):
        factor = radius / _norm([weights[path] for path in group])
        weights |= {path: weights[path] * factor for path in group}
    return State(weights, first, second, updates, state.radii), loss


def learn_task(
    images: jax.Array, state: State, key: jax.Array, *, batch_size: int, epochs: int
) -> tuple[State, jax.Array]:
    """A task of one seed: the state after it, and the mean loss. images is uint8 [examples, pixels]."""
    examples = len(images)
    steps = examples // batch_size
    label_key, order_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (examples,), 0, CLASSES)

    def step(state: State, rows: jax.Array) -> tuple[State, jax.Array]:
        return update(state, images[rows].astype(jnp.float32) / 255, labels[rows])

    def epoch(state: State, key: jax.Array) -> tuple[State, jax.Array]:
        order = jax.random.permutation(key, examples)[: steps * batch_size].reshape(steps, batch_size)
        state, losses = jax.lax.scan(step, state, order)
        return state, jnp.mean(losses)

    state, losses = jax.lax.scan(epoch, state, jax.random.split(order_key, epochs))
    return state, jnp.mean(losses)


def formulations(
    images: np.ndarray, states: State, *, batch_size: int, epochs: int, devices: Sequence[jax.Device]
) -> dict[str, Callable[[], jax.Array]]:
    """The ways to have many seeds learn: each a function that learns one more task and returns the seeds' mean losses.

    Args:
      images: uint8 [examples, pixels], shared by the seeds.
      states: of all seeds, on a leading axis.
      batch_size: examples in an update.
      epochs: of a task.
      devices: what the last two divide the seeds among; the others use the first. Where they do not divide the number
        of seeds, the first seed is learnt several times.
    """
    one = functools.partial(learn_task, batch_size=batch_size, epochs=epochs)

    def mapped(images: jax.Array, states: State, keys: jax.Array) -> tuple[State, jax.Array]:
        return jax.lax.map(lambda own: one(images, *own), (states, keys))

    ways: dict[str, Callable[..., Any]] = {"vmap": jax.vmap(one, in_axes=(None, 0, 0)), "lax.map": mapped}
    on_first = {name: _runner(way, images, states, devices[:1]) for name, way in ways.items()}
    divided = {f"{name}, divided": _runner(way, images, states, devices) for name, way in ways.items()}
    return {**on_first, **divided}


def _runner(
    way: Callable[..., Any], images: np.ndarray, states: State, devices: Sequence[jax.Device]
) -> Callable[[], jax.Array]:
    mesh = Mesh(np.asarray(devices), ("seeds",))
    own, whole = PartitionSpec("seeds"), PartitionSpec()
    compiled = jax.jit(
        jax.shard_map(way, mesh=mesh, in_specs=(whole, own, own), out_specs=own, check_vma=False), donate_argnums=1
    )
    seeds = len(states.updates)
    rows = np.pad(np.arange(seeds), (0, -seeds % len(devices)))
    data = jax.device_put(images, NamedSharding(mesh, whole))
    running = jax.device_put(jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], states), NamedSharding(mesh, own))
    key = jax.random.key(0)

    def learn() -> jax.Array:
        nonlocal running, key
        key, task_key = jax.random.split(key)
        keys = jax.device_put(jax.random.split(task_key, len(rows)), NamedSharding(mesh, own))
        running, losses = compiled(data, running, keys)
        return losses[:seeds]

    return learn


def _loss(weights: Weights, x: jax.Array, y: jax.Array) -> jax.Array:
    for layer in HIDDEN:
        x = x @ weights[f"{layer}/kernel"]
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
        x = jax.nn.relu(x * weights[f"{layer}/norm/scale"] + weights[f"{layer}/norm/offset"])
    logits = x @ weights["output/kernel"] + weights["output/bias"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def _norm(tensors: Sequence[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(tensor)) for tensor in tensors))
