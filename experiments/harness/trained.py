"""What a run has trained, taken up again: `experiments.load`.

Each experiment that keeps a network says in a function `trained` of its module how it is put together again; nothing
here knows of any of them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from experiments.harness.catalogue import catalogue
from experiments.harness.errors import UserError, unknown
from experiments.harness.folder import CONFIG, DONE, METRICS, summary
from experiments.harness.read import load_runs
from experiments.harness.rebuild import from_plain
from experiments.harness.saved import Saved, newest
from experiments.harness.stage import Stage
from nap import paths
from nap.networks import Recipe
from nap.paths import PyTree

Arrays = Mapping[str, np.ndarray]
"""By path."""


class Trained(NamedTuple):
    """What an experiment's function `trained(config, saved, choice)` says.

    Attributes:
        recipe: how the network is made.
        params: its parameters.
        rest: what else it keeps, such as running statistics.
        values: (outputs of a batch) -> action values [batch, actions]; None for a network that chooses no actions.
        stage: where an agent plays; None for a network that chooses no actions.
        tasks: the names of the tasks that can be chosen between; none where there is one.
    """

    recipe: Recipe
    params: Arrays
    rest: Arrays = types.MappingProxyType({})
    values: Callable[[Any], jax.Array] | None = None
    stage: Stage | None = None
    tasks: tuple[str, ...] = ()


class Choice(NamedTuple):
    """Which of the networks of a run.

    Attributes:
        seed: the place of the seed among those of the run.
        task: the name of the task, of a run with several; "" for the last one trained on.
    """

    seed: int
    task: str

    def of_seed(self, arrays: Arrays) -> Arrays:
        """Arrays with a leading axis of seeds, without it."""
        return {path: array[self.seed] for path, array in arrays.items()}


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run as `experiments.load` finds it: finished, or unfinished with a checkpoint.

    What is asked for first is read then; `records`, `summary` and `config` need no checkpoint.

    Attributes:
        folder: its folder.
        about: its config.json: the command, the software and the plain configuration.
        seed: which of its seeds.
        task: which of its tasks; "" for the last one trained on.
    """

    folder: Path
    about: Mapping[str, Any]
    seed: int
    task: str = ""

    def __repr__(self) -> str:
        """Short: a notebook shows it."""
        return f"<run of {self.experiment} in {self.folder}, seed {self.seed}>"

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return str(self.about["experiment"])

    @property
    def done(self) -> bool:
        """Whether it has ended well."""
        return (self.folder / DONE).exists()

    @functools.cached_property
    def config(self) -> Any:
        """The resolved configuration, as the experiment's dataclass. Raises UserError where it is of other code."""
        return from_plain(self._module.Config, self.about["config"])

    @functools.cached_property
    def records(self) -> pl.DataFrame:
        """metrics.jsonl: a row a record of this seed, a column a name, null where a record does not have it.

        Raises:
            UserError: there is none yet, or one is damaged.
        """
        found = {run.seed: run.records for run in load_runs([self.folder])}
        if self.seed not in found:
            raise UserError(f"{self.folder} has no record of seed {self.seed} yet")
        return found[self.seed]

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """What came out, over all its seeds. Raises UserError where the run is not finished."""
        if not self.done:
            raise UserError(f"{self.folder} is not finished, so it has no summary; see its records")
        try:
            return summary(self.folder)
        except FileNotFoundError as error:
            raise UserError(str(error)) from None

    @functools.cached_property
    def saved(self) -> Saved:
        """The checkpoint that the weights are read from. Raises UserError where there is none."""
        return newest(self.folder, self.about)

    @functools.cached_property
    def trained(self) -> Trained:
        """The network, without its functions. Raises UserError where there is none."""
        function = getattr(self._module, "trained", None)
        if function is None:
            raise UserError(f"{self.folder}: runs of {self.experiment} keep no network, but for their records")
        found: Trained = function(self.config, self.saved, Choice(self.seed - int(self.config.seed), self.task))
        if self.task and self.task not in found.tasks:
            if not found.tasks:
                raise UserError(f"{self.folder} has one task; '{self.task}' can't be chosen")
            raise unknown("one of its tasks", self.task, found.tasks)
        return found

    @functools.cached_property
    def params(self) -> PyTree:
        """The network's parameters, with the roles that its layers declare. Raises UserError where there are none."""
        return self._params_and_rest[0]

    @functools.cached_property
    def rest(self) -> PyTree:
        """What else the network keeps: BatchNorm's running statistics; empty otherwise."""
        return self._params_and_rest[1]

    @functools.cached_property
    def apply(self) -> Callable[[PyTree, Any], Any]:
        """`apply(params, inputs)`, jitted: action values [batch, actions] of an agent, else the network's outputs.

        Inputs are a batch of what the network takes: observations, uint8 [batch, stack, height, width]; normalized
        images; tokens [batch, time]. It is a pure function: `nap.audit(run.apply, run.params, inputs)`.
        """
        values = self.trained.values or (lambda outputs: outputs)
        if self.trained.rest:
            network = self.trained.recipe.stateful_functions()
            return jax.jit(lambda params, inputs: values(network.evaluate(params, self.rest, inputs)))
        network = self.trained.recipe.functions()
        return jax.jit(lambda params, inputs: values(network.apply(params, inputs)))

    def act(self, observation: Any) -> int:
        """The action that the agent thinks best in one observation, uint8 [stack, (planes,) height, width].

        Raises:
            UserError: the network chooses no actions.
        """
        if self.trained.values is None:
            raise UserError(f"{self.folder}: a network of {self.experiment} chooses no actions; see apply")
        return int(jnp.argmax(self.apply(self.params, jnp.asarray(observation)[None])[0]))

    @property
    def stage(self) -> Stage:
        """Where the agent plays. Raises UserError where the network is no agent's."""
        if self.trained.stage is None:
            raise UserError(f"{self.folder}: a network of {self.experiment} plays no game")
        return self.trained.stage

    @functools.cached_property
    def _module(self) -> Any:
        entries = catalogue()
        if self.experiment not in entries:
            raise UserError(f"{self.folder} is of '{self.experiment}', and there is no such experiment here")
        return importlib.import_module(entries[self.experiment].module)

    @functools.cached_property
    def _params_and_rest(self) -> tuple[PyTree, PyTree]:
        trained = self.trained
        if trained.rest:
            template = jax.eval_shape(trained.recipe.stateful_functions().init, jax.random.key(0))
        else:
            template = jax.eval_shape(trained.recipe.functions().init, jax.random.key(0)), ()
        params, rest = (self._filled(*part) for part in zip(template, (trained.params, trained.rest), strict=True))
        return params, rest

    def _filled(self, template: PyTree, arrays: Arrays) -> PyTree:
        wanted = {path: leaf.shape for path, leaf in paths.leaves(template).items()}
        given = {path: array.shape for path, array in arrays.items()}
        for path in sorted(wanted.keys() | given.keys()):
            if wanted.get(path) != given.get(path):
                there, here = (of.get(path, "missing") for of in (given, wanted))
                raise UserError(f"{self.saved.path} was written by other code: {path} is {there} there, {here} here")
        return paths.replace(template, {path: jnp.asarray(array) for path, array in arrays.items()})


def load(folder: str | Path, *, seed: int | None = None, task: str = "") -> TrainedRun:
    """See `experiments.load`."""
    folder = Path(folder)
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no run in {folder}: no {CONFIG}{_nearby(folder)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} can't be read: {error}") from None
    if not isinstance(about, dict) or "experiment" not in about or not isinstance(about.get("config"), dict):
        raise UserError(f"{folder / CONFIG} is no run's of ours")
    first = int(about["config"].get("seed", 0))
    last = first + int(about["config"].get("seeds", 1)) - 1
    if seed is not None and not first <= seed <= last:
        there = f"seed {first}" if first == last else f"the seeds {first} to {last}"
        raise UserError(f"{folder} has no seed {seed}; it has {there}")
    return TrainedRun(folder, about, first if seed is None else seed, task)


def _nearby(folder: Path) -> str:
    """The run folders that may have been meant, in words."""
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}") if (path.parent / METRICS).exists())
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"; in it there are {', '.join(map(str, found[:3]))}{more}: name one" if found else ""
