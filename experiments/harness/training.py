"""The loop of supervised training: batches in, records, evaluations and checkpoints out.

The order of the data is a function of the seed and of a position that the checkpoint holds. So a run that is killed at
any update and resumed equals the uninterrupted one, bit for bit on one device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from envs.loaders import WHOLE, Loader, Share
from experiments.harness.command_line import DeviceOptions
from experiments.harness.ending import tell_end
from experiments.harness.errors import UserError
from experiments.harness.grid import with_options
from experiments.harness.jobs import Job, job_of, seeds_planned
from experiments.harness.memory import require_memory
from experiments.harness.mesh import (
    batch_of,
    check_divisible,
    data_parallel,
    fully_sharded,
    kept_divided,
    mesh_of,
    on_every_device,
)
from experiments.harness.methods import learning_rate
from experiments.harness.processes import check_alone, several, together
from experiments.harness.run import Run, open_run
from experiments.harness.sizes import Needs, Sized, what_fits
from experiments.harness.supervised import (
    Learner,
    State,
    Sums,
    SupervisedConfig,
    Task,
    TrainingConfig,
    Update,
    evaluated,
    learner_of,
)
from experiments.harness.utilisation import measured_peak, training_flops
from nap.layers import identity
from nap.networks import StatefulNetwork
from nap.paths import PyTree

SAVE_SECONDS = 300.0
"""A checkpoint is written when this long has passed since the last one."""
_PROFILED = range(10, 15)
"""The updates of this process that `--profile` shows: after compilation, and few, as a trace is large."""


@dataclasses.dataclass(frozen=True)
class TrainingOptions(DeviceOptions):
    """What a supervised experiment takes beside its configuration; it changes results by rounding at most."""

    shard: bool = False
    """Divide parameters and optimizer state over the devices too (FSDP), instead of a copy on each."""
    profile: Path | None = None
    """Write a trace of this process's updates 11 to 15 into this folder, for TensorBoard or Perfetto."""


class Data(NamedTuple):
    """What is read.

    Attributes:
        train: batches without an end.
        held_out: one pass; with weights, so that each example counts once.
        unit: what a batch's weights count: "examples" or "tokens".
        fingerprints: of what they come from, by the option that names it.
    """

    train: Loader
    held_out: Loader
    unit: str
    fingerprints: Mapping[str, str] = MappingProxyType({})


class Compiled(NamedTuple):
    """A learner compiled for the devices it runs on.

    Attributes:
        init, update, measure, evaluate: those of `Learner`; the state that is given is used up.
        place: (this process's share of a batch, as it was read) -> the batch, where it is needed.
        devices: how many there are.
    """

    init: Callable[[jax.Array], State]
    update: Update
    measure: Update
    evaluate: Callable[[PyTree, PyTree, Any], Sums]
    place: Callable[[Any], Any]
    devices: int


def devices_of(training: TrainingConfig, options: TrainingOptions) -> Mesh | None:
    """The devices that share each part of a batch; None: there is a single one.

    Raises:
        UserError: there are not as many as the options ask for, or they can't share it evenly.
    """
    mesh = mesh_of(options.devices)
    if mesh is not None:
        check_divisible("--batch-size / --accumulate", training.part, mesh)
    elif options.shard:
        raise UserError("--shard divides the state over the devices, and --devices is 1")
    return mesh


def constraint_of(mesh: Mesh | None, options: TrainingOptions) -> Callable[[jax.Array], jax.Array]:
    """What a network's activations go through: with `--shard` they stay divided as the batch is."""
    return kept_divided(mesh) if mesh is not None and options.shard else identity


def share() -> Share:
    """The rows of each batch that this process loads."""
    return Share(jax.process_index(), jax.process_count()) if several() else WHOLE


