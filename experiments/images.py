"""ResNets on labelled images: does Normalize-and-Project cost anything where nothing changes?

`--method none` is the network as published, with BatchNorm; `layernorm` normalizes by LayerNorm and leaves the weights
free; `nap` projects them too. Held-out loss and accuracy are recorded beside weight norms and effective learning rates.
(After Normalize-and-Project, arXiv 2407.01800, table 1.)

The weight decay of 5e-4 that a baseline usually has is a rival: `--method none+l2 --l2-strength 5e-4`; or
`--method none+weight-decay --weight-decay 5e-3`, ten times as much as it stands behind the momentum of 0.9, which does
not add it up. Both leave normalizations alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs.datasets import default_name, load
from envs.fingerprints import of_dataset
from envs.loaders import (
    PUBLISHED,
    ImageBatch,
    held_out_image_files,
    held_out_images,
    load_image_files,
    normalize,
    statistics,
    training_image_files,
    training_images,
)
from experiments import harness
from experiments.datasets import NAMES
from experiments.harness.bounds import A_PATH, A_SEED, at_least, read_if
from experiments.harness.data import refused, say_unread
from experiments.harness.methods import NapConfig, OptimizerConfig, learning_rate, norm_of, parse_method
from experiments.harness.processes import together
from experiments.harness.rivals import RivalsConfig
from experiments.harness.sizes import Sized
from experiments.harness.supervised import Judged, Task, TrainingConfig, check, evaluated_in
from experiments.harness.trained import Choice, Saved, Trained
from experiments.harness.training import Data, TrainingOptions, devices_of, jobs_of_seeds, run_to_end, share
from experiments.harness.training_memory import memory_needed
from nap.networks import Recipe, StatefulNetwork
from nap.networks.resnet import Stem, resnet_18, resnet_50

NETWORKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "resnet-8": {"blocks": (1, 1, 1), "width": 16},
        "resnet-18": resnet_18.keywords,
        "resnet-50": resnet_50.keywords,
    }
)
"""Arguments of `nap.networks.ResNet`."""
CROPPED = ("cifar10", "cifar100")
"""The data sets whose images are cropped and mirrored for training where `--augmentation auto` decides."""
FILES = "imagenet"


# Here, since what stands in an annotation does not see this module's names when it is called.
_OF_FILES = read_if(lambda config: _is_files(config), "image files")
_IN_MEMORY = read_if(lambda config: not _is_files(config), "images that are no files of their own")


@dataclasses.dataclass(frozen=True)
class Config:
    """Images, a network and a method."""

    data: Annotated[str, A_PATH] = ""
    """fashion-mnist, mnist, digits, cifar10, cifar100; a file .npz; imagenet, or a folder of image files; if not given,
    fashion-mnist where it is, else digits. `python -m experiments datasets` tells what is there."""
    network: str = "resnet-8"
    """resnet-8 (three stages of one block, 16 to 64 channels), resnet-18, resnet-50."""
    method: str = "nap"
    """none: the network with BatchNorm; layernorm, rmsnorm: with that instead; nap: that, and projection. With
    interventions joined by +: none+l2, nap+l2-init."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. Seed, options and data determine a run."""
    updates: Annotated[int, at_least(1)] = 2_000
    """Length of the run."""
    label_smoothing: Annotated[float, at_least(0, below=1)] = 0.0
    """Share of each label that is spread evenly over all classes."""
    augmentation: Annotated[Literal["auto", "none", "crop-and-flip"], _IN_MEMORY] = "auto"
    """crop-and-flip: crops out of 4 black pixels around the image, half of them mirrored; auto: for cifar only. Image
    files always have crops of all shapes."""
    image_size: Annotated[int, at_least(8), _OF_FILES] = 224
    """Rows and columns of image files once they are cropped."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; weights are float32."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig("momentum", lr=0.1, schedule="warmup-cosine", lr_end=0.0, clip=0.0)
    )
    nap: NapConfig = dataclasses.field(default_factory=NapConfig)
    rivals: RivalsConfig = dataclasses.field(default_factory=RivalsConfig)


_LOADED = read_if(lambda command: _is_files(command.config), "image files")


@dataclasses.dataclass(frozen=True)
class Options(TrainingOptions):
    """What the experiment takes beside its configuration."""

    loaders: Annotated[int, at_least(0, most=1024), _LOADED] = 0
    """Processes that decode image files, about one a core; 0: this one decodes."""


PRESETS = {
    "default": Config(),
    "quick": Config(updates=400, training=TrainingConfig(batch_size=64, evaluations=4, log_every=20)),
    "cifar10": Config(
        data="cifar10", network="resnet-18", updates=78_200, training=TrainingConfig(evaluations=50, log_every=100)
    ),
    "imagenet": Config(
        data=FILES,
        network="resnet-50",
        updates=112_600,
        label_smoothing=0.1,
        dtype="bfloat16",
        training=TrainingConfig(batch_size=1024, evaluations=30, log_every=100),
        optimizer=OptimizerConfig("momentum", lr=0.4, schedule="warmup-cosine", lr_end=0.0, clip=0.0),
    ),
}
"""quick: minutes on two cores. cifar10: 200 epochs. imagenet: 90 epochs, its learning rate 0.1 for each 256 images of a
batch (Goyal et al., 2017)."""


class Loaded(NamedTuple):
    """Images that are there.

    Attributes:
        data: the batches.
        task: (network) -> what is learned.
        classes: how many there are.
        channels: of an image.
        row: (configuration) -> the shapes of an example in a batch.
    """

    data: Data
    task: Callable[[StatefulNetwork], Task]
    classes: int
    channels: int
    row: Callable[[Config], ImageBatch]


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit code."""
    return harness.run_command(
        run, Config, argv, name="images", description=__doc__, presets=PRESETS, options_type=Options
    )


