"""The tables of a report on sequences of games."""

from collections.abc import Callable, Sequence

import numpy as np

from envs.sequence import Task
from experiments.harness.report.page import (
    bold_if_apart,
    bracketed,
    diverged_by,
    folded,
    row,
    short,
    signed,
    table,
    text,
)
from experiments.harness.report.sequences_scores import Items, Scores, Summary, difference, summary
from experiments.harness.report.sequences_studies import BySeed, Method, ends_of
from experiments.harness.statistics import Interval, paired_difference, stratified_bootstrap

_FEW_ROWS = 40  # more are folded away


def averages(scores: Scores) -> str:
    """The normalised scores of every method, averaged over the tasks: of fresh agents, and visit by visit."""
    study, baseline = scores.study, scores.study.baseline
    most = max((len(of) for of in study.visits.values()), default=0)
    others = len(study.methods) > 1 and most > 0
    head = [
        ("method", False),
        ("fresh agents (%)", True),
        *((f"visit {number + 1} (%)", True) for number in range(most)),
        *([(f"all visits: difference to {baseline.label}", True)] if others else []),
        ("seeds", True),
        *([] if is_complete(scores) else [("state", False)]),
    ]
    rows = []
    for method in study.methods:
        of_visits = [scores.scores(method, study.nth(number)) for number in range(most)]
        shown = [
            text(method.label),
            *(_summary(summary(items), method, _percent) for items in (scores.fresh(method), *of_visits)),
        ]
        if others:
            visits = study.sequence.visits
            found = difference(scores.scores(method, visits), scores.scores(baseline, visits))
            shown.append("baseline" if method is baseline else _effect(found, method))
        shown += [_seeds(method), *([] if is_complete(scores) else [text(state(scores, method))])]
        rows.append(row(head, shown))
    return table(head, rows)


def effects(scores: Scores) -> list[str]:
    """What earlier tasks do to later ones, and later ones to earlier ones; nothing for fresh agents alone."""
    study = scores.study
    if not study.sequence.visits:
        return []
    again = any(len(of) > 1 for of in study.visits.values())
    firsts = [visit for visit in study.nth(0) if visit.number > 0]
    measures: list[tuple[str, Callable[[Method], Items]]] = [
        ("first visit − fresh", lambda method: scores.against_fresh(method, firsts)),
    ]
    if again:
        lasts = [of[-1] for of in study.visits.values() if len(of) > 1]
        measures += [
            ("last visit − fresh", lambda method: scores.against_fresh(method, lasts)),
            ("last − first visit", scores.plasticity),
        ]
    measures += [("forward transfer", scores.transfer), ("forgetting", scores.forgetting)]
    head = [("method", False), *((words, True) for words, _ in measures)]
    rows = [
        row(head, [text(method.label), *(_effect(summary(measure(method)), method) for _, measure in measures)])
        for method in study.methods
    ]
    words = "What earlier tasks do to later ones, and later ones to earlier ones, in percentage points of these scores:"
    return [f"<p>{words}</p>", table(head, rows)]


def tasks(scores: Scores) -> str:
    """Every task's mean returns with every method: of fresh agents and of every visit; folded where there are many."""
    study = scores.study
    most = max((len(of) for of in study.visits.values()), default=0)
    head = [("task", False), ("method", False), ("fresh", True)]
    head += [(f"visit {number + 1}", True) for number in range(most)]
    head += [("0 %", True), ("100 %", True)]
    rows = []
    for task in study.tasks:
        for method in study.methods:
            fresh = ends_of(method.fresh_curves(task), task.frames)
            shown = [_returns(fresh)]
            for number in range(most):
                of = study.visits[task][number : number + 1]
                ends = ends_of(method.curves(of[0]), task.frames) if of else {}
                shown.append(bold_if_apart(_paired(ends, fresh), _returns(ends)))
            rows.append(row(head, [text(task.name), text(method.label), *shown, *_scale(scores, task)]))
    listing = table(head, rows)
    return folded(f"All {len(study.tasks)} tasks", listing) if len(rows) > _FEW_ROWS else listing


def is_complete(scores: Scores) -> bool:
    """Whether every seed of every method has completed all visits."""
    return all(_is_through(scores, method) for method in scores.study.methods)


def state(scores: Scores, method: Method) -> str:
    """How far a method has come."""
    if _is_through(scores, method):
        return "finished"
    counts = method.completed(scores.study.sequence.visits).values()
    if not counts:
        return "not begun"
    if lost := diverged_by(list(method.runs.values())):
        return lost
    spread = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{spread} of {len(scores.study.sequence.visits)} visits"


def _is_through(scores: Scores, method: Method) -> bool:
    visits = scores.study.sequence.visits
    if not visits:
        return True
    counts = method.completed(visits).values()
    return bool(counts) and min(counts) == len(visits)


def _paired(ends: BySeed, fresh: BySeed) -> Interval | None:
    return paired_difference(ends, fresh) if ends.keys() & fresh.keys() else None


def _returns(of_seeds: BySeed) -> str:
    found = stratified_bootstrap(np.array(list(of_seeds.values()))) if of_seeds else None
    return bracketed(found, lambda value: short(value, 3))


def _scale(scores: Scores, task: Task) -> Sequence[str]:
    if task not in scores.scales:
        return "–", "–"
    zero, hundred, human = scores.scales[task]
    return short(zero, 3), f"{short(hundred, 3)} <small>{'human' if human else 'fresh'}</small>"


def _seeds(method: Method) -> str:
    diverged = len(method.any_diverged)
    return f"{len(method.seeds)} ({diverged} diverged)" if diverged else str(len(method.seeds))


def _summary(found: Summary | None, method: Method, written: Callable[[float], str]) -> str:
    """An average, and over what it is where that is not all."""
    if found is None:
        return "–"
    over = [f"over {found.items} of {found.planned}"] if found.items < found.planned else []
    seeds = len(method.seeds)
    over += [f"{found.seeds} of {seeds} seeds"] if found.seeds < seeds else []
    shown = bracketed(found.interval, written)
    return f"{shown} <small>{', '.join(over)}</small>" if over else shown


def _effect(found: Summary | None, method: Method) -> str:
    shown = _summary(found, method, lambda value: signed(f"{value:.1f}"))
    return bold_if_apart(found.interval if found else None, shown)


def _percent(value: float) -> str:
    return short(value, 3) if abs(value) >= 1000 else f"{value:.1f}".replace("-", "−")
