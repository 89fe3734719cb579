"""ImageNet, or images of one's own, from files: a folder for each class, or Parquet as Hugging Face stores images.

    root/train/<class>/[<folders>/]<any name>.JPEG    root/val/<class>/...
    root/[data/]train-*.parquet                       root/[data/]validation-*.parquet

A class's number is its place among the names of the folders, in order; Parquet files have numbers in them, in the
column `label`, and the encoded image in `image.bytes`. The held-out split is called val, validation or test. Whatever
a file is called, it must be JPEG, PNG, WebP or BMP: the other decoders of PIL are never asked, one of which would hand
the file to another program.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from envs.datasets import DatasetMissing, check_highest_label, data_folder
from envs.fingerprints import of_arrays, of_files, of_parts
from envs.loaders import parquet
from envs.loaders.files import files_below
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
from envs.reading import BadFile, content, reading

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
HELD_OUT = ("val", "validation", "test")
BLOCK_ROWS = 64
WINDOW_BLOCKS = 16
LONGEST_STRIP = 100
"""An image that is longer than so many times its width is cut before it is scaled; a strip of a pixel would fill all
memory."""


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
        fingerprint: of the files: see `envs.fingerprints.of_files`; of Parquet the labels besides.
        unread: files in the folders of classes that are no images by their names.
    """

    train: ImageFiles
    held_out: ImageFiles
    classes: int
    fingerprint: str
    unread: tuple[Path, ...] = ()


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
        BadFile: a split or a class to train on without images, a class to evaluate on that is not trained on, or a
            Parquet file with other columns.
    """
    train, held_out = find_images(root)
    if train[0].is_dir():
        classes = _classes(train[0])
        (images, others), (test_images, test_others) = (_in_classes(split[0], classes) for split in (train, held_out))
        if empty := [name for name, paths in zip(classes, images, strict=True) if not paths]:
            raise BadFile(f"{train[0] / empty[0]}: no images ({', '.join(SUFFIXES)}) in the folder of a class")
        splits = (train[0], images), (held_out[0], test_images)
        told = of_parts(of_files(folder, list(itertools.chain(*paths))).encode() for folder, paths in splits)
        return ImageSplits(_folder(images), _folder(test_images), len(classes), told, (*others, *test_others))
    to_train, to_test = _parquet(train), _parquet(held_out)
    highest = int(to_train.labels.max())
    check_highest_label(f"{train[0]} and its like", highest, len(to_train.labels))
    for files, labels in ((train, to_train.labels), (held_out, to_test.labels)):
        if labels.min() < 0 or labels.max() > highest:
            raise BadFile(
                f"{files[0]} and its like: labels go from {labels.min()} to {labels.max()}, must lie in 0 to "
                f"{highest}, the highest to train on"
            )
    told = [of_files(files[0].parent, files) for files in (train, held_out)]
    told += [of_arrays((to_train.labels, to_test.labels))]
    return ImageSplits(to_train, to_test, highest + 1, of_parts(part.encode() for part in told))


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
    longest = LONGEST_STRIP * min(image.size)
    if max(image.size) > longest:
        left, top = (max(0, side - longest) // 2 for side in image.size)
        image = image.crop((left, top, left + min(image.size[0], longest), top + min(image.size[1], longest)))
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
    encoded, name = files.read(number)
    pil = extra("PIL.Image", "decoding images")
    with reading(name, "damaged, or no image"):
        try:
            image = pil.open(io.BytesIO(encoded), formats=FORMATS)
        except pil.UnidentifiedImageError:
            raise ValueError(f"neither {', '.join(FORMATS)}") from None
        if image.mode.startswith(("I", "F")):  # which `convert` would cut off at 255
            raise ValueError(f"its mode is {image.mode}, must have 8 bits a channel")
        return image.convert("RGB")


def _bilinear() -> Any:
    return extra("PIL.Image", "decoding images").Resampling.BILINEAR


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _in_classes(folder: Path, classes: list[str]) -> tuple[list[list[Path]], list[Path]]:
    """The images of each class, wherever they are below its folder, in order; and all that are no images by name."""
    here = _classes(folder)
    if unknown := sorted(set(here) - set(classes)):
        raise BadFile(f"{folder}: the class {unknown[0]} has no folder among those to train on")
    images, others = [], []
    for name in classes:
        inside = files_below(folder / name) if name in here else []
        images.append([path for path in inside if path.suffix.lower() in SUFFIXES])
        others += [path for path in inside if path.suffix.lower() not in SUFFIXES]
    if not any(images):
        raise BadFile(f"{folder}: no images ({', '.join(SUFFIXES)}) in folders, one for each class")
    return images, others


def _folder(images: list[list[Path]]) -> ImageFiles:
    paths = [str(path) for of_class in images for path in of_class]
    labels = np.repeat(np.arange(len(images), dtype=np.int32), [len(of_class) for of_class in images])
    order = functools.partial(_any_order, len(paths))
    return ImageFiles(labels, functools.partial(_read_file, paths), order)


def _any_order(examples: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    return epoch_order(seed, epoch, examples)


def _read_file(paths: list[str], number: int) -> tuple[bytes, str]:
    return content(Path(paths[number])), paths[number]


def _parquet(files: list[Path]) -> ImageFiles:
    labels = [_labels(file) for file in files]
    rows = [len(part) for part in labels]
    # (file, first row, rows) of each block, and the number of its first image.
    blocks = [
        (str(file), first, min(BLOCK_ROWS, count - first))
        for file, count in zip(files, rows, strict=True)
        for first in range(0, count, BLOCK_ROWS)
    ]
    if not blocks:
        raise BadFile(f"{files[0]}: no images")
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
    found = _block(*blocks[block])[row]
    return found or b"", f"{file}: row {first + row}"


def _labels(file: Path) -> Int32[np.ndarray, " rows"]:
    """The labels of a Parquet file: a whole number for each row."""
    import polars as pl

    with reading(file, "not Parquet with images and labels"):
        schema = parquet.schema_of(file)
        pictures, kind = schema.get("image"), schema.get("label")
        fields = {field.name: field.dtype for field in pictures.fields} if isinstance(pictures, pl.Struct) else {}
        if fields.get("bytes") != pl.Binary or kind is None:
            raise ValueError(f"it has {schema}, must have image: struct with bytes (Binary), and label")
        if not kind.is_integer():
            raise ValueError(f"its labels are {kind}, must be whole numbers")
        labels = parquet.column_of(file, "label")
        if labels.null_count():
            raise ValueError(f"row {labels.is_null().arg_max()} has no label")
        narrow = labels.cast(pl.Int32, strict=False)  # null where it does not fit
        if narrow.null_count():
            row = narrow.is_null().arg_true()[0]
            raise ValueError(f"row {row} has the label {labels[row]}, beyond 32 bits")
        return narrow.to_numpy()


@functools.lru_cache(maxsize=WINDOW_BLOCKS)
def _block(file: str, first: int, rows: int) -> list[bytes | None]:
    import polars as pl

    with reading(file, f"damaged in rows {first} to {first + rows - 1}"):
        found = parquet.rows_between(Path(file), pl.col("image").struct.field("bytes"), first, rows)
        if len(found) != rows:
            raise ValueError(f"only {len(found)} of them are there")
        return found


@functools.lru_cache(maxsize=4)
def _order_of_blocks(starts: tuple[int, ...], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Blocks in random order; then, of each 16 in a row, the rows in random order."""
    blocks = epoch_order(seed, epoch, len(starts) - 1)
    rng = np.random.default_rng((WINDOW, seed, epoch))
    windows = [blocks[first : first + WINDOW_BLOCKS] for first in range(0, len(blocks), WINDOW_BLOCKS)]
    return np.concatenate(
        [rng.permutation(np.concatenate([np.arange(starts[b], starts[b + 1]) for b in window])) for window in windows]
    )
