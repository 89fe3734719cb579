"""The tables of a report on Atari runs: scores game by game, aggregates over games, comparisons, and every run."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from experiments.harness.curves import Curve, over_layers, telling_layers
from experiments.harness.read import LoadedRun
from experiments.harness.report.atari_figures import axis_words
from experiments.harness.report.atari_overall import by_game, name_of_set
from experiments.harness.report.atari_scores import (
    PHASES,
    STATISTICS,
    Estimate,
    Scores,
    baselines,
    grouped,
    has_diverged,
    labels,
)
from experiments.harness.report.page import diverged_by, folded, listed, minus, row, short, spoken, table, text

_FEW_RUNS = 20  # more are folded away
_FEW_NAMES = 3
_WHERE = (
    "of the last iteration that all runs on a game have completed (where their iterations end at different places: of "
    "the one that ends nearest to where the shortest has come)"
)


def aggregates(of_phases: Sequence[Scores]) -> list[str]:
    """Median, IQM and mean of the human-normalised scores of every method, a table a phase."""
    parts = ["<h3>Aggregate human-normalised scores</h3>"]
    for scores, heading in _both_ways(of_phases):
        head = [
            ("method", False),
            *((f"{statistic} (%)", True) for statistic in STATISTICS),
            ("seeds", True),
        ]
        rows = [
            row(
                head,
                [
                    text(label),
                    *(_estimate(scores.aggregate(label, statistic), _percent) for statistic in STATISTICS),
                    _range(scores.seeds(label)),
                ],
            )
            for label in scores.labels
        ]
        parts.append(f"<h4>{heading}</h4>{table(head, rows)}{games_note(scores)}")
    parts.append(
        "<p class='note'>0 % is random play, 100 % a human tester. Median and mean are over games, of each game's mean "
        "over its seeds (how many a game has stands last); the IQM (interquartile mean) is over all games and seeds "
        f"together, the best and the worst quarter left out. {_interval_note(of_phases)}</p>"
    )
    return parts


def improvements(of_phases: Sequence[Scores]) -> list[str]:
    """How likely each method is to score above its baseline, a table a phase; nothing where there is no other."""
    parts = []
    certain = False
    for scores, heading in _both_ways(of_phases):
        pairs = baselines(scores.labels)
        if pairs:
            head = [("method", False), ("over", False), ("probability of improvement", True)]
            found = [scores.improvement(label, baseline) for label, baseline in pairs.items()]
            certain = certain or any(estimate.interval for estimate in found)
            rows = [
                row(head, [text(label), text(baseline), _chance(estimate)])
                for (label, baseline), estimate in zip(pairs.items(), found, strict=True)
            ]
            parts.append(f"<h4>{heading}</h4>{table(head, rows)}{games_note(scores)}")
    if not parts:
        return []
    bold = "Bold: the interval leaves 0.5 out. " if certain else ""
    note = (
        "How likely a run of the method scores above a run of the other on the same game, averaged over games; a tie "
        "counts one half. 0.5 is no difference; it says how often the method is better, not by how much. "
        f"{bold}{_interval_note(of_phases)}"
    )
    return ["<h3>Probability of improvement</h3>", *parts, f"<p class='note'>{note}</p>"]


def _both_ways(of_phases: Sequence[Scores]) -> Iterator[tuple[Scores, str]]:
    """What has aggregates, with its heading: the scores there are, and what they are if divergence is random play."""
    for scores in of_phases:
        phase = PHASES[scores.phase].capitalize()
        if scores.has_aggregates:
            yield scores, f"{phase}, diverged runs left out" if scores.has_diverged else phase
        if scores.has_diverged and scores.with_random_play.has_aggregates:
            yield scores.with_random_play, f"{phase}, a diverged run scores as random play"


def games_note(scores: Scores) -> str:
    """The games that an aggregate is over, and those that it is not, as HTML to stand beside it."""
    listing = text(", ".join(spoken(game) for game in scores.games))
    name = name_of_set(scores.games)
    return (
        f"<p class='note'><small>Over {len(scores.games)} games{f' ({name})' if name else ''}: {listing}."
        f"{_held_back(scores)}{_left_out(scores)}{_not_counted(scores)}</small></p>"
    )


def no_aggregates(of_phases: Sequence[Scores]) -> str:
    """Why there are no aggregates over games."""
    scores = next((scores for scores in of_phases if scores.curves), None)
    if scores is None:
        return "<p>No run has a score yet, so there are no aggregates over games.</p>"
    known = f"only {text(spoken(scores.games[0]))} is such a game" if scores.games else "no game is"
    return (
        f"<p>Aggregates are over the games with human scores in which every method has been scored. Here {known}, so "
        f"there are none.{_left_out(scores)}{_not_counted(scores)}</p>"
    )


def games(runs: Sequence[LoadedRun], of_phases: Sequence[Scores]) -> list[str]:
    """Every game's scores of every method, raw and human-normalised, a table a phase."""
    parts = ["<h3>Scores</h3>"]
    names = labels(runs)
    axis = axis_words(runs[0].axis)
    for scores in of_phases:
        if scores.curves:
            head = [("game", False), (axis, True), *((name, True) for name in names)]
            rows = [
                row(
                    head,
                    [
                        text(spoken(game)),
                        f"{scores.frames[game]:,.0f}",
                        *(_score(scores.raw(game, name), scores.normalised(game, name)) for name in names),
                    ],
                )
                for game in sorted(scores.curves)
            ]
            without = f"<p class='note'><small>{_not_counted(scores)}</small></p>" if scores.unscored else ""
            parts.append(f"<h4>{PHASES[scores.phase].capitalize()}</h4>{table(head, rows)}{without}")
    parts.append(
        f"<p class='note'>The mean return {_WHERE}: mean ± standard deviation over seeds (their number in brackets). "
        "Below it the same on the human-normalised scale, for the 57 games that have one. A score in training is of an "
        "agent that explores.</p>"
    )
    return parts


