"""Regressions that need no data set: slowly changing inputs, and targets whose mean grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, Key

from envs.streams.stream import Protocol, Published, PyTree, Stream

Batch = tuple[Float32[Array, "batch inputs"], Float32[Array, "batch 1"]]


class Target(NamedTuple):
    """A network of one layer of linear threshold units; every weight and bias is -1 or 1."""

    weights: Float32[Array, "inputs features"]
    biases: Float32[Array, " features"]
    thresholds: Float32[Array, " features"]
    output_weights: Float32[Array, " features"]
    output_bias: Float32[Array, ""]


class SlowTask(NamedTuple):
    """The slow bits as they are in this task, and the target network of the seed."""

    bits: Float32[Array, " slow_bits"]
    target: Target


class OffsetTask(NamedTuple):
    """The seed's inputs and the task's targets."""

    x: Float32[Array, "examples inputs"]
    y: Float32[Array, "examples 1"]


def slowly_changing_regression(protocol: Protocol) -> Stream:
    """Fit a fixed random network online, while some of its binary inputs change only from task to task.

    After Dohare et al. (arXiv 2108.06325; github shibhansh/loss-of-plasticity, slowly_changing_regression.py and
    fix_ltu_net.py). The first `slow_bits` of `inputs` bits are the same for all examples of a task; the rest are fair
    coins, drawn for each example. From one task to the next one slow bit flips, as the paper has it; with
    change="resample" all of them are drawn anew, as the published code has it unless its option flip_one is set.

    Raises:
      ValueError: more slow bits than inputs, or none.
    """
    inputs, slow = protocol.inputs, protocol.slow_bits
    if not 1 <= slow <= inputs:
        raise ValueError(
            f"slowly-changing-regression: slow_bits is {slow}, must be 1 to inputs = {inputs}; "
            f"nearest: {min(max(slow, 1), inputs)}"
        )

    def begin(data: PyTree, key: Key[Array, ""], index: Int[Array, ""] | int) -> SlowTask:
        start_key, change_key, target_key = jax.random.split(key, 3)
        if protocol.change == "resample":
            bits = jax.random.bernoulli(jax.random.fold_in(change_key, index), shape=(slow,))
        else:
            start = jax.random.bernoulli(start_key, shape=(slow,))
            # The bits of task t are the first ones, turned by the parity of the flips at tasks 1 to t.
            tasks = jnp.arange(protocol.tasks)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(change_key, tasks)
            flipped = jax.vmap(lambda own: jax.random.randint(own, (), 0, slow))(keys)
            done = (tasks >= 1) & (tasks <= index)
            flips = jnp.sum(jax.nn.one_hot(flipped, slow, dtype=jnp.int32) * done[:, None], axis=0)
            bits = start ^ (flips % 2 == 1)
        target = make_target(target_key, inputs, protocol.features, protocol.beta)
        return SlowTask(bits.astype(jnp.float32), target)

    def order(data: PyTree, task: SlowTask, key: Key[Array, ""]) -> Float32[Array, "steps batch fast"]:
        shape = (protocol.steps_per_epoch, protocol.batch_size, inputs - slow)
        return jax.random.bernoulli(key, shape=shape).astype(jnp.float32)

    def batch(data: PyTree, task: SlowTask, item: Float32[Array, "batch fast"]) -> Batch:
        x = jnp.concatenate([jnp.broadcast_to(task.bits, (item.shape[0], slow)), item], axis=1)
        return x, target_outputs(task.target, x)

    return _regression("slowly-changing-regression", protocol, begin, order, batch)


def make_target(key: Key[Array, ""], inputs: int, features: int, beta: float) -> Target:
    """A target network: unit i fires above beta (inputs + 1) - S_i, where S_i = (inputs - sum_j w_ij + b_i) / 2.

    But for the bias, S_i is the number of a unit's negative weights, so that each unit fires when about the share
    beta of its weights agree with the input. The sign of b_i in S_i is that of the published code.
    """
    weight_key, bias_key, output_key, output_bias_key = jax.random.split(key, 4)
    weights = jax.random.rademacher(weight_key, (inputs, features), jnp.float32)
    biases = jax.random.rademacher(bias_key, (features,), jnp.float32)
    negative = (inputs - jnp.sum(weights, axis=0) + biases) / 2
    return Target(
        weights,
        biases,
        beta * (inputs + 1) - negative,
        jax.random.rademacher(output_key, (features,), jnp.float32),
        jax.random.rademacher(output_bias_key, (), jnp.float32),
    )


def target_outputs(target: Target, x: Float32[Array, "batch inputs"]) -> Float32[Array, "batch 1"]:
    """The target network's outputs: the sum of the output weights of the units that fire, and the bias."""
    # Whole numbers, which a matrix unit of low precision would still have to add exactly.
    sums = jnp.matmul(x, target.weights, precision=jax.lax.Precision.HIGHEST) + target.biases
    fires = (sums > target.thresholds).astype(jnp.float32)
    outputs = jnp.matmul(fires, target.output_weights, precision=jax.lax.Precision.HIGHEST) + target.output_bias
    return outputs[:, None]


