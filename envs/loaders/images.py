"""Labelled images that fit into memory, in batches: shuffled and augmented for training, in turn for evaluation.

Images stay uint8 up to the device: `normalize` belongs into the compiled step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from envs.datasets import Dataset
from envs.loaders.loader import AUGMENTATION, WHOLE, Loader, Share, drawn, endless, epoch_order, in_turn, one_pass

PADDING = 4


class ImageBatch(NamedTuple):
    """Some images.

    Attributes:
        images: 0 to 255.
        labels: their classes.
        weights: 1; 0 for what only fills up the last batch of held-out images.
    """

    images: UInt8[np.ndarray, "batch height width channels"]
    labels: Int32[np.ndarray, " batch"]
    weights: Float32[np.ndarray, " batch"]


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


PUBLISHED: Mapping[str, Statistics] = MappingProxyType(
    {
        "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
)
"""The constants in general use."""


def statistics(dataset: Dataset) -> Statistics:
    """The published constants, else those of the training images."""
    if dataset.name in PUBLISHED:
        return PUBLISHED[dataset.name]
    # From counts of the 256 levels: exact, and without a copy of the images as floats.
    levels = np.arange(256) / 255
    counts = [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(dataset.images, -1, 0)]
    means = [float(np.average(levels, weights=count)) for count in counts]
    spreads = [(np.average((levels - mean) ** 2, weights=count)) for mean, count in zip(means, counts, strict=True)]
    return Statistics(tuple(means), tuple(float(np.sqrt(max(spread, 1e-12))) for spread in spreads))


def normalize(images: UInt8[Any, "*shape channels"], constants: Statistics) -> Float32[Any, "*shape channels"]:
    """Pixels with mean 0 and standard deviation 1. For arrays of JAX just as for numpy's."""
    mean, std = (np.asarray(part, np.float32) for part in constants)
    return (images.astype(np.float32) / 255 - mean) / std


def crop_and_flip(
    images: UInt8[np.ndarray, "batch height width channels"],
    top: Int64[np.ndarray, " batch"],
    left: Int64[np.ndarray, " batch"],
    flip: Bool[np.ndarray, " batch"],
) -> UInt8[np.ndarray, "batch height width channels"]:
    """Crops of the images' own size out of the images with 4 black pixels around them, some mirrored left to right.

    The augmentation of CIFAR in He et al. (2016, arXiv 1512.03385), section 4.2.

    Args:
        images: any number of them.
        top: each crop's first row, 0 to 8; 4 is the image itself.
        left: its first column, likewise.
        flip: which crops are mirrored.
    """
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    crops = np.empty_like(images)
    # One by one: indexing all with arrays of rows and columns takes three times as long.
    for i, (row, column, mirrored) in enumerate(zip(top.tolist(), left.tolist(), flip.tolist(), strict=True)):
        crop = padded[i, row : row + height, column : column + width]
        crops[i] = crop[:, ::-1] if mirrored else crop
    return crops


def training_images(dataset: Dataset, batch_size: int, *, seed: int, augment: bool, share: Share = WHOLE) -> Loader:
    """Training images, every one once in each epoch, in an order of its own.

    Args:
        dataset: the images.
        batch_size: images of a batch, in all processes together.
        seed: of the orders and the crops.
        augment: whether images are cropped and mirrored at random (`crop_and_flip`): right for CIFAR, wrong for digits.
            The crop of an image is a function of the seed, the epoch and the image.
        share: the part of each batch that is wanted.

    Returns:
        Batches: `ImageBatch`.

    Raises:
        ValueError: a batch that can't be shared.
    """
    share.rows(batch_size)
    batch_at = functools.partial(_training_batch, dataset, batch_size, seed, augment, share)
    return endless(batch_at, batch_size, len(dataset.images))


def held_out_images(dataset: Dataset, batch_size: int, *, share: Share = WHOLE) -> Loader:
    """The test images as they are, once; see `training_images`."""
    share.rows(batch_size)
    batch_at = functools.partial(_held_out_batch, dataset, batch_size, share)
    return one_pass(batch_at, batch_size, len(dataset.test_images))


def _training_batch(dataset: Dataset, batch_size: int, seed: int, augment: bool, share: Share, step: int) -> ImageBatch:
    examples = len(dataset.images)
    epochs, chosen = drawn(step, batch_size, share, examples, lambda epoch: epoch_order(seed, epoch, examples))
    images = dataset.images[chosen]
    if augment:
        crops = [_crops(seed, epoch, examples)[chosen[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
        top, left, flip = np.concatenate(crops).T
        images = crop_and_flip(images, top, left, flip.astype(bool))
    return ImageBatch(images, dataset.labels[chosen], np.ones(len(chosen), np.float32))


def _held_out_batch(dataset: Dataset, batch_size: int, share: Share, step: int) -> ImageBatch:
    chosen, weights = in_turn(step, batch_size, share, len(dataset.test_images))
    return ImageBatch(dataset.test_images[chosen], dataset.test_labels[chosen], weights)


@functools.lru_cache(maxsize=4)
def _crops(seed: int, epoch: int, examples: int) -> Int64[np.ndarray, "examples 3"]:
    """For each image: the crop's first row and column, and whether it is mirrored."""
    rng = np.random.default_rng((AUGMENTATION, seed, epoch))
    return rng.integers(0, (2 * PADDING + 1, 2 * PADDING + 1, 2), (examples, 3))
