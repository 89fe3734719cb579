"""Which schedule for which budget? REX and five others, from 1 to 100 % of the updates of a whole run.

A small network learns to classify, with momentum and with Adam. Every schedule fills every budget, at its own best peak
out of a grid of learning rates; schedules are ranked by the test error after the last update. (After REX, Chen et al.,
arXiv 2107.04197, whose claim is that it is as good as the best of the others at every budget.)

The peak is chosen by the very test error that is ranked, of all seeds, as papers that tune do; all schedules gain from
that alike, and the intervals repeat the choice.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import optax
import tyro
from jaxtyping import Float

from envs.datasets import Dataset
from experiments import harness
from experiments.harness.claims import Claim, above, claims_table
from experiments.harness.classifier import (
    SCORES,
    FiveSeeds,
    Method,
    Optimizer,
    Problem,
    make_training,
    parse_study,
    scores_over_seeds,
)
from experiments.harness.seeds import seeds_label, use_all_cores
from experiments.harness.stages import run_stages, trace_of
from experiments.harness.statistics import RESAMPLES, Interval, paired_difference
from experiments.harness.trace import Trace
from nap import schedules
from nap.schedules import profiles
from nap.tables import format_table

NAME = "schedule-budgets"
OPTIMIZERS: tuple[Optimizer, ...] = ("momentum", "adam")
RATES = {"momentum": (0.01, 0.03, 0.1, 0.3, 1.0), "adam": (1e-3, 3e-3, 1e-2, 3e-2, 0.1)}
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "rex": schedules.rex,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "step": schedules.step,
    "one-cycle": schedules.one_cycle,
    "exponential": lambda peak, steps: schedules.follow(peak, steps, profiles.exponential(0.01)),
}
LOW = 0.1
"""The share of the updates up to which a budget is a low one."""
_SAME = 1e-7  # errors are shares of some thousand images at most, in float32: what is nearer than this is equal


@dataclasses.dataclass(frozen=True)
class Config:
    """All budgets and schedules with one optimizer, all seeds. A command runs both optimizers."""

    optimizer: Annotated[Optimizer, tyro.conf.Suppress] = "momentum"
    """momentum (0.9) or adam."""
    method: Method = "none"
    """none (no normalization), layernorm, or nap (which projects besides)."""
    problem: Problem = dataclasses.field(default_factory=Problem)
    updates: int = 1500
    """Updates of the whole run, 100 %."""
    budgets: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    """The budgets, as shares of the updates."""
    rates: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """The peaks that are tried."""
    seed: int = 0
    """The first seed. The seeds, the other options and the version of the code determine a run."""
    seeds: Annotated[int, tyro.conf.Suppress] = 5
    """How many seeds, as --seeds says."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Updates of each budget."""
        return tuple(round(share * self.updates) for share in self.budgets)


