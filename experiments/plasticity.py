"""Does a method keep a network plastic? Streams of tasks, many seeds, NaP and its rivals.

A network learns one task after another; what it gets right before each update, averaged over a task, is the online
accuracy. A network that keeps its plasticity learns the last task as well as the first. Every option that is given more
than once is an axis of a grid: `--method none --method nap --lr 1e-3 --lr 3e-4 --seeds 10`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from envs.datasets import default_name, load
from envs.fingerprints import of_dataset
from envs.streams import STREAMS, Protocol, Stream, make_stream
from experiments import harness
from experiments.harness.bounds import A_PATH, A_SEED, NOT_EMPTY, SEEDS, at_least, check_bounds, inside, read_if
from experiments.harness.diverged import Diverged, not_finite
from experiments.harness.grid import cells
from experiments.harness.learner import Learner, make_learner
from experiments.harness.memory import bytes_of, require_memory
from experiments.harness.methods import (
    MATCHING,
    NapConfig,
    OptimizerConfig,
    adapt_recipe,
    learning_rate,
    make_optimizer,
    method_label,
    method_names,
    norm_of,
    parse_method,
)
from experiments.harness.rivals import ONCE_A_TASK, RivalsConfig, Setting, has_part
from experiments.harness.seeds import Seeds, seeds_label, use_all_cores
from experiments.harness.sizes import Sized, what_fits
from experiments.harness.tasks import PROTOCOL_BOUNDS, Row, check_length, make_start, make_stretch, nearest_stretch
from experiments.harness.trained import Choice, Saved, Trained
from nap.activations import features_per_unit
from nap.networks import Recipe

SAVE_SECONDS = 60.0
"""A checkpoint is written at the end of a stretch, when this long has passed since the last one."""
LONGEST_STRETCH = 10_000
"""Updates in one call of a compiled function, unless --record-every says more: an interrupt waits for its end."""


_DATA = read_if(lambda config: STREAMS[config.stream].needs_data, "streams of images")
_CNN = read_if(lambda config: config.network == "cnn", "--network cnn")
_ONCE_A_TASK = read_if(
    lambda config: config.reset_head or has_part(config, *ONCE_A_TASK),
    f"--reset-head True, or --method with {' or '.join(ONCE_A_TASK)}",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A cell of the grid: one stream, one method, one learning rate, and all seeds."""

    stream: str = "random-labels"
    """The kind of tasks: one of the list above."""
    data: Annotated[str, A_PATH, _DATA] = ""
    """fashion-mnist, mnist, digits, cifar10, cifar100 or the path of an .npz file; "" for what is on the machine."""
    method: str = "nap"
    """none, layernorm, rmsnorm or nap, and what is joined to it by +: nap+redo, layernorm+l2-init, none+crelu."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. The seeds, the other options and the version of the code determine a run."""
    seeds: Annotated[int, tyro.conf.Suppress, at_least(1, most=SEEDS)] = 1
    """How many seeds, as --seeds says."""
    network: Literal["mlp", "cnn"] = "mlp"
    """mlp; cnn (5x5 convolutions, each with 2x2 max-pooling, then the hidden layers)."""
    channels: Annotated[tuple[int, ...], at_least(1), NOT_EMPTY, _CNN] = (16, 16)
    """Channels of the cnn's convolutions."""
    hidden: Annotated[tuple[int, ...], at_least(1), NOT_EMPTY] = (100, 100)
    """Widths of the hidden dense layers."""
    reset_head: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Draw the output layer anew at the end of every task."""
    protocol: Annotated[Protocol, PROTOCOL_BOUNDS] = dataclasses.field(
        default_factory=lambda: STREAMS["random-labels"].published["quick"].protocol
    )
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    nap: NapConfig = dataclasses.field(default_factory=NapConfig)
    rivals: Annotated[RivalsConfig, inside(every=_ONCE_A_TASK)] = dataclasses.field(default_factory=RivalsConfig)
    record_every: Annotated[int, at_least(0)] = 0
    """Updates between records; 0: once a task, or every 10,000 updates where a task is longer."""

    @property
    def updates(self) -> int:
        """Updates in the run."""
        return self.protocol.tasks * self.protocol.updates_per_task


def main(argv: list[str]) -> int:
    """Run all cells of the grid from the command line; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """The command of each cell of the grid, which makes one run of all its seeds. Raises harness.UserError."""
    use_all_cores()
    jobs = []
    for cell in cells(argv):
        config, options = _parse(cell)
        jobs.append(harness.job_of("plasticity", cell, [check(config, options)], options, _label))
    return jobs


