"""What the streams of images share: the arrays on the device, pools of rows, and an epoch's order.

Pixels are divided by 255 and nothing else, as Dohare et al. have them. L2-Init and UPGD also centre them (by constants
of the data set); that is left to the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, Key, UInt8

from envs.datasets import Dataset
from envs.streams.stream import Protocol, PyTree, Stream, always

Pictures = Float32[Array, "batch height width channels"]
Batch = tuple[Pictures, Int32[Array, " batch"]]
HeldOut = tuple[Pictures, Int32[Array, " batch"], Float32[Array, " batch"]]


class Images(NamedTuple):
    """A data set on the device."""

    images: UInt8[Array, "n height width channels"]
    labels: Int32[Array, " n"]
    test_images: UInt8[Array, "m height width channels"]
    test_labels: Int32[Array, " m"]


class Keys(NamedTuple):
    """A seed's key, parted: for the images it uses, for what else its tasks share, and for one task."""

    pool: Key[Array, ""]
    shared: Key[Array, ""]
    task: Key[Array, ""]


def on_device(dataset: Dataset) -> Images:
    """The arrays of a data set, images as they are (uint8)."""
    parts = (dataset.images, dataset.labels, dataset.test_images, dataset.test_labels)
    return Images(*(jnp.asarray(part) for part in parts))


def part_key(key: Key[Array, ""], index: Int[Array, ""] | int) -> Keys:
    """The keys that a task draws from: only the last depends on the index."""
    # Folding into the key itself could give one of the keys that splitting it gives.
    pool, shared, task = jax.random.split(key, 3)
    return Keys(pool, shared, jax.random.fold_in(task, index))


def scaled(images: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Grey levels 0 to 255 as numbers from 0 to 1."""
    return images.astype(jnp.float32) / 255


def draw_rows(key: Key[Array, ""], available: int, examples: int) -> Int32[Array, " examples"]:
    """Different rows of a data set, in random order."""
    return jax.random.permutation(key, available)[:examples].astype(jnp.int32)


def epoch_order(
    key: Key[Array, ""], protocol: Protocol, available: Int[Array, ""] | int | None = None
) -> Int32[Array, "steps batch"]:
    """One epoch: positions in a pool of `protocol.examples`, in random order, without replacement.

    Where only the first `available` of them are there (a pool that grows), the order has the length it will have in
    the end, so that shapes stay fixed: each available example stands in it equally often, give or take one, and the
    order stays random. Which ones stand in it once more than others is drawn anew for every epoch, as the rows are
    there in order of arrival.
    """
    order = jax.random.permutation(key, protocol.examples)
    if available is not None:
        drawn = jax.random.uniform(jax.random.fold_in(key, 1), [protocol.examples])
        shuffled = jnp.argsort(jnp.where(jnp.arange(protocol.examples) < available, drawn, jnp.inf))
        order = shuffled[order % available]
    steps, batch = protocol.steps_per_epoch, protocol.batch_size
    return order[: steps * batch].reshape(steps, batch).astype(jnp.int32)


def class_rows(name: str, labels: Int32[np.ndarray, " n"], classes: int, needed: int) -> Int32[np.ndarray, "classes k"]:
    """Rows of the training images by class, as many for each as the smallest class has.

    Raises:
      ValueError: a class has fewer than `needed`.
    """
    counts = np.bincount(labels, minlength=classes)
    smallest = int(counts.argmin())
    if counts[smallest] < needed:
        raise ValueError(
            f"{name} needs {needed} training images of each class, class {smallest} has {counts[smallest]}"
            + (f"; nearest: {counts[smallest]} a class" if counts[smallest] else ": number the classes without a gap")
        )
    by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    return by_class[starts[:, None] + np.arange(counts[smallest])].astype(np.int32)


def held_out_rows(
    labels: Int32[np.ndarray, " m"], classes: int
) -> tuple[Int32[np.ndarray, "classes k"], Float32[np.ndarray, "classes k"]]:
    """Rows of the test images by class, and weights: 0 where a class has fewer than the largest and is filled up."""
    counts = np.bincount(labels, minlength=classes)
    by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    places = np.arange(counts.max())
    there = places < counts[:, None]
    rows = by_class[np.where(there, starts[:, None] + places, 0)]
    return rows.astype(np.int32), there.astype(np.float32)


def whole_test_set(data: Images) -> Float32[Array, " m"]:
    """Weights that leave no test image out."""
    return jnp.ones(data.test_labels.shape, jnp.float32)


def image_stream(
    name: str,
    dataset: Dataset,
    protocol: Protocol,
    *,
    data: PyTree,
    begin: Callable[[Any, Any, Any], PyTree],
    order: Callable[[Any, Any, Any], PyTree],
    batch: Callable[[Any, Any, Any], tuple[Any, Any]],
    test: Callable[[Any, Any], tuple[Any, Any, Any]] | None,
    outputs: int | None = None,
    scored: Callable[[int], bool] = always,
) -> Stream:
    """A stream of images, with what follows from the data set and the protocol filled in."""
    return Stream(
        name=name,
        data=data,
        input_shape=dataset.images.shape[1:],
        outputs=dataset.classes if outputs is None else outputs,
        loss="cross-entropy",
        tasks=protocol.tasks,
        epochs=protocol.epochs,
        steps=protocol.steps_per_epoch,
        batch_size=protocol.batch_size,
        begin=begin,
        order=order,
        batch=batch,
        test=test,
        scored=scored,
    )
