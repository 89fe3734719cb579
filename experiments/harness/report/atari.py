"""The part of a report that is on Atari runs: how they went, and what to look at in each picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness.read import LoadedRun
from experiments.harness.report import atari_figures as figures
from experiments.harness.report import atari_overall as overall
from experiments.harness.report import atari_scores as scores
from experiments.harness.report import atari_tables as tables
from experiments.harness.report.looks import Palette, palette
from experiments.harness.report.page import (
    commands,
    confounded,
    figure,
    listed,
    settings,
    software,
    spoken,
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
_AGGREGATES = (
    "The three aggregates of the human-normalised score as training goes on. The median says nothing of all games but "
    "the middle ones, the mean is ruled by a few games with huge scores; the IQM lies between."
)
_PROFILES = (
    "What an aggregate hides: the share of runs that score above τ, averaged over games. The line of a method that is "
    "better everywhere lies above the other's everywhere; where two cross, each is better for some games. At the left "
    "end: the share that is better than random play; at 100 %, than the human tester."
)
_SHADING = "Shading: pointwise 95 % bootstrap intervals, seeds drawn anew within each game."
_NO_SHADING = "No interval is drawn for a method with a single seed in some game: one run says nothing of the spread."
_EVALUATION_OF_GAMES = (
    "How well it plays what it has learned, with learning off: the game's own score, the mean over the episodes of an "
    "evaluation."
)
_TRAINING_OF_GAMES = (
    "The game's own score while training; a point is the mean of the episodes that ended since the point before. The "
    "agent explores, so it is lower than in evaluation."
)
_ALONE = "<p>These runs are of one game, so there are no aggregates over games.</p>"
_LAYERS = "Each line is a geometric mean over the layers that NaP projects, where the runs show which."
_DORMANT_OF_GAMES = (
    "The share of units whose mean activity on a batch is at most 0.025 times their layer's average, as a mean over "
    "layers. <b>What to see:</b> a share that climbs means that there are fewer units left to learn with."
)
_LONG_TITLE = 80  # characters
_FEW_GAMES = 3  # so many are shown layer by layer, and named in the title


def title(runs: Sequence[LoadedRun]) -> str:
    """What the runs are."""
    games = list(overall.by_game(runs))
    methods = labels(runs)
    told = ", ".join(map(spoken, games)) if len(games) <= _FEW_GAMES else f"{len(games)} Atari games"
    compared = listed(methods)
    if len(compared) > _LONG_TITLE:
        compared = f"{len(methods)} methods"
    return f"{told}: {compared}" + " compared" * (len(methods) > 1)


def labels(runs: Sequence[LoadedRun]) -> list[str]:
    """The methods, in the legend's order."""
    return scores.labels(scores.with_agents(runs))


def sections(runs: Sequence[LoadedRun]) -> list[str]:
    """The HTML below the title: what was run; over all games, where there are several; each game's figures; tables."""
    runs = scores.with_agents(runs)
    looks = palette(scores.labels(runs))
    games, of_phases = overall.by_game(runs), _scores(runs)
    parts = [f"<p>{_about(runs)}</p>", confounded(runs), commands(runs)]
    if len(games) == 1:
        return [*parts, tables.every_run(runs, of_phases), _ALONE, *_one_game(runs, looks), settings(runs)]
    parts += [*_over_games(runs, of_phases, looks), *_game_by_game(runs, of_phases, looks)]
    if len(games) <= _FEW_GAMES:
        for game, of_game in games.items():
            parts += [f"<h2>{text(spoken(game))}</h2>", *_one_game(of_game, looks)]
    return [*parts, "<h2>The runs</h2>", tables.every_run(runs, of_phases), settings(runs)]


def plots(runs: Sequence[LoadedRun]) -> list[tuple[str, Plot]]:
    """All figures, each with its game's name, or "" where it shows several."""
    runs = scores.with_agents(runs)
    games = overall.by_game(runs)
    named: list[tuple[str, Plot | None]] = []
    if len(games) > 1:
        of_phases = _scores(runs)
        named += [("", overall.aggregates_plot(of_phases, runs[0].axis)), ("", overall.profiles_plot(of_phases))]
    if len(games) > _FEW_GAMES:
        named += [("", plot) for plot in (*overall.returns_plots(runs), *overall.layers_plots(runs))]
    else:
        named += [(game, plot) for game, of_game in games.items() for plot in _plots(of_game).values()]
    return [(game, plot) for game, plot in named if plot is not None]


