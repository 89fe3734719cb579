"""Warm start: the same problem with more and more data, so that a network starts from what it learned on less."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, Key

from envs.datasets import Dataset
from envs.streams.images import (
    Batch,
    HeldOut,
    Images,
    draw_rows,
    epoch_order,
    image_stream,
    on_device,
    part_key,
    scaled,
    whole_test_set,
)
from envs.streams.stream import Protocol, Published, Stream


class Task(NamedTuple):
    """The seed's images, as rows of the data set, of which the first `available` are there."""

    rows: Int32[Array, " examples"]
    available: Int32[Array, ""]


def warm_start(dataset: Dataset, protocol: Protocol) -> Stream:
    """Task i of n has the first (i + 1) / n of the images, in an order that a seed draws. Labels are the true ones.

    With two tasks: half the data, then all of it (Ash and Adams 2020, arXiv 1910.08475). With fifty: DASH's chunks. An
    epoch has as many updates in every task, those that it has with all images.

    Raises:
      ValueError: more tasks than examples.
    """
    if protocol.tasks > protocol.examples:
        raise ValueError(
            f"warm-start: {protocol.tasks} tasks, but {protocol.examples} examples; nearest: {protocol.examples} tasks"
        )
    sizes = [protocol.examples * (task + 1) // protocol.tasks for task in range(protocol.tasks)]

    def begin(data: Images, key: Key[Array, ""], index: Int[Array, ""] | int) -> Task:
        rows = draw_rows(part_key(key, index).pool, len(data.labels), protocol.examples)
        return Task(rows, jnp.asarray(sizes, jnp.int32)[index])

    def order(data: Images, task: Task, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        return epoch_order(key, protocol, task.available)

    def batch(data: Images, task: Task, item: Int32[Array, " batch"]) -> Batch:
        rows = task.rows[item]
        return scaled(data.images[rows]), data.labels[rows]

    def test(data: Images, task: Task) -> HeldOut:
        return scaled(data.test_images), data.test_labels, whole_test_set(data)

    return image_stream(
        "warm-start", dataset, protocol, data=on_device(dataset), begin=begin, order=order, batch=batch, test=test
    )


WARM_START_PROTOCOLS = {
    "halves": Published(
        Protocol(tasks=2, epochs=100, examples=50_000, batch_size=125),
        dataset="cifar10",
        network="cnn",
        hidden=(128,),
        optimizer="momentum",
        lr=1e-3,
        source="weight-clipping experiments: 25,000 + 25,000 CIFAR-10 images, batch 125; ours: all else",
    ),
    "dash": Published(
        Protocol(tasks=50, epochs=10, examples=50_000, batch_size=128),
        dataset="cifar10",
        network="cnn",
        hidden=(128,),
        optimizer="momentum",
        lr=1e-3,
        source="DASH, arXiv 2410.23495: 50 chunks, SGD 1e-3, momentum 0.9, batch 128; ours: the network (there a "
        "ResNet-18), a fixed number of updates (there until 99.9 % of the training images are right)",
    ),
    "quick": Published(
        Protocol(tasks=20, epochs=10, examples=1000, batch_size=20),
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop",
    ),
}
