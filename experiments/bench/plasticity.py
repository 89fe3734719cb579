"""What `plasticity` costs: many seeds on a machine, against plain JAX, against PyTorch, and what its records add.

The learner is NaP's on random labels: an MLP of 784 inputs, two hidden layers and 10 outputs, with Adam. Its images are
random, so that no data set is needed: what they show does not change what an update costs.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import statistics
import unittest.mock
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.datasets import Dataset
from envs.streams import Protocol, Stream, make_stream
from experiments import harness
from experiments.bench import by_hand, in_torch
from experiments.harness.cores import cores_here
from experiments.harness.learner import Learner, Score
from experiments.harness.methods import OptimizerConfig
from experiments.harness.seeds import Seeds, use_all_cores
from experiments.harness.tasks import make_start, make_stretch
from experiments.harness.timing import Goal, Row, interleaved, left_out, rates, scaled
from experiments.plasticity import Config, build_learner, presets, resolve
from nap import paths

SEEDS = 10
EXAMPLES, PIXELS = 1200, (28, 28, 1)
TORCH_UPDATES, TORCH_WIDE_UPDATES = 750, 150  # in each repeat
CONV_UPDATES = 75  # likewise: an epoch
MANY = 1_000_000  # tasks: more than are run


def rows(repeats: int) -> Iterator[Row]:
    """All measurements of this file."""
    # In a process of its own: that each core is a JAX device has to be said before JAX starts, and might change what
    # the benchmarks measure that use one device.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=start_process) as process:
        for part in PARTS:
            yield from process.submit(part, repeats).result()


def start_process() -> None:
    """Prepares a process as `plasticity` prepares its own."""
    use_all_cores()
    harness.enable_compilation_cache()


def against_plain_jax(repeats: int, config: Config | None = None) -> list[Row]:
    """The product, records included, against the fastest way to write the same in plain JAX."""
    config = config or narrow()
    ways = by_hand.formulations(
        random_images(config).images.reshape(config.protocol.examples, -1),
        jax.vmap(by_hand.start)(first_weights(config, config.seeds)),
        batch_size=config.protocol.batch_size,
        epochs=config.protocol.epochs,
        devices=jax.local_devices()[: config.seeds],
    )
    bare = {f"plain JAX ({name})": learn for name, learn in ways.items()}
    times = interleaved({"product": stretches(config), **bare}, repeats=repeats)
    updates = config.seeds * config.protocol.updates_per_task
    speeds = {name: rates(seconds, updates) for name, seconds in times.items()}
    ours = speeds.pop("product")
    return _against_the_best(config, ours, speeds, Goal(0.90, at_least=True))


def against_torch(repeats: int) -> list[Row]:
    """The product, records included, against PyTorch in eager mode, at two sizes."""
    if importlib.util.find_spec("torch") is None:
        left_out("plasticity", "there is no PyTorch to compare with: pip install torch")
        return []
    small = compare_with_torch(repeats, narrow(), TORCH_UPDATES, Goal(6.0, at_least=True))
    return small + compare_with_torch(repeats, wide(), TORCH_WIDE_UPDATES, Goal(2.3, at_least=True))


def compare_with_torch(repeats: int, config: Config, updates: int, goal: Goal) -> list[Row]:
    """The product against PyTorch's fastest number of threads and Adam, `updates` of them in a repeat.

    PyTorch learns one seed after another, so the rate of one is that of all.
    """
    problem = in_torch.Problem(
        {path: np.asarray(weight[0]) for path, weight in first_weights(config, 1).items()},
        random_images(config).images.reshape(config.protocol.examples, -1),
        config.protocol.batch_size,
    )
    cores = len(cores_here())
    variants = {
        f"PyTorch ({threads} thread{'s' * (threads > 1)}, {'fused' if fused else 'default'} Adam)": (threads, fused)
        for threads in sorted({1, min(2, cores), cores})
        for fused in (False, True)
    }
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:

        def train(threads: int, fused: bool) -> None:
            process.submit(in_torch.train, problem, updates, threads=threads, fused=fused).result()

        torch = {name: functools.partial(train, *variant) for name, variant in variants.items()}
        times = interleaved({"product": stretches(config), **torch}, repeats=repeats)
    ours = rates(times["product"], config.seeds * config.protocol.updates_per_task)
    return _against_the_best(config, ours, {name: rates(times[name], updates) for name in torch}, goal)


def convolutions(repeats: int) -> list[Row]:
    """A CNN's update as the product compiles it, a loop of products of patches, against XLA's own convolutions.

    Those at their best: each update called from Python, where they have both cores.
    """
    protocol = Protocol(tasks=MANY, epochs=1, examples=EXAMPLES, batch_size=16)
    config = dataclasses.replace(narrow(), network="cnn", protocol=protocol, record_every=CONV_UPDATES, seeds=1)
    stream = stream_of(config)
    product = stretches(config, without_records(build_learner(config, stream)))
    with unittest.mock.patch("nap.layers.convolve", _by_xla):
        learner = build_learner(config, stream)
        x, y = (jnp.zeros((16, *shape)) for shape in (stream.input_shape, ()))
        update = jax.jit(learner.update, donate_argnums=0)
        state, _ = update(learner.init(jax.random.key(0)), x, y.astype(jnp.int32))

    def step() -> Any:
        nonlocal state
        for _ in range(CONV_UPDATES):
            state, _ = update(state, x, y.astype(jnp.int32))
        return state

    times = interleaved({"product": product, "XLA's": step}, repeats=repeats)
    ours, plain = (scaled(times[name], 1e3 / CONV_UPDATES) for name in ("product", "XLA's"))
    return [Row("CNN update in a compiled loop, vs XLA's convolutions from Python", "ms", ours, plain)]


def _by_xla(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "VALID") -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def records(repeats: int, config: Config | None = None) -> list[Row]:
    """The quick preset with its records at their default interval, against its updates alone."""
    config = config or resolve(dataclasses.replace(presets("random-labels")["quick"], method="nap", seeds=SEEDS))
    learner = build_learner(config, stream_of(config))
    sides = {"with": stretches(config, learner), "without": stretches(config, without_records(learner))}
    times = interleaved(sides, repeats=repeats)
    each = 1e6 / (config.seeds * config.record_every)
    ours, bare = (scaled(times[name], each) for name in ("with", "without"))
    what = f"update: a record every {config.record_every}, vs none"
    return [Row(what, "µs", ours, bare, Goal(1.05))]


def memory(repeats: int) -> list[Row]:
    """The data on the devices with many seeds against one seed's: a copy a device, none a seed. Counted, not timed."""
    config = narrow()
    data = stream_of(config).data
    shards = {
        seeds: [shard for leaf in jax.tree.leaves(Seeds(seeds).shared(data)) for shard in leaf.addressable_shards]
        for seeds in (SEEDS, 1)
    }
    devices = len({shard.device for shard in shards[SEEDS]})
    many, one = ((sum(shard.data.nbytes for shard in parts) / 1e6,) for parts in shards.values())
    return [Row(f"data on the devices: {SEEDS} seeds on {devices}, vs 1 seed", "MB", many, one, Goal(devices))]


