"""What a task stream is, and what a published protocol fixes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

PyTree = Any


def always(index: int) -> bool:
    """Every task is scored."""
    return True


class Stream(NamedTuple):
    """A sequence of tasks, as pure functions of a seed's key and the task's index.

    All functions run under `jit`, `vmap` over keys (with `data` unmapped) and over indices, and `scan`:

        task = stream.begin(stream.data, key, index)
        items = stream.order(stream.data, task, epoch_key)   # a new key for each epoch
        x, y = stream.batch(stream.data, task, jax.tree.map(lambda leaf: leaf[step], items))

    Attributes:
      name: as in `STREAMS`.
      data: arrays on the device, images as uint8. It is handed to the functions and never closed over: so a jit does
        not bake it in as a constant, and a vmap over seeds does not copy it.
      input_shape: of one example as a network gets it; images keep [height, width, channels].
      outputs: classes, or the size of a regression's target.
      loss: what the outputs are trained on.
      tasks: how many there are; indices run from 0 to tasks - 1.
      epochs: of each task.
      steps: updates in an epoch.
      batch_size: examples in an update.
      begin: (data, key, index) -> task, a pytree of arrays (rows, labels, a permutation, ...). `key` is the seed's, the
        same for all of its tasks: what the tasks share comes from it, the rest from it and the index.
      order: (data, task, key) -> one epoch's examples, a pytree with the leading axis [steps].
      batch: (data, task, item) -> (x, y), `item` being one step of `order`'s result. x is float32
        [batch_size, *input_shape], y int32 [batch_size] or float32 [batch_size, outputs].
      test: (data, task) -> (x, y, weight), examples held out from training, as this task has them. Their number is
        fixed; weight is float32 [number], 0 for those that the task leaves out and otherwise 1. None where there is
        nothing to generalise to.
      scored: whether a task's result counts (five-plus-one scores its hard tasks only).
    """

    name: str
    data: PyTree
    input_shape: tuple[int, ...]
    outputs: int
    loss: Literal["cross-entropy", "squared-error"]
    tasks: int
    epochs: int
    steps: int
    batch_size: int
    begin: Callable[[PyTree, Any, Any], PyTree]
    order: Callable[[PyTree, PyTree, Any], PyTree]
    batch: Callable[[PyTree, PyTree, PyTree], tuple[Any, Any]]
    test: Callable[[PyTree, PyTree], tuple[Any, Any, Any]] | None
    scored: Callable[[int], bool] = always


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The numbers of a stream.

    Attributes:
      tasks: how many.
      epochs: of each task.
      examples: training examples of a task; where the pool grows, of the last task.
      batch_size: examples in an update.
      steps: updates in an epoch; None for one pass over the examples, what is left over by the batch size dropped.
      classes_per_task: class-incremental: classes that each task adds.
      easy_examples: five-plus-one: training images of an easy task.
      blend: interpolated-permutations: tasks from one permutation to the next.
      inputs: regressions: input dimensions.
      slow_bits: slowly-changing-regression: inputs that stay as they are within a task.
      change: slowly-changing-regression: whether a new task flips one slow bit or draws all of them anew.
      features: slowly-changing-regression: hidden units of the target network.
      beta: slowly-changing-regression: its threshold, as a share of the inputs.
      frequency: growing-offset: standard deviation of the sinusoid's argument.
      growth: growing-offset: what each task adds to the offset.

    Raises:
      ValueError: a number below 1 that counts something.
    """

    tasks: int
    epochs: int
    examples: int
    batch_size: int
    steps: int | None = None
    classes_per_task: int = 1
    easy_examples: int = 1
    blend: int = 1
    inputs: int = 20
    slow_bits: int = 15
    change: Literal["flip", "resample"] = "flip"
    features: int = 100
    beta: float = 0.7
    frequency: float = 5.0
    growth: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what no stream could run on."""
        counts = ("tasks", "epochs", "examples", "batch_size", "classes_per_task", "easy_examples", "blend", "inputs")
        for name in (*counts, "features", *([] if self.steps is None else ["steps"])):
            if getattr(self, name) < 1:
                raise ValueError(f"Protocol: {name} is {getattr(self, name)}, must be at least 1")
        if self.batch_size > self.examples:
            raise ValueError(
                f"Protocol: batch_size is {self.batch_size}, must be at most examples; nearest: {self.examples}"
            )
        whole = self.examples // self.batch_size
        if self.steps is not None and self.steps > whole:
            raise ValueError(
                f"Protocol: steps is {self.steps}, {self.examples} examples make {whole} batches of "
                f"{self.batch_size}; nearest: {whole}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self.examples // self.batch_size if self.steps is None else self.steps

    @property
    def updates_per_task(self) -> int:
        """Updates in a task."""
        return self.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Published:
    """A protocol with the data and the learner that it was published with.

    Attributes:
      protocol: the numbers of the stream.
      hidden: widths of the network's hidden dense layers.
      optimizer: "momentum" is SGD with momentum 0.9.
      lr: its learning rate; where several were published, the first of them.
      source: where the numbers come from, and what is ours where the source is silent.
      dataset: as `envs.datasets.load` takes it; "" for `envs.datasets.default_name()`.
      reset_head: whether the output layer is set back at every new task.
      network: the kind of network.
      channels: of the convolutions of a "cnn", which are 5x5 here, padded, and each followed by 2x2 max-pooling.
    """

    protocol: Protocol
    _: dataclasses.KW_ONLY
    hidden: tuple[int, ...]
    optimizer: Literal["adam", "sgd", "momentum"]
    lr: float
    source: str
    dataset: str = ""
    reset_head: bool = False
    network: Literal["mlp", "cnn"] = "mlp"
    channels: tuple[int, ...] = (16, 16)
