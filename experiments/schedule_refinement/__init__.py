"""Which schedule does a run ask for? Refined schedules of free and of projected networks, from their gradients' norms.

A network is trained at a constant learning rate and the norm of its gradient is logged at every update; from it follows
the schedule that is best for the worst case (`nap.schedules.refine`, after "When, Why and How Much?", Defazio et al.,
arXiv 2310.07831). Where nothing changes that is linear decay. But behind a normalization gradients are proportional to
1 / ||W||, so that the schedule of a free run, whose norms grow, should rise with them, and that of a projected run
should not: `layernorm` and `nap`, from the same weights on the same batches; scales and offsets are free in both. Then
all is trained again: refined, and for comparison linear, cosine and constant, each at its own best peak.

`--hidden` with no number is logistic regression, the paper's convex case. There is nothing to normalize or to project:
it is trained once, by each schedule, and only how these rank must appear.

Half of the labels are random ones, drawn anew whenever they are seen: a network that fits all it sees ends with
gradients of nearly nothing, which let every refined schedule rise (`--label-noise 0 --lr 0.1` shows it).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float

from experiments import harness
from experiments.harness.bounds import A_SEED, NOT_EMPTY, SEEDS, at_least, more_than
from experiments.harness.claims import Claim, above, claims_table, near, told
from experiments.harness.classifier import (
    SCORES,
    FiveSeeds,
    Optimizer,
    best_peak,
    make_training,
    memory_needed,
    over_seeds,
    parse_study,
    require_study,
    scores_over_seeds,
)
from experiments.harness.grid import cells
from experiments.harness.methods import ORDERS
from experiments.harness.problems import Method, Problem, Task
from experiments.harness.seeds import seeds_label, use_all_cores
from experiments.harness.stages import run_stages, trace_of
from experiments.harness.statistics import Interval, paired_difference, stratified_bootstrap
from experiments.harness.trace import Trace
from experiments.schedule_refinement.figure import Panel, draw
from nap import schedules
from nap.schedules import profiles
from nap.tables import format_table

NAME = "schedule-refinement"
METHODS: tuple[Method, ...] = ("layernorm", "nap")
RATES = {"sgd": 1.0, "momentum": 0.1, "adam": 1e-2}
PROFILES = {"linear": profiles.linear(), "cosine": profiles.cosine(), "constant": profiles.constant()}
SCHEDULES = ("refined", *PROFILES)
NORMS = {2: "gradient_l2", 1: "gradient_l1"}
"""The norm of the gradient that the refinement of an optimizer of each order reads."""
PARTS = {"": "all weights", "hidden_": "hidden weights"}
"""Of what the gradient is, by the prefix of its trace; without a hidden layer only the first."""
QUARTERS = (0.25, 0.5, 0.75)
RECORDS = 20
"""Of the run whose gradients are logged."""
_RATIO = "half over quarter"
_LINEAR_RATIO = (1 - QUARTERS[1]) / (1 - QUARTERS[0])


@dataclasses.dataclass(frozen=True)
class Config:
    """One method, all seeds. A command runs both methods; an option that is given twice is an axis."""

    method: Annotated[Method, tyro.conf.Suppress] = "none"
    """layernorm (free norms) or nap; none: logistic regression."""
    optimizer: Optimizer = "sgd"
    """sgd (plain), momentum (0.9) or adam (epsilon 1e-8)."""
    lr: float | None = None
    """The constant rate of the logged run; by default 1 for sgd, 0.1 for momentum, 0.01 for adam."""
    peaks: Annotated[tuple[float, ...], more_than(0), NOT_EMPTY] = (0.03, 0.1, 0.3, 1.0)
    """The peaks that every schedule is tried with, as multiples of --lr."""
    problem: Problem = dataclasses.field(default_factory=lambda: Problem(batch_size=20, label_noise=0.5))
    updates: Annotated[int, at_least(RECORDS)] = 6000
    """Updates of each training run."""
    smooth: Annotated[float, at_least(0, most=1)] = 0.1
    """Width of the median filter that the norms go through, as a share of the run."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. The seeds, the other options and the version of the code determine a run."""
    seeds: Annotated[int, tyro.conf.Suppress, at_least(1, most=SEEDS)] = 5
    """How many seeds, as --seeds says."""

    @property
    def gradient(self) -> str:
        """The trace that is refined: l2 norms for SGD, l1 norms for Adam."""
        return NORMS[ORDERS[self.optimizer]]

    @property
    def parts(self) -> Mapping[str, str]:
        """Those of PARTS that there are."""
        return PARTS if self.problem.hidden else {"": PARTS[""]}


