"""Supervised learning as pure functions of a state: what `images` and `language` train.

    learner = make_learner(task, training, make_optimizer)
    state, loss = jax.jit(learner.update, donate_argnums=0)(jax.jit(learner.init)(key), batch)

`experiments.harness.training` has the loop around them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import nap
from experiments.harness.bounds import at_least, check_bounds
from experiments.harness.divisors import divisors
from experiments.harness.errors import UserError
from experiments.harness.methods import (
    MATCHING,
    NapConfig,
    OptimizerConfig,
    make_optimizer,
    parse_method,
)
from experiments.harness.rivals import RECYCLING, RivalsConfig, Setting
from experiments.harness.trained import Arrays, Saved
from nap.networks import Network, StatefulNetwork
from nap.paths import PyTree


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Batches and averages."""

    batch_size: Annotated[int, at_least(1)] = 128
    """Examples (of text: sequences) of an update, on all devices together."""
    accumulate: Annotated[int, at_least(1)] = 1
    """Parts of a batch that go through the network one after another, their gradients summed: less memory."""
    ema: Annotated[float, at_least(0, below=1)] = 0.0
    """Decay of the moving average of the weights that is evaluated; 0: the weights themselves are."""
    evaluations: Annotated[int, at_least(1)] = 10
    """Evaluations on all held-out data, evenly over the run."""
    log_every: Annotated[int, at_least(1)] = 50
    """Updates between records."""

    @property
    def part(self) -> int:
        """Examples that go through the network at once."""
        return self.batch_size // self.accumulate


class SupervisedConfig(Protocol):
    """What the configuration of every supervised experiment has, among others."""

    @property
    def method(self) -> str:
        """Its parts, joined by +."""
        ...

    @property
    def seed(self) -> int:
        """Of weights and batches."""
        ...

    @property
    def updates(self) -> int:
        """Length of the run."""
        ...

    @property
    def dtype(self) -> str:
        """What is computed in."""
        ...

    @property
    def training(self) -> TrainingConfig:
        """Batches and averages."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer and the learning rate."""
        ...

    @property
    def nap(self) -> NapConfig:
        """Normalization and projection."""
        ...

    @property
    def rivals(self) -> RivalsConfig:
        """Strengths of interventions."""
        ...


class Judged(NamedTuple):
    """What is said of each output of a batch; all of the shape of the batch's weights.

    Attributes:
        objective: what is minimized: label smoothing and the like included.
        loss: the cross-entropy, in nats.
        correct: 1 where the likeliest class is the right one, else 0.
    """

    objective: Float[Array, "..."]
    loss: Float[Array, "..."]
    correct: Float[Array, "..."]


class Sums(NamedTuple):
    """Sums over outputs, each with its weight."""

    weight: Float[Array, ""]
    loss: Float[Array, ""]
    correct: Float[Array, ""]


class Task(NamedTuple):
    """What is learned.

    Attributes:
        network: maps inputs to outputs.
        inputs: (batch) -> what the network takes; a batch is a tuple of arrays with a field `weights`.
        judge: (outputs, batch) -> how good they are.
    """

    network: StatefulNetwork
    inputs: Callable[[Any], Any]
    judge: Callable[[Any, Any], Judged]


class State(NamedTuple):
    """All that training changes.

    Attributes:
        params: the network's parameters.
        rest: what else it keeps, such as running statistics.
        opt_state: the optimizer's state, the projection's radii included.
        average: moving averages of `params` and `rest`; () where there are none.
        updates: how many were made.
        since: sums over the updates since the last measured one.
    """

    params: PyTree
    rest: PyTree
    opt_state: optax.OptState
    average: tuple[PyTree, PyTree] | tuple[()]
    updates: Int[Array, ""]
    since: Sums


Update = Callable[[State, Any], tuple[State, Array, dict[str, Array]]]
"""See `Learner`."""


class Learner(NamedTuple):
    """A learner's functions; none is jitted yet.

    Attributes:
        init: `init(key)`, a fresh state.
        update: `update(state, batch)`, the state after one update, the batch's loss before it, and nothing more.
        measure: `measure(state, batch)`, the same update, the loss, and what is recorded of it and of those since the
            last measured one: a flat dictionary of scalars.
        evaluate: `evaluate(params, rest, batch)`, the sums over a batch.
        forward: `forward(state, batch)`, the network's outputs in training.
    """

    init: Callable[[jax.Array], State]
    update: Update
    measure: Update
    evaluate: Callable[[PyTree, PyTree, Any], Sums]
    forward: Callable[[State, Any], Any]


