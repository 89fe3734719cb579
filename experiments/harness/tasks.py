"""One stretch of one task for one seed: updates, then what is measured of them.

A task's updates are divided into stretches of equal length, each within one epoch or of whole epochs. What is recorded
of weights and units is recorded one update before the end of a stretch: with a task's last update come interventions
such as resets, and a network that has just been reset is not what the task has made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.streams import STREAMS, Protocol, Stream
from experiments.harness.bounds import MOST, ReadIf, at_least, inside, read_if
from experiments.harness.divisors import divisors
from experiments.harness.errors import UserError
from experiments.harness.learner import Learner, LearnerState, Score

PyTree = Any
Row = dict[str, jax.Array]

PROBE = 1024
"""Examples of a task that its loss and its units are measured on; all of them where it has fewer."""
TEST_BATCH = 1000


def _of_stream(name: str) -> ReadIf:
    return read_if(lambda config: config.stream == name, f"--stream {name}")


_COUNT = at_least(1)
_OFFSET, _SLOW = _of_stream("growing-offset"), _of_stream("slowly-changing-regression")
PROTOCOL_BOUNDS = inside(
    tasks=_COUNT,
    epochs=_COUNT,
    examples=_COUNT,
    batch_size=_COUNT,
    steps=_COUNT,
    classes_per_task=(_COUNT, _of_stream("class-incremental")),
    easy_examples=(_COUNT, _of_stream("five-plus-one")),
    blend=(_COUNT, _of_stream("interpolated-permutations")),
    inputs=(_COUNT, read_if(lambda config: not STREAMS[config.stream].needs_data, "regressions, without images")),
    slow_bits=(_COUNT, _SLOW),
    change=_SLOW,
    features=(_COUNT, _SLOW),
    beta=_SLOW,
    frequency=_OFFSET,
    growth=_OFFSET,
)
"""What is declared of a stream's numbers, in a configuration that has a field `stream`."""


class Own(NamedTuple):
    """What belongs to one seed.

    Attributes:
        key: the seed's random key; it never changes.
        state: the learner's state.
    """

    key: jax.Array
    state: LearnerState


class Result(NamedTuple):
    """What a stretch returns: what belongs to the seed, and what is recorded of the stretch."""

    own: Own
    row: Row


def check_length(protocol: Protocol) -> None:
    """Raises UserError for more updates than can be counted, with the most tasks, or epochs of a task, there can be."""
    each = protocol.updates_per_task
    if each > MOST:
        most = MOST // protocol.steps_per_epoch
        raise UserError(f"--epochs {protocol.epochs}: a task of {each} updates; there can be {MOST}: --epochs {most}")
    if protocol.tasks * each > MOST:
        most, updates = MOST // each, protocol.tasks * each
        raise UserError(f"--tasks {protocol.tasks}: {updates} updates in all; there can be {MOST}: --tasks {most}")


def nearest_stretch(updates: int, steps: int, epochs: int) -> int:
    """The length nearest in ratio that divides a task of `epochs` x `steps` updates as `make_stretch` needs it."""
    whole = [number * steps for number in divisors(epochs)]
    return min([*divisors(steps), *whole], key=lambda length: abs(math.log(length / updates)))


def repeat(body: Callable[[jax.Array, PyTree], PyTree], carry: PyTree, first: int | jax.Array, count: int) -> PyTree:
    """`carry = body(i, carry)` for `count` values of i from `first` on, as a compiled loop."""
    return jax.lax.fori_loop(0, count, lambda i, carry: body(first + i, carry), carry)


def make_start(learner: Learner) -> Callable[[jax.Array], Own]:
    """The function that makes a seed's first state from its key."""
    return lambda key: Own(key, learner.init(jax.random.fold_in(key, 0)))