@dataclasses.dataclass(frozen=True)
class Options(FiveSeeds):
    """As every experiment's, and whether to draw."""

    plot: Path | None = None
    """Draw the refined schedules of all cells into this file, which ends in .png, .pdf or .svg."""


def main(argv: list[str]) -> int:
    """Run both methods from the command line and print what their schedules are and do; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """The command of each cell of the grid, which makes the runs of both methods. Raises harness.UserError."""
    jobs = []
    for cell in cells(argv):
        configs, options, _ = _parse(cell)
        jobs.append(harness.job_of(NAME, cell, configs, options, _label))
    return jobs


def refined(config: Config, trace: Trace, part: str = "") -> Float[np.ndarray, "seeds updates"]:
    """The refined multipliers of each seed's logged run, from the gradient of a part of the weights (see PARTS)."""
    order = ORDERS[config.optimizer]
    return np.stack([schedules.refine(norms, order, config.smooth) for norms in trace[part + config.gradient]])


def shapes(multipliers: Float[np.ndarray, "seeds updates"]) -> dict[str, Float[np.ndarray, " seeds"]]:
    """How schedules go, each seed's: their values at the quarters of the run, where they are largest, how linear.

    `half over quarter` is 2/3 for linear decay, whatever comes before the quarter, and above 1 for one that rises.
    """
    updates = multipliers.shape[1]
    at = {f"at {part:.0%}": multipliers[:, round(part * updates)] for part in QUARTERS}
    quarter, half, _ = at.values()
    linear = 1 - np.arange(updates) / updates
    return {
        **at,
        _RATIO: half / quarter,
        "largest at": np.argmax(multipliers, axis=1) / updates,
        "correlation with linear": np.array([np.corrcoef(of_seed, linear)[0, 1] for of_seed in multipliers]),
    }


