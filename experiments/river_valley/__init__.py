"""Along the river, down the hills: decays lower the loss at once, a high rate gets further; WSD-S against its rivals.

After "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective" (Wen et al.,
arXiv 2410.05192). Two toys show the picture. A valley in two dimensions, whose floor falls slowly along a winding river
between steep hills: noise holds the weights above the floor at a height that grows with the rate, progress along the
river adds up with it, and a decay takes the height away. And a table of bigrams, learned one at a time: rows with one
next token are the river, uncertain ones the hills: there the curvature is, and the loss that a decay takes away.

Then three schedules that serve several budgets with as many updates in all: WSD-S, which decays before each budget and
goes on from the decayed weights; WSD, which decays on branches, so that its trunk is shorter by all of them; and cosine
cycles. A cosine for each budget, which takes far more updates, is beside them. The network learns images half of whose
labels are random ones, drawn anew whenever they are seen: uncertain, as the next token of a text is; or text itself
(`--preset text`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Float

from experiments import harness
from experiments.harness.bounds import A_SEED, NOT_EMPTY, SEEDS, at_least
from experiments.harness.claims import Claim, above, claims_table, near
from experiments.harness.classifier import (
    SCORES,
    FiveSeeds,
    Optimizer,
    best_peak,
    make_training,
    memory_needed,
    parse_study,
    require_study,
    scores_over_seeds,
)
from experiments.harness.problems import TEXT, Method, Problem, Task
from experiments.harness.seeds import seeds_label, use_all_cores
from experiments.harness.stages import run_stages, trace_of
from experiments.harness.statistics import paired_difference, stratified_bootstrap
from experiments.harness.trace import Trace
from experiments.river_valley.toys import (
    BIGRAM_TRACES,
    END,
    Bigrams,
    Valley,
    measure_bigrams,
    measure_valley,
    results,
)
from nap import schedules
from nap.schedules import profiles
from nap.tables import format_table

NAME = "river-valley"
RATES = {
    "sgd": (0.1, 0.3, 1.0, 3.0),
    "momentum": (0.01, 0.03, 0.1, 0.3, 1.0),
    "adam": (1e-3, 3e-3, 1e-2, 3e-2),
}
SCHEDULES = ("wsd-s", "wsd", "cosine-cycles", "cosine-each")
RIVALS = ("wsd", "cosine-cycles")
DECAY = 0.1
"""The share of its budget that a decay takes, in WSD and WSD-S."""
VALLEY, BIGRAMS = Valley(), Bigrams()


@dataclasses.dataclass(frozen=True)
class Config:
    """All schedules, all seeds, and the toys, which read the seeds only."""

    method: Method = "none"
    """none (no normalization), layernorm, or nap (which projects besides)."""
    optimizer: Optimizer = "momentum"
    """sgd (plain), momentum (0.9) or adam (epsilon 1e-8)."""
    problem: Problem = dataclasses.field(default_factory=lambda: Problem(batch_size=20, label_noise=0.5))
    budgets: Annotated[tuple[int, ...], at_least(1), NOT_EMPTY] = (1500, 3000, 6000)
    """Updates after which a decayed network is wanted."""
    bigram_tokens: Annotated[int, at_least(4)] = BIGRAMS.tokens
    """Vocabulary of the table of bigrams."""
    rates: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """The peaks that are tried; a schedule has one for all budgets."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. The seeds, the other options and the version of the code determine a run."""
    seeds: Annotated[int, tyro.conf.Suppress, at_least(1, most=SEEDS)] = 5
    """How many seeds, as --seeds says."""

    @property
    def bigrams(self) -> Bigrams:
        """The table."""
        return BIGRAMS._replace(tokens=self.bigram_tokens)


PRESETS = {"default": Config(), "text": Config(problem=TEXT, budgets=(500, 1000, 2000))}