def compiled(learner: Learner, training: TrainingConfig, options: TrainingOptions) -> Compiled:
    """The learner, jitted for the devices that the options ask for. Raises UserError as `devices_of` does."""
    mesh = devices_of(training, options)
    init, update, measure, evaluate = jax.jit(learner.init), learner.update, learner.measure, jax.jit(learner.evaluate)
    place = _as_read
    if mesh is not None:
        lies = fully_sharded(jax.eval_shape(learner.init, jax.random.key(0)), mesh) if options.shard else None
        init = jax.jit(learner.init, out_shardings=lies) if options.shard else on_every_device(learner.init, mesh)
        update, measure = (data_parallel(function, mesh, lies) for function in (update, measure))
        evaluate = on_every_device(learner.evaluate, mesh)
        place = functools.partial(batch_of, mesh=mesh)
    update, measure = (jax.jit(function, donate_argnums=0) for function in (update, measure))
    return Compiled(init, update, measure, evaluate, place, 1 if mesh is None else mesh.size)


def evaluate(functions: Compiled, state: State, held_out: Loader) -> dict[str, float]:
    """Loss and accuracy over all held-out data: every example, or token, counts once."""
    params, rest = evaluated(state)
    totals = np.zeros(3)
    with contextlib.closing(held_out.batches(held_out.start)) as batches:
        for batch, _ in batches:
            totals += np.asarray(jax.device_get(functions.evaluate(params, rest, functions.place(batch))), np.float64)
    return {"eval/loss": float(totals[1] / totals[0]), "eval/accuracy": float(totals[2] / totals[0])}


def jobs_of_seeds(
    name: str, argv: Sequence[str], config: Any, options: TrainingOptions, label: Callable[[Any], str]
) -> list[Job]:
    """A command for each seed that an experiment's command line stands for.

    Args:
        name: of the experiment.
        argv: its arguments.
        config: what they mean, resolved.
        options: the other options.
        label: of a run's folder, from its configuration.

    Raises:
        UserError: a run is to have several processes.
    """
    check_alone(options.coordinator)
    ones = [dataclasses.replace(config, seed=seed) for seed in seeds_planned(config, options)]
    return [
        job_of(name, with_options(argv, {"--seeds": None, "--seed": one.seed}), [one], options, label) for one in ones
    ]


def run_to_end(
    name: str,
    config: SupervisedConfig,
    options: TrainingOptions,
    task_of: Callable[[Any], Task],
    data: Data,
    *,
    label: str,
    needs: Needs,
    sized: Sequence[Sized],
    counted: Callable[[], StatefulNetwork] | None = None,
    at_end: Callable[[Run, Task, State], Mapping[str, Any]] = lambda opened, task, state: {},
) -> Path:
    """A supervised experiment's run, from its beginning or from where it was left, to its end; prints what came of it.

    Args:
        name: of the experiment.
        config: resolved.
        options: the other options.
        task_of: (configuration) -> what is learned; called once it is known to fit.
        data: what on.
        label: of the run's folder.
        needs: (configuration) -> what the run takes of a device's memory at least; see
            `experiments.harness.training_memory`.
        sized: the options that this depends on.
        counted: makes a network with the same parameters and products of which `training_flops` sees all; None: it is
            the task's.
        at_end: (the run, what was learned, the last state) -> what its summary says besides.

    Returns:
        The run's folder.

    Raises:
        UserError: it can't fit, with the largest options that do; or data turn out to be damaged where they are read,
            and what is saved by then stays.
    """
    extent: dict[str, Any] = {"total": config.updates, "unit": "updates"}
    with open_run(name, config, options, label=label, data=data.fingerprints, **extent) as opened:
        if not opened.done:
            remedy = what_fits(config, needs, sized)
            together(lambda: require_memory(needs(config), jax.local_devices()[0], remedy))
            task = task_of(config)
            learner = learner_of(task, config)
            if counted is not None:
                learner = learner._replace(forward=learner_of(task._replace(network=counted()), config).forward)
            with opened.reading_data():
                state, last = train(opened, learner, data, config, options)
                opened.finish({"updates": config.updates, **last, **at_end(opened, task, state)})
    tell_end(opened.folder)
    return opened.folder