def every_run(runs: Sequence[LoadedRun], of_phases: Sequence[Scores]) -> str:
    """A row a run, and one for the mean over seeds of each method; folded where there are many."""
    words = ["game", "method", "seed", axis_words(runs[0].axis), "updates", "training return"]
    words += ["evaluation return", "human-normalised", "weight norm", "effective learning rate", "state"]
    head = [(word, word not in ("game", "method", "state")) for word in words]
    layers = {game: telling_layers(of_game) for game, of_game in by_game(runs).items()}
    rows = []
    for of_method in grouped(runs):
        rows += [row(head, [text(cell) for cell in _cells(run, layers[run.problem])]) for run in of_method]
        if len(of_method) > 1:
            rows.append(row(head, [text(cell) for cell in _mean_cells(of_method, of_phases)], " class='mean'"))
    content = (
        f"{table(head, rows)}"
        "<p>A run's returns are the last ones recorded. Means ± standard deviations over seeds are "
        f"{_WHERE}; in brackets the seeds, where not all have a score. Human-normalised: the evaluation's, 0 % as a "
        "random player, 100 % as a human tester. Weight norm and effective learning rate: the last over the first, as "
        "a geometric mean over layers (those that NaP projects, where the runs show which).</p>"
    )
    if len(runs) > _FEW_RUNS:
        return folded(f"All {len(runs)} runs", content)
    return f"<h3>Summary</h3>{content}"


def _held_back(scores: Scores) -> str:
    """A sentence on the games whose scores are taken earlier than others', as HTML; "" where there are none."""
    most = max(scores.frames[game] for game in scores.games)
    behind = [
        f"{spoken(game)} at {scores.frames[game]:,.0f} ({_some(scores.shortest(game))})"
        for game in scores.games
        if scores.frames[game] < most
    ]
    if not behind:
        return ""
    return (
        f" <b>At different lengths:</b> a game's scores are taken where the shortest of its runs has come to: "
        f"{text('; '.join(behind))}; the others at {most:,.0f}."
    )


def _some(runs: Sequence[str]) -> str:
    more = len(runs) - _FEW_NAMES
    return listed([*runs[:_FEW_NAMES], f"{more} more"] if more > 0 else runs)


def _left_out(scores: Scores) -> str:
    """A sentence on the games that are not in the aggregates, as HTML; "" where all are."""
    reasons: dict[str, list[str]] = {}
    for game, reason in scores.left_out.items():
        reasons.setdefault(reason, []).append(spoken(game))
    listing = "; ".join(f"{', '.join(sorted(of_reason))} ({reason})" for reason, of_reason in reasons.items())
    return f" <b>Left out:</b> {text(listing)}." if reasons else ""


