"""Write what a run has trained into a folder for others: weights as safetensors, network and configuration as JSON.

`nap.networks.load(DIR)` makes the network again; it needs neither this repository's experiments nor the run.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

import experiments
from experiments import harness
from experiments.harness.folder import CONFIG
from experiments.harness.storage import write_atomically
from nap import networks, paths

_TOLD = ("experiment", "config", "hash", "versions", "git_commit", "command")
"""What of a run's config.json goes with the weights."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is written, and where to."""

    run: tyro.conf.Positional[Path]
    """The folder of a run, finished or with a checkpoint: runs/atari/pong-..."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write weights.safetensors, network.json and config.json into."""
    of_seed: int | None = None
    """Which network of a run of several seeds; if not given, that of the first."""
    task: str = ""
    """Which game's output layer, of a sequence in which each has its own; if not given, the last one's."""


def main(argv: list[str]) -> int:
    """Writes the files and prints what they are; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def _main(argv: list[str]) -> None:
    options = harness.parse_options(Options, argv, name="export", description=__doc__)
    run = experiments.load(options.run, seed=options.of_seed, task=options.task)
    recipe = run.trained.recipe
    try:
        networks.save(options.out, recipe, run.params, run.rest)
    except ImportError as error:
        raise harness.UserError(str(error)) from None
    told = {name: run.about[name] for name in _TOLD if name in run.about}
    told |= {"seed": run.seed, "iteration": run.saved.iteration} | ({"task": run.task} if run.task else {})
    write_atomically(options.out / CONFIG, json.dumps(told, indent=2) + "\n")
    weights = sum(leaf.size for leaf in paths.leaves(run.params).values())
    when = "" if run.done else f", after iteration {run.saved.iteration} of an unfinished run"
    print(f"{recipe.network}, {weights:,} parameters{when}: nap.networks.load({str(options.out)!r})")
