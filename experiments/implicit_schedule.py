"""Does an agent need the schedule that its growing norms make? One run with free norms, and projected ones by schedule.

The weights of a normalized agent grow, so that its effective learning rate decays by itself: `layernorm`, the free run.
The others are `nap`, whose norms are held, from the same seed and the same initial weights: at the constant rate; with
each hidden layer's rate times rho / ||W(t)|| of the free run (matching); with one multiplier for all hidden layers, the
geometric mean of theirs (global-matching); and with a linear and a cosine decay. (After Normalize-and-Project,
arXiv 2407.01800, whose central claim about Rainbow this is.)

All are runs of the experiment `atari` and lie with its others: whatever was run before is not run again. Matching is
near, not exact: norms are interpolated between records (`--log-every`), Adam averages gradients of several scales and
its epsilon is not small, scales and offsets are projected too (but with `--affine free`), gradients are clipped, and
what the agent plays depends on everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import atari, harness
from experiments.atari.config import Config
from experiments.atari.matching import free_of
from experiments.harness.curves import all_layers
from experiments.harness.grid import with_options
from experiments.harness.methods import OptimizerConfig
from experiments.harness.read import LoadedRun, load_runs
from experiments.harness.statistics import Interval, caution, paired_difference, stratified_bootstrap
from nap.tables import format_table

NAME = "implicit-schedule"
FREE = "layernorm"
SCHEDULES = ("constant", "matching", "global-matching", "linear", "cosine")
ARMS = (FREE, *(f"nap {schedule}" for schedule in SCHEDULES))

PRESETS = {
    "default": Config(agent="rainbow"),
    "rainbow": dataclasses.replace(atari.PRESETS["rainbow"], method="nap"),
    "catch": Config(
        game="catch",
        agent="rainbow",
        frames=32_000,
        iteration_frames=1_600,
        evaluation_episodes=64,
        replay_capacity=10_000,
        min_replay_frames=1_600,
        target_period=100,
        log_every=25,
        optimizer=OptimizerConfig(lr=1e-3),
    ),
}
"""Of the projected run at the constant rate; the others follow from it."""

BySeed = Mapping[int, LoadedRun]


def main(argv: list[str]) -> int:
    """Run all arms from the command line and print how they compare; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """A command for each game and seed, which makes the runs of all arms. Raises harness.UserError."""
    config, options = _parse(argv)
    jobs = []
    for of_game in atari.by_game(config):
        for seed in harness.seeds_planned(config, options):
            arms = (dataclasses.replace(arm, seed=seed) for arm in arms_of(of_game).values())
            folders = tuple(atari.folder_of(arm, options.out) for arm in arms)
            one = with_options(argv, {"--games": None, "--game": of_game.game, "--seeds": None, "--seed": seed})
            jobs.append(harness.Job((NAME, *one), folders))
    return jobs


def arms_of(config: Config) -> dict[str, Config]:
    """The configuration of each arm, by its name; `config` is that of the projected run at the constant rate.

    Raises:
        harness.UserError: it is of another method or schedule.
    """
    for option, given, set_here in (
        ("method", config.method, "nap"),
        ("schedule", config.optimizer.schedule, "constant"),
    ):
        if given != set_here:
            raise harness.UserError(f"--{option} {given}: this study runs {', '.join(ARMS)}; leave --{option} out")
    projected = {
        f"nap {schedule}": dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, schedule=schedule)
        )
        for schedule in SCHEDULES
    }
    return {FREE: free_of(config), **projected}


def tables(runs: Sequence[LoadedRun]) -> str:
    """How the arms of one game compare: returns; then norms and effective learning rates, layer by layer.

    Args:
        runs: one for each arm and seed; those of an arm or a seed may be missing, but not all free ones.
    """
    arms: dict[str, dict[int, LoadedRun]] = {name: {} for name in ARMS}
    for run in runs:
        arms[_arm_of(run)][run.seed] = run
    arms = {name: of_arm for name, of_arm in arms.items() if of_arm}
    return "\n\n".join(
        [
            "Evaluation return: the last, and the average of all evaluations, which tells how fast it rises. Means\n"
            "over seeds, 95 % bootstrap intervals; better, worse: the interval of the difference leaves 0 out.\n"
            + f"{_returns(arms)}\n{caution(max(map(len, arms.values())))}".rstrip(),
            "Weight norm at the last record / at the first; mean over seeds.\n"
            + _by_layer(arms, "weight_norm", _growth),
            "Effective learning rate, ||update|| / ||weights||: mean of the first tenth of the records → of the last.\n"
            + _by_layer(arms, "elr", _change),
        ]
    )


