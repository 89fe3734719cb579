"""ImageNet, or images of one's own, from files: a folder for each class, or Parquet as Hugging Face stores images.

    root/train/<class>/<any name>.JPEG      root/val/<class>/...
    root/[data/]train-*.parquet             root/[data/]validation-*.parquet

A class's number is its place among the names of the folders, in order; Parquet files have numbers in them, in the
column `label`, and the encoded image in `image.bytes`. The held-out split is called val, validation or test.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from envs.datasets import DatasetMissing, data_folder
from envs.loaders.images import ImageBatch
from envs.loaders.loader import (
    AUGMENTATION,
    WHOLE,
    WINDOW,
    Loader,
    Share,
    drawn,
    endless,
    epoch_order,
    extra,
    in_turn,
    one_pass,
)

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
HELD_OUT = ("val", "validation", "test")
BLOCK_ROWS = 64
WINDOW_BLOCKS = 16


class ImageFiles(NamedTuple):
    """One split: encoded images that are read one by one.

    Attributes:
        labels: the classes.
        read: (an image's number) -> its encoded bytes, and a name for it.
        order: (seed, epoch) -> all images' numbers, in that epoch's order.
    """

    labels: Int32[np.ndarray, " n"]
    read: Callable[[int], tuple[bytes, str]]
    order: Callable[[int, int], Int64[np.ndarray, " n"]]


class ImageSplits(NamedTuple):
    """Images to train on and others.

    Attributes:
        train: the images to train on.
        held_out: those to evaluate on.
        classes: how many there are.
    """

    train: ImageFiles
    held_out: ImageFiles
    classes: int


def find_images(root: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Where the images to train on and those held out are: each a single folder, or Parquet files.

    Args:
        root: the folder they are in; by default $NAP_DATA/imagenet.

    Raises:
        DatasetMissing: there is nothing of the kind.
    """
    data = data_folder()
    root = root or (data / "imagenet" if data else None)
    if root is not None:
        for place in (root, root / "data"):
            held_out = next((files for split in HELD_OUT if (files := sorted(place.glob(f"{split}*.parquet")))), None)
            if (train := sorted(place.glob("train*.parquet"))) and held_out:
                return train, held_out
        folder = next((root / split for split in HELD_OUT if (root / split).is_dir()), None)
        if (root / "train").is_dir() and folder is not None:
            return [root / "train"], [folder]
    raise DatasetMissing(
        f"imagenet: neither folders train and val, with a folder for each class, nor train-*.parquet and "
        f"validation-*.parquet are in {root or '$NAP_DATA/imagenet, and NAP_DATA is not set'}: `hf download "
        f"ILSVRC/imagenet-1k --repo-type dataset` gets the latter, once its terms are accepted (150 GB)"
    )


def load_image_files(root: Path | None = None) -> ImageSplits:
    """Lists the images below `root`; they are read and decoded when a batch asks for them.

    Parquet can't be read a row at a time. So its rows are shuffled in two levels: blocks of 64 rows all over the
    files, then the rows of 16 blocks among each other. A batch of files that are sorted by class (ImageNet's are
    not) has few classes.

    Raises:
        DatasetMissing: nothing is there; see `find_images`.
        ValueError: a split without images, a class to evaluate on that is not trained on, or a Parquet file with other
            columns.
    """
    train, held_out = find_images(root)
    if train[0].is_dir():
        classes = _classes(train[0])
        return ImageSplits(_folder(train[0], classes), _folder(held_out[0], classes), len(classes))
    splits = ImageSplits(_parquet(train), _parquet(held_out), 0)
    highest = int(splits.train.labels.max())
    for files, labels in ((train, splits.train.labels), (held_out, splits.held_out.labels)):
        if labels.min() < 0 or labels.max() > highest:
            raise ValueError(
                f"{files[0]} and its like: labels go from {labels.min()} to {labels.max()}, must lie in 0 to "
                f"{highest}, the highest to train on"
            )
    return splits._replace(classes=highest + 1)


def training_image_files(
    files: ImageFiles, batch_size: int, *, seed: int, workers: int, size: int = 224, share: Share = WHOLE
) -> Loader:
    """Random crops of all shapes, scaled to one size, half of them mirrored; every image once in each epoch.

    The augmentation of Szegedy et al. (2015, arXiv 1409.4842): see `crop_box`. The crop of an image is a function of
    the seed, the epoch and the image's number.

    Args:
        files: the split to train on.
        batch_size: images of a batch, in all processes together.
        seed: of the orders and the crops.
        workers: processes that decode, each of them whole batches; about one a core. 0: this process decodes.
        size: rows and columns of the crops.
        share: the part of each batch that is wanted.

    Returns:
        Batches: `envs.loaders.images.ImageBatch`. A file that is no image raises ValueError with its name.

    Raises:
        ValueError: a batch that can't be shared; or a package of the extra `data` is missing.
    """
    share.rows(batch_size)
    extra("PIL.Image", "decoding images")
    batch_at = functools.partial(_training_batch, files, batch_size, seed, share, size)
    return endless(batch_at, batch_size, len(files.labels), workers=workers)


def held_out_image_files(
    files: ImageFiles, batch_size: int, *, workers: int, size: int = 224, share: Share = WHOLE
) -> Loader:
    """The middle of each image, scaled so that 7/8 of its shorter side are seen, once; see `training_image_files`."""
    share.rows(batch_size)
    extra("PIL.Image", "decoding images")
    batch_at = functools.partial(_held_out_batch, files, batch_size, share, size)
    return one_pass(batch_at, batch_size, len(files.labels), workers=workers)


def crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random crop of 8 to 100 % of the area and a ratio of width to height of 3/4 to 4/3, uniform in its logarithm.

    Where ten draws do not fit into the image: its middle, as large as those ratios allow.

    Returns:
        Left, top, right, bottom, in pixels.
    """
    lowest, highest = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(lowest), math.log(highest)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, max(1, round(height * highest))), min(height, max(1, round(width / lowest)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def middle(image: Any, size: int) -> Any:
    """An image of PIL, scaled so that its shorter side is 8/7 of `size`, and the square of that size in its middle."""
    shorter = round(size * 8 / 7)
    scale = shorter / min(image.size)
    scaled = image.resize([max(shorter, int(side * scale)) for side in image.size], _bilinear())
    left, top = ((side - size) // 2 for side in scaled.size)
    return scaled.crop((left, top, left + size, top + size))


def _training_batch(files: ImageFiles, batch_size: int, seed: int, share: Share, size: int, step: int) -> ImageBatch:
    order = functools.partial(files.order, seed)
    epochs, chosen = drawn(step, batch_size, share, len(files.labels), order)
    images = np.empty((len(chosen), size, size, 3), np.uint8)
    for row, (epoch, number) in enumerate(zip(epochs.tolist(), chosen.tolist(), strict=True)):
        image, rng = _decoded(files, number), np.random.default_rng((AUGMENTATION, seed, epoch, number))
        width, height = image.size
        crop = np.asarray(image.resize((size, size), _bilinear(), box=crop_box(width, height, rng)))
        images[row] = crop[:, ::-1] if rng.integers(2) else crop
    return ImageBatch(images, files.labels[chosen], np.ones(len(chosen), np.float32))


def _held_out_batch(files: ImageFiles, batch_size: int, share: Share, size: int, step: int) -> ImageBatch:
    chosen, weights = in_turn(step, batch_size, share, len(files.labels))
    images = np.stack([np.asarray(middle(_decoded(files, number), size)) for number in chosen.tolist()])
    return ImageBatch(images, files.labels[chosen], weights)


def _decoded(files: ImageFiles, number: int) -> Any:
    content, name = files.read(number)
    pil = extra("PIL.Image", "decoding images")
    try:
        image = pil.open(io.BytesIO(content))
        if image.mode.startswith(("I", "F")):  # which `convert` would cut off at 255
            raise ValueError(f"its mode is {image.mode}, must have 8 bits a channel")
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:  # what PIL raises
        raise ValueError(f"{name}: damaged, or no image ({error})") from error


def _bilinear() -> Any:
    return extra("PIL.Image", "decoding images").Resampling.BILINEAR


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _folder(folder: Path, classes: list[str]) -> ImageFiles:
    here = _classes(folder)
    if unknown := sorted(set(here) - set(classes)):
        raise ValueError(f"{folder}: the class {unknown[0]} has no folder among those to train on")
    paths, labels = [], []
    for label, name in enumerate(classes):
        inside = (folder / name).iterdir() if name in here else ()
        found = sorted(path for path in inside if path.suffix.lower() in SUFFIXES)
        paths += [str(path) for path in found]
        labels += [label] * len(found)
    if not paths:
        raise ValueError(f"{folder}: no images ({', '.join(SUFFIXES)}) in folders, one for each class")
    order = functools.partial(_any_order, len(paths))
    return ImageFiles(np.array(labels, np.int32), functools.partial(_read_file, paths), order)


def _any_order(examples: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    return epoch_order(seed, epoch, examples)


def _read_file(paths: list[str], number: int) -> tuple[bytes, str]:
    return Path(paths[number]).read_bytes(), paths[number]


def _parquet(files: list[Path]) -> ImageFiles:
    import polars as pl

    labels = []
    for file in files:
        try:
            schema = pl.read_parquet_schema(file)
            pictures = schema.get("image")
            fields = {field.name for field in pictures.fields} if isinstance(pictures, pl.Struct) else set()
            if "bytes" not in fields or "label" not in schema:
                raise ValueError(f"it has {dict(schema)}, must have image: struct with bytes, and label")
            labels.append(pl.read_parquet(file, columns=["label"])["label"].to_numpy().astype(np.int32))
        except (pl.exceptions.PolarsError, OSError, ValueError) as error:
            raise ValueError(f"{file}: not Parquet with images and labels ({error})") from error
    rows = [len(part) for part in labels]
    # (file, first row, rows) of each block, and the number of its first image.
    blocks = [
        (str(file), first, min(BLOCK_ROWS, count - first))
        for file, count in zip(files, rows, strict=True)
        for first in range(0, count, BLOCK_ROWS)
    ]
    if not blocks:
        raise ValueError(f"{files[0]}: no images")
    starts = np.cumsum([0, *(count for _, _, count in blocks)])
    return ImageFiles(
        np.concatenate(labels),
        functools.partial(_read_row, blocks, starts),
        functools.partial(_order_of_blocks, tuple(starts.tolist())),
    )


def _read_row(blocks: list[tuple[str, int, int]], starts: np.ndarray, number: int) -> tuple[bytes, str]:
    block = int(np.searchsorted(starts, number, side="right")) - 1
    file, first, _ = blocks[block]
    row = number - int(starts[block])
    content = _block(*blocks[block])[row]
    return content or b"", f"{file}: row {first + row}"


@functools.lru_cache(maxsize=WINDOW_BLOCKS)
def _block(file: str, first: int, rows: int) -> list[bytes | None]:
    import polars as pl

    part = pl.scan_parquet(file).slice(first, rows)
    return part.select(pl.col("image").struct.field("bytes")).collect()["bytes"].to_list()


@functools.lru_cache(maxsize=4)
def _order_of_blocks(starts: tuple[int, ...], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Blocks in random order; then, of each 16 in a row, the rows in random order."""
    blocks = epoch_order(seed, epoch, len(starts) - 1)
    rng = np.random.default_rng((WINDOW, seed, epoch))
    windows = [blocks[first : first + WINDOW_BLOCKS] for first in range(0, len(blocks), WINDOW_BLOCKS)]
    return np.concatenate(
        [rng.permutation(np.concatenate([np.arange(starts[b], starts[b + 1]) for b in window])) for window in windows]
    )
