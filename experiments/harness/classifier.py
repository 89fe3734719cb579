"""Small classifiers, of images or of next bytes, trained by written schedules: many runs and seeds side by side.

What the studies of schedules share. A whole training run is one call of a compiled function, seconds at most; what they
resume at is the end of such a call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

import nap
from experiments.harness.bounds import SEEDS, at_least
from experiments.harness.command_line import RunOptions, parse_command
from experiments.harness.errors import UserError
from experiments.harness.memory import bytes_of, require_memory
from experiments.harness.problems import HEADS, Data, Method, Problem, Task, load_problem
from experiments.harness.seeds import Seeds
from experiments.harness.sizes import Needs, Sized, what_fits
from nap import diagnostics

PyTree = Any
Optimizer = Literal["sgd", "momentum", "adam"]

STEPS = {"sgd": optax.sgd, "momentum": functools.partial(optax.sgd, momentum=0.9), "adam": optax.adam}
SCORES = ("train_loss", "test_loss", "test_error")


@dataclasses.dataclass(frozen=True)
class FiveSeeds(RunOptions):
    """As every experiment's, with 5 seeds where nothing else is said."""

    seeds: Annotated[int, at_least(1, most=SEEDS)] = 5
    """How many seeds to run: --seed, --seed + 1, ..."""


class Own(NamedTuple):
    """What belongs to one training run: its seed's key, and its learning rate at every update [updates]."""

    key: jax.Array
    rates: jax.Array


class Trained(NamedTuple):
    """What a training run ends with.

    Attributes:
        scores: one number for each of SCORES, after the last update.
        trace: [updates] each, by name: of the whole gradient `gradient_l2` and `gradient_l1`, of that of the hidden
            weights `hidden_gradient_l2` and `hidden_gradient_l1`, and `weight_norm` of all hidden weights together,
            before the update; their effective learning rate `elr`. The last four only where there are hidden weights.
    """

    scores: dict[str, jax.Array]
    trace: dict[str, jax.Array]


def parse_study(
    config_type: type,
    argv: Sequence[str],
    *,
    name: str,
    description: str | None,
    options_type: type[RunOptions],
    presets: Mapping[str, Any] | None = None,
) -> tuple[Any, Any, Task]:
    """As `parse_command`; the configuration has its `problem` and `seeds` filled in, and the task comes third."""
    config, options = parse_command(
        config_type, argv, name=name, description=description, options_type=options_type, presets=presets
    )
    if not config.problem.hidden and config.method != "none":
        raise UserError(f"--method {config.method}: without a hidden layer there is nothing to normalize")
    problem, task = load_problem(config.problem)
    return dataclasses.replace(config, problem=problem, seeds=options.seeds), options, task