def train(
    opened: Run, learner: Learner, data: Data, config: SupervisedConfig, options: TrainingOptions
) -> tuple[State, dict[str, float]]:
    """Trains from the beginning, or from where the run was left, to the end; the caller finishes the run.

    Returns:
        The last state, and the last evaluation.
    """
    updates, training = config.updates, config.training
    functions = compiled(learner, training, options)
    rate = learning_rate(config.optimizer, updates)
    evaluate_every = max(1, -(-updates // training.evaluations))
    start = np.array(data.train.start, np.int64)
    fresh = functions.init(jax.random.key(config.seed)), start, np.full(2, np.nan)
    done, (state, position, last) = opened.restore(fresh)
    del fresh
    meter = _Meter(learner, functions.devices, config.dtype)
    first, loss = done, None
    if options.profile is not None and updates - done <= _PROFILED.start:
        opened.progress.say(
            f"--profile: no trace, since it begins at update {_PROFILED.start + 1} of a process, and "
            f"{updates - done} are left"
        )
    with (
        contextlib.closing(data.train.batches(tuple(map(int, position)))) as batches,
        contextlib.ExitStack() as profile,
    ):
        while done < updates:
            if options.profile is not None and done - first == _PROFILED.start:
                profile.enter_context(jax.profiler.trace(options.profile))
            batch, position = next(batches)
            # The first one is recorded alone: norms are drawn relative to it.
            recorded = done == 0 or (done + 1) % training.log_every == 0 or done + 1 == updates
            step, before = functions.measure if recorded else functions.update, loss
            state, loss, told = step(state, functions.place(batch))
            jax.block_until_ready(before)  # one update ahead of the device, and no more: each batch takes its memory
            done += 1
            meter.add(step, state, batch)
            if done - first == _PROFILED.stop:
                jax.block_until_ready(loss)
                profile.close()
            if recorded:
                row = {"phase": "train", **_place(done, data), "learning_rate": np.asarray(rate(done - 1))}
                opened.record({**row, **jax.device_get(told)})
                opened.check_finite("loss", told["loss"], updates=done)
                speed = meter.speed(data.unit)
                if speed:
                    opened.record_timing({"updates": done, **speed})
                shown = {name.replace("_per_second", "/s"): value for name, value in speed.items()}
                opened.progress.update(updates=done, loss=float(told["loss"]), **shown)
            if done % evaluate_every == 0 or done == updates:
                found = evaluate(functions, state, data.held_out)
                opened.record({"phase": "eval", **_place(done, data), **found})
                opened.check_finite("held-out loss", found["eval/loss"], updates=done)
                last = np.array(list(found.values()))
                meter.restart()
            if done == updates or opened.save_due(SAVE_SECONDS):
                opened.check_finite("loss", loss, updates=done)
                opened.save(done, (state, np.array(position, np.int64), last))
                opened.check_interrupted()
                meter.restart()
    return state, dict(zip(("eval/loss", "eval/accuracy"), map(float, last), strict=True))


class _Meter:
    """How fast training is, evaluations and saving left out; of several processes, each has the same share of it."""

    def __init__(self, learner: Learner, devices: int, dtype: str) -> None:
        self._learner, self._devices, self._dtype = learner, devices, dtype
        self._flops: float | None = None
        self._compiled: set[Update] = set()
        self.restart()

    def add(self, step: Update, state: State, batch: Any) -> None:
        """Counts a batch that went through a jitted step, and of which this process has its share."""
        self._compiling |= step not in self._compiled
        self._compiled.add(step)
        self._weight += float(batch.weights.sum()) * share().processes
        self._batches += 1
        if self._flops is None:
            self._flops = training_flops(self._learner.forward, state, batch) * share().processes

    def speed(self, unit: str) -> dict[str, float]:
        """What a record says since the last one; nothing while something was compiled. The device must be idle."""
        seconds, weight, batches = time.monotonic() - self._started, self._weight, self._batches
        if self._compiling or self._flops is None:
            self.restart()
            return {}
        used = self._flops * batches / seconds / (self._devices * measured_peak(self._dtype))
        self.restart()  # the peak may have been measured just now
        return {f"{unit}_per_second": weight / seconds, "utilisation": used}

    def restart(self) -> None:
        """Begins a new stretch."""
        self._started, self._weight, self._batches, self._compiling = time.monotonic(), 0.0, 0, False


def _as_read(batch: Any) -> Any:
    return batch


def _place(done: int, data: Data) -> dict[str, float]:
    epochs = data.train.steps_per_epoch
    return {"updates": done, **({"epochs": done / epochs} if epochs else {})}