def overview(runs: Sequence[LoadedRun]) -> Plot:
    """The figure that says most."""
    runs = scores.with_agents(runs)
    if len(overall.by_game(runs)) > 1:
        return overall.overview_plot(runs, _scores(runs))
    return figures.overview_plot(runs)


def _scores(runs: Sequence[LoadedRun]) -> list[scores.Scores]:
    return [scores.scores_of(runs, phase) for phase in scores.PHASES]


def _over_games(runs: Sequence[LoadedRun], of_phases: Sequence[scores.Scores], looks: Palette) -> list[str]:
    """Aggregates over the games, or why there are none."""
    shown = [of_phase for of_phase in of_phases if of_phase.has_aggregates]
    parts = ["<h2>Over all games</h2>"]
    if not shown:
        parts.append(tables.no_aggregates(of_phases))
        if any(of_phase.with_random_play.has_aggregates for of_phase in of_phases):
            parts += [*tables.aggregates(of_phases), *tables.improvements(of_phases)]
        return parts
    fewest = {of_phase.seeds(label)[0] for of_phase in shown for label in of_phase.labels}
    shading = " ".join([*([_SHADING] if max(fewest) > 1 else []), *([_NO_SHADING] if min(fewest) == 1 else [])])
    games = "".join(dict.fromkeys(map(tables.games_note, shown)))
    curves, profiles = overall.aggregates_plot(of_phases, runs[0].axis), overall.profiles_plot(of_phases)
    return [
        *parts,
        *tables.aggregates(of_phases),
        *tables.improvements(of_phases),
        figure("Aggregates over time", curves, looks, f"{_AGGREGATES} {shading}{games}"),
        figure("Performance profiles", profiles, looks, f"{_PROFILES} {shading}{games}"),
    ]


def _game_by_game(runs: Sequence[LoadedRun], of_phases: Sequence[scores.Scores], looks: Palette) -> list[str]:
    """A table of all games, and figures with a panel a game where a figure a game would be too many."""
    parts = ["<h2>Game by game</h2>", *tables.games(runs, of_phases)]
    if len(overall.by_game(runs)) <= _FEW_GAMES:
        return parts
    seeds = _SEEDS if len(scores.grouped(runs)) < len(runs) else _ONE_SEED
    headings = ("Evaluation returns", "Training returns", "Weight norms", "Effective learning rates", "Dormant units")
    captions = (_EVALUATION_OF_GAMES, _TRAINING_OF_GAMES, f"{_NORMS} {_LAYERS}", f"{_ELR} {_LAYERS}", _DORMANT_OF_GAMES)
    drawn = [*overall.returns_plots(runs), *overall.layers_plots(runs)]
    for heading, plot, caption in zip(headings, drawn, captions, strict=True):
        parts.append(figure(heading, plot, looks, f"{caption} {seeds}"))
    note = "Layer by layer a game is shown by the report on its folders alone"
    example = f"python -m experiments report {runs[0].folder.parent}/{runs[0].problem}-*"
    return [*parts, f"<p class='note'>{note}: <code>{text(example)}</code></p>"]


def _one_game(runs: Sequence[LoadedRun], looks: Palette) -> list[str]:
    """All figures of one game."""
    seeds = _ONE_SEED if len(scores.grouped(runs)) == len(runs) else _SEEDS
    captions = (f"{_RETURNS} {seeds}", _NORMS, _ELR, _DORMANT, _TRAINING)
    drawn = _plots(runs).items()
    return [figure(heading, plot, looks, caption) for (heading, plot), caption in zip(drawn, captions, strict=True)]


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
    names = list(overall.by_game(runs))
    games = listed(map(spoken, names)) if len(names) <= _FEW_GAMES else f"{len(names)} games"
    seeds = sorted({run.seed for run in runs})
    reached = sorted({run.reached for run in runs})
    spread = f"{reached[0]:,}" if len(reached) == 1 else f"{reached[0]:,} to {reached[-1]:,}"
    axis = figures.axis_words(first.axis)
    sentences = [
        f"{len(runs)} run{'s' * (len(runs) > 1)} of the experiment <b>{text(experiments)}</b> on {text(games)}",
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
