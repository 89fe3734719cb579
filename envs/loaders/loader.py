"""What a loader is: batches in an order that a seed fixes, which go on from any position.

    loader = training_images(load("cifar10"), 128, seed=0, augment=True)
    with contextlib.closing(loader.batches(loader.start)) as batches:  # at the end, worker processes end too
        for batch, position in batches:
            ...  # `position` goes into the checkpoint; `loader.batches(position)` goes on behind this batch

Which examples are in a batch, and how each is cropped, is a function of the seed and of the batch's number. So worker
processes change nothing but the speed, and a process that takes its share of each batch needs to know only its number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

Position = tuple[int, ...]
"""Where a loader is: a few whole numbers, equal in all processes."""

# The first word of a random generator's seed tells what it draws. Without it the seeds (1, 2) and (1, 2, 0) are one.
ORDER, AUGMENTATION, SHARDS, WINDOW = range(4)
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # what they ask for is not the workers' to do


class Loader(NamedTuple):
    """Batches of training, without an end, or of one pass over held-out examples.

    Attributes:
        batches: (position) -> the batches from there on, each with the position behind it.
        start: the position before the first batch.
        steps_per_epoch: how many batches hold each example once; None where nobody can say, as for a stream. An epoch
            need not end with a batch: its last examples are then in one batch with the first ones of the next epoch.
    """

    batches: Callable[[Position], Generator[tuple[Any, Position], None, None]]
    start: Position
    steps_per_epoch: float | None


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of each batch that one of several processes reads.

    Attributes:
        process: which one, from 0.
        processes: how many there are.

    Raises:
        ValueError: there is no such process.
    """

    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not 0 <= self.process < self.processes:
            raise ValueError(f"process {self.process} of {self.processes}: must lie in 0 to {self.processes - 1}")

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch: the first process has the first ones.

        Raises:
            ValueError: the batch can't be divided evenly.
        """
        part = batch_size // self.processes
        if part < 1 or part * self.processes != batch_size:
            raise ValueError(
                f"a batch of {batch_size} can't be divided among {self.processes} processes; "
                f"nearest: {max(1, part) * self.processes}"
            )
        return slice(self.process * part, (self.process + 1) * part)


WHOLE = Share()
"""All of each batch: there is one process."""


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, examples: int) -> Int64[np.ndarray, " examples"]:
    """All examples, in the random order of one epoch; read-only."""
    order = np.random.default_rng((ORDER, seed, epoch)).permutation(examples)
    order.flags.writeable = False
    return order


def drawn(
    step: int, batch_size: int, share: Share, examples: int, order: Callable[[int], np.ndarray]
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """The rows of a training batch: for each, the epoch that it belongs to, and the example.

    Args:
        step: the batch's number, from 0.
        batch_size: rows of the whole batch.
        share: those wanted.
        examples: how many an epoch has.
        order: (epoch) -> the examples in that epoch's order.
    """
    places = step * batch_size + np.arange(batch_size)[share.rows(batch_size)]
    epochs, places = np.divmod(places, examples)
    there = range(int(epochs[0]), int(epochs[-1]) + 1)
    return epochs, np.concatenate([order(epoch)[places[epochs == epoch]] for epoch in there])


def in_turn(
    step: int, batch_size: int, share: Share, examples: int
) -> tuple[Int64[np.ndarray, " rows"], Float32[np.ndarray, " rows"]]:
    """The rows of a batch of held-out examples, which are not shuffled; and weights: 0 where the last is filled up."""
    places = step * batch_size + np.arange(batch_size)[share.rows(batch_size)]
    there = places < examples
    return np.where(there, places, 0), there.astype(np.float32)


def endless(batch_at: Callable[[int], Any], batch_size: int, examples: int, *, workers: int = 0) -> Loader:
    """Training on examples that can be reached in any order.

    Args:
        batch_at: (number of the batch, from 0) -> the batch. With workers: something that can be pickled.
        batch_size: rows of a batch, in all processes together.
        examples: how many there are.
        workers: processes that compute the batches ahead of time; 0: none, each is computed when it is asked for.

    Raises:
        ValueError: workers without grain, or no examples.
    """
    return _numbered(batch_at, batch_size, examples, sys.maxsize, workers)


def one_pass(batch_at: Callable[[int], Any], batch_size: int, examples: int, *, workers: int = 0) -> Loader:
    """One pass over held-out examples, the last batch filled up; see `endless` and `in_turn`."""
    return _numbered(batch_at, batch_size, examples, -(-examples // batch_size), workers)


def extra(module: str, what: str) -> Any:
    """Imports a package of the extra `data`.

    Raises:
        ValueError: it, or a module that it needs itself, is not installed; the line says which, for what it is needed
            and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        package = {"PIL": "pillow", "absl": "absl-py"}.get(root, root)
        missing = error.name or module
        itself = f"{module}.".startswith(f"{missing}.")
        needed = package if itself else f"{package}, which can't be imported without {missing}"
        raise ValueError(f"{what} needs {needed}: `pip install {package}`, or the extra data") from error


def _numbered(batch_at: Callable[[int], Any], batch_size: int, examples: int, stop: int, workers: int) -> Loader:
    if examples < 1:
        raise ValueError("no examples to load")
    if workers:
        extra("grain", f"loading with {workers} workers")

    def batches(position: Position) -> Generator[tuple[Any, Position], None, None]:
        steps = range(int(position[0]), stop)
        computed = _in_workers(batch_at, steps, workers) if workers and steps else (batch_at(step) for step in steps)
        # Closed with this generator, and not when garbage is collected: workers end when the loop over them does.
        with contextlib.closing(computed):
            for step, batch in zip(steps, computed, strict=False):
                yield batch, (step + 1,)

    return Loader(batches, (0,), examples / batch_size)


def _in_workers(batch_at: Callable[[int], Any], steps: range, workers: int) -> Generator[Any, None, None]:
    """The batches in their order: worker 0 computes the first, worker 1 the second, and so on in turn."""
    grain, flags = extra("grain", "workers"), extra("absl.flags", "grain")
    # Grain asks for flags of the command line that absl never parsed here: ours is tyro's.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    one_at_a_time = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    numbers = grain.MapDataset.range(steps.start, steps.stop).map(batch_at).to_iter_dataset(one_at_a_time)
    ahead = grain.MultiprocessingOptions(num_workers=min(workers, len(steps)), per_worker_buffer_size=2)
    iterator = iter(numbers.mp_prefetch(ahead, worker_init_fn=_stay_with_parent))
    try:
        # Workers begin with these signals blocked: one that came before `_stay_with_parent` would end them. Python's
        # tracker of shared memory, where it starts with the first of them, would unblock them for all.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            first = next(iterator)  # which starts them all
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield first
        yield from iterator
    finally:
        iterator.close()


def _stay_with_parent(worker: int, workers: int) -> None:
    """In a worker: it leaves signals to its parent; and it ends when its parent does, however that is."""
    for asked in _PARENTS_SIGNALS:
        signal.signal(asked, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
