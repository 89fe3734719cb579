"""The part of a report that is on supervised training: held-out losses of methods at their best learning rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from experiments.harness.curves import Curve, over_layers, relative, shortened, telling_layers
from experiments.harness.read import LoadedRun, method_order
from experiments.harness.report.looks import palette
from experiments.harness.report.page import (
    bold_if_apart,
    bracketed,
    commands,
    confounded,
    figure,
    listed,
    row,
    settings,
    short,
    signed,
    software,
    table,
    text,
    unfinished,
)
from experiments.harness.report.panels import Line, Panel, Plot
from experiments.harness.statistics import (
    Interval,
    caution,
    paired_difference,
    pointwise_intervals,
    stratified_bootstrap,
)

TOLERANCE = 1.05
"""A learning rate is as good as the best one where the loss is at most so many times the best loss."""
_LEARNING_RATE = "optimizer.lr"
_DATA = ("data", "text", "streamed")
_LOSS, _ACCURACY = "eval/loss", "eval/accuracy"

_HELD_OUT = (
    "On all held-out data, each method at its best learning rate. <b>What to see:</b> on data that does not change, "
    "normalization and projection should cost nothing: lines that lie within each other's bands."
)
_TRAINING = "The training loss, averaged between records, without label smoothing and the like."
_WEIGHTS = (
    "Geometric means over the projected layers (without a <i>nap</i> run: over all). <b>Weight norm</b>: over its "
    "value at the first record; with <i>nap</i> it is level at 1 by construction. <b>Effective learning rate</b>: how "
    "far one update turns the weights, logarithmic: with <i>nap</i> it has the shape of the schedule."
)
_RATES = "The held-out loss at the end, for each learning rate. <b>What to see:</b> a wide valley asks for less tuning."
_SHADING = "Lines are means over seeds; the shading is a pointwise 95 % bootstrap interval of that mean."


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """All seeds of one method at one learning rate on the same data.

    Attributes:
        problem: the experiment and its data.
        label: the method, with its variant but without the learning rate.
        lr: the learning rate.
        runs: one for each seed.
        updates: where the runs of this label have their last evaluation, the one that counts.
    """

    problem: str
    label: str
    lr: float
    runs: tuple[LoadedRun, ...]
    updates: int

    def finals(self, name: str) -> dict[int, float]:
        """For each seed that got there, and did not diverge, the last value."""
        last = {run.seed: run.series(name) for run in self.runs}
        return {seed: float(y[-1]) for seed, (x, y) in last.items() if y.size and x[-1] == self.updates}

    def final(self, name: str) -> Interval | None:
        """The mean over those seeds with its interval; None without any."""
        finals = list(self.finals(name).values())
        return stratified_bootstrap(np.array(finals)) if finals else None

    @property
    def diverged(self) -> list[int]:
        """The seeds whose run ended as its loss was no finite number any more."""
        return [run.seed for run in self.runs if run.diverged_at is not None]

    @property
    def loss(self) -> float:
        """The mean of the last held-out losses; infinite where a seed has none."""
        finals = self.finals(_LOSS)
        return float(np.mean(list(finals.values()))) if len(finals) == len(self.runs) else math.inf


def make_arms(runs: Sequence[LoadedRun]) -> list[Arm]:
    """The arms, in the methods' order. A seed that lies in several folders counts once: the run that got furthest."""
    groups: dict[tuple[str, str, float], dict[int, LoadedRun]] = {}
    furthest: dict[tuple[str, str], int] = {}
    for run in runs:
        data = next((str(run.config[name]) for name in reversed(_DATA) if run.config.get(name)), "?")
        problem, label = f"{run.experiment} on {data}", run.label_without(_LEARNING_RATE, *_DATA)
        seeds = groups.setdefault((problem, label, run.setting(_LEARNING_RATE, float)), {})
        if run.seed not in seeds or seeds[run.seed].reached < run.reached:
            seeds[run.seed] = run
        evaluated = int(max(run.series(_LOSS)[0], default=0))
        furthest[problem, label] = max(evaluated, furthest.get((problem, label), 0))
    arms = [Arm(*key, tuple(seeds[s] for s in sorted(seeds)), furthest[key[:2]]) for key, seeds in groups.items()]
    return sorted(arms, key=lambda arm: (arm.problem, method_order(arm.label), arm.lr))


