"""The part of a report that is on streams of tasks: which methods keep a network plastic, and what its weights do."""

from collections.abc import Mapping, Sequence

from experiments.harness.read import LoadedRun
from experiments.harness.report import plasticity_figures as figures
from experiments.harness.report import plasticity_tables as tables
from experiments.harness.report.cells import Cell, choose, make_cells, metric_of
from experiments.harness.report.looks import palette
from experiments.harness.report.page import commands, confounded, figure, listed, settings, software, text, unfinished
from experiments.harness.report.panels import Plot
from experiments.harness.statistics import RESAMPLES, caution

_ONLINE = (
    "How well each task is learned while it is being learned: every batch is scored before it is trained on, and a "
    "point is the average over one task. <b>What to see:</b> a network that keeps its plasticity learns late tasks as "
    "well as early ones: a level line. One that loses it falls (a loss: rises). Tasks that are not scored are left "
    "out."
)
_END = (
    "The loss on a task's own examples once the task has been trained on (logarithmic where it spans much). <b>What "
    "to see:</b> a rise means that the network fits late tasks worse than early ones with the same effort."
)
_TEST = (
    "Accuracy at the end of each task on examples held out from training. <b>What to see:</b> a network can go on "
    "fitting what it is shown and yet generalize worse and worse."
)
_WEIGHTS = (
    "At the end of every task, as geometric means over the hidden layers (the output layer is left out). <b>Weight "
    "norm</b>: over its value at the first record; without projection it mostly grows, with <i>nap</i> it is level at "
    "1 by construction. <b>Effective learning rate</b>: how far one update turns the weights, logarithmic; where the "
    "norm grows, this falls, even under a constant learning rate. <b>Distance</b>: how far a weight has moved from "
    "where it started."
)
_FEATURES = (
    "On the task's own examples, at its end. <b>Dormant units</b>: the share of units whose mean activity is at most "
    "0.025 times their layer's average, averaged over the hidden layers; a climbing share leaves fewer units to learn "
    "with. <b>Effective rank</b> (exp of the entropy of the singular values) and <b>srank</b> (singular values that "
    "make up 99 % of their sum): how many directions the last hidden layer's features use; a fall means that the "
    "features of different examples grow alike."
)
_LAYER_NORMS = "The norms above, layer by layer, the output layer too: it is projected under no method."
_LAYER_RATES = "The effective learning rates above, layer by layer, on a logarithmic axis."
_LAYER_DORMANT = "The dormant units above, layer by layer."
_WITHIN = (
    "The shares of units that gave 0 on all of a task's examples, and on at least 99 % of them, at every record; fine "
    "vertical lines are changes of task. <b>What to see:</b> jumps at a change of task that do not heal before the "
    "next."
)
_SHADING = "Lines are means over seeds; the shading is a pointwise 95 % bootstrap interval of that mean over seeds."
_ONE_SEED = (
    "There is one seed a method, so there is no interval, and a difference between two lines may be chance: only more "
    "seeds can tell."
)


def title(runs: Sequence[LoadedRun]) -> str:
    """What the runs are."""
    methods = labels(runs)
    told = listed(methods) if len(methods) <= 6 else f"{len(methods)} methods"
    return f"Plasticity on {listed(dict.fromkeys(run.problem for run in runs))}: {told}" + " compared" * (
        len(methods) > 1
    )


def labels(runs: Sequence[LoadedRun]) -> list[str]:
    """The methods, in the legend's order."""
    return list(dict.fromkeys(cell.label for cell in choose(make_cells(runs))))


def sections(runs: Sequence[LoadedRun]) -> list[str]:
    """The HTML below the title: what was run, tables, and figures over tasks."""
    cells = make_cells(runs)
    chosen = choose(cells)
    looks = palette(cell.label for cell in chosen)
    seeds = _SHADING if any(len(cell.runs) > 1 for cell in chosen) else _ONE_SEED
    parts = [_about(runs, cells), commands(runs), *tables.results(chosen), _how(cells, chosen), *tables.rates(cells)]
    headings = _all_streams(chosen)
    parts += ["<h2>Over tasks</h2>" if len(figures.by_problem(chosen)) > 1 else ""]
    parts += [figure(heading, plot, looks, f"{caption} {seeds}") for heading, (plot, caption) in headings.items()]
    for problem, of_problem in figures.by_problem(chosen).items():
        if len(figures.by_problem(chosen)) > 1:
            parts.append(f"<h2>{text(problem)}</h2>")
        for heading, (plot, caption) in _one_stream(of_problem).items():
            parts.append(figure(heading, plot, looks, caption))
    return [*parts, settings(runs)]


def plots(runs: Sequence[LoadedRun]) -> list[tuple[str, Plot]]:
    """All figures, each with its stream's name, or "" where it shows all streams."""
    chosen = choose(make_cells(runs))
    named = [("", plot) for plot, _ in _all_streams(chosen).values()]
    for problem, of_problem in figures.by_problem(chosen).items():
        named += [(problem, plot) for plot, _ in _one_stream(of_problem).values()]
    return [(problem, plot) for problem, plot in named if plot is not None]