def _main(argv: list[str]) -> int:
    config, options = _parse(argv)
    studies = [arms_of(of_game) for of_game in atari.by_game(config)]
    exit_code = 0
    for arms in studies:
        folders: list[Path] = []
        for seed in range(config.seed, config.seed + options.seeds):
            for name, arm in arms.items():
                try:
                    folders += atari.run(dataclasses.replace(arm, seed=seed), options)
                except harness.NonFinite as error:
                    harness.print_error(error)
                    exit_code = error.exit_code
                    if name == FREE:  # nothing to follow, nor to compare with
                        break
        if folders:
            runs = load_runs(folders)
            print(f"{runs[0].problem}, {config.agent}\n\n{tables(runs)}\n")
            harness.tell_end(*folders, result="the tables above")
    return exit_code


def _parse(argv: list[str]) -> tuple[Config, harness.RunOptions]:
    return harness.parse_command(
        Config, argv, name=NAME, description=__doc__, presets=PRESETS, variants=lambda config: arms_of(config).values()
    )


def _arm_of(run: LoadedRun) -> str:
    return FREE if run.method == FREE else f"nap {run.config['optimizer']['schedule']}"


def _returns(arms: Mapping[str, BySeed]) -> str:
    header = ["arm", "seeds", "last", "- free", "than free", "average", "- free", "than free"]
    rows = []
    for name, of_arm in arms.items():
        row = [name, str(len(of_arm))]
        for summarize in (_last, np.mean):
            scores, free = (_scores(by_seed, summarize) for by_seed in (of_arm, arms[FREE]))
            shared = len(scores.keys() & free.keys())
            row.append(_told(stratified_bootstrap(np.array(list(scores.values()))), len(scores)) if scores else "–")
            if name != FREE and shared:
                difference = paired_difference(scores, free)
                row += [_told(difference, shared, "+"), _verdict(difference, shared)]
            else:
                row += ["", ""]
        rows.append(row)
    return format_table(header, rows, right=(1, 2, 3, 5, 6))


def _scores(runs: BySeed, summarize: Callable[[np.ndarray], float]) -> dict[int, float]:
    """One number a seed, of the evaluations in which an episode was complete."""
    returns = {seed: run.series("eval/return")[1] for seed, run in runs.items()}
    return {seed: float(summarize(values)) for seed, values in returns.items() if values.size}


def _last(values: np.ndarray) -> float:
    return values[-1]


def _told(interval: Interval, seeds: int, sign: str = "") -> str:
    value = f"{interval.value:{sign}.3g}"
    return value if seeds == 1 else f"{value} [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]"


def _verdict(difference: Interval, seeds: int) -> str:
    if seeds == 1:
        return "one seed"
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "open"


def _by_layer(arms: Mapping[str, BySeed], quantity: str, tell: Callable[[Sequence[np.ndarray]], str]) -> str:
    """A row a layer, a column an arm; `tell` is given the values of each seed."""
    layers = all_layers([run for of_arm in arms.values() for run in of_arm.values()], quantity)
    rows = [
        [layer, *(tell([run.series(f"{quantity}/{layer}")[1] for run in of_arm.values()]) for of_arm in arms.values())]
        for layer in layers
    ]
    return format_table(["layer", *arms], rows, right=range(1, len(arms) + 1))


def _growth(norms: Sequence[np.ndarray]) -> str:
    return f"{np.mean([of_seed[-1] / of_seed[0] for of_seed in norms]):.4g}"


def _change(rates: Sequence[np.ndarray]) -> str:
    """The mean over seeds at the beginning and at the end."""
    ends = [
        (of_seed[:count].mean(), of_seed[-count:].mean()) for of_seed in rates for count in [-(-of_seed.size // 10)]
    ]
    first, last = np.mean(ends, axis=0)
    return f"{first:.1e} → {last:.1e}".replace("e-0", "e-")