def presets(stream: str) -> dict[str, Config]:
    """The published protocols of a stream, and `quick`: minutes on two cores."""
    return {
        name: Config(
            stream=stream,
            data=published.dataset,
            network=published.network,
            channels=published.channels,
            hidden=published.hidden,
            reset_head=published.reset_head,
            protocol=published.protocol,
            optimizer=OptimizerConfig(published.optimizer, lr=published.lr, optimizer_epsilon=1e-8, clip=0.0),
        )
        for name, published in STREAMS[stream].published.items()
    }


def run(config: Config, options: harness.RunOptions) -> Path:
    """One cell, from its beginning or from where it was left; returns its folder."""
    config = resolve(dataclasses.replace(config, seeds=options.seeds))
    stream, fingerprints = _load(config.stream, config.protocol, config.data)
    harness.enable_compilation_cache()
    with harness.open_run(
        "plasticity", config, options, label=_label(config), total=config.updates, unit="updates", data=fingerprints
    ) as opened:
        if not opened.done:
            _run(config, stream, opened)
        return opened.folder


def resolve(config: Config) -> Config:
    """The configuration with what it leaves open filled in.

    Raises:
        harness.UserError: a value that makes no sense, with the option and the nearest right value.
    """
    check_bounds(config)
    parse_method(config.method)
    if config.stream not in STREAMS:
        raise harness.unknown("a stream", config.stream, STREAMS, option="--stream")
    if config.optimizer.schedule in MATCHING:
        raise harness.UserError(
            f"--schedule {config.optimizer.schedule}: it is for atari; python -m experiments schedule-matching does it "
            "for a stream of tasks"
        )
    check_length(config.protocol)
    data = (config.data or default_name()) if STREAMS[config.stream].needs_data else ""
    steps, epochs = config.protocol.steps_per_epoch, config.protocol.epochs
    wished = config.record_every or min(steps * epochs, LONGEST_STRETCH)
    record_every = nearest_stretch(wished, steps, epochs)
    if config.record_every and record_every != config.record_every:
        raise harness.UserError(
            f"--record-every {config.record_every}: it must divide an epoch ({steps} updates) or be whole epochs that "
            f"divide a task ({epochs} epochs); the nearest is {record_every}"
        )
    return dataclasses.replace(config, data=data, record_every=record_every)


def check(config: Config, options: harness.RunOptions) -> Config:
    """The resolved configuration of a cell that can run: its stream and its network have been built."""
    config = resolve(dataclasses.replace(config, seeds=options.seeds))
    build_learner(config, build_stream(config.stream, config.protocol, config.data))
    return config


def build_stream(stream: str, protocol: Protocol, data: str) -> Stream:
    """A stream with its data on the device; the cells of a grid share it."""
    return _load(stream, protocol, data)[0]


def memory_needed(config: Config) -> dict[str, int]:
    """What a run takes of a device's memory at least: the data, all seeds' states, and a task and an epoch's order."""
    stream = build_stream(config.stream, config.protocol, config.data)
    seeds, key, number = Seeds(config.seeds), jax.random.key(0), jnp.zeros([], jnp.int32)
    own = jax.eval_shape(make_start(build_learner(config, stream)), key)
    task = jax.eval_shape(stream.begin, stream.data, key, number)
    order = jax.eval_shape(stream.order, stream.data, task, key)
    return {
        "data": (seeds.at_once - 1) * bytes_of(stream.data),  # one copy is there already
        "networks and optimizers": seeds.in_memory * bytes_of(own),
        "tasks": seeds.at_once * bytes_of((task, order)),
    }


def build_learner(config: Config, stream: Stream) -> Learner:
    """The network and the optimizer of a configuration."""
    method = parse_method(config.method)
    if config.reset_head and "reset-head" not in method.interventions:
        method = parse_method(f"{config.method}+reset-head")
    try:
        network = recipe_of(config, stream.input_shape, stream.outputs).functions()
    except ValueError as error:
        raise harness.UserError(f"--network {config.network}: {error}") from None

    def optimizer(key: jax.Array) -> optax.GradientTransformation:
        setting = Setting(network, key, config.updates, config.protocol.updates_per_task)
        return make_optimizer(method, config.optimizer, config.nap, config.rivals, setting)

    return make_learner(network, optimizer, stream.loss, features_per_unit=features_per_unit(method.activation))


