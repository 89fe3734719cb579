"""The figures of a report on many Atari games: aggregates over the games, and the games side by side."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from envs.scores import GAME_SETS
from experiments.harness.curves import Curve, mean_curve, over_layers, percent, relative, telling_layers
from experiments.harness.read import LoadedRun
from experiments.harness.report.atari_figures import axis_words, lines_of
from experiments.harness.report.atari_scores import PHASES, STATISTICS, Scores, labels
from experiments.harness.report.page import spoken
from experiments.harness.report.panels import Line, Panel, Plot

_COLUMNS, _HEIGHT = 4, 1.9  # of a figure with a panel a game
_FEW_NAMES = 12  # of the games below a figure; more go by their set's name where they have one


def aggregates_plot(of_phases: Sequence[Scores], axis: str) -> Plot | None:
    """Median, IQM and mean of the human-normalised scores over time, a row a phase; None where there is none."""
    panels = [
        Panel(words_of(scores.games), f"{statistic}, {PHASES[scores.phase]}", lines)
        for scores in of_phases
        if scores.has_aggregates
        for statistic in STATISTICS
        if (lines := _aggregate_lines(scores, statistic))
    ]
    label = "human-normalised score (%)"
    note = _note_of(of_phases)
    return Plot("aggregates", tuple(panels), axis_words(axis), label, height=2.9, note=note) if panels else None


def profiles_plot(of_phases: Sequence[Scores]) -> Plot | None:
    """The share of runs above each human-normalised score, a panel a phase; None where there are no aggregates."""
    panels = [
        Panel(words_of(scores.games), PHASES[scores.phase], _profile_lines(scores), from_zero=True)
        for scores in of_phases
        if scores.has_aggregates
    ]
    label = "share of runs with\na higher score"
    axis = "human-normalised score τ (%)"
    note = _note_of(of_phases)
    return Plot("performance-profiles", tuple(panels), axis, label, 3, 3.2, sharey=True, note=note) if panels else None


def games_plot(runs: Sequence[LoadedRun], name: str, curve: Callable[[LoadedRun], Curve], label: str) -> Plot | None:
    """One panel a game; None where no run has such a curve.

    Args:
        runs: of several games.
        name: of the figure's files.
        curve: what is drawn of a run.
        label: the vertical axis, with its unit.
    """
    panels = tuple(
        Panel(game, spoken(game), lines, log=name.startswith("effective"), from_zero=name.startswith("dormant"))
        for game, of_game in by_game(runs).items()
        if (lines := lines_of(of_game, curve))
    )
    return Plot(name, panels, axis_words(runs[0].axis), label, _COLUMNS, _HEIGHT) if panels else None


def returns_plots(runs: Sequence[LoadedRun]) -> list[Plot | None]:
    """Every game's evaluation returns, and its training returns."""
    names = {"eval/return": "evaluation-returns", "train/return": "training-returns"}
    label = "return per episode (raw game score)"
    return [
        games_plot(runs, name, lambda run, record=record: run.series(record), label) for record, name in names.items()
    ]


def layers_plots(runs: Sequence[LoadedRun]) -> list[Plot | None]:
    """Every game's weight norms, effective learning rates and dormant units, each a mean over layers."""
    layers = {game: telling_layers(of_game) for game, of_game in by_game(runs).items()}
    return [
        games_plot(
            runs,
            "weight-norms",
            lambda run: over_layers(run, "weight_norm", layers[run.problem], relative),
            "norm / norm at the start",
        ),
        games_plot(
            runs,
            "effective-learning-rates",
            lambda run: over_layers(run, "elr", layers[run.problem]),
            "‖update‖ / ‖weights‖, per update",
        ),
        games_plot(runs, "dormant-units-of-games", dormant_units, "dormant units (%)"),
    ]