def choose(arms: Sequence[Arm]) -> list[Arm]:
    """For each problem and method the learning rate with the least held-out loss, of those with the most seeds."""
    by_label: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        by_label.setdefault((arm.problem, arm.label), []).append(arm)
    return [
        min(rivals, key=lambda arm: (math.isinf(arm.loss), -len(arm.runs), arm.loss)) for rivals in by_label.values()
    ]


def tolerated(arms: Sequence[Arm]) -> tuple[float, float] | None:
    """The least and the largest learning rate around the best one, without a gap, with a loss within 5 % of its.

    Args:
        arms: of one problem and one method, one for each learning rate.

    Returns:
        None where no learning rate has a loss.
    """
    arms = sorted(arms, key=lambda arm: arm.lr)
    best = min(arms, key=lambda arm: arm.loss)
    if math.isinf(best.loss):
        return None
    first = last = arms.index(best)
    while first and arms[first - 1].loss <= TOLERANCE * best.loss:
        first -= 1
    while last + 1 < len(arms) and arms[last + 1].loss <= TOLERANCE * best.loss:
        last += 1
    return arms[first].lr, arms[last].lr


def title(runs: Sequence[LoadedRun]) -> str:
    """What the runs are."""
    arms = make_arms(runs)
    return f"Supervised training, {listed(by_problem(arms))}: {listed(labels(runs))}"


def labels(runs: Sequence[LoadedRun]) -> list[str]:
    """The methods, in the legend's order."""
    return list(dict.fromkeys(arm.label for arm in make_arms(runs)))


def sections(runs: Sequence[LoadedRun]) -> list[str]:
    """The HTML below the title: what was run, tables, and figures over updates."""
    arms, looks = make_arms(runs), palette(labels(runs))
    folders = len({run.folder for run in runs})
    parts = [f"<p>{folders} run{'s' * (folders > 1)}.{unfinished(runs)}</p>"]
    parts += [confounded(runs), f"<p>{text(software(runs))}</p>"]
    parts.append(commands(runs))
    for problem, of_problem in by_problem(arms).items():
        parts += [f"<h2>{text(problem)}</h2>", _results(choose(of_problem)), _rates_table(of_problem)]
        for heading, (plot, caption) in _figures(of_problem).items():
            parts.append(figure(heading, plot, looks, f"{caption} {_SHADING}"))
    return [*parts, settings(runs)]


def plots(runs: Sequence[LoadedRun]) -> list[tuple[str, Plot]]:
    """All figures, each with its problem."""
    return [
        (problem, plot)
        for problem, arms in by_problem(make_arms(runs)).items()
        for plot, _ in _figures(arms).values()
        if plot is not None
    ]


def overview(runs: Sequence[LoadedRun]) -> Plot:
    """Held-out loss, weight norms and effective learning rates, a row a problem."""
    panels: list[Panel] = []
    for arms in by_problem(make_arms(runs)).values():
        chosen = choose(arms)
        panels += [_panel(chosen, "held-out loss", _LOSS), *_weight_panels(chosen)]
    return Plot("overview", tuple(panels), "updates", height=3.1)


def by_problem(arms: Sequence[Arm]) -> Mapping[str, list[Arm]]:
    """The arms of each problem."""
    problems = dict.fromkeys(arm.problem for arm in arms)
    return {problem: [arm for arm in arms if arm.problem == problem] for problem in problems}


