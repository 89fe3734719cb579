"""The part of a report that is on Atari runs: how they went, and what to look at in each picture."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness.curves import Curve, over_layers, telling_layers
from experiments.harness.read import LoadedRun
from experiments.harness.report import atari_figures as figures
from experiments.harness.report.looks import palette
from experiments.harness.report.page import (
    commands,
    figure,
    listed,
    row,
    settings,
    software,
    spoken,
    table,
    text,
    unfinished,
)
from experiments.harness.report.panels import Plot

_RETURNS = (
    "How well it plays. The return is the game's own score, summed over an episode; a point is the mean of the "
    "episodes that ended since the point before. While training, the agent explores, so its return is lower than in "
    "evaluation, where it plays by what it has learned, apart from training."
)
_NORMS = (
    "How large the weights are: each layer's Frobenius norm, divided by its value at the first record. <b>What to "
    "see:</b> without projection the norm drifts, mostly upwards, as the layer learns. With <i>nap</i> every projected "
    "layer is a flat line at 1, by construction. The output layer is projected under no method, so it may drift."
)
_ELR = (
    "How far one update turns a layer: ‖update‖ / ‖weights‖, on a logarithmic axis. For a normalized layer this, not "
    "the learning rate that was written, sets how fast its function changes. <b>What to see:</b> where the norm above "
    "grows, this falls, even under a constant learning rate: a schedule that nobody wrote. With <i>nap</i> the norm "
    "cannot do that; what still moves the line is the written learning rate and the size of the optimizer's own step."
)
_DORMANT = (
    "How many units have stopped answering: the share of a layer's units whose mean activity on a batch is at most "
    "0.025 times the layer's average, as a mean over seeds. The shading reaches down to the threshold 0 (silent on the "
    "whole batch) and up to 0.1. <b>What to see:</b> a share that climbs means that the layer has fewer units left to "
    "learn with; near 0 is healthy."
)
_TRAINING = (
    "The loss at each record (logarithmic), and what was set by hand. In Q-learning the loss follows the size of the "
    "values, so it may well rise while the agent improves: compare methods by return, not by loss."
)
_SEEDS = "Thin lines are single seeds, thick lines their mean."
_ONE_SEED = (
    "There is one seed a method here, so a difference between two lines may be chance: only more seeds can tell."
)


def title(runs: Sequence[LoadedRun]) -> str:
    """What the runs are."""
    games = ", ".join(dict.fromkeys(spoken(run.problem) for run in runs))
    methods = labels(runs)
    return f"{games}: {listed(methods)}" + " compared" * (len(methods) > 1)


def labels(runs: Sequence[LoadedRun]) -> list[str]:
    """The methods, in the legend's order."""
    return list(dict.fromkeys(run.label for run in runs))


def sections(runs: Sequence[LoadedRun]) -> list[str]:
    """The HTML below the title: what was run, a table, and each game's figures."""
    looks = palette(labels(runs))
    parts = [f"<p>{_about(runs)}</p>", commands(runs), _table(runs)]
    games = sorted({run.problem for run in runs})
    for game in games:
        of_game = [run for run in runs if run.problem == game]
        if len(games) > 1:
            parts.append(f"<h2>{text(spoken(game))}</h2>")
        methods = {run.label for run in of_game}
        seeds = _ONE_SEED if len(of_game) == len(methods) else _SEEDS
        captions = (f"{_RETURNS} {seeds}", _NORMS, _ELR, _DORMANT, _TRAINING)
        for (heading, plot), caption in zip(_plots(of_game).items(), captions, strict=True):
            parts.append(figure(heading, plot, looks, caption))
    return [*parts, settings(runs)]


def plots(runs: Sequence[LoadedRun]) -> list[tuple[str, Plot]]:
    """All figures of all games, each with the game's name."""
    games = sorted({run.problem for run in runs})
    of_games = ((game, _plots([run for run in runs if run.problem == game])) for game in games)
    return [(game, plot) for game, of_game in of_games for plot in of_game.values() if plot is not None]


def overview(runs: Sequence[LoadedRun]) -> Plot:
    """The figure that says most."""
    return figures.overview_plot(runs)


