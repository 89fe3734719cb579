"""The figures of a report on sequences of games: through the whole sequence, visit by visit, and task by task."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from envs.sequence import Visit
from experiments.harness.curves import Curve, all_layers, over_layers, percent, relative, telling_layers
from experiments.harness.read import LoadedRun
from experiments.harness.report.atari_overall import dormant_units
from experiments.harness.report.panels import FRESH, Line, Panel, Plot, Stretch
from experiments.harness.report.sequences_scores import Scores
from experiments.harness.report.sequences_studies import Method, Study, ends_of
from experiments.harness.statistics import pointwise_intervals

MOST_TASKS = 12  # with panels of their own
_FEW_METHODS = 3  # whose fresh agents find room beside them
_MOST_POINTS = 500
_AXIS = "emulator frames"
_RATE = "‖update‖ / ‖weights‖,\nper update"
_NORM = "norm / norm\nat the start"


def scores_plot(scores: Scores) -> Plot | None:
    """The score in evaluation through the whole sequence; each method on its own, too, where there are many."""
    study = scores.study
    panels = [_scores_panel(scores, study.methods, "score in evaluation, of the task being learned")]
    if len(study.methods) > _FEW_METHODS:
        panels = [_scores_panel(scores, study.methods, "all methods", fresh=False)]
        panels += [_scores_panel(scores, [method], method.label) for method in study.methods if method.runs]
    height = 3.6 if len(panels) == 1 else 1.9
    return _through(study, "scores", panels, label=_unit(scores), height=height, sharey=True)


def visits_plot(scores: Scores) -> Plot | None:
    """The score at the end of each visit - a fresh agent's, visit by visit."""
    study, visits = scores.study, scores.study.sequence.visits
    lines = []
    for method in study.methods:
        against = scores.against_fresh(method, visits)
        curves = {
            seed: [(visit.number + 1.0, against[visit][seed]) for visit in visits if seed in against[visit]]
            for seed in method.runs
        }
        found = [tuple(np.array(points).T) for points in curves.values() if points]
        lines += _mean_lines(method.label, "mean", found)
    if not lines:
        return None
    panel = Panel(
        study.name, "score at a visit's end − a fresh agent's", tuple(lines), _difference_unit(scores), level=0
    )
    stretches = tuple(Stretch(visit.number + 0.5, visit.number + 1.5, visit.task.name) for visit in visits)
    return Plot("against-fresh-agents", (panel,), "visit", height=3.2, columns=1, stretches=stretches)


def tasks_plot(scores: Scores) -> Plot | None:
    """A row a task, with a panel for each of its visits; None for many tasks, or where there is no evaluation."""
    study = scores.study
    if len(study.tasks) > MOST_TASKS:
        return None
    most = max(len(of) for of in study.visits.values())
    shown = list(range(most)) if most <= 3 else [0, 1, most - 1]
    beside = len(study.methods) <= _FEW_METHODS and most > 0
    panels = []
    for task, of in study.visits.items():
        if not beside:
            lines = [
                line
                for method in study.methods
                for line in _mean_lines(method.label, "mean", method.fresh_curves(task).values())
            ]
            panels.append(Panel(study.name, f"{task.name}, fresh agents", tuple(lines)))
        for number in shown:
            lines = []
            for method in study.methods if number < len(of) else ():
                if beside:
                    lines += _mean_lines(method.label, FRESH, method.fresh_curves(task).values(), interval=False)
                lines += _mean_lines(method.label, "mean", method.curves(of[number]).values())
            panels.append(Panel(study.name, f"{task.name}, visit {number + 1}", tuple(lines)))
    if not any(panel.lines for panel in panels):
        return None
    return Plot(
        "tasks",
        tuple(panels),
        f"{_AXIS} of the visit",
        "return per episode (raw game score)",
        columns=len(shown) + (not beside) if most else 3,
        height=1.8,
        sharey="row" if most else False,
    )


def weights_plot(study: Study) -> Plot | None:
    """Weight norm, effective learning rate, learning rate as written and dormant units through the sequence."""
    panels = [
        *_norm_and_rate(study),
        Panel(study.name, "learning rate, as written", _lines(study, lambda run: run.series("learning_rate")),
              "learning rate", from_zero=True),
        Panel(study.name, "dormant units", _lines(study, dormant_units), "share (%)", from_zero=True),
    ]  # fmt: skip
    return _through(study, "weights", [panel for panel in panels if panel.lines], height=1.9)


def training_plot(study: Study) -> Plot | None:
    """The loss and the share of random actions through the sequence."""
    panels = [
        Panel(study.name, "loss", _lines(study, lambda run: run.series("loss")), "loss", log=True),
        Panel(study.name, "ε: random actions", _lines(study, lambda run: percent(run.series("epsilon"))), "share (%)",
              from_zero=True),
    ]  # fmt: skip
    return _through(study, "training", [panel for panel in panels if panel.lines], height=1.9)