def _results(chosen: Sequence[Arm]) -> str:
    """A row a method, at its best learning rate."""
    baseline = next((arm for arm in chosen if arm.runs[0].method == "none"), chosen[0])
    asked = [
        name
        for name in dict.fromkeys(name for arm in chosen for run in arm.runs for name in run.records.columns)
        if name.endswith("/accuracy") and name != _ACCURACY
    ]
    measured = [(_LOSS, "held-out loss", 1), (_ACCURACY, "held-out accuracy (%)", 100)]
    measured += [(name, f"{name} (%)", 100) for name in asked]
    head = [("method", False), ("learning rate", True)]
    for _, words, _ in measured:
        head += [(words, True), (f"difference to {baseline.label}", True)]
    head += [("seeds", True), ("updates", True)]
    rows = []
    for arm in chosen:
        cells = [text(arm.label), f"{arm.lr:g}"]
        for name, _, factor in measured:
            cells.append(bracketed(arm.final(name), lambda value, f=factor: short(f * value)))
            cells.append("baseline" if arm is baseline else _difference(arm, baseline, name, factor))
        finished = len(arm.finals(_LOSS))
        seeds = str(finished) if finished == len(arm.runs) else f"{finished} of {len(arm.runs)}"
        rows.append(row(head, [*cells, seeds, f"{arm.updates:,}"]))
    note = (
        "At each method's best learning rate, chosen by these same held-out losses; 95 % bootstrap intervals over "
        f"seeds in brackets, differences seed by seed, bold where the interval leaves 0 out. "
        f"{caution(min(len(arm.runs) for arm in chosen))}"
    )
    return f"{table(head, rows)}<p class='note'>{note}</p>{_counting_diverged(chosen, baseline)}"


def counting_diverged(chosen: Sequence[Arm], name: str = _LOSS) -> list[dict[int, float]]:
    """For each arm the last values by seed; of a seed that has diverged the largest of any evaluation of one that has
    not. Empty where no seed has diverged, or none has not.
    """
    known = [y for arm in chosen for run in arm.runs if run.seed not in arm.diverged for y in run.series(name)[1]]
    if not known or not any(arm.diverged for arm in chosen):
        return []
    return [dict.fromkeys(arm.diverged, max(known)) | arm.finals(name) for arm in chosen]


def _counting_diverged(chosen: Sequence[Arm], baseline: Arm) -> str:
    """The held-out losses with the seeds that have diverged; "" where there are none."""
    losses = counting_diverged(chosen)
    if not losses:
        return ""
    head = [("method", False), ("held-out loss", True), (f"difference to {baseline.label}", True), ("seeds", True)]
    theirs, rows = losses[chosen.index(baseline)], []
    for arm, ours in zip(chosen, losses, strict=True):
        found = bracketed(stratified_bootstrap(np.array(list(ours.values()))) if ours else None, short)
        against = "baseline" if arm is baseline else _apart(ours, theirs, 1)
        lost = len(arm.diverged)
        rows.append(
            row(head, [text(arm.label), found, against, f"{len(ours)} ({lost} diverged)" if lost else str(len(ours))])
        )
    words = (
        "Above, a seed that diverged is left out, which flatters the method. Here its loss is the largest that any "
        "evaluation of the other seeds had."
    )
    return f"<p>{words}</p>{table(head, rows)}"


def _difference(arm: Arm, baseline: Arm, name: str, factor: float) -> str:
    return _apart(arm.finals(name), baseline.finals(name), factor)


def _apart(ours: Mapping[int, float], theirs: Mapping[int, float], factor: float) -> str:
    if not ours.keys() & theirs.keys():
        return "–"
    found = paired_difference(ours, theirs)
    return bold_if_apart(found, bracketed(found, lambda value: signed(f"{factor * value:.3g}")))


def _rates_table(arms: Sequence[Arm]) -> str:
    """The held-out loss at all learning rates, and which are as good as the best; nothing for one rate a method."""
    if len(choose(arms)) == len(arms):
        return ""
    numbers, chosen = sorted({arm.lr for arm in arms}), choose(arms)
    head = [("method", False), *((f"lr {number:g}", True) for number in numbers), ("within 5 % of the best", False)]
    rows = []
    for label, of_label in _by_label(arms).items():
        by_rate = {arm.lr: arm for arm in of_label}
        cells = [text(label)]
        for number in numbers:
            arm = by_rate.get(number)
            shown = "–" if arm is None else bracketed(arm.final(_LOSS), short)
            if arm is not None and len(arm.finals(_LOSS)) < len(arm.runs):
                shown += f" <small>{len(arm.finals(_LOSS))} of {len(arm.runs)} seeds</small>"
            cells.append(f"<b>{shown}</b>" if arm in chosen else shown)
        found = tolerated(of_label)
        cells.append("–" if found is None else _span(*found))
        rows.append(row(head, cells))
    return f"<h3>Held-out loss at all learning rates</h3>{table(head, rows)}"


