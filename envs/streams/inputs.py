"""Streams whose inputs change from task to task and whose labels stay: permuted, blended, scaled, signs flipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, Key

from envs.datasets import Dataset
from envs.streams.images import (
    Batch,
    HeldOut,
    Images,
    Pictures,
    draw_rows,
    epoch_order,
    image_stream,
    on_device,
    scaled,
    whole_test_set,
)
from envs.streams.stream import Protocol, Published, PyTree, Stream

LOWEST_FACTOR, HIGHEST_FACTOR = 0.1, 10.0


class Task(NamedTuple):
    """The task's training images, as rows of the data set, and what its inputs go through."""

    rows: Int32[Array, " examples"]
    transform: PyTree


def permuted_inputs(dataset: Dataset, protocol: Protocol) -> Stream:
    """Pixels in a new random order in every task; the channels of a pixel stay together.

    Each permutation is drawn afresh. Dohare et al. permute what the last task had permuted: the composition of random
    permutations is again uniformly random, so the two have the same distribution. The first task is permuted as well
    (L2-Init leaves it as it is). Each task draws its own `examples` images, as L2-Init does.
    """

    def draw(key: Key[Array, ""], index: Int[Array, ""] | int) -> Int32[Array, " pixels"]:
        return _permutation(jax.random.fold_in(key, index), dataset)

    return _stream("permuted-inputs", dataset, protocol, draw, _permute)


def interpolated_permutations(dataset: Dataset, protocol: Protocol) -> Stream:
    """Permuted inputs that change gradually: (1 - a) x[permutation k] + a x[permutation k + 1].

    a = (index mod blend) / blend and k = index // blend: each `blend`-th task has a pure permutation, and the tasks
    between go to the next in equal steps.
    """

    def draw(key: Key[Array, ""], index: Int[Array, ""] | int) -> PyTree:
        number = index // protocol.blend
        ends = [_permutation(jax.random.fold_in(key, number + end), dataset) for end in (0, 1)]
        return (*ends, jnp.asarray(index % protocol.blend, jnp.float32) / protocol.blend)

    def apply(transform: PyTree, x: Pictures) -> Pictures:
        here, there, share = transform
        return (1 - share) * _permute(here, x) + share * _permute(there, x)

    return _stream("interpolated-permutations", dataset, protocol, draw, apply)


def input_scaling(dataset: Dataset, protocol: Protocol) -> Stream:
    """Inputs times one factor a task, log-uniform in 0.1 to 10."""

    def draw(key: Key[Array, ""], index: Int[Array, ""] | int) -> Float32[Array, ""]:
        low, high = jnp.log(LOWEST_FACTOR), jnp.log(HIGHEST_FACTOR)
        return jnp.exp(jax.random.uniform(jax.random.fold_in(key, index), minval=low, maxval=high))

    return _stream("input-scaling", dataset, protocol, draw, lambda factor, x: factor * x)


def sign_flips(dataset: Dataset, protocol: Protocol) -> Stream:
    """Inputs times -1 or 1, drawn by a fair coin for each input dimension and each task."""

    def draw(key: Key[Array, ""], index: Int[Array, ""] | int) -> Float32[Array, "height width channels"]:
        return jax.random.rademacher(jax.random.fold_in(key, index), dataset.images.shape[1:], jnp.float32)

    return _stream("sign-flips", dataset, protocol, draw, lambda signs, x: signs * x)


def _permutation(key: Key[Array, ""], dataset: Dataset) -> Int32[Array, " pixels"]:
    height, width = dataset.images.shape[1:3]
    return jax.random.permutation(key, height * width).astype(jnp.int32)


def _permute(permutation: Int32[Array, " pixels"], x: Pictures) -> Pictures:
    """Pixel i becomes what pixel permutation[i] was, counted row by row."""
    return x.reshape(x.shape[0], -1, x.shape[-1])[:, permutation].reshape(x.shape)


def _stream(
    name: str,
    dataset: Dataset,
    protocol: Protocol,
    draw: Callable[[Any, Any], PyTree],
    apply: Callable[[PyTree, Any], Any],
) -> Stream:
    """A stream of transformed images, from draw(key, index) -> transform and apply(transform, x) -> x."""

    def begin(data: Images, key: Key[Array, ""], index: Int[Array, ""] | int) -> Task:
        pool, transform = jax.random.split(key)
        rows = draw_rows(jax.random.fold_in(pool, index), len(data.labels), protocol.examples)
        return Task(rows, draw(transform, index))

    def order(data: Images, task: Task, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        return epoch_order(key, protocol)

    def batch(data: Images, task: Task, item: Int32[Array, " batch"]) -> Batch:
        rows = task.rows[item]
        return apply(task.transform, scaled(data.images[rows])), data.labels[rows]

    def test(data: Images, task: Task) -> HeldOut:
        return apply(task.transform, scaled(data.test_images)), data.test_labels, whole_test_set(data)

    return image_stream(
        name, dataset, protocol, data=on_device(dataset), begin=begin, order=order, batch=batch, test=test
    )


_QUICK = Published(
    Protocol(tasks=30, epochs=5, examples=1000, batch_size=10),
    hidden=(100, 100),
    optimizer="adam",
    lr=1e-3,
    source="ours: small enough for a laptop",
)

PERMUTED_PROTOCOLS = {
    "l2-init": Published(
        Protocol(tasks=500, epochs=1, examples=10_000, batch_size=16),
        dataset="fashion-mnist",
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="L2-Init, arXiv 2308.11958; ours: Fashion-MNIST for MNIST; all test images, there 1,000",
    ),
    "dohare": Published(
        Protocol(tasks=800, epochs=1, examples=60_000, batch_size=1),
        dataset="fashion-mnist",
        hidden=(2000, 2000, 2000),
        optimizer="sgd",
        lr=0.01,
        source="Dohare et al., github shibhansh/loss-of-plasticity, step sizes .01, .003, .001; ours: Fashion-MNIST",
    ),
    "upgd": Published(
        Protocol(tasks=200, epochs=1, examples=60_000, batch_size=1, steps=5000),
        dataset="fashion-mnist",
        hidden=(300, 150),
        optimizer="sgd",
        lr=1e-3,
        source="UPGD, github mohmdelsayed/upgd, lr of its SGD; ours: Fashion-MNIST for MNIST, pixels not centred",
    ),
    "quick": _QUICK,
}
INTERPOLATED_PROTOCOLS = {
    "quick": Published(
        Protocol(tasks=30, epochs=5, examples=1000, batch_size=10, blend=5),
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop; six permutations, five tasks from one to the next",
    )
}
SCALING_PROTOCOLS = {"quick": _QUICK}
SIGN_PROTOCOLS = {"quick": _QUICK}