@functools.lru_cache(maxsize=2)
def _load(stream: str, protocol: Protocol, data: str) -> tuple[Stream, Mapping[str, str]]:
    """A stream, and a fingerprint of its data by the option that names them."""
    try:
        if not data:
            return make_stream(stream, protocol), {}
        dataset = load(data)
        return make_stream(stream, protocol, dataset), {"--data": of_dataset(dataset)}
    except ValueError as error:
        raise harness.UserError(str(error)) from None


def recipe_of(config: Config, input_shape: Sequence[int], outputs: int) -> Recipe:
    """How the network is made, as the method trains it."""
    method = parse_method(config.method)
    common = {"outputs": outputs, "hidden": config.hidden}
    common |= {"norm": norm_of(method, config.nap), "activation": method.activation}
    if config.network == "cnn":
        recipe = Recipe("CNN", {"shape": tuple(input_shape), "channels": config.channels, **common})
    else:
        recipe = Recipe("MLP", {"inputs": math.prod(input_shape), **common})
    return adapt_recipe(method, recipe)


def trained(config: Config, saved: Saved, choice: Choice) -> Trained:
    """What a run has trained; see `experiments.harness.trained`. The inputs are those of the stream.

    Raises:
        harness.UserError: the data of a convolutional network, which alone say how large its images are, is not here.
    """
    params = choice.of_seed(saved.read("0/params"))
    inner = {path.removeprefix("first/"): array.shape for path, array in params.items()}  # of plasticity-injection
    if config.network == "cnn":
        shape = build_stream(config.stream, config.protocol, config.data).input_shape
    else:
        shape = inner["hidden/0/kernel"][:1]
    return Trained(recipe_of(config, shape, inner["output/kernel"][-1]), params)


def _main(argv: list[str]) -> int:
    _load.cache_clear()  # files may have changed since the last command of this process
    use_all_cores()
    grid = [_parse(cell) for cell in cells(argv)]
    for config, options in grid:  # all of them before the first one runs
        check(config, options)
    folders: list[Path] = []

    def run_cell(number: int, config: Config, options: harness.RunOptions) -> None:
        if len(grid) > 1:
            print(f"[{number}/{len(grid)}] {config.stream} {config.method} lr {config.optimizer.lr:g}", file=sys.stderr)
        folders.append(run(config, options))

    exit_code = harness.each_alone(functools.partial(run_cell, i, *cell) for i, cell in enumerate(grid, start=1))
    if folders:
        from experiments.harness.scoreboard import scoreboard  # polars and scipy: not for --help

        print(f"{scoreboard(folders)}\n")
        harness.tell_end(*folders)
    return exit_code


def _label(config: Config) -> str:
    method, optimizer = method_label(config.method, config.optimizer), config.optimizer
    seeds = seeds_label(config.seed, config.seeds)
    return f"{config.stream}-{method}-{optimizer.optimizer}-lr{optimizer.lr:g}-{seeds}"


def _parse(argv: list[str]) -> tuple[Config, harness.RunOptions]:
    """The configuration of one cell: the stream's preset, then the options."""
    stream = Config.stream if (given := _given("--stream", argv)) is None else given
    if stream not in STREAMS:
        raise harness.unknown("a stream", stream, STREAMS, option="--stream")
    if _given("--preset", argv) is None:
        argv = ["--preset", "quick", *argv]
    streams = "\n".join(f"  {name}: {kind.summary} ({', '.join(kind.published)})" for name, kind in STREAMS.items())
    joined = ", ".join(method_names())
    lists = f"Streams, and the presets of each:\n{streams}\n\nMethods, and what they can be joined with: {joined}"
    return harness.parse_command(
        Config, argv, name="plasticity", description=f"{__doc__}\n{lists}", presets=presets(stream)
    )


def _given(option: str, argv: list[str]) -> str | None:
    for position, word in enumerate(argv):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and position + 1 < len(argv):
            return argv[position + 1]
    return None