def overview(runs: Sequence[LoadedRun]) -> Plot:
    """The figure that says most."""
    return figures.overview_plot(choose(make_cells(runs)))


def _all_streams(chosen: Sequence[Cell]) -> Mapping[str, tuple[Plot | None, str]]:
    metrics = {metric_of(cells).words for cells in figures.by_problem(chosen).values()}
    test = figures.end_plot(chosen, "test_accuracy", "test accuracy (%)", percent=True)
    return {
        f"{listed(sorted(metrics)).capitalize()} over tasks": (figures.online_plot(chosen), _ONLINE),
        "Loss at the end of each task": (figures.end_plot(chosen, "loss", "loss"), _END),
        "Test accuracy at the end of each task": (test, _TEST),
    }


def _one_stream(chosen: Sequence[Cell]) -> Mapping[str, tuple[Plot | None, str]]:
    return {
        "Weights": (figures.weights_plot(chosen), _WEIGHTS),
        "Units and features": (figures.features_plot(chosen), _FEATURES),
        "Silent and dead units within tasks": (figures.within_plot(chosen), _WITHIN),
        "Weight norm, layer by layer": (figures.layers_plot(chosen, "weight_norm"), _LAYER_NORMS),
        "Effective learning rate, layer by layer": (figures.layers_plot(chosen, "elr"), _LAYER_RATES),
        "Dormant units, layer by layer": (figures.layers_plot(chosen, "dormant_fraction_0.025"), _LAYER_DORMANT),
    }


def _about(runs: Sequence[LoadedRun], cells: Sequence[Cell]) -> str:
    """What was run, a line a stream."""
    seeds = sorted({run.seed for run in runs})
    told = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1 else listed(seeds)
    folders = len({run.folder for run in runs})
    streams = "".join(
        f"<li><b>{text(problem)}</b>: {text(_stream(of_problem[0]))}</li>"
        for problem, of_problem in figures.by_problem(cells).items()
    )
    return (
        f"<p>{folders} run{'s' * (folders > 1)} of the experiment <b>{text(runs[0].experiment)}</b>; methods: "
        f"<b>{text(listed(labels(runs)))}</b>; seed{'s' * (len(seeds) > 1)} {text(told)}.{unfinished(runs)}</p>"
        f"<ul>{streams}</ul>{confounded(runs)}<p>{text(software(runs))}</p>"
    )


def _stream(cell: Cell) -> str:
    """The tasks and the learner of a stream in words, as far as the configuration tells."""
    run = cell.runs[0]
    words = [f"data {data}"] if (data := run.setting("data", str, "")) else []
    for name, unit in (
        ("tasks", "tasks"),
        ("epochs", "epochs a task"),
        ("examples", "examples"),
        ("batch_size", "examples a batch"),
    ):
        if (count := run.setting(f"protocol.{name}", int, None)) is not None:
            words.append(f"{count:,} {unit}")
    if network := run.setting("network", str, ""):
        widths = ", ".join(map(str, run.setting("hidden", list, [])))
        words.append(f"network {network}{f' (hidden layers {widths})' if widths else ''}")
    if optimizer := run.setting("optimizer.optimizer", str, ""):
        words.append(f"optimizer {optimizer}")
    return "; ".join(words) or "no more is recorded of it"


def _how(cells: Sequence[Cell], chosen: Sequence[Cell]) -> str:
    """How the table's numbers came about, and what to beware of."""
    sentences = [
        "Online scores are averages over all scored tasks and seeds, with 95 % bootstrap intervals over seeds "
        f"({RESAMPLES:,} resamples) in brackets. A difference is taken seed by seed over the tasks that both have "
        "completed; it is bold where its interval leaves 0 out. First → last: averages over the first and the last "
        "tenth of the scored tasks. Of losses, lower is better.",
    ]
    if len(cells) > len(chosen):
        sentences.append(
            "<b>Learning rates:</b> where a method was run with several, this table and all figures show the one "
            "with the best average online score of that method on that stream, among the runs that got furthest (the "
            "literature's model selection). It is chosen on the same seeds that it is shown on, which flatters a "
            "little every method that had several to choose from; the next table has all of them."
        )
    fewest = min(len(cell.runs) for cell in chosen)
    sentences.append(caution(fewest))
    if not all(run.done for cell in chosen for run in cell.runs):
        sentences.append("A method that has not finished, or diverged, is averaged over fewer tasks, the early ones.")
    if any(cell.diverged for cell in chosen):
        sentences.append(
            "A seed has diverged when its loss was no finite number at some point; such seeds are left out of every "
            "average that has no value for them."
        )
    return f"<p class='note'>{' '.join(filter(None, sentences))}</p>"