def main(argv: list[str]) -> int:
    """Run the toys and all schedules from the command line and print what came out; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """The one command, which makes one run. Raises harness.UserError."""
    config, options, _ = _parse(argv)
    return [harness.job_of(NAME, argv, [config], options, _label)]


def rates_until(schedule: str, budgets: Sequence[int], which: int) -> Float[np.ndarray, " updates"]:
    """The multipliers of the peak, from a run's beginning to its network for a budget, by the schedule's name.

    Every schedule but `cosine-each` spends as many updates on all budgets up to this one as the budget says.
    """
    rate, updates = _UNTIL[schedule](budgets, which)
    return np.asarray(rate(np.arange(updates)))


Until = tuple[optax.Schedule, int]
"""A schedule, and the updates that it is followed for."""


def _decays(budgets: Sequence[int]) -> list[int]:
    return [round(DECAY * budget) for budget in budgets]


def _wsd_s(budgets: Sequence[int], which: int) -> Until:
    return (schedules.wsd_s(1.0, budgets, warmup=0, decay=_decays(budgets)), budgets[which])


def _wsd(budgets: Sequence[int], which: int) -> Until:
    decays = _decays(budgets)
    length = budgets[which] - sum(decays[:which])  # the trunk, which all share, and this budget's branch
    return (schedules.wsd(1.0, length, warmup=0, decay=decays[which], profile=profiles.reciprocal(END)), length)


def _cosine_cycles(budgets: Sequence[int], which: int) -> Until:
    cycles = np.diff([0, *budgets]).tolist()
    return (schedules.cosine_restarts(1.0, cycles, end=END), budgets[which])


def _cosine_each(budgets: Sequence[int], which: int) -> Until:
    return (schedules.cosine(1.0, budgets[which], end=END), budgets[which])


_UNTIL: dict[str, Callable[[Sequence[int], int], Until]] = {
    "wsd-s": _wsd_s,
    "wsd": _wsd,
    "cosine-cycles": _cosine_cycles,
    "cosine-each": _cosine_each,
}


def _main(argv: list[str]) -> int:
    use_all_cores()
    harness.enable_compilation_cache()
    config, options, task = _parse(argv)
    came_out = tables(config, _run(config, options, task))
    print(f"{config.problem.data}, {config.method}, {config.optimizer}\n\n{came_out}\n")
    folder = harness.run_folder(NAME, config, out=options.out, label=_label(config))
    harness.tell_end(folder, result="the tables above")
    return 0


def _parse(argv: Sequence[str]) -> tuple[Config, FiveSeeds, Task]:
    config, options, task = parse_study(
        Config, argv, name=NAME, description=__doc__, options_type=FiveSeeds, presets=PRESETS
    )
    try:
        for schedule in SCHEDULES:
            _UNTIL[schedule](config.budgets, len(config.budgets) - 1)
    except (ValueError, IndexError) as error:
        raise harness.UserError(f"--budgets {' '.join(map(str, config.budgets))}: {error}") from None
    return dataclasses.replace(config, rates=RATES[config.optimizer]), options, task


def _label(config: Config) -> str:
    return f"{config.method}-{config.optimizer}-{seeds_label(config.seed, config.seeds)}"


def _run(config: Config, options: FiveSeeds, task: Task) -> Trace:
    train = functools.partial(_train, config, task)
    stages, data = 1 + len(SCHEDULES), task.fingerprints
    return trace_of(NAME, config, options, train, label=_label(config), stages=stages, data=data)


def _memory_needed(task: Task, config: Config) -> dict[str, int]:
    runs = len(config.rates) * config.seeds
    tables = 4 * config.seeds * config.bigrams.tables * config.bigram_tokens**2
    needed = memory_needed(config.problem, task, config.method, config.optimizer, max(config.budgets), runs)
    return {**needed, "tables of bigrams": tables}


def _train(config: Config, task: Task, opened: harness.Run) -> None:
    """The toys, then one schedule after another, budget by budget; all rates and seeds of these side by side."""
    require_study(config, functools.partial(_memory_needed, task), "budgets", "bigram_tokens")
    seeds, budgets = range(config.seed, config.seed + config.seeds), config.budgets
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    toys = _toys_to_fill(config)
    shape = (len(SCHEDULES), len(config.rates), len(budgets), config.seeds, len(SCORES))
    scores = np.full(shape, np.nan, np.float32)
    make = functools.partial(make_training, config.problem, task, config.method, config.optimizer)
    train = scores_over_seeds(make, task, len(config.rates), seeds)

    def measure() -> None:
        for name, values in {**measure_valley(VALLEY, keys), **measure_bigrams(config.bigrams, keys)}.items():
            toys[name][:] = values
        _record_toys(config, opened, toys)

    def stage(which: int) -> None:
        schedule, of_schedule = SCHEDULES[which], scores[which]
        for i, budget in enumerate(budgets):
            multipliers = rates_until(schedule, budgets, i)
            filled = np.pad(multipliers, (0, budget - len(multipliers)))  # an update at rate 0 changes no weight
            of_schedule[:, i] = train(np.array(config.rates)[:, None] * filled)
        lost = of_schedule[best_peak(of_schedule)].sum()
        opened.check_finite(f"test loss of {schedule} at its best peak", lost, updates=budgets[-1])
        _record_trained(config, opened, schedule, of_schedule)

    stages = [measure, *(functools.partial(stage, which) for which in range(len(SCHEDULES)))]
    run_stages(opened, {**toys, "scores": scores}, stages)
    opened.finish(_summary(config, toys, scores))


def _toys_to_fill(config: Config) -> Trace:
    seeds = config.seeds
    valley, bigrams = (seeds, len(VALLEY.rates)), (seeds, config.bigram_tokens)
    shapes = {"height": valley, "progress": valley, "before_decay": (seeds,), "after_decay": (seeds,)}
    shapes |= dict.fromkeys(BIGRAM_TRACES, bigrams)
    return {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}


def _record_toys(config: Config, opened: harness.Run, toys: Trace) -> None:
    for i in range(config.seeds):
        place = {"seed": config.seed + i}
        for j, rate in enumerate(VALLEY.rates):
            reached = {name: toys[name][i, j] for name in ("height", "progress")}
            opened.record({"phase": "valley", **place, "updates": VALLEY.updates, "learning_rate": rate, **reached})
        for j, e in enumerate(config.bigrams.uncertainties):
            reached = {name: toys[name][i, j] for name in BIGRAM_TRACES}
            opened.record({"phase": "bigrams", **place, "updates": BIGRAMS.updates, "uncertainty": e, **reached})


def _record_trained(config: Config, opened: harness.Run, schedule: str, scores: np.ndarray) -> None:
    lengths = _lengths(config, schedule)
    for rate, of_rate in zip(config.rates, scores, strict=True):
        for budget, updates, of_budget in zip(config.budgets, lengths, of_rate, strict=True):
            for i, of_seed in enumerate(of_budget):
                place = {"phase": "train", "schedule": schedule, "seed": config.seed + i, "budget": budget}
                values = dict(zip(SCORES, of_seed, strict=True))
                opened.record({**place, "updates": updates, "peak": rate, **values})


def _lengths(config: Config, schedule: str) -> list[int]:
    """Updates of a schedule until each budget's network."""
    return [len(rates_until(schedule, config.budgets, which)) for which in range(len(config.budgets))]