def _not_counted(scores: Scores) -> str:
    """A sentence on the runs without a score, as HTML; "" where all have one."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for (game, label, seed), reason in scores.unscored.items():
        seeds.setdefault((game, label, reason), []).append(seed)
    listing = "; ".join(
        f"{label} on {spoken(game)}, seed{'s' * (len(of) > 1)} {listed(of)} ({reason})"
        for (game, label, reason), of in seeds.items()
    )
    return f" <b>Not counted:</b> {text(listing)}." if seeds else ""


def _interval_note(of_phases: Sequence[Scores]) -> str:
    shown = [scores for scores, _ in _both_ways(of_phases)]
    fewest = {scores.seeds(label)[0] for scores in shown for label in scores.labels}
    certain = "Brackets: 95 % bootstrap intervals, seeds drawn anew within each game."
    if min(fewest) > 1:
        return certain
    alone = "A method with a single seed in some game has no interval: one run says nothing of the spread."
    return f"{certain} {alone}" if max(fewest) > 1 else alone


def _estimate(estimate: Estimate, written: Callable[[float], str]) -> str:
    if estimate.interval is None:
        return written(estimate.value)
    return f"{written(estimate.value)} [{written(estimate.interval.low)}, {written(estimate.interval.high)}]"


def _chance(estimate: Estimate) -> str:
    shown = _estimate(estimate, lambda value: f"{value:.2f}")
    apart = estimate.interval is not None and (estimate.interval.low > 0.5 or estimate.interval.high < 0.5)
    return f"<b>{shown}</b>" if apart else shown


def _score(raw: Mapping[int, float], normalised: Mapping[int, float]) -> str:
    """A cell of the table of games: the raw score, and the human-normalised one below it."""
    if not raw:
        return "–"
    seeds = f" ({len(raw)})" if len(raw) > 1 else ""
    human = [100 * score for score in normalised.values()]
    return f"{_mean(list(raw.values()))}{seeds}" + (f"<br><small>{_mean(human)} %</small>" if human else "")


def _range(counts: tuple[int, int]) -> str:
    return str(counts[0]) if counts[0] == counts[1] else f"{counts[0]} to {counts[1]}"


def _percent(share: float) -> str:
    return minus(f"{100 * share:.1f}")


def _cells(run: LoadedRun, layers: Sequence[str]) -> list[str]:
    lost = has_diverged(run)
    human = None if lost else run.last("eval/human_normalised")
    updates = run.last("updates")
    return [
        spoken(run.problem),
        run.label,
        str(run.seed),
        f"{run.reached:,}",
        "–" if updates is None else f"{updates:,.0f}",
        short(run.last("train/return")),
        short(None if lost else run.last("eval/return")),
        "–" if human is None else f"{100 * human:.1f} %",
        _change(over_layers(run, "weight_norm", layers)),
        _change(over_layers(run, "elr", layers)),
        _state(run),
    ]


def _state(run: LoadedRun) -> str:
    if has_diverged(run):
        return diverged_by([run]) or "diverged"
    return "finished" if run.done else "not finished"


def _mean_cells(runs: Sequence[LoadedRun], of_phases: Sequence[Scores]) -> list[str]:
    """The table's row for all seeds of one method."""
    game, label = runs[0].problem, runs[0].label
    of_phase = {scores.phase: scores for scores in of_phases}
    train, evaluation = of_phase["train"], of_phase["eval"]
    places = dict.fromkeys(scores.frames[game] for scores in (train, evaluation) if scores.raw(game, label))
    human = [100 * score for score in evaluation.normalised(game, label).values()]
    return [
        *(spoken(game), label, f"mean of {len(runs)}", " / ".join(f"{place:,.0f}" for place in places), ""),
        *(_mean_of(list(scores.raw(game, label).values()), len(runs)) for scores in (train, evaluation)),
        *(f"{_mean(human)} %" if human else "–", "", "", ""),
    ]


def _mean_of(values: Sequence[float], seeds: int) -> str:
    return _mean(values) + (f" ({len(values)})" if 0 < len(values) < seeds else "")


def _mean(values: Sequence[float]) -> str:
    if len(values) < 2:
        return short(values[0] if values else None)
    return f"{short(statistics.mean(values), 3)} ± {short(statistics.stdev(values), 2)}"


def _change(curve: Curve) -> str:
    return f"× {curve[1][-1] / curve[1][0]:.3g}" if curve[1].size else "–"