def _span(least: float, largest: float) -> str:
    return f"{least:g} to {largest:g}" + (f", {largest / least:.3g}-fold" if least else "")


def _by_label(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    return {label: [arm for arm in arms if arm.label == label] for label in dict.fromkeys(arm.label for arm in arms)}


def _figures(arms: Sequence[Arm]) -> Mapping[str, tuple[Plot | None, str]]:
    chosen = choose(arms)
    held_out = (
        _panel(chosen, "held-out loss", _LOSS),
        _panel(chosen, "held-out accuracy (%)", _ACCURACY, 100),
    )
    return {
        "Held-out loss and accuracy": (Plot("held-out", held_out, "updates", columns=2, height=3.4), _HELD_OUT),
        "Loss against learning rate": (_rates_plot(arms), _RATES),
        "Training loss": (Plot("training", (_panel(chosen, "training loss", "loss"),), "updates"), _TRAINING),
        "Weights": (Plot("weights", tuple(_weight_panels(chosen)), "updates", height=3.1), _WEIGHTS),
    }


def _panel(arms: Sequence[Arm], words: str, name: str, factor: float = 1) -> Panel:
    def curve(run: LoadedRun) -> Curve:
        x, y = run.series(name)
        return shortened((x, factor * y))

    return Panel(arms[0].problem, words, tuple(_lines(arms, curve)))


def _weight_panels(arms: Sequence[Arm]) -> list[Panel]:
    layers = telling_layers([run for arm in arms for run in arm.runs])

    def norms(run: LoadedRun) -> Curve:
        return shortened(over_layers(run, "weight_norm", layers, relative))

    def rates(run: LoadedRun) -> Curve:
        return shortened(over_layers(run, "elr", layers))

    problem = arms[0].problem
    return [
        Panel(problem, "weight norm", tuple(_lines(arms, norms)), "norm / norm at the first record"),
        Panel(problem, "effective learning rate", tuple(_lines(arms, rates)), "‖update‖ / ‖weights‖", log=True),
    ]


def _rates_plot(arms: Sequence[Arm]) -> Plot | None:
    """The last held-out loss over the learning rate; None where each method has one learning rate."""
    if len(choose(arms)) == len(arms):
        return None
    lines = []
    for label, of_label in _by_label(arms).items():
        positive = [arm for arm in of_label if arm.lr > 0]  # a logarithmic axis has no 0
        found = [(arm.lr, interval) for arm in positive if (interval := arm.final(_LOSS)) is not None]
        if found:
            places = np.array([lr for lr, _ in found])
            values, low, high = (np.array(part) for part in zip(*(interval for _, interval in found), strict=True))
            lines.append(Line(label, "mean", places, values, low, high))
    panel = Panel(arms[0].problem, "held-out loss at the end", tuple(lines), log=True)
    return Plot("learning-rates", (panel,), "learning rate", log_axis=True, height=3.4)


def _lines(arms: Sequence[Arm], curve: Callable[[LoadedRun], Curve]) -> list[Line]:
    """The mean over each arm's seeds with its interval; a single seed alone."""
    lines = []
    for arm in arms:
        curves = [found for run in arm.runs if (found := curve(run))[1].size]
        if not curves:
            continue
        x, values = _matrix(curves)
        if len(curves) == 1:
            lines.append(Line(arm.label, "mean", x, values[0]))
        else:
            lines.append(Line(arm.label, "mean", x, *pointwise_intervals(values)))
    return lines


def _matrix(curves: Sequence[Curve]) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "seeds points"]]:
    """All places and a row a seed; NaN where a seed has no value."""
    places = np.unique(np.concatenate([x for x, _ in curves]))
    values = np.full((len(curves), places.size), np.nan)
    for of_seed, (x, y) in zip(values, curves, strict=True):
        of_seed[np.searchsorted(places, x)] = y
    return places, values