def _summary(config: Config, toys: Trace, scores: np.ndarray) -> dict[str, float]:
    """Means over seeds; of each schedule its best peak, and there the losses."""
    named: dict[str, float] = {name: float(values.mean()) for name, values in results(VALLEY, toys).items()}
    named["seeds"] = config.seeds
    for schedule, of_schedule in zip(SCHEDULES, scores, strict=True):
        best = best_peak(of_schedule)
        named[f"peak/{schedule}"] = config.rates[best]
        for budget, of_budget in zip(config.budgets, of_schedule[best], strict=True):
            for name, values in zip(SCORES, of_budget.T, strict=True):
                named[f"{name}/{schedule}/{budget}"] = float(values.mean())
    return named


def tables(config: Config, trace: Trace) -> str:
    """What came out, and how that compares with what must appear."""
    height, bigrams = trace["height"].mean(axis=0), config.bigrams
    rows = [
        [f"{rate:g}", f"{height[j]:.3g}", f"{trace['progress'][:, j].mean():.3g}"]
        for j, rate in enumerate(VALLEY.rates)
    ]
    header = ["learning rate", "height", "progress"]
    parts = [f"The valley, after {VALLEY.updates} updates.\n{format_table(header, rows, right=range(3))}"]
    e, entropies = bigrams.uncertainties, bigrams.entropies
    rows = [
        [f"{e[of[0]]:.2f} to {e[of[-1]]:.2f}", f"{entropies[of].mean():.2f}"]
        + [f"{trace[name][:, of].mean():.4f}" for name in BIGRAM_TRACES]
        for of in np.array_split(np.arange(bigrams.tokens), 4)
    ]
    header = ["uncertainty of the rows", "entropy", "excess before", "after the decay", "Hessian's diagonal"]
    words = (
        f"Bigrams of {bigrams.tokens} tokens: loss above the entropy, and curvature; means over quarters of the rows.\n"
    )
    parts.append(words + format_table(header, rows, right=range(1, 5)))
    rows = []
    for schedule, of_schedule in zip(SCHEDULES, trace["scores"], strict=True):
        best = best_peak(of_schedule)
        losses = of_schedule[best, :, :, SCORES.index("test_loss")].mean(axis=1)
        spent = sum(_lengths(config, schedule)) if schedule == "cosine-each" else config.budgets[-1]
        rows.append([schedule, f"{config.rates[best]:g}", *(f"{loss:.4f}" for loss in losses), f"{spent:,}"])
    header = ["schedule", "best peak", *(f"after {budget:,}" for budget in config.budgets), "updates in all"]
    words = f"Test loss for each budget, means over {config.seeds} seeds.\n"
    parts.append(words + format_table(header, rows, right=range(1, len(header))))
    parts.append(claims_table(_claims(config, trace), config.seeds))
    return "\n\n".join(parts)


def _claims(config: Config, trace: Trace) -> list[Claim]:
    of_toys = {name: stratified_bootstrap(values) for name, values in results(VALLEY, trace).items()}
    claims = [
        near("valley: height grows as the rate, slope 1 within a tenth", of_toys["slope"], 1.0, within=0.1),
        near("valley: progress is what the rates add up to, within a tenth", of_toys["progress"], 1.0, within=0.1),
        near(f"valley: a decay to {END:g} leaves that of the height, within half", of_toys["height_left"], END, 0.5),
        above("bigrams: Spearman of entropy and what the decay takes above 0.8", of_toys["fallen_spearman"], 0.8),
        above("bigrams: Spearman of entropy and the Hessian's diagonal above 0.8", of_toys["curvature_spearman"], 0.8),
    ]
    for which, budget in enumerate(config.budgets):
        losses = {
            schedule: dict(enumerate(of[best_peak(of), which, :, SCORES.index("test_loss")].astype(float).tolist()))
            for schedule, of in zip(SCHEDULES, trace["scores"], strict=True)
        }
        for rival in RIVALS if which else RIVALS[1:]:  # up to the first budget WSD is WSD-S
            gain = paired_difference(losses[rival], losses["wsd-s"])
            claims.append(above(f"after {budget:,}: test loss, {rival} - wsd-s at least 0", gain))
    return claims