def growing_offset(protocol: Protocol) -> Stream:
    """Memorize sinusoids of random projections, new in every task, on top of an offset that grows.

        y = (s - mean s) / std s + growth * index,   s = sin(frequency * w . x / sqrt(inputs) + phase)

    x and w are standard normal, the phase is uniform; a seed draws its `examples` inputs x once, each task draws w and
    the phase. Mean and deviation are over these examples, so that the targets have unit variance and the mean
    growth * index exactly. After the large-mean regressions of Lyle et al. (arXiv 2402.18762); the formula is ours.
    """

    def begin(data: PyTree, key: Key[Array, ""], index: Int[Array, ""] | int) -> OffsetTask:
        pool, tasks = jax.random.split(key)
        weight_key, phase_key = jax.random.split(jax.random.fold_in(tasks, index))
        x = jax.random.normal(pool, (protocol.examples, protocol.inputs))
        weights = jax.random.normal(weight_key, (protocol.inputs,))
        phase = jax.random.uniform(phase_key, maxval=2 * jnp.pi)
        waves = jnp.sin(protocol.frequency * (x @ weights) / protocol.inputs**0.5 + phase)
        y = (waves - jnp.mean(waves)) / jnp.std(waves) + protocol.growth * index
        return OffsetTask(x, y[:, None])

    def order(data: PyTree, task: OffsetTask, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        steps, size = protocol.steps_per_epoch, protocol.batch_size
        return jax.random.permutation(key, protocol.examples)[: steps * size].reshape(steps, size).astype(jnp.int32)

    def batch(data: PyTree, task: OffsetTask, item: Int32[Array, " batch"]) -> Batch:
        return task.x[item], task.y[item]

    return _regression("growing-offset", protocol, begin, order, batch)


def _regression(
    name: str,
    protocol: Protocol,
    begin: Callable[[Any, Any, Any], PyTree],
    order: Callable[[Any, Any, Any], PyTree],
    batch: Callable[[Any, Any, Any], tuple[Any, Any]],
) -> Stream:
    return Stream(
        name=name,
        data=(),
        input_shape=(protocol.inputs,),
        outputs=1,
        loss="squared-error",
        tasks=protocol.tasks,
        epochs=protocol.epochs,
        steps=protocol.steps_per_epoch,
        batch_size=protocol.batch_size,
        begin=begin,
        order=order,
        batch=batch,
        test=None,
    )


SLOW_PROTOCOLS = {
    "dohare": Published(
        Protocol(tasks=100, epochs=1, examples=10_000, batch_size=1),
        hidden=(5,),
        optimizer="sgd",
        lr=0.01,
        source="Dohare et al., arXiv 2108.06325, one flip; 1M examples (3M in the settings of its repository); "
        "step sizes .01, .003, .001",
    ),
    "dohare-resample": Published(
        Protocol(tasks=100, epochs=1, examples=10_000, batch_size=1, change="resample"),
        hidden=(5,),
        optimizer="sgd",
        lr=0.01,
        source="Dohare et al., github shibhansh/loss-of-plasticity, all slow bits drawn anew; step sizes as "
        "there: .01, .003, .001",
    ),
    "quick": Published(
        Protocol(tasks=30, epochs=1, examples=1000, batch_size=1),
        hidden=(5,),
        optimizer="sgd",
        lr=0.01,
        source="ours: a tenth of the published length of a task",
    ),
}
OFFSET_PROTOCOLS = {
    "quick": Published(
        Protocol(tasks=30, epochs=50, examples=500, batch_size=50),
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop",
    )
}