def _run(config: Config, stream: Stream, opened: harness.Run) -> None:
    sized = [Sized(name) for name in ("seeds", "hidden", "channels")]
    if not STREAMS[config.stream].needs_data:
        sized += [Sized("protocol.examples", least=config.protocol.batch_size), Sized("protocol.features")]
        sized += [Sized("protocol.inputs", least=config.protocol.slow_bits)]
    require_memory(memory_needed(config), jax.local_devices()[0], what_fits(config, memory_needed, sized))
    learner = build_learner(config, stream)
    seeds = Seeds(config.seeds)
    data = seeds.shared(stream.data)
    function = make_stretch(learner, stream, config.record_every)
    own = seeds.map(lambda _, key: make_start(learner)(key))((), seeds.keys(config.seed))
    first = jnp.zeros([], jnp.int32)
    stretch = seeds.map(function, at_once=seeds.fit(function, data, own, first, first), donate=True)
    recorder = _Recorder(config, stream, opened)
    saved = seeds.drop_padding(own.state), recorder.totals, recorder.diverged.seeds
    done, (saved, recorder.totals, recorder.diverged.seeds) = opened.restore(saved)
    own = own._replace(state=seeds.pad(saved, own.state))
    stretches = config.updates // config.record_every
    while done < stretches:
        task, start = divmod(done * config.record_every, config.protocol.updates_per_task)
        own, row = stretch(data, own, jnp.asarray(task, jnp.int32), jnp.asarray(start, jnp.int32))
        recorder.add(task, start + config.record_every, row)
        done += 1
        if done == stretches or opened.save_due(SAVE_SECONDS):
            recorder.flush()
            opened.save(done, (seeds.drop_padding(own.state), recorder.totals, recorder.diverged.seeds))
            opened.check_interrupted()
    opened.finish(recorder.summary())


class _Recorder:
    """Writes down each stretch once the next one is running, so that the device does not wait for it.

    Attributes:
        totals: what the summary is made from: sums over the scored tasks so far, shape [seeds].
        diverged: the seeds that have diverged.
    """

    def __init__(self, config: Config, stream: Stream, opened: harness.Run) -> None:
        self._config, self._stream, self._opened = config, stream, opened
        self._rate = learning_rate(config.optimizer, config.updates)
        self._waiting: tuple[int, int, Row] | None = None
        self.diverged = Diverged(opened, config.seed, config.seeds)
        self.totals = {name: np.zeros(config.seeds) for name in ("stretches", "online_loss", "online_accuracy", "loss")}

    def add(self, task: int, task_updates: int, row: Row) -> None:
        """Takes the stretch that has just been started, and writes down the one before."""
        self.flush()
        self._waiting = task, task_updates, row

    def flush(self) -> None:
        """Writes down the stretch that is waiting."""
        if self._waiting is None:
            return
        task, task_updates, row = self._waiting
        self._waiting = None
        found = {name: np.asarray(value)[: self._config.seeds] for name, value in jax.device_get(row).items()}
        self.diverged.add(not_finite((found["loss"], found["online_loss"])))
        values = {name: self.diverged.scores(value) for name, value in found.items()}
        updates = task * self._config.protocol.updates_per_task + task_updates
        place = {"task": task + 1, "updates": updates, "task_updates": task_updates}
        place["scored"] = bool(self._stream.scored(task))
        rate = np.asarray(self._rate(updates - 1)).item()
        for i in range(self._config.seeds):
            numbers = {name: value[i] for name, value in values.items()}
            self._opened.record(
                {"phase": "task", "seed": self._config.seed + i, **place, "learning_rate": rate, **numbers}
            )
        self.diverged.tell(updates)
        if place["scored"]:
            self.totals["stretches"] += 1
            for name in ("online_loss", "online_accuracy"):
                self.totals[name] += values[name]
        self.totals["loss"] = values["loss"].astype(float)
        shown = values["online_loss" if self._stream.loss == "squared-error" else "online_accuracy"]
        what = "loss" if self._stream.loss == "squared-error" else "accuracy"
        at = f"{task + 1}/{self._stream.tasks}"
        self._opened.progress.update(updates=updates, task=at, **{what: np.nanmean(shown)})

    def summary(self) -> dict[str, float | int]:
        """Averages over the scored tasks and the seeds."""
        stretches = self.totals["stretches"]
        return {
            "seeds": self._config.seeds,
            "tasks": self._stream.tasks,
            "average_online_accuracy": float(np.mean(self.totals["online_accuracy"] / stretches)),
            "average_online_loss": float(np.mean(self.totals["online_loss"] / stretches)),
            "last_loss": float(np.mean(self.totals["loss"])),
        }