def make_learner(
    task: Task, training: TrainingConfig, make_optimizer: Callable[[jax.Array], optax.GradientTransformation]
) -> Learner:
    """A learner.

    With `training.accumulate` = k, part i of a batch has its rows i, i + k, ...; the gradient is that of the mean over
    the whole batch. BatchNorm takes the statistics of each part.

    Args:
        task: what is learned.
        training: how batches are divided, and the average of the weights.
        make_optimizer: the complete optimizer from a random key, which only its `init` uses.
    """
    network, parts = task.network, training.accumulate
    optimizer = make_optimizer(jax.random.key(0))

    def init(key: jax.Array) -> State:
        network_key, optimizer_key = jax.random.split(key)
        params, rest = network.init(network_key)
        average = jax.tree.map(jnp.copy, (params, rest)) if training.ema else ()
        opt_state = make_optimizer(optimizer_key).init(params)
        return State(params, rest, opt_state, average, jnp.zeros([], jnp.int32), _nothing())

    def loss_of(params: PyTree, rest: PyTree, batch: Any, total: Array) -> tuple[Array, tuple[PyTree, Sums]]:
        outputs, rest = network.train(params, rest, task.inputs(batch))
        judged = task.judge(outputs, batch)
        return jnp.sum(batch.weights * judged.objective) / total, (rest, _sums(judged, batch.weights))

    def gradient(state: State, batch: Any) -> tuple[PyTree, PyTree, Sums]:
        """The gradient of the mean over the whole batch, the new rest, and the sums."""
        total = jnp.maximum(jnp.sum(batch.weights), 1)
        slope = jax.grad(loss_of, has_aux=True)
        if parts == 1:
            gradients, (rest, sums) = slope(state.params, state.rest, batch, total)
            return gradients, rest, sums

        def add(carry: tuple[PyTree, PyTree, Sums], part: Any) -> tuple[tuple[PyTree, PyTree, Sums], None]:
            gradients, rest, sums = carry
            more, (rest, of_part) = slope(state.params, rest, part, total)
            return (jax.tree.map(jnp.add, gradients, more), rest, jax.tree.map(jnp.add, sums, of_part)), None

        # Rows are dealt out in turn: so each device has its share of every part where the batch is divided.
        dealt = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
        start = jax.tree.map(jnp.zeros_like, state.params), state.rest, _nothing()
        # Convolutions in a rolled loop take many times as long on XLA's CPU backend;
        # unrolled, all parts are in memory at once.
        convolves = any(leaf.ndim > 3 for leaf in jax.tree.leaves(state.params))
        return jax.lax.scan(add, start, dealt, unroll=convolves and jax.default_backend() == "cpu")[0]

    def step(state: State, batch: Any) -> tuple[State, Array, PyTree]:
        """The state after an update, the loss, and what was added to the parameters."""
        gradients, rest, sums = gradient(state, batch)
        steps, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, steps)
        average = ()
        if training.ema:
            average = _averaged(training.ema, state.updates, state.average, (params, rest))
            average = (nap.project(average[0], _radii(opt_state)), average[1])
        since = jax.tree.map(jnp.add, state.since, sums)
        new = State(params, rest, opt_state, average, state.updates + 1, since)
        return new, sums.loss / jnp.maximum(sums.weight, 1), steps

    def update(state: State, batch: Any) -> tuple[State, Array, dict[str, Array]]:
        new, loss, _ = step(state, batch)
        return new, loss, {}

    def measure(state: State, batch: Any) -> tuple[State, Array, dict[str, Array]]:
        new, loss, steps = step(state, batch)
        told = {"loss": new.since.loss / new.since.weight, "accuracy": new.since.correct / new.since.weight}
        return new._replace(since=_nothing()), loss, told | _measures(steps, state.params)

    def evaluate(params: PyTree, rest: PyTree, batch: Any) -> Sums:
        return _sums(task.judge(network.evaluate(params, rest, task.inputs(batch)), batch), batch.weights)

    def forward(state: State, batch: Any) -> Any:
        return network.train(state.params, state.rest, task.inputs(batch))[0]

    return Learner(init, update, measure, evaluate, forward)


