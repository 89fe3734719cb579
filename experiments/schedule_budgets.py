"""Which schedule for which budget? REX and five others, from 1 to 100 % of the updates of a whole run.

A small network learns to classify images, or to tell the next byte of a text (`--preset text`), with momentum and with
Adam. Every schedule fills every budget, at its own best peak out of a grid of learning rates; schedules are ranked by
the test error after the last update, of text by the test loss. (After REX, Chen et al., arXiv 2107.04197, whose claim
is that it is as good as the best of the others at every budget. The other claim, that it is better to read a profile at
every update than a few times a run, is what `--readings` is for.)

The peak is chosen by the very score that is ranked, of all seeds, as papers that tune do; all schedules gain from that
alike, and the intervals of ranks repeat the choice.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import optax
import tyro
from jaxtyping import Float

from experiments import harness
from experiments.harness.bounds import A_SEED, NOT_EMPTY, SEEDS, at_least, more_than
from experiments.harness.claims import Claim, above, claims_table
from experiments.harness.classifier import (
    SCORES,
    FiveSeeds,
    Optimizer,
    make_training,
    memory_needed,
    parse_study,
    require_study,
    scores_over_seeds,
)
from experiments.harness.problems import TEXT, Method, Problem, Task
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
PROFILES: dict[str, Callable[[], profiles.Profile]] = {
    "rex": profiles.rex,
    "linear": profiles.linear,
    "cosine": profiles.cosine,
    "one-cycle": profiles.one_cycle,
    "exponential": functools.partial(profiles.exponential, 0.01),
}
SCHEDULES = (*PROFILES, "step")
LOW = 0.1
"""The share of the updates up to which a budget is a low one."""
_SAME = 1e-7  # errors are shares of some thousand images at most, in float32: what is nearer than this is equal


class Ranked(NamedTuple):
    """What schedules are ranked by.

    Attributes:
        score: its name, one of SCORES.
        words: what it is called, with its unit.
        times: what it is multiplied by, to be in that unit.
        digits: behind the point.
    """

    score: str
    words: str
    times: float
    digits: int


RANKED = {
    "images": Ranked("test_error", "test error [%]", 100, 1),
    "text": Ranked("test_loss", "test loss [nats a byte]", 1, 3),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All budgets and schedules with one optimizer, all seeds. A command runs both optimizers.

    With `readings` the schedules are the profiles, read so rarely; a command runs them besides.
    """

    optimizer: Annotated[Optimizer, tyro.conf.Suppress] = "momentum"
    """momentum (0.9) or adam."""
    method: Method = "none"
    """none (no normalization), layernorm, or nap (which projects besides)."""
    problem: Problem = dataclasses.field(default_factory=Problem)
    updates: Annotated[int, at_least(1)] = 1500
    """Updates of the whole run, 100 %."""
    budgets: Annotated[tuple[float, ...], more_than(0, most=1), NOT_EMPTY] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    """The budgets, as shares of the updates."""
    readings: Annotated[int, at_least(0)] = 0
    """Besides, read each profile only so many times a run, at equal distances; 0: no."""
    rates: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """The peaks that are tried."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. The seeds, the other options and the version of the code determine a run."""
    seeds: Annotated[int, tyro.conf.Suppress, at_least(1, most=SEEDS)] = 5
    """How many seeds, as --seeds says."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Updates of each budget."""
        return tuple(round(share * self.updates) for share in self.budgets)

    @property
    def schedules(self) -> tuple[str, ...]:
        """What fills each budget."""
        return tuple(PROFILES) if self.readings else SCHEDULES

    @property
    def ranked(self) -> Ranked:
        """What schedules are ranked by."""
        return RANKED[self.problem.task]


PRESETS = {"default": Config(), "text": Config(problem=TEXT, updates=500)}


def schedule_of(name: str, peak: float, steps: int, readings: int = 0) -> optax.Schedule:
    """A schedule by its name, its profile read at every update or so many times a run."""
    if name == "step":
        return schedules.step(peak, steps)
    return schedules.follow(peak, steps, PROFILES[name](), readings=readings or None)


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
    configs, options, task = _parse(argv)
    scores = [_run(config, options, task)["scores"] for config in configs]
    print(f"{configs[0].problem.data}, {configs[0].method}\n\n{tables(configs, scores)}\n")
    folders = [harness.run_folder(NAME, config, out=options.out, label=_label(config)) for config in configs]
    harness.tell_end(*folders, result="the tables above")
    return 0