def make_training(
    problem: Problem, task: Task, method: Method, optimizer: Optimizer, updates: int
) -> Callable[[Data, Own], Trained]:
    """The function that trains one network, from a seed's key and a learning rate for every update.

    The same key gives the same initial weights and the same batches, whatever the method, the optimizer and the rates;
    runs of another length begin with the same batches.
    """
    network, classes, scored = task.network(method), task.classes, task.scored
    per_epoch = len(task.data.y) // problem.batch_size
    noise = problem.label_noise

    def losses(params: PyTree, x: jax.Array, y: jax.Array, noise: float) -> tuple[jax.Array, jax.Array]:
        outputs = network.apply(params, task.prepared(x))
        targets = optax.smooth_labels(jax.nn.one_hot(y, classes), noise)
        return jnp.mean(optax.softmax_cross_entropy(outputs, targets)), jnp.mean(jnp.argmax(outputs, axis=-1) != y)

    def train(data: Data, own: Own) -> Trained:
        step = STEPS[optimizer](lambda count: own.rates[count])
        transform = nap.normalize_and_project(step, affine="free") if method == "nap" else step
        network_key, order_key, noise_key = jax.random.split(own.key, 3)
        epoch_keys = jax.vmap(jax.random.fold_in, (None, 0))(order_key, jnp.arange(-(-updates // per_epoch)))
        orders = jax.vmap(lambda key: jax.random.permutation(key, len(data.y)))(epoch_keys)
        batches = orders[:, : per_epoch * problem.batch_size].reshape(-1, problem.batch_size)[:updates]

        def update(carry: PyTree, number: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
            params, state = carry
            x, y = data.x[batches[number]], data.y[batches[number]]
            if noise:
                which, random = jax.random.split(jax.random.fold_in(noise_key, number))
                drawn = jax.random.randint(random, y.shape, 0, classes)
                y = jnp.where(jax.random.bernoulli(which, noise, y.shape), drawn, y)
            gradients = jax.grad(lambda params: losses(params, x, y, 0.0)[0])(params)
            steps, state = transform.update(gradients, state, params)
            return (optax.apply_updates(params, steps), state), _measured(gradients, steps, params)

        params = network.init(network_key)
        (params, _), trace = jax.lax.scan(update, (params, transform.init(params)), jnp.arange(updates))
        train_loss, _ = losses(params, data.x[:scored], data.y[:scored], noise)
        test_loss, test_error = losses(params, data.test_x[:scored], data.test_y[:scored], noise)
        return Trained(dict(zip(SCORES, (train_loss, test_loss, test_error), strict=True)), trace)

    return train


def memory_needed(
    problem: Problem, task: Task, method: Method, optimizer: Optimizer, updates: int, runs: int
) -> dict[str, int]:
    """What some training runs take of the memory that they share at least, in bytes; of their traces, nothing.

    Args:
        problem: what is learned: `problem.hidden` and `problem.batch_size` need not be those of the task.
        task: the problem with its data.
        method: of the network.
        optimizer: see `STEPS`.
        updates: of the longest run.
        runs: how many there are side by side, the seeds' together.
    """
    sharing = Seeds(runs)
    params = jax.eval_shape(task.network(method, problem.hidden).init, jax.random.key(0))
    state = jax.eval_shape(STEPS[optimizer](0.1).init, params)
    epochs = -(-updates // max(1, len(task.data.y) // problem.batch_size))
    return {
        "learning rates": 4 * sharing.in_memory * updates,
        "batches": 4 * sharing.at_once * epochs * len(task.data.y),  # the orders of all epochs
        "networks": sharing.at_once * bytes_of((params, params, state)),  # with a gradient
    }


def require_study(config: Any, needs: Needs, *sized: str) -> None:
    """Raises UserError where a study does not fit into the host's memory, with the largest options that do.

    Args:
        config: has a field `problem`, and `seeds`.
        needs: what it takes; see `experiments.harness.sizes`.
        sized: further fields that this depends on.
    """
    step = 2 * HEADS if config.problem.task == "text" else 1
    widths = Sized("problem.hidden", step=step, least=step)
    options = [*map(Sized, (*sized, "seeds", "problem.batch_size")), *([widths] if config.problem.hidden else [])]
    require_memory(needs(config), None, what_fits(config, needs, options))


def over_seeds(
    make: Callable[[int], Callable[[Data, Own], PyTree]], task: Task, runs: int, seeds: range
) -> Callable[[np.ndarray], PyTree]:
    """Some training runs for every seed, divided among the devices.

    Args:
        make: `make_training` of a number of updates, or of functions of one run that are made from its. What it returns
            is compiled once for each number.
        task: whose data they are; put on the devices once.
        runs: how many runs a seed has.
        seeds: the seeds.

    Returns:
        A function of the runs' learning rates, [runs, updates], or [runs, seeds, updates] where each seed has its own;
        of any number of updates. It returns what the run's function does as numpy arrays, with the leading axes
        [runs, seeds].
    """
    count = runs * len(seeds)
    sharing = Seeds(count)
    padded = np.minimum(np.arange(sharing.padded), count - 1)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])[padded % len(seeds)]
    data = sharing.shared(Data(*map(jnp.asarray, task.data)))
    compiled: dict[int, Callable[..., PyTree]] = {}

    def train(rates: np.ndarray) -> PyTree:
        updates = rates.shape[-1]
        by_seed = np.broadcast_to(rates[:, None] if rates.ndim == 2 else rates, (runs, len(seeds), updates))
        own = sharing.divided(Own(keys, jnp.asarray(by_seed.reshape(count, -1)[padded], jnp.float32)))
        if updates not in compiled:
            function = make(updates)
            compiled[updates] = sharing.map(function, at_once=sharing.fit(function, data, own))
        trained = compiled[updates](data, own)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count].reshape(runs, len(seeds), *leaf.shape[1:]), trained)

    return train


def scores_over_seeds(
    make: Callable[[int], Callable[[Data, Own], Trained]], task: Task, runs: int, seeds: range
) -> Callable[[np.ndarray], Float[np.ndarray, "runs seeds scores"]]:
    """As `over_seeds`, but of the scores alone: one array."""

    def scores(updates: int) -> Callable[[Data, Own], PyTree]:
        training = make(updates)
        return lambda data, own: training(data, own).scores

    train = over_seeds(scores, task, runs, seeds)
    return lambda rates: np.stack([*map(train(rates).get, SCORES)], axis=-1)


def best_peak(scores: Float[np.ndarray, "peaks *others scores"]) -> int:
    """The peak whose test loss is least, on average over all others (seeds); one that diverged is none's best."""
    losses = scores[..., SCORES.index("test_loss")].reshape(len(scores), -1)
    return int(np.argmin(np.where(np.isfinite(losses), losses, np.inf).mean(axis=1)))


def _measured(gradients: PyTree, steps: PyTree, params: PyTree) -> dict[str, jax.Array]:
    hidden = nap.weight_norms(params)
    norms = diagnostics.leaf_norms(gradients)
    rates = nap.effective_learning_rates(steps, params)

    def l1(values: Iterable[jax.Array]) -> jax.Array:
        return jnp.sum(jnp.stack(list(values)))

    def l2(values: Iterable[jax.Array]) -> jax.Array:
        return jnp.linalg.norm(jnp.stack(list(values)))

    whole = {
        "gradient_l2": l2(norm.l2 for norm in norms.values()),
        "gradient_l1": l1(norm.l1 for norm in norms.values()),
    }
    if not hidden:
        return whole
    weight_norm = l2(hidden.values())
    return {
        **whole,
        "hidden_gradient_l2": l2(norms[path].l2 for path in hidden),
        "hidden_gradient_l1": l1(norms[path].l1 for path in hidden),
        "weight_norm": weight_norm,
        "elr": l2(rates[path].update_norm for path in hidden) / weight_norm,
    }