PARTS = (against_plain_jax, against_torch, convolutions, records, memory)


def narrow() -> Config:
    """Width 100, batch 16, 10 seeds; 750 updates a task."""
    return _config((100, 100), Protocol(tasks=MANY, epochs=10, examples=EXAMPLES, batch_size=16), SEEDS)


def wide() -> Config:
    """Width 512, batch 100, a seed on each device (more would take their turns); 720 updates a task."""
    protocol = Protocol(tasks=MANY, epochs=60, examples=EXAMPLES, batch_size=100)
    return _config((512, 512), protocol, min(SEEDS, len(jax.local_devices())))


def random_images(config: Config) -> Dataset:
    """As many images as the protocol asks for."""
    count = config.protocol.examples
    images = np.random.default_rng(0).integers(0, 256, (count, *PIXELS), np.uint8)
    labels = np.arange(count, dtype=np.int32) % by_hand.CLASSES
    return Dataset("random", images, labels, images[:10], labels[:10], by_hand.CLASSES)


def stream_of(config: Config) -> Stream:
    """Random labels on random images."""
    return make_stream("random-labels", config.protocol, random_images(config))


def first_weights(config: Config, seeds: int) -> dict[str, jax.Array]:
    """The weights that so many seeds of the product start from, stacked, by path."""
    keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    own = jax.jit(jax.vmap(make_start(build_learner(config, stream_of(config)))))(keys)
    return paths.leaves(own.state.params)


def stretches(config: Config, learner: Learner | None = None) -> Callable[[], Any]:
    """A function that has all seeds learn the first stretch of one more task, as `plasticity` would."""
    stream = stream_of(config)
    learner = learner or build_learner(config, stream)
    seeds = Seeds(config.seeds)
    data, function = seeds.shared(stream.data), make_stretch(learner, stream, config.record_every)
    start = jax.jit(make_start(learner))
    own, first = seeds.map(lambda _, key: start(key))((), seeds.keys(config.seed)), jnp.zeros([], jnp.int32)
    stretch = seeds.map(function, at_once=seeds.fit(function, data, own, first, first), donate=True)
    tasks = itertools.count()

    def learn() -> Any:
        nonlocal own
        own, row = stretch(data, own, jnp.asarray(next(tasks), jnp.int32), first)
        return own, row

    return learn


def without_records(learner: Learner) -> Learner:
    """The same learner, of which nothing is recorded but the online loss and accuracy."""
    nothing = Score(jnp.zeros([]), jnp.zeros([]))
    return learner._replace(
        measure=lambda state, x, y: (*learner.update(state, x, y), {}),
        score=lambda params, x, y, weight: nothing,
        inspect=lambda params, x: {},
    )


def _config(hidden: tuple[int, ...], protocol: Protocol, seeds: int) -> Config:
    """NaP at the optimizer of the published protocols, with a record at the end of every task."""
    optimizer = OptimizerConfig("adam", lr=by_hand.RATE, optimizer_epsilon=by_hand.ADAM_EPSILON, clip=0.0)
    return Config(
        method="nap",
        seeds=seeds,
        hidden=hidden,
        protocol=protocol,
        optimizer=optimizer,
        record_every=protocol.updates_per_task,
    )


def _against_the_best(
    config: Config, ours: tuple[float, ...], others: Mapping[str, tuple[float, ...]], goal: Goal
) -> list[Row]:
    """Our updates a second against those of the fastest other, which the goal is for; then against the rest."""
    best, *rest = sorted(others, key=lambda name: -statistics.median(others[name]))
    seeds = f"{config.seeds} seed{'s' * (config.seeds > 1)}"
    what = f"nap, width {config.hidden[0]}, batch {config.protocol.batch_size}, {seeds}, vs {best}"
    first = Row(what, "updates/s", ours, others[best], goal)
    return [first, *(Row(f"  vs {name}", "updates/s", ours, others[name]) for name in rest)]