def main(argv: list[str]) -> int:
    """Run both optimizers from the command line and print how the schedules rank; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """The one command, which makes the runs of both optimizers. Raises harness.UserError."""
    configs, options, _ = _parse(argv)
    return [harness.job_of(NAME, argv, configs, options, _label)]


def mean_ranks(
    errors: Float[np.ndarray, "*resamples settings schedules budgets rates seeds"],
) -> Float[np.ndarray, "*resamples schedules budgets"]:
    """The rank of each schedule in each budget, from 1, averaged over the settings; equal errors share their ranks.

    A schedule's error is that at its best rate, of the means over seeds.
    """
    best = errors.mean(axis=-1).min(axis=-1)
    below = np.sum(best[..., None, :, :] < best[..., :, None, :] - _SAME, axis=-2)
    same = np.sum(np.abs(best[..., None, :, :] - best[..., :, None, :]) <= _SAME, axis=-2)
    return np.mean(1 + below + (same - 1) / 2, axis=-3)


def rank_intervals(
    errors: Float[np.ndarray, "settings schedules budgets rates seeds"],
) -> tuple[list[Interval], Float[np.ndarray, "schedules budgets"]]:
    """Each schedule's rank, averaged over budgets and settings, with its 95 % bootstrap interval; and the ranks.

    The same seeds are drawn for all, as they share their weights and batches, and each drawing chooses its best rates.
    """
    count = errors.shape[-1]
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    ranks = mean_ranks(errors)
    averages = np.stack([mean_ranks(errors[..., of_drawing]).mean(axis=-1) for of_drawing in drawn])
    low, high = np.quantile(averages, [0.025, 0.975], axis=0)
    return [Interval(*map(float, of)) for of in zip(ranks.mean(axis=-1), low, high, strict=True)], ranks


def _main(argv: list[str]) -> int:
    use_all_cores()
    harness.enable_compilation_cache()
    configs, options, dataset = _parse(argv)
    scores = [_run(config, options, dataset)["scores"] for config in configs]
    print(f"{configs[0].problem.data}, {configs[0].method}\n\n{tables(configs, scores)}\n")
    return 0


def _parse(argv: Sequence[str]) -> tuple[list[Config], FiveSeeds, Dataset]:
    """The configuration of each optimizer, the other options and the data."""
    config, options, dataset = parse_study(Config, argv, name=NAME, description=__doc__, options_type=FiveSeeds)
    if config.updates < 1:
        raise harness.UserError(f"--updates {config.updates}: it must be at least 1")
    least = 1 / config.updates
    if not config.budgets or not all(least <= budget <= 1 for budget in config.budgets):
        raise harness.UserError(
            f"--budgets {' '.join(map(str, config.budgets))}: shares of the updates, of at least one ({least:.2g}) to 1"
        )
    return [dataclasses.replace(config, optimizer=one, rates=RATES[one]) for one in OPTIMIZERS], options, dataset


def _label(config: Config) -> str:
    seeds = seeds_label(config.seed, config.seeds)
    return f"{config.optimizer}-{config.method}-{seeds}"


def _run(config: Config, options: FiveSeeds, dataset: Dataset) -> Trace:
    """All budgets with one optimizer."""
    train = functools.partial(_train, config, dataset)
    return trace_of(NAME, config, options, train, label=_label(config), stages=len(config.budgets) * len(SCHEDULES))


def _train(config: Config, dataset: Dataset, opened: harness.Run) -> None:
    """One budget after another, in each one schedule after another; all rates and seeds of these side by side."""
    seeds = range(config.seed, config.seed + config.seeds)
    shape = (len(SCHEDULES), len(config.budgets), len(config.rates), config.seeds, len(SCORES))
    scores = np.full(shape, np.nan, np.float32)

    @functools.cache
    def training(updates: int) -> Callable[[np.ndarray], np.ndarray]:
        train = make_training(config.problem, dataset, config.method, config.optimizer, updates)
        return scores_over_seeds(train, dataset, len(config.rates), seeds)

    def stage(budget: int, which: int) -> None:
        updates, schedule = config.lengths[budget], list(SCHEDULES)[which]
        rates = np.stack([SCHEDULES[schedule](rate, updates)(np.arange(updates)) for rate in config.rates])
        scores[which, budget] = training(updates)(rates)
        _record(config, opened, schedule, budget, scores[which, budget])

    cells = itertools.product(range(len(config.budgets)), range(len(SCHEDULES)))
    run_stages(opened, {"scores": scores}, [functools.partial(stage, *cell) for cell in cells])
    opened.finish(_summary(config, scores))


def _record(
    config: Config, opened: harness.Run, schedule: str, budget: int, scores: Float[np.ndarray, "rates seeds 3"]
) -> None:
    for rate, of_rate in zip(config.rates, scores, strict=True):
        for i, of_seed in enumerate(of_rate):
            place = {"phase": "train", "schedule": schedule, "budget": config.budgets[budget], "seed": config.seed + i}
            values = dict(zip(SCORES, of_seed, strict=True))
            opened.record({**place, "updates": config.lengths[budget], "peak": rate, **values})


def _summary(config: Config, scores: np.ndarray) -> dict[str, float]:
    """Of each schedule: its rank, averaged over the budgets, and its error in each at the best rate."""
    errors = scores[..., SCORES.index("test_error")]
    ranks, best = mean_ranks(errors[None]), errors.mean(axis=-1).min(axis=-1)
    named: dict[str, float] = {"seeds": config.seeds}
    for i, schedule in enumerate(SCHEDULES):
        named[f"rank/{schedule}"] = float(ranks[i].mean())
        named |= {
            f"test_error/{schedule}/{budget:g}": float(error)
            for budget, error in zip(config.budgets, best[i], strict=True)
        }
    return named


def tables(configs: Sequence[Config], scores: Sequence[np.ndarray]) -> str:
    """What came out: errors by optimizer, ranks, and how that compares with what must appear.

    Args:
        configs: of each optimizer.
        scores: of each optimizer, [schedules, budgets, rates, seeds, scores].
    """
    budgets = configs[0].budgets
    errors = np.stack(scores)[..., SCORES.index("test_error")]
    header = ["schedule", *(f"{100 * budget:g} %" for budget in budgets)]
    parts = []
    for config, of_optimizer in zip(configs, errors, strict=True):
        means = of_optimizer.mean(axis=-1)
        best, chosen = means.min(axis=-1), means.argmin(axis=-1)
        rows = [
            [name, *(f"{best[i, j]:.1%} ({config.rates[chosen[i, j]]:g})" for j in range(len(budgets)))]
            for i, name in enumerate(SCHEDULES)
        ]
        words = f"{config.optimizer}: test error after each budget, means over {config.seeds} seeds (best peak).\n"
        parts.append(words + format_table(header, rows, right=range(1, len(header))))
    averages, ranks = rank_intervals(errors)
    rows = [
        [name, *(f"{rank:.2f}" for rank in ranks[i]), f"{averages[i].value:.2f}", _interval(averages[i])]
        for i, name in enumerate(SCHEDULES)
    ]
    columns = [*header, "average", "95 % interval"]
    words = "Mean rank over the optimizers, 1 is best.\n"
    parts.append(words + format_table(columns, rows, right=range(1, len(columns))))
    parts.append(claims_table(_claims(budgets, errors, averages), configs[0].seeds))
    return "\n\n".join(parts)


def _claims(budgets: Sequence[float], errors: np.ndarray, averages: Sequence[Interval]) -> list[Claim]:
    place = 1 + sum(other.value < averages[0].value for other in averages)
    claims = [Claim("rex: best or second mean rank", f"place {place}", "yes" if place <= 2 else "no")]
    low = [i for i, budget in enumerate(budgets) if budget <= LOW]
    if low:
        rex, linear = (_points_by_seed(errors[:, list(SCHEDULES).index(name)][:, low]) for name in ("rex", "linear"))
        gain = paired_difference(linear, rex)
        claims.append(above(f"budgets up to {LOW:.0%}: test error [points], linear - rex at least 0", gain))
    return claims


def _points_by_seed(errors: Float[np.ndarray, "settings budgets rates seeds"]) -> dict[int, float]:
    """Each seed's error at the best rates, in percentage points, averaged over settings and budgets."""
    chosen = errors.mean(axis=-1).argmin(axis=-1)[..., None, None]
    of_seeds = np.take_along_axis(errors, chosen, axis=-2).mean(axis=(0, 1, 2))
    return {i: 100 * float(error) for i, error in enumerate(of_seeds)}


def _interval(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"
