"""Are growing norms a learning-rate schedule? A free network, and projected ones that follow its norms.

A normalized network learns random labels, a new set in every task, and its hidden weights grow: `layernorm`, the free
run. Projected networks start from the same weights and see the same batches: `nap` at the constant rate,
`nap+matching` with each layer's rate times rho / ||W(t)|| of the free run (squared for SGD and momentum), and
`nap+global-matching` with one multiplier for all hidden layers, the geometric mean of theirs. (After
Normalize-and-Project, arXiv 2407.01800, figure 3.)

With plain SGD the matched run makes the free run's function at every step, up to rounding. That needs all else to be
the same: the output layer, scales and offsets are not projected and keep the written rate in every variant, and
gradients are not clipped, as a gradient's norm depends on the weights' scale. Momentum and Adam average gradients of
several scales, so that their match is a near one. Rounding errors grow as the runs go on, exponentially where the rate
is high; ReLU adds jumps, wherever a pre-activation falls on the other side of zero, hence the smooth default.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nap
from envs.datasets import Dataset, load
from envs.fingerprints import of_dataset
from envs.streams import Protocol, Stream, make_stream
from experiments import harness
from experiments.harness.bounds import A_PATH, A_SEED, NOT_EMPTY, SEEDS, at_least, check_bounds
from experiments.harness.divisors import divisors
from experiments.harness.learner import LearnerState, make_learner
from experiments.harness.memory import bytes_of, require_memory
from experiments.harness.methods import ORDERS
from experiments.harness.seeds import Seeds, seeds_label, use_all_cores
from experiments.harness.sizes import Sized, what_fits
from experiments.harness.tasks import PROTOCOL_BOUNDS, check_length
from experiments.harness.trace import Trace, load_trace, save_trace
from nap.networks import MLP, Network, as_functions
from nap.tables import format_table

PyTree = Any

NAME = "schedule-matching"
FREE, CONSTANT, MATCHED, GLOBALLY_MATCHED = "layernorm", "nap", "nap+matching", "nap+global-matching"
METHODS = (FREE, CONSTANT, MATCHED, GLOBALLY_MATCHED)
RATES = {"sgd": 0.2, "momentum": 0.02, "adam": 3e-3}
ONLINE = ("online_loss", "online_accuracy")
MEASURED = ("weight_norm/", "elr/")

PROBE = 256
"""Examples that the loss and the outputs are measured on, the same in all tasks; all of them where there are fewer."""
SAVE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Config:
    """One variant, all seeds. A command runs all variants."""

    stream: Annotated[Literal["random-labels"], tyro.conf.Suppress] = "random-labels"
    method: Annotated[str, tyro.conf.Suppress] = FREE
    """The variant: one of METHODS."""
    data: Annotated[str, A_PATH] = "digits"
    """fashion-mnist, mnist, digits, cifar10, cifar100 or the path of an .npz file."""
    protocol: Annotated[Protocol, PROTOCOL_BOUNDS] = dataclasses.field(
        default_factory=lambda: Protocol(tasks=5, epochs=40, examples=400, batch_size=40)
    )
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """sgd (plain), momentum (0.9) or adam (epsilon 1e-8)."""
    lr: float | None = None
    """The written learning rate, a constant; by default 0.2 for sgd, 0.02 for momentum, 0.003 for adam."""
    hidden: Annotated[tuple[int, ...], at_least(1), NOT_EMPTY] = (100, 100)
    """Widths of the hidden layers."""
    activation: Literal["tanh", "gelu", "relu"] = "tanh"
    """The nonlinearity."""
    record_every: Annotated[int, at_least(0)] = 0
    """Updates between records; 0: the divisor of a task's updates that is nearest to a tenth of them."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. The seeds, the other options and the version of the code determine a run."""
    seeds: Annotated[int, tyro.conf.Suppress, at_least(1, most=SEEDS)] = 1
    """How many seeds, as --seeds says."""

    @property
    def updates(self) -> int:
        """Updates in a run."""
        return self.protocol.tasks * self.protocol.updates_per_task


PRESETS = {"default": Config()}


class Own(NamedTuple):
    """What belongs to one seed.

    Attributes:
        key: the seed's random key; it never changes.
        state: the learner's state.
        multipliers: of the learning rate, [updates] for each kernel that has a schedule, by path.
    """

    key: jax.Array
    state: LearnerState
    multipliers: dict[str, jax.Array]