def _parse(argv: Sequence[str]) -> tuple[list[Config], FiveSeeds, Task]:
    """The configuration of each optimizer, then of each with rare readings; the other options and the task."""
    config, options, task = parse_study(
        Config, argv, name=NAME, description=__doc__, options_type=FiveSeeds, presets=PRESETS
    )
    least = 1 / config.updates
    if min(config.budgets) < least:
        raise harness.UserError(
            f"--budgets {' '.join(map(str, config.budgets))}: shares of the updates, of at least one ({least:.2g}) to 1"
        )
    if config.readings > config.updates:
        raise harness.UserError(f"--readings {config.readings}: from 1 to the {config.updates} updates, or 0 for none")
    both = [
        dataclasses.replace(config, optimizer=one, rates=RATES[one], readings=readings)
        for readings in dict.fromkeys((0, config.readings))
        for one in OPTIMIZERS
    ]
    return both, options, task


def _label(config: Config) -> str:
    seeds = seeds_label(config.seed, config.seeds)
    read = f"-read{config.readings}" if config.readings else ""
    return f"{config.optimizer}-{config.method}{read}-{seeds}"


def _run(config: Config, options: FiveSeeds, task: Task) -> Trace:
    """All budgets with one optimizer."""
    stages, data = len(config.budgets) * len(config.schedules), task.fingerprints
    train = functools.partial(_train, config, task)
    return trace_of(NAME, config, options, train, label=_label(config), stages=stages, data=data)


def _memory_needed(task: Task, config: Config) -> dict[str, int]:
    runs = len(config.rates) * config.seeds
    return memory_needed(config.problem, task, config.method, config.optimizer, max(config.lengths), runs)


def _train(config: Config, task: Task, opened: harness.Run) -> None:
    """One budget after another, in each one schedule after another; all rates and seeds of these side by side."""
    require_study(config, functools.partial(_memory_needed, task), "updates")
    seeds = range(config.seed, config.seed + config.seeds)
    shape = (len(config.schedules), len(config.budgets), len(config.rates), config.seeds, len(SCORES))
    scores = np.full(shape, np.nan, np.float32)
    make = functools.partial(make_training, config.problem, task, config.method, config.optimizer)
    train = scores_over_seeds(make, task, len(config.rates), seeds)

    def stage(budget: int, which: int) -> None:
        updates, schedule = config.lengths[budget], config.schedules[which]
        followed = [schedule_of(schedule, rate, updates, config.readings) for rate in config.rates]
        scores[which, budget] = train(np.stack([one(np.arange(updates)) for one in followed]))
        _record(config, opened, schedule, budget, scores[which, budget])

    cells = itertools.product(range(len(config.budgets)), range(len(config.schedules)))
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
    errors = _errors(config, scores)
    ranks, best = mean_ranks(errors[None]), errors.mean(axis=-1).min(axis=-1)
    named: dict[str, float] = {"seeds": config.seeds}
    for i, schedule in enumerate(config.schedules):
        named[f"rank/{schedule}"] = float(ranks[i].mean())
        named |= {
            f"{config.ranked.score}/{schedule}/{budget:g}": float(error)
            for budget, error in zip(config.budgets, best[i], strict=True)
        }
    return named


def _errors(config: Config, scores: np.ndarray) -> np.ndarray:
    """What is ranked, [schedules, budgets, rates, seeds]; infinite where the loss is none any more."""
    errors = scores[..., SCORES.index(config.ranked.score)]
    return np.where(np.isnan(errors), np.inf, errors)