def make_stretch(learner: Learner, stream: Stream, updates: int) -> Callable[..., Result]:
    """The function that runs a stretch.

    Args:
        learner: the learner.
        stream: the task stream.
        updates: length of a stretch: a divisor of an epoch's updates, or whole epochs that divide the task.

    Returns:
        `stretch(data, own, task, start)`: the seed's new state and its record, after the updates `start` to `start +
        updates` of the given task.
    """
    if nearest_stretch(updates, stream.steps, stream.epochs) != updates:
        raise ValueError(f"a stretch of {updates} updates does not divide the task; see nearest_stretch")
    epochs, length = max(1, updates // stream.steps), min(updates, stream.steps)
    plain_update, measured = _update(learner, stream), _measured_update(learner, stream)

    def begin(data: PyTree, key: jax.Array, task: jax.Array) -> PyTree:
        return stream.begin(data, jax.random.fold_in(key, 1), task)

    def order(data: PyTree, key: jax.Array, state: PyTree, task: jax.Array, epoch: jax.Array) -> PyTree:
        order_key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, 2), task), epoch)
        return stream.order(data, state, order_key)

    def stretch(data: PyTree, own: Own, task: jax.Array, start: jax.Array) -> Result:
        drawn = begin(data, own.key, task)
        first_epoch, first_step = start // stream.steps, start % stream.steps
        sums = Score(jnp.zeros([]), jnp.zeros([]))

        def epoch_of(epoch: jax.Array, carry: tuple[LearnerState, Score]) -> tuple[LearnerState, Score]:
            items = order(data, own.key, drawn, task, epoch)
            return repeat(lambda i, carry: plain_update(data, drawn, items, *carry, i), carry, 0, length)

        carry = repeat(epoch_of, (own.state, sums), first_epoch, epochs - 1)
        items = order(data, own.key, drawn, task, first_epoch + epochs - 1)
        plain = max(0, length - 2)  # then one that is measured, and, if there is another, the last
        carry = repeat(lambda i, carry: plain_update(data, drawn, items, *carry, i), carry, first_step, plain)
        state, sums, row = measured(data, own.key, drawn, items, *carry, first_step + plain)
        if length > 1:
            state, sums = plain_update(data, drawn, items, state, sums, first_step + length - 1)
        online = {"online_loss": sums.loss / updates, "online_accuracy": sums.accuracy / updates}
        return Result(Own(own.key, state), {**online, **row})

    return stretch


def _update(learner: Learner, stream: Stream) -> Callable[..., tuple[LearnerState, Score]]:
    def update(data: PyTree, task: PyTree, items: PyTree, state: LearnerState, sums: Score, i: jax.Array):
        x, y = stream.batch(data, task, jax.tree.map(lambda item: item[i], items))
        state, score = learner.update(state, x, y)
        return state, jax.tree.map(jnp.add, sums, score)

    return update


def _measured_update(learner: Learner, stream: Stream) -> Callable[..., tuple[LearnerState, Score, Row]]:
    def update(
        data: PyTree, key: jax.Array, task: PyTree, items: PyTree, state: LearnerState, sums: Score, i: jax.Array
    ):
        x, y = stream.batch(data, task, jax.tree.map(lambda item: item[i], items))
        state, score, measured = learner.measure(state, x, y)
        batches = min(stream.steps, math.ceil(PROBE / stream.batch_size))
        probe = stream.order(data, task, jax.random.fold_in(key, 3))
        x, y = jax.vmap(lambda item: stream.batch(data, task, item))(jax.tree.map(lambda item: item[:batches], probe))
        x, y = x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:])
        probed = learner.score(state.params, x, y, jnp.ones(x.shape[0]))
        row = {"loss": probed.loss, "accuracy": probed.accuracy, **_test(learner, stream, data, task, state)}
        return state, jax.tree.map(jnp.add, sums, score), {**row, **measured, **learner.inspect(state.params, x)}

    return update


def _test(learner: Learner, stream: Stream, data: PyTree, task: PyTree, state: LearnerState) -> Row:
    if stream.test is None:
        return {}
    x, y, weight = stream.test(data, task)
    batches = [
        (learner.score(state.params, *part), jnp.sum(part[2]))
        for start in range(0, len(y), TEST_BATCH)
        for part in [(x[start : start + TEST_BATCH], y[start : start + TEST_BATCH], weight[start : start + TEST_BATCH])]
    ]
    total = jnp.maximum(sum(size for _, size in batches), 1e-9)
    return {
        "test_loss": sum(score.loss * size for score, size in batches) / total,
        "test_accuracy": sum(score.accuracy * size for score, size in batches) / total,
    }