def main(argv: list[str]) -> int:
    """Run all variants from the command line and print how far each is from the free run; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """The one command, which makes the runs of all variants. Raises harness.UserError."""
    config, options = _parse(argv)
    variants = (dataclasses.replace(config, method=method) for method in METHODS)
    return [harness.job_of(NAME, argv, variants, options, _label)]


def resolve(config: Config) -> Config:
    """The configuration with what it leaves open filled in.

    Raises:
        harness.UserError: a value that makes no sense, with the option and the nearest right value.
    """
    check_bounds(config)
    lr = RATES[config.optimizer] if config.lr is None else config.lr
    if lr <= 0:
        raise harness.UserError(
            f"--lr {lr:g}: it must be above 0; for {config.optimizer} try {RATES[config.optimizer]}"
        )
    check_length(config.protocol)
    updates = config.protocol.updates_per_task
    wished = config.record_every or max(1, updates // 10)
    record_every = min(divisors(updates), key=lambda length: abs(length - wished))
    if config.record_every and record_every != config.record_every:
        raise harness.UserError(
            f"--record-every {config.record_every}: it must divide a task's {updates} updates; the nearest is "
            f"{record_every}"
        )
    return dataclasses.replace(config, lr=float(lr), record_every=record_every)


def run(config: Config, options: harness.RunOptions, free: Path | None = None) -> tuple[Path, dict[str, float]]:
    """One variant, from its beginning or from where it was left.

    Args:
        config: the resolved configuration.
        options: of the command.
        free: the folder of the finished free run; None for the free run itself.

    Returns:
        Its folder and its summary.
    """
    try:
        dataset = load(config.data)
    except ValueError as error:
        raise harness.UserError(str(error)) from None
    extent, told = {"total": config.updates, "unit": "updates"}, {"--data": of_dataset(dataset)}
    with harness.open_run(NAME, config, options, label=_label(config), data=told, **extent) as opened:
        if not opened.done:
            _run(config, dataset, opened, None if free is None else load_trace(free))
        return opened.folder, opened.summary


def multipliers_of(config: Config, free: Trace | None) -> Trace:
    """The schedules of a variant's hidden kernels, by path.

    Args:
        config: the variant.
        free: the trace of the free run; not read at a constant rate.

    Returns:
        Arrays [seeds, updates] that start at 1; none for the variants at a constant rate.
    """
    if free is None or config.method not in (MATCHED, GLOBALLY_MATCHED):
        return {}
    norms = {f"hidden/{i}/kernel": free[f"weight_norm/hidden/{i}"] for i in range(len(config.hidden))}
    updates, order = np.arange(config.updates), ORDERS[config.optimizer]
    layers = {
        path: np.stack([nap.matching_schedule(of_seed, order)(updates) for of_seed in values])
        for path, values in norms.items()
    }
    if config.method == MATCHED:
        return layers
    return dict.fromkeys(layers, np.exp(np.mean([np.log(values) for values in layers.values()], axis=0)))


def make_optimizer(config: Config, multipliers: Mapping[str, jax.Array]) -> optax.GradientTransformation:
    """The optimizer of a variant; `multipliers` as `multipliers_of` makes them, of one seed."""
    assert config.lr is not None, "resolve(config) fills it in"
    steps = {
        "sgd": optax.sgd(config.lr),
        "momentum": optax.sgd(config.lr, momentum=0.9),
        "adam": optax.adam(config.lr),
    }
    schedules: dict[str, optax.Schedule] = {path: values.__getitem__ for path, values in multipliers.items()}
    step = optax.chain(steps[config.optimizer], nap.scale_by_schedules(schedules))
    return step if config.method == FREE else nap.normalize_and_project(step, affine="free")


def make_start(config: Config, stream: Stream) -> Callable[..., Own]:
    """The function `start(shared, (key, multipliers))` that makes a seed's first state; all variants start alike."""
    network = _network(config, stream)

    def start(_: PyTree, given: tuple[jax.Array, dict[str, jax.Array]]) -> Own:
        key, multipliers = given
        learner = make_learner(network, lambda _: make_optimizer(config, multipliers), stream.loss)
        return Own(key, learner.init(jax.random.fold_in(key, 0)), multipliers)

    return start