def _plots(runs: Sequence[LoadedRun]) -> dict[str, Plot | None]:
    norms = figures.layers_plot(runs, "weight-norm", "weight_norm", "norm / norm at the start", from_start=True)
    rates = figures.layers_plot(runs, "effective-learning-rate", "elr", "‖update‖ / ‖weights‖, per update", log=True)
    return {
        "Returns": figures.returns_plot(runs),
        "Weight norm, layer by layer": norms,
        "Effective learning rate, layer by layer": rates,
        "Dormant units, layer by layer": figures.dormant_plot(runs),
        "Loss and settings over time": figures.training_plot(runs),
    }


def _about(runs: Sequence[LoadedRun]) -> str:
    """The opening paragraph: what was run, how far, on what."""
    first = runs[0]
    experiments = listed(dict.fromkeys(run.about["experiment"] for run in runs))
    seeds = sorted({run.seed for run in runs})
    reached = sorted({run.reached for run in runs})
    spread = f"{reached[0]:,}" if len(reached) == 1 else f"{reached[0]:,} to {reached[-1]:,}"
    axis = figures.axis_words(first.axis)
    sentences = [
        f"{len(runs)} run{'s' * (len(runs) > 1)} of the experiment <b>{text(experiments)}</b> on "
        f"{text(listed(dict.fromkeys(spoken(run.problem) for run in runs)))}",
        f"methods compared: <b>{text(listed(labels(runs)))}</b>",
        f"seed{'s' * (len(seeds) > 1)} {text(listed(map(str, seeds)))}",
        f"{spread} {axis} a run",
    ]
    protocol = _protocol(first.config)
    if protocol:
        sentences.append(f"protocol {text(protocol)}")
    return f"{'; '.join(sentences)}.{unfinished(runs)} {text(software(runs))}"


def _protocol(config: Mapping[str, Any]) -> str:
    protocol = config.get("protocol")
    if isinstance(protocol, Mapping):
        return str(protocol.get("name") or ", ".join(f"{name} {value}" for name, value in protocol.items()))
    return str(protocol) if protocol else ""


def _table(runs: Sequence[LoadedRun]) -> str:
    words = ["game", "method", "seed", figures.axis_words(runs[0].axis), "updates", "training return"]
    words += ["evaluation return", "human-normalized", "weight norm", "effective learning rate", "state"]
    head = [(word, word not in ("game", "method", "state")) for word in words]
    games = {run.problem for run in runs}
    layers = {game: telling_layers([run for run in runs if run.problem == game]) for game in games}
    rows = []
    for (game, _), group in itertools.groupby(runs, key=lambda run: (run.problem, run.label)):
        of_method = list(group)
        rows += [row(head, [text(cell) for cell in _cells(run, layers[game])]) for run in of_method]
        if len(of_method) > 1:
            rows.append(row(head, [text(cell) for cell in _mean_cells(of_method)], " class='mean'"))
    return (
        f"<h3>Summary</h3>{table(head, rows)}"
        "<p>Returns are the last ones recorded (mean ± standard deviation over seeds). Human-normalized: the last "
        "evaluation's, 0 % as a random player, 100 % as a human tester. Weight norm and effective learning rate: the "
        "last over the first, as a geometric mean over layers (those that NaP projects, where the runs show which).</p>"
    )


def _cells(run: LoadedRun, layers: Sequence[str]) -> list[str]:
    human = run.last("eval/human_normalised")
    updates = run.last("updates")
    return [
        spoken(run.problem),
        run.label,
        str(run.seed),
        f"{run.reached:,}",
        "–" if updates is None else f"{updates:,.0f}",
        _short(run.last("train/return")),
        _short(run.last("eval/return")),
        "–" if human is None else f"{100 * human:.1f} %",
        _change(over_layers(run, "weight_norm", layers)),
        _change(over_layers(run, "elr", layers)),
        "finished" if run.done else "not finished",
    ]


def _mean_cells(runs: Sequence[LoadedRun]) -> list[str]:
    """The table's row for all seeds of one method."""
    human = [100 * value for run in runs if (value := run.last("eval/human_normalised")) is not None]
    returns = [_mean([run.last(f"{phase}/return") for run in runs]) for phase in ("train", "eval")]
    name = [spoken(runs[0].problem), runs[0].label, f"mean of {len(runs)}"]
    return [*name, "", "", *returns, f"{_mean(human)} %" if human else "–", "", "", ""]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return _short(known[0] if known else None)
    return f"{statistics.mean(known):.3g} ± {statistics.stdev(known):.2g}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}"


def _change(curve: Curve) -> str:
    return f"× {curve[1][-1] / curve[1][0]:.3g}" if curve[1].size else "–"