def learner_of(task: Task, config: SupervisedConfig) -> Learner:
    """The learner of a configuration: with the optimizer and interventions of its method."""

    def optimizer(key: jax.Array) -> optax.GradientTransformation:
        setting = _setting_of(task.network, key, config.updates)
        return make_optimizer(parse_method(config.method), config.optimizer, config.nap, config.rivals, setting)

    return make_learner(task, config.training, optimizer)


def evaluated(state: State) -> tuple[PyTree, PyTree]:
    """The parameters and the rest that are evaluated: their averages, where there are such."""
    return state.average or (state.params, state.rest)


def evaluated_in(saved: Saved, training: TrainingConfig) -> tuple[Arrays, Arrays]:
    """What `evaluated` gives, from a checkpoint; the rest may be empty."""
    params, rest = ("0/average/0", "0/average/1") if training.ema else ("0/params", "0/rest")
    return saved.read(params), saved.read(rest) if saved.has(rest) else {}


def check(config: SupervisedConfig) -> None:
    """Raises UserError for values that make no sense in a supervised experiment, with the option."""
    check_bounds(config)
    method, training, optimizer = parse_method(config.method), config.training, config.optimizer
    for name in (*RECYCLING, "plasticity-injection"):
        if name in method.interventions:
            raise UserError(f"--method {name}: it needs a plain network's hidden units; take l2-init, or another rival")
    if optimizer.schedule in MATCHING:
        raise UserError(f"--schedule {optimizer.schedule}: it is for atari")
    if training.batch_size % training.accumulate:
        nearest = min(divisors(training.batch_size), key=lambda n: abs(n - training.accumulate))
        raise UserError(
            f"--accumulate {training.accumulate}: it must divide the batch of {training.batch_size}; the nearest is "
            f"{nearest}"
        )


def _setting_of(network: StatefulNetwork, key: jax.Array, updates: int) -> Setting:
    """The run, as `methods.make_optimizer` wants to know it; of the network, how its parameters begin."""

    def unseen(*_: Any) -> Any:
        raise NotImplementedError("interventions see no activations in supervised training")

    return Setting(Network(lambda key: network.init(key)[0], unseen, unseen, network.readers), key, updates)


def _nothing() -> Sums:
    return Sums(*(jnp.zeros([], jnp.float32) for _ in range(3)))


def _sums(judged: Judged, weights: Array) -> Sums:
    # A loss that does not count may be infinite.
    loss = jnp.where(weights > 0, weights * judged.loss, 0)
    return Sums(jnp.sum(weights), jnp.sum(loss), jnp.sum(weights * judged.correct))


def _averaged(decay: float, updates: Array, average: PyTree, new: PyTree) -> PyTree:
    """The moving average. Its decay rises to the one asked for, else the initial weights would long be in it."""
    kept = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda old, now: (kept * old + (1 - kept) * now).astype(old.dtype), average, new)


def _radii(opt_state: optax.OptState) -> nap.projection.Norms:
    """The norms that weights are projected to; none where they are not."""
    found = jax.tree.leaves(opt_state, is_leaf=_is_projection)
    return next((node.target_norms for node in found if _is_projection(node)), {})


def _is_projection(node: Any) -> bool:
    return isinstance(node, nap.ProjectionState)


def _measures(steps: PyTree, params: PyTree) -> dict[str, Array]:
    """Norms and effective learning rates, layer by layer; stacked layers under the names they have in a row."""
    measured = {}
    for path, rates in nap.effective_learning_rates(steps, params, nap.roles(params)).items():
        for name, value in zip(("weight_norm", "update_norm", "elr", "angle"), rates, strict=True):
            for layer, of_layer in _unstacked(path.removesuffix("/kernel"), value):
                measured[f"{name}/{layer}"] = of_layer
    return measured


def _unstacked(layer: str, value: Array) -> Iterator[tuple[str, Array]]:
    if not value.ndim:
        yield layer, value
        return
    stack, _, inside = layer.partition("/")
    for i in range(value.shape[0]):
        yield f"{stack}/{i}/{inside}", value[i]