def change(values: Float[np.ndarray, "seeds updates"]) -> Float[np.ndarray, " seeds"]:
    """The mean over the last tenth of a run over that over its first tenth."""
    tenth = -(-values.shape[1] // 10)
    return values[:, -tenth:].mean(axis=1) / values[:, :tenth].mean(axis=1)


def _main(argv: list[str]) -> int:
    use_all_cores()
    harness.enable_compilation_cache()
    parsed, panels = [_parse(cell) for cell in cells(argv)], []
    for configs, options, task in parsed:
        traces = {config.method: _run(config, options, task) for config in configs}
        title = f"{configs[0].problem.data}, {configs[0].optimizer}"
        print(f"{title}\n\n{tables(configs, traces)}\n")
        curves = {
            (of.method, words): refined(of, traces[of.method], p) for of in configs for p, words in of.parts.items()
        }
        panels.append(Panel(f"{title}, label noise {configs[0].problem.label_noise:g}", curves))
    if (path := parsed[0][1].plot) is not None:
        draw(panels, path)
        print(path)
    made = [
        harness.run_folder(NAME, config, out=options.out, label=_label(config))
        for configs, options, _ in parsed
        for config in configs
    ]
    harness.tell_end(*made, result="the tables above")
    return 0


def _parse(argv: Sequence[str]) -> tuple[list[Config], Options, Task]:
    """The configuration of both methods, the other options and the task."""
    config, options, task = parse_study(Config, argv, name=NAME, description=__doc__, options_type=Options)
    lr = RATES[config.optimizer] if config.lr is None else config.lr
    if lr <= 0:
        raise harness.UserError(
            f"--lr {lr:g}: it must be above 0; for {config.optimizer} try {RATES[config.optimizer]}"
        )
    if options.plot and (options.plot.suffix not in (".png", ".pdf", ".svg") or not options.plot.parent.is_dir()):
        raise harness.UserError(f"--plot {options.plot}: a file in a folder that is there, .png, .pdf or .svg")
    methods = METHODS if config.problem.hidden else ("none",)
    return [dataclasses.replace(config, method=method, lr=float(lr)) for method in methods], options, task


def _label(config: Config) -> str:
    seeds = seeds_label(config.seed, config.seeds)
    network = config.method if config.problem.hidden else "logistic"
    return f"{network}-{config.optimizer}-lr{config.lr:g}-noise{config.problem.label_noise:g}-{seeds}"


def _run(config: Config, options: Options, task: Task) -> Trace:
    """The logged run of a method and those by schedule."""
    train = functools.partial(_train, config, task)
    stages, data = 1 + len(SCHEDULES), task.fingerprints
    return trace_of(NAME, config, options, train, label=_label(config), stages=stages, data=data)


def _logged(config: Config) -> list[str]:
    """The traces that are kept of the logged run."""
    parts = [part + config.gradient for part in config.parts]
    return parts + ["weight_norm", "elr"] * bool(config.problem.hidden)


def _memory_needed(task: Task, config: Config) -> dict[str, int]:
    runs = len(config.peaks) * config.seeds
    needed = memory_needed(config.problem, task, config.method, config.optimizer, config.updates, runs)
    return {**needed, "what is logged": 4 * len(_logged(config)) * config.seeds * config.updates}


def _train(config: Config, task: Task, opened: harness.Run) -> None:
    """The logged run first, then the training runs of one schedule after another."""
    assert config.lr is not None, "_parse fills it in"
    require_study(config, functools.partial(_memory_needed, task), "updates")
    seeds, order = range(config.seed, config.seed + config.seeds), ORDERS[config.optimizer]
    make = functools.partial(make_training, config.problem, task, config.method, config.optimizer)
    logged = _logged(config)
    trace = {name: np.full((config.seeds, config.updates), np.nan, np.float32) for name in logged}
    scores = np.full((len(SCHEDULES), len(config.peaks), config.seeds, len(SCORES)), np.nan, np.float32)
    peaks = config.lr * np.array(config.peaks)
    again = scores_over_seeds(make, task, len(peaks), seeds)

    def log() -> None:
        of_run = over_seeds(make, task, 1, seeds)(np.full((1, config.updates), config.lr))
        for name in logged:
            trace[name][:] = of_run.trace[name][0]
        for part in config.parts:  # a network whose units are all silent has no gradient, and no refined schedule
            with np.errstate(divide="ignore"):
                total = np.log(trace[part + NORMS[order]]).sum()
            opened.check_finite("logarithm of the gradient's norm", total, updates=config.updates)
        _record_logged(config, opened, trace)

    def train(which: int) -> None:
        schedule, of_schedule = SCHEDULES[which], scores[which]
        of_schedule[:] = again(peaks[:, None, None] * _multipliers(config, schedule, trace))
        lost = of_schedule[best_peak(of_schedule)].sum()
        opened.check_finite(f"test loss of {schedule} at its best peak", lost, updates=config.updates)
        _record_trained(config, opened, schedule, peaks, of_schedule)

    stages = [log, *(functools.partial(train, which) for which in range(len(SCHEDULES)))]
    run_stages(opened, {**trace, "scores": scores}, stages)
    opened.finish(_summary(config, trace, scores))


def _multipliers(config: Config, schedule: str, trace: Trace) -> Float[np.ndarray, "seeds updates"]:
    if schedule == "refined":
        return refined(config, trace)
    values = schedules.follow(1.0, config.updates, PROFILES[schedule])(np.arange(config.updates))
    return np.broadcast_to(np.asarray(values), (config.seeds, config.updates))


def _record_logged(config: Config, opened: harness.Run, trace: Trace) -> None:
    multipliers = refined(config, trace)
    for number in range(1, RECORDS + 1):
        updates = config.updates * number // RECORDS
        for i in range(config.seeds):
            place = {"phase": "log", "method": config.method, "seed": config.seed + i, "updates": updates}
            values = {name: of_run[i, updates - 1] for name, of_run in trace.items()}
            opened.record({**place, "learning_rate": config.lr, **values, "refined": multipliers[i, updates - 1]})


def _record_trained(
    config: Config, opened: harness.Run, schedule: str, peaks: np.ndarray, scores: Float[np.ndarray, "peaks seeds 3"]
) -> None:
    for peak, of_peak in zip(peaks, scores, strict=True):
        for i, of_seed in enumerate(of_peak):
            place = {"phase": "train", "method": config.method, "schedule": schedule, "seed": config.seed + i}
            values = dict(zip(SCORES, of_seed, strict=True))
            opened.record({**place, "updates": config.updates, "peak": peak, **values})


def _summary(config: Config, trace: Trace, scores: np.ndarray) -> dict[str, float]:
    """Means over seeds: of the refined schedules' shapes, and of the best peak of each schedule."""
    assert config.lr is not None, "_parse fills it in"
    named: dict[str, float] = {"seeds": config.seeds}
    if config.problem.hidden:
        named["weight_norm_growth"] = float(change(trace["weight_norm"]).mean())
    for part in config.parts:
        for name, values in shapes(refined(config, trace, part)).items():
            named[f"{part}refined/{name.replace(' ', '_').replace('%', '')}"] = float(values.mean())
    for schedule, of_schedule in zip(SCHEDULES, scores, strict=True):
        best = best_peak(of_schedule)
        named[f"peak/{schedule}"] = config.lr * config.peaks[best]
        for name, values in zip(SCORES, of_schedule[best].T, strict=True):
            named[f"{name}/{schedule}"] = float(values.mean())
    return named


def tables(configs: Sequence[Config], traces: Mapping[Method, Trace]) -> str:
    """What came out: the refined schedules, what they do, and how that compares with what must appear.

    Args:
        configs: of the methods.
        traces: of each method: what its run left.
    """
    by_method = {config.method: config for config in configs}
    return "\n\n".join(
        [
            "Refined from the run at the constant rate; means over seeds. Growth: the last tenth over the first.\n"
            + _shape_table(by_method, traces),
            "Trained again, each schedule at its best peak; means over seeds. - linear: of the test loss, paired by\n"
            "seed, with a 95 % bootstrap interval.\n" + _trained_table(by_method, traces),
            claims_table(_claims(by_method, traces), configs[0].seeds),
        ]
    )


def _shape_table(configs: Mapping[Method, Config], traces: Mapping[Method, Trace]) -> str:
    rows, columns = [], []
    for method, config in configs.items():
        trace = traces[method]
        for part, words in config.parts.items():
            measured = {"norm growth": change(trace["weight_norm"])} if config.problem.hidden else {}
            measured |= {
                "gradient growth": change(trace[part + config.gradient]),
                **shapes(refined(config, trace, part)),
            }
            columns = list(measured)
            rows.append([method, words, *(f"{values.mean():.2f}" for values in measured.values())])
    linear = shapes(1 - np.arange(1000)[None] / 1000)
    before = [""] * (1 + len(columns) - len(linear))
    rows.append(["(linear)", *before, *(f"{values.mean():.2f}" for values in linear.values())])
    header = ["method", "gradient of", *columns]
    return format_table(header, rows, right=range(2, len(header)))


def _trained_table(configs: Mapping[Method, Config], traces: Mapping[Method, Trace]) -> str:
    rows = []
    for method, config in configs.items():
        for schedule in SCHEDULES:
            peak, scores = _at_best(config, traces[method], schedule)
            means = {name: np.mean(list(by_seed.values())) for name, by_seed in scores.items()}
            less = "" if schedule == "linear" else told(_difference(config, traces[method], schedule, "linear"), "+")
            losses = (f"{means[name]:.4f}" for name in ("train_loss", "test_loss"))
            rows.append([method, schedule, f"{peak:.3g}", *losses, less, f"{means['test_error']:.1%}"])
    header = ["method", "schedule", "best peak", "train loss", "test loss", "- linear", "test error"]
    return format_table(header, rows, right=range(2, len(header)))


def _claims(configs: Mapping[Method, Config], traces: Mapping[Method, Trace]) -> list[Claim]:
    claims = []
    for part, words in PARTS.items() if set(METHODS) <= configs.keys() else ():
        free, projected = (
            dict(enumerate(shapes(refined(configs[method], traces[method], part))[_RATIO])) for method in METHODS
        )
        rises, linear = (stratified_bootstrap(np.array(list(of.values()))) for of in (free, projected))
        claims += [
            above(f"{words}, free: half over quarter above 1", rises, 1.0),
            near(f"{words}, nap: half over quarter 2/3, within a tenth", linear, _LINEAR_RATIO, within=0.1),
            above(f"{words}: half over quarter, free - nap above 0", paired_difference(free, projected)),
        ]
    for method, config in configs.items():
        network = method if config.problem.hidden else "logistic regression"
        for worse, better in (("linear", "refined"), ("cosine", "linear"), ("constant", "cosine")):
            gain = _difference(config, traces[method], worse, better)
            claims.append(above(f"{network}: test loss, {worse} - {better} above 0", gain))
    return claims


def _at_best(config: Config, trace: Trace, schedule: str) -> tuple[float, dict[str, dict[int, float]]]:
    """The best peak of a schedule, and there each score by seed."""
    assert config.lr is not None, "_parse fills it in"
    scores = trace["scores"][SCHEDULES.index(schedule)]
    best = best_peak(scores)
    return config.lr * config.peaks[best], {
        name: {i: float(value) for i, value in enumerate(scores[best, :, column])} for column, name in enumerate(SCORES)
    }


def _difference(config: Config, trace: Trace, one: str, other: str) -> Interval:
    """Of two schedules' test losses, paired by seed."""
    return paired_difference(*(_at_best(config, trace, schedule)[1]["test_loss"] for schedule in (one, other)))