def make_task(config: Config, stream: Stream) -> Callable[..., tuple[Own, dict[str, jax.Array]]]:
    """The function `learn_task(data, own, task)` that runs all updates of one task for one seed.

    It returns the seed's new state and the trace of the task: for each update [updates] the online loss and accuracy,
    each kernel's norm before the update and its effective learning rate; at the end of each stretch of `record_every`
    updates [stretches, ...] loss, accuracy and outputs on the probe.
    """
    network, updates = _network(config, stream), stream.epochs * stream.steps
    shape = (updates // config.record_every, config.record_every, stream.batch_size)

    def learn_task(data: PyTree, own: Own, task: jax.Array) -> tuple[Own, dict[str, jax.Array]]:
        learner = make_learner(network, lambda _: make_optimizer(config, own.multipliers), stream.loss)
        drawn = stream.begin(data, jax.random.fold_in(own.key, 1), task)
        order_key = jax.random.fold_in(jax.random.fold_in(own.key, 2), task)
        epoch_keys = jax.vmap(jax.random.fold_in, (None, 0))(order_key, jnp.arange(stream.epochs))
        items = jax.vmap(lambda key: stream.order(data, drawn, key))(epoch_keys)
        x, y = stream.batch(data, drawn, jnp.arange(min(PROBE, config.protocol.examples)))

        def update(state: LearnerState, item: jax.Array) -> tuple[LearnerState, dict[str, jax.Array]]:
            state, score, measured = learner.measure(state, *stream.batch(data, drawn, item))
            kept = {name: value for name, value in measured.items() if name.startswith(MEASURED)}
            return state, {"online_loss": score.loss, "online_accuracy": score.accuracy, **kept}

        def stretch(state: LearnerState, items: jax.Array) -> tuple[LearnerState, tuple[dict, dict]]:
            state, of_updates = jax.lax.scan(update, state, items)
            score = learner.score(state.params, x, y, jnp.ones(len(y)))
            outputs = network.apply(state.params, x)
            return state, (of_updates, {"loss": score.loss, "accuracy": score.accuracy, "outputs": outputs})

        state, (of_updates, of_stretches) = jax.lax.scan(stretch, own.state, items.reshape(shape))
        flat = {name: values.reshape(updates) for name, values in of_updates.items()}
        return Own(own.key, state, own.multipliers), {**flat, **of_stretches}

    return learn_task


def memory_needed(config: Config) -> dict[str, int]:
    """What a variant takes at least: all seeds' states, and in the host's memory what is recorded of all updates."""
    stream, seeds = _stream_of(config.protocol, config.data), Seeds(config.seeds)
    own = jax.eval_shape(make_start(config, stream), (), (jax.random.key(0), {}))
    recorded = jax.eval_shape(make_task(config, stream), stream.data, own, jnp.zeros([], jnp.int32))[1]
    return {
        "networks and optimizers": seeds.padded * bytes_of(own),
        "multipliers": 4 * seeds.padded * len(config.hidden) * config.updates,
        "what is recorded": config.seeds * config.protocol.tasks * bytes_of(recorded),
    }


def function_distances(outputs: np.ndarray, free: np.ndarray) -> np.ndarray:
    """RMS difference of outputs [..., examples, outputs], over the RMS of the free run's: shape [...]."""
    return np.sqrt(np.mean(np.square(outputs - free), axis=(-2, -1)) / np.mean(np.square(free), axis=(-2, -1)))


def _main(argv: list[str]) -> int:
    use_all_cores()
    harness.enable_compilation_cache()
    config, options = _parse(argv)
    free, summary = run(config, options)
    summaries, folders, exit_code = {FREE: summary}, [free], 0
    for method in METHODS[1:]:
        try:
            folder, summaries[method] = run(dataclasses.replace(config, method=method), options, free)
            folders.append(folder)
        except harness.NonFinite as error:
            harness.print_error(error)
            exit_code = error.exit_code
    print(f"{_table(summaries)}\n")
    harness.tell_end(*folders, result="the table above")
    return exit_code


def _parse(argv: list[str]) -> tuple[Config, harness.RunOptions]:
    config, options = harness.parse_command(Config, argv, name=NAME, description=__doc__, presets=PRESETS)
    return resolve(dataclasses.replace(config, seeds=options.seeds)), options


def _label(config: Config) -> str:
    seeds = seeds_label(config.seed, config.seeds)
    return f"{config.method}-{config.optimizer}-lr{config.lr:g}-{seeds}"


@functools.lru_cache(maxsize=2)
def _stream_of(protocol: Protocol, data: str) -> Stream:
    try:
        return make_stream("random-labels", protocol, load(data))
    except ValueError as error:
        raise harness.UserError(str(error)) from None


def _table(summaries: Mapping[str, Mapping[str, float]]) -> str:
    columns = ("norm_growth", "function_distance", "loss_distance", "average_online_accuracy")
    header = ("variant", *(column.replace("_", " ") for column in columns))
    rows = [(method, *(f"{summary[column]:.3g}" for column in columns)) for method, summary in summaries.items()]
    return format_table(header, rows, right=range(1, len(header)))


def _network(config: Config, stream: Stream) -> Network:
    inputs = math.prod(stream.input_shape)
    return as_functions(
        lambda rngs: MLP(inputs, config.hidden, stream.outputs, norm="layer", activation=config.activation, rngs=rngs)
    )


def _run(config: Config, dataset: Dataset, opened: harness.Run, free: Trace | None) -> None:
    try:
        stream = make_stream(config.stream, config.protocol, dataset)
    except ValueError as error:
        raise harness.UserError(str(error)) from None
    sized = [Sized("seeds"), Sized("protocol.tasks"), Sized("hidden")]
    require_memory(memory_needed(config), None, what_fits(config, memory_needed, sized))
    seeds = Seeds(config.seeds)
    data = seeds.shared(stream.data)
    multipliers = multipliers_of(config, free)
    of_padded = np.minimum(np.arange(seeds.padded), seeds.count - 1)
    padded = {path: values[of_padded] for path, values in multipliers.items()}
    own = seeds.map(make_start(config, stream))((), (seeds.keys(config.seed), padded))
    function, first = make_task(config, stream), jnp.zeros([], jnp.int32)
    learn_task = seeds.map(function, at_once=seeds.fit(function, data, own, first))
    of_task = jax.eval_shape(learn_task, data, own, first)[1]
    empty = {
        name: np.full((seeds.count, stream.tasks * shaped.shape[1], *shaped.shape[2:]), np.nan, np.float32)
        for name, shaped in of_task.items()
    }
    task, (saved, trace) = opened.restore((seeds.drop_padding(own.state), empty))
    own = own._replace(state=seeds.pad(saved, own.state))
    trace = {name: np.array(values) for name, values in trace.items()}
    while task < stream.tasks:
        own, recorded = learn_task(data, own, jnp.asarray(task, jnp.int32))
        for name, values in jax.device_get(recorded).items():
            length = values.shape[1]
            trace[name][:, task * length : (task + 1) * length] = values[: seeds.count]
        task += 1
        _record(config, opened, task, trace, multipliers, free or trace)
        if task == stream.tasks or opened.save_due(SAVE_SECONDS):
            opened.save(task, (seeds.drop_padding(own.state), trace))
            opened.check_interrupted()
    if free is None:
        save_trace(opened, trace)
    opened.finish(_summary(config, trace, free or trace))


def _record(config: Config, opened: harness.Run, tasks: int, trace: Trace, multipliers: Trace, free: Trace) -> None:
    """Writes down the task that has just ended; `tasks` have by now."""
    length, every = config.protocol.updates_per_task, config.record_every
    opened.check_finite("online loss", trace["online_loss"][:, : tasks * length].sum(), updates=tasks * length)
    for updates in range((tasks - 1) * length + every, tasks * length + 1, every):
        stretch = updates // every - 1
        distances = function_distances(trace["outputs"][:, stretch], free["outputs"][:, stretch])
        for i in range(config.seeds):
            measured = {name: values[i, updates - 1] for name, values in trace.items() if name.startswith(MEASURED)}
            online = {name: trace[name][i, updates - every : updates].mean() for name in ONLINE}
            scheduled = {
                f"learning_rate/{path.removesuffix('/kernel')}": config.lr * values[i, updates - 1]
                for path, values in multipliers.items()
            }
            opened.record({
                "phase": "task", "method": config.method, "seed": config.seed + i, "task": tasks, "updates": updates,
                "task_updates": updates - (tasks - 1) * length, "scored": True, "learning_rate": config.lr,
                **scheduled, **online, **measured,
                "loss": trace["loss"][i, stretch], "accuracy": trace["accuracy"][i, stretch],
                "function_distance": distances[i],
            })  # fmt: skip
    accuracy = trace["online_accuracy"][:, (tasks - 1) * length : tasks * length].mean()
    opened.progress.update(updates=tasks * length, task=f"{tasks}/{config.protocol.tasks}", accuracy=accuracy)


def _summary(config: Config, trace: Trace, free: Trace) -> dict[str, float]:
    """Averages over the seeds."""
    growth = [trace[f"weight_norm/hidden/{i}"][:, [0, -1]] for i in range(len(config.hidden))]
    losses, free_losses = (
        of["online_loss"].reshape(config.seeds, -1, config.record_every).mean(-1) for of in (trace, free)
    )
    return {
        "seeds": config.seeds,
        "tasks": config.protocol.tasks,
        "norm_growth": float(np.mean([of_layer[:, 1] / of_layer[:, 0] for of_layer in growth])),
        "function_distance": float(np.mean(function_distances(trace["outputs"][:, -1], free["outputs"][:, -1]))),
        "loss_distance": float(np.mean(np.abs(losses - free_losses))),
        "average_online_accuracy": float(np.mean(trace["online_accuracy"])),
        "average_online_loss": float(np.mean(trace["online_loss"])),
        "last_loss": float(np.mean(trace["loss"][:, -1])),
    }