def overview_plot(runs: Sequence[LoadedRun], of_phases: Sequence[Scores]) -> Plot:
    """The idea in one row: the IQM over games, and weight norms and effective learning rates averaged over them.

    The latter are over the games that every method has been run on, or over all where there is none.
    """
    methods = set(labels(runs))
    every = {game: of_game for game, of_game in by_game(runs).items() if set(labels(of_game)) == methods}
    layers = {game: telling_layers(of_game) for game, of_game in (every or by_game(runs)).items()}
    runs = [run for run in runs if run.problem in layers]
    norms = _over_games(runs, lambda run: over_layers(run, "weight_norm", layers[run.problem], relative))
    rates = _over_games(runs, lambda run: over_layers(run, "elr", layers[run.problem]))
    scored = next((scores for scores in of_phases if scores.has_aggregates), None)
    panels = [
        Panel(words_of(list(layers)), "weight norm", norms, "norm / norm at the start"),
        Panel(words_of(list(layers)), "effective learning rate", rates, "‖update‖ / ‖weights‖, per update", log=True),
    ]
    games = {"Weight norm and effective learning rate": tuple(layers)}
    if scored:
        games = {"IQM": scored.games, **games}
        title = f"IQM of {len(scored.games)} games, {PHASES[scored.phase]}"
        iqms = Panel(words_of(scored.games), title, _aggregate_lines(scored, "IQM"), "human-normalised score (%)")
        panels = [iqms, *panels]
    return Plot("overview", tuple(panels), axis_words(runs[0].axis), height=3.1, note=_note(games))


def by_game(runs: Sequence[LoadedRun]) -> dict[str, list[LoadedRun]]:
    """The runs of each game, the games by name."""
    return {game: [run for run in runs if run.problem == game] for game in sorted({run.problem for run in runs})}


def words_of(games: Sequence[str]) -> str:
    """Some games, as the files of a figure name them."""
    return f"{len(games)} games: {', '.join(games)}"


def name_of_set(games: Sequence[str]) -> str:
    """The name of the set that the games are, "" where they are none."""
    return next((name for name, members in GAME_SETS.items() if set(members) == set(games)), "")


def dormant_units(run: LoadedRun) -> Curve:
    """The mean over layers of the share of units that are dormant at 0.025, in percent."""
    curves = [percent(run.series(f"dormant_fraction_0.025/{layer}")) for layer in run.layers("dormant_fraction_0.025")]
    return _mean_of([curve for curve in curves if curve[0].size])


def _note_of(of_phases: Sequence[Scores]) -> str:
    """The games that the scores are over."""
    return _note({PHASES[scores.phase].capitalize(): scores.games for scores in of_phases if scores.has_aggregates})


def _note(games: Mapping[str, Sequence[str]]) -> str:
    """The games that the parts of a figure are over, {part: games}; told once where they are the same."""
    if len({frozenset(of_part) for of_part in games.values()}) == 1:
        return f"Over {_named(next(iter(games.values())))}."
    return "\n".join(f"{part} over {_named(of_part)}." for part, of_part in games.items())


def _named(games: Sequence[str]) -> str:
    name = name_of_set(games)
    if name and len(games) > _FEW_NAMES:
        return f"the {len(games)} games of {name}"
    number = f"{len(games)} games" if len(games) > 1 else "1 game"
    return f"{number}{f' ({name})' if name else ''}: {', '.join(map(spoken, games))}"


def _aggregate_lines(scores: Scores, statistic: str) -> tuple[Line, ...]:
    lines = []
    for label in scores.labels:
        frames, found = scores.aggregate_curve(label, statistic)
        if found is not None:
            value, low, high = 100 * found.T
            ends = () if np.isnan(low).any() else (low, high)
            lines.append(Line(label, statistic, frames, value, *ends))
    return tuple(lines)


def _profile_lines(scores: Scores) -> tuple[Line, ...]:
    return tuple(
        Line(label, "share of runs above", 100 * scores.thresholds, *scores.profile(label)) for label in scores.labels
    )


def _over_games(runs: Sequence[LoadedRun], curve: Callable[[LoadedRun], Curve]) -> tuple[Line, ...]:
    """The geometric mean over the games of each method, of that over its seeds there."""
    lines = []
    for label in labels(runs):
        curves = [
            _mean_of_logarithms([curve(run) for run in of_game if run.label == label])
            for of_game in by_game(runs).values()
        ]
        x, logarithms = _mean_of([curve for curve in curves if curve[0].size])
        if x.size:
            lines.append(Line(label, "mean", x, np.exp(logarithms)))
    return tuple(lines)


def _mean_of_logarithms(curves: Sequence[Curve]) -> Curve:
    with np.errstate(divide="ignore"):  # a learning rate of 0 ends in an effective one of 0
        return _mean_of([(x, np.log(y)) for x, y in curves if x.size])


def _mean_of(curves: Sequence[Curve]) -> Curve:
    return mean_curve(curves) if curves else (np.zeros(0), np.zeros(0))