def plan(argv: list[str]) -> list[harness.Job]:
    """A command for each seed of a command line. Raises harness.UserError."""
    config, options = harness.parse_command(
        Config, argv, name="images", description=__doc__, presets=PRESETS, options_type=Options
    )
    return jobs_of_seeds("images", argv, resolve(config), options, _label)


def run(config: Config, options: Options) -> Path:
    """A run, from its beginning or from where it was left; returns its folder. Raises harness.UserError."""
    config = resolve(config)
    mesh = devices_of(config.training, options)  # before anything is loaded
    harness.enable_compilation_cache()
    loaded = together(lambda: load_images(config, options))

    def task_of(config: Config) -> Task:
        return loaded.task(network_of(config, loaded))

    def needs(config: Config) -> dict[str, int]:
        return memory_needed(task_of(config), config, loaded.row(config), mesh, shard=options.shard)

    sized = [Sized("training.batch_size", step=config.training.accumulate)]
    sized += [Sized("image_size", least=8)] if _is_files(config) else []
    return run_to_end("images", config, options, task_of, loaded.data, label=_label(config), needs=needs, sized=sized)


def resolve(config: Config) -> Config:
    """The configuration with what it leaves open filled in.

    Raises:
        harness.UserError: a value that makes no sense, with the option.
    """
    if config.network not in NETWORKS:
        raise harness.unknown("a network", config.network, NETWORKS, option="--network")
    check(config)
    learning_rate(config.optimizer, config.updates)
    data = config.data or default_name()
    cropped = "crop-and-flip" if data in CROPPED else "none"
    augmentation = cropped if config.augmentation == "auto" else config.augmentation
    return dataclasses.replace(config, data=data, augmentation=augmentation)


def network_of(config: Config, loaded: Loaded) -> StatefulNetwork:
    """The network, as the method trains it. Raises harness.UserError for an activation that does not fit."""
    stem = "imagenet" if _is_files(config) else "cifar"
    try:
        return recipe_of(config, loaded.classes, loaded.channels, stem).stateful_functions()
    except ValueError as error:
        raise harness.UserError(f"--method {config.method}: {error}") from None


def recipe_of(config: Config, classes: int, channels: int, stem: Stem) -> Recipe:
    """How the network is made, as the method trains it."""
    method = parse_method(config.method)
    arguments = {
        "outputs": classes,
        "channels": channels,
        "stem": stem,
        "norm": "batch" if method.base == "none" else norm_of(method, config.nap),
        "activation": method.activation,
        "dtype": config.dtype,
    }
    return Recipe("ResNet", {**NETWORKS[config.network], **arguments})


def trained(config: Config, saved: Saved, choice: Choice) -> Trained:
    """What a run has trained; see `experiments.harness.trained`. Inputs are images as `normalize` makes them."""
    params, rest = evaluated_in(saved, config.training)
    height, _, channels, _ = params["stem/kernel"].shape
    recipe = recipe_of(config, params["output/kernel"].shape[-1], channels, "imagenet" if height == 7 else "cifar")
    return Trained(recipe, params, rest)


def load_images(config: Config, options: Options) -> Loaded:
    """The images of a resolved configuration. Raises harness.UserError where they are not there, or damaged."""
    batch_size, part = config.training.batch_size, config.training.part
    try:
        if _is_files(config):
            files = load_image_files(None if config.data == FILES else Path(config.data))
            how: dict[str, Any] = {"workers": options.loaders, "size": config.image_size, "share": share()}
            train_loader = training_image_files(files.train, batch_size, seed=config.seed, **how)
            held_out = held_out_image_files(files.held_out, part, **how)
            classes, channels, constants, told = files.classes, 3, PUBLISHED[FILES], files.fingerprint
            say_unread("--data", config.data, files.unread)
        else:
            dataset = load(config.data)
            augment = config.augmentation == "crop-and-flip"
            train_loader = training_images(dataset, batch_size, seed=config.seed, augment=augment, share=share())
            held_out = held_out_images(dataset, part, share=share())
            classes, channels, constants = dataset.classes, dataset.images.shape[-1], statistics(dataset)
            told = of_dataset(dataset)
    except ValueError as error:
        raise refused("--data", config.data, error) from None

    def task(network: StatefulNetwork) -> Task:
        judging = functools.partial(judge, smoothing=config.label_smoothing)
        return Task(network, lambda batch: normalize(batch.images, constants), judging)

    def row(config: Config) -> ImageBatch:
        shape = (config.image_size, config.image_size, channels) if _is_files(config) else dataset.images.shape[1:]
        one: Any = jax.ShapeDtypeStruct
        return ImageBatch(one(shape, np.uint8), one((), np.int32), one((), np.float32))

    return Loaded(Data(train_loader, held_out, "examples", {"--data": told}), task, classes, channels, row)


def judge(logits: jax.Array, batch: ImageBatch, *, smoothing: float = 0.0) -> Judged:
    """Cross-entropy and correctness of each image; `smoothing` of the label is spread over all classes."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    spread = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32)
    return Judged((1 - smoothing) * loss + smoothing * spread, loss, correct)


def _is_files(config: Config) -> bool:
    """Whether images are files that are decoded as they are needed: a data set's name is not that of a folder."""
    return config.data == FILES or (config.data not in NAMES and Path(config.data).is_dir())


def _label(config: Config) -> str:
    return f"{Path(config.data).stem}-{config.network}-{config.method}-seed{config.seed}"