def tables(configs: Sequence[Config], scores: Sequence[np.ndarray]) -> str:
    """What came out: errors by optimizer, ranks, rare readings, and how that compares with what must appear.

    Args:
        configs: of each optimizer, and then of each with rare readings, if there are any.
        scores: of each of them, [schedules, budgets, rates, seeds, scores].
    """
    config, ranked = configs[0], configs[0].ranked
    by_readings = {
        readings: np.stack([_errors(*of) for of in zip(configs, scores, strict=True) if of[0].readings == readings])
        for readings in dict.fromkeys(of.readings for of in configs)
    }
    errors = by_readings.pop(0)
    header = ["schedule", *(f"{100 * budget:g} %" for budget in config.budgets)]
    parts = [_error_table(header, *of) for of in zip(configs, errors, strict=False)]
    averages, ranks = rank_intervals(errors)
    rows = [
        [name, *(f"{rank:.2f}" for rank in ranks[i]), f"{averages[i].value:.2f}", _interval(averages[i])]
        for i, name in enumerate(SCHEDULES)
    ]
    columns = [*header, "average", "95 % interval"]
    words = "Mean rank over the optimizers, 1 is best.\n"
    parts.append(words + format_table(columns, rows, right=range(1, len(columns))))
    claims = _claims(config, errors, averages)
    for readings, of_rare in by_readings.items():
        lost = {name: _lost(ranked, errors[:, i], of_rare[:, i]) for i, name in enumerate(PROFILES)}
        rows = [[name, *(f"{loss:+.{ranked.digits + 1}f}" for loss in of[0])] for name, of in lost.items()]
        words = f"{ranked.words} that a profile loses if it is read {readings} times a run, over the optimizers.\n"
        parts.append(words + format_table(header, rows, right=range(1, len(header))))
        must = f"{ranked.words} lost by {readings} readings a run, above 0"
        claims += [above(f"{name}: {must}", gain) for name, (_, gain) in lost.items()]
    parts.append(claims_table(claims, config.seeds))
    return "\n\n".join(parts)


def _error_table(
    header: Sequence[str], config: Config, errors: Float[np.ndarray, "schedules budgets rates seeds"]
) -> str:
    """Of an optimizer: the errors at the best rates, and these."""
    means, ranked = errors.mean(axis=-1), config.ranked
    best, chosen = ranked.times * means.min(axis=-1), np.array(config.rates)[means.argmin(axis=-1)]
    rows = [
        [name, *(f"{of:.{ranked.digits}f} ({rate:g})" for of, rate in zip(best[i], chosen[i], strict=True))]
        for i, name in enumerate(SCHEDULES)
    ]
    words = f"{config.optimizer}: {ranked.words} after each budget, means over {config.seeds} seeds (best peak).\n"
    return words + format_table(header, rows, right=range(1, len(header)))


def _claims(config: Config, errors: np.ndarray, averages: Sequence[Interval]) -> list[Claim]:
    place = 1 + sum(other.value < averages[0].value for other in averages)
    claims = [Claim("rex: best or second mean rank", f"place {place}", "yes" if place <= 2 else "no")]
    low = [i for i, budget in enumerate(config.budgets) if budget <= LOW]
    if low:
        rex, linear = (errors[:, SCHEDULES.index(name)][:, low] for name in ("rex", "linear"))
        gain = paired_difference(_by_seed(config.ranked, linear), _by_seed(config.ranked, rex))
        claims.append(above(f"budgets up to {LOW:.0%}: {config.ranked.words}, linear - rex at least 0", gain))
    return claims


def _lost(ranked: Ranked, always: np.ndarray, rarely: np.ndarray) -> tuple[np.ndarray, Interval]:
    """What rare readings cost a profile: in each budget, and on average over them, paired by seed.

    Args:
        ranked: what it costs.
        always: of the profile read at every update, [settings, budgets, rates, seeds].
        rarely: of the profile read rarely, likewise.
    """
    each = ranked.times * (_at_best(rarely) - _at_best(always)).mean(axis=(0, 2))
    return each, paired_difference(_by_seed(ranked, rarely), _by_seed(ranked, always))


def _by_seed(ranked: Ranked, errors: Float[np.ndarray, "settings budgets rates seeds"]) -> dict[int, float]:
    """Each seed's error at the best rates, averaged over settings and budgets."""
    return {i: ranked.times * float(error) for i, error in enumerate(_at_best(errors).mean(axis=(0, 1)))}


def _at_best(errors: Float[np.ndarray, "settings budgets rates seeds"]) -> Float[np.ndarray, "settings budgets seeds"]:
    """Errors at the rate that is best for the seeds together."""
    chosen = errors.mean(axis=-1).argmin(axis=-1)[..., None, None]
    return np.take_along_axis(errors, chosen, axis=-2)[..., 0, :]


def _interval(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"