def layers_plot(study: Study, quantity: str) -> Plot | None:
    """A panel a layer, through the sequence.

    Args:
        study: the study.
        quantity: "weight_norm" (over its first value), "elr" or "dormant_fraction_0.025".
    """
    labels = {"weight_norm": _NORM, "elr": _RATE, "dormant_fraction_0.025": "dormant units (%)"}
    scales: Mapping[str, Callable[[Curve], Curve]] = {"weight_norm": relative, "dormant_fraction_0.025": percent}
    scale = scales.get(quantity, lambda curve: curve)
    panels = []
    for layer in all_layers(_runs(study), quantity):
        lines = _lines(study, lambda run, layer=layer: scale(run.series(f"{quantity}/{layer}")))
        panels.append(Panel(study.name, layer, lines, log=quantity == "elr", from_zero="dormant" in quantity))
    panels = [panel for panel in panels if panel.lines]
    name = f"layers-{quantity.partition('_0')[0].replace('_', '-')}"
    if not panels:
        return None
    sharey = quantity != "weight_norm"
    return Plot(name, tuple(panels), _AXIS, labels[quantity], 3, 2.2, sharey, _marks(study))


def overview_plot(scores: Scores) -> Plot:
    """The idea on one horizontal axis: scores, weight norms and effective learning rates."""
    study = scores.study
    if not study.sequence.visits:
        return tasks_plot(scores) or Plot("overview", (Panel(study.name, "returns", ()),), _AXIS)
    score = _scores_panel(
        scores, study.methods, "score in evaluation", _unit(scores), len(study.methods) <= _FEW_METHODS
    )
    panels = (score, *_norm_and_rate(study))
    return Plot("overview", panels, _AXIS, "", 1, 2.3, False, _marks(study), _stretches(study))


def _norm_and_rate(study: Study) -> list[Panel]:
    layers = telling_layers(_runs(study))
    norms = _lines(study, lambda run: over_layers(run, "weight_norm", layers, relative))
    rates = _lines(study, lambda run: over_layers(run, "elr", layers))
    return [
        Panel(study.name, "weight norm", norms, _NORM),
        Panel(study.name, "effective learning rate", rates, _RATE, log=True),
    ]


def _scores_panel(scores: Scores, methods: Sequence[Method], title: str, label: str = "", fresh: bool = True) -> Panel:
    lines: list[Line] = []
    for method in methods:
        for visit in scores.study.sequence.visits:
            curves = [(visit.start + x, _scaled(scores, visit, y)) for x, y in method.curves(visit).values()]
            lines += _mean_lines(method.label, f"mean, visit {visit.number + 1}", curves)
            ends = ends_of(method.fresh_curves(visit.task), visit.task.frames)
            if fresh and method.runs and ends:
                places = np.array([visit.start, visit.start + visit.task.frames], float)
                level = _scaled(scores, visit, np.full(2, np.mean(list(ends.values()))))
                lines.append(Line(method.label, f"{FRESH}, visit {visit.number + 1}", places, level))
    return Panel(scores.study.name, title, tuple(lines), label)


def _scaled(scores: Scores, visit: Visit, returns: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns in percent where all tasks have a scale, else as they are."""
    return scores.scales[visit.task].of(returns) if scores.has_all_scales else returns


def _unit(scores: Scores) -> str:
    return "normalised score (%)" if scores.has_all_scales else "return per episode\n(raw game score)"


def _difference_unit(scores: Scores) -> str:
    return "percentage points of the\nnormalised score"


def _lines(study: Study, curve: Callable[[LoadedRun], Curve]) -> tuple[Line, ...]:
    """The mean over seeds of each method, with its interval where there are several."""
    return tuple(
        line
        for method in study.methods
        for line in _mean_lines(method.label, "mean", [_thinned(curve(run), study) for run in method.runs.values()])
    )


def _mean_lines(label: str, statistic: str, curves: Iterable[Curve], *, interval: bool = True) -> list[Line]:
    """The mean of the seeds' curves, as one line; none without any."""
    curves = [curve for curve in curves if curve[0].size]
    if not curves:
        return []
    places = np.unique(np.concatenate([x for x, _ in curves]))
    values = np.array([np.interp(places, x, y, left=np.nan, right=np.nan) for x, y in curves])
    y, low, high = pointwise_intervals(values)
    ends = (low, high) if interval and len(curves) > 1 else ()
    return [Line(label, statistic, places, y, *ends)]


def _thinned(curve: Curve, study: Study) -> Curve:
    """A long curve as means over nearly equal stretches, none of which reaches over a switch."""
    x, y = curve
    visits = study.sequence.visits
    most = max(1, _MOST_POINTS // len(visits))
    of = np.searchsorted([visit.start for visit in visits], x) - 1  # a visit's last record lies where the next begins
    parts = [part for number in np.unique(of) for part in _split(np.flatnonzero(of == number), most)]
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _split(places: np.ndarray, most: int) -> list[np.ndarray]:
    return np.array_split(places, min(most, places.size))


def _through(
    study: Study, name: str, panels: Sequence[Panel], *, label: str = "", height: float, sharey: bool = False
) -> Plot | None:
    """A figure on the frames of the whole sequence, its switches marked; None where there is nothing to draw."""
    if not any(panel.lines for panel in panels):
        return None
    return Plot(name, tuple(panels), _AXIS, label, 1, height, sharey, _marks(study), _stretches(study))


def _marks(study: Study) -> tuple[float, ...]:
    return tuple(float(visit.start) for visit in study.sequence.visits[1:])


def _stretches(study: Study) -> tuple[Stretch, ...]:
    return tuple(Stretch(v.start, v.start + v.task.frames, v.task.name) for v in study.sequence.visits)


def _runs(study: Study) -> list[LoadedRun]:
    return [run for method in study.methods for run in method.runs.values()]
