"""What runs came to in the end: a few numbers of each seed, and what these are over seeds, in words.

What a run is judged by is seen from what it recorded: evaluations of an agent, tasks of a stream, held-out losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from experiments.harness.read import LoadedRun
from experiments.harness.report.cells import ACCURACY, LOSS, Metric, make_cells
from experiments.harness.statistics import Interval, stratified_bootstrap


@dataclasses.dataclass(frozen=True)
class Score:
    """A kind of number that runs are judged by.

    Attributes:
        name: in a file: that of its record, where there is such a record.
        words: what people call it, with its unit.
        factor: what it is multiplied by to be shown.
        digits: behind the point; None for four that count.
    """

    name: str
    words: str
    factor: float = 1.0
    digits: int | None = None

    def told(self, value: float) -> str:
        """A number of this kind as it is shown."""
        shown = self.factor * value
        return f"{shown:.4g}" if self.digits is None else f"{shown:,.{self.digits}f}"

    def with_interval(self, interval: Interval) -> str:
        """The same with its interval: "0.93 [0.90, 0.97]"."""
        value, low, high = map(self.told, interval)
        return value if interval.low == interval.high else f"{value} [{low}, {high}]"


RETURN = Score("eval/return", "return", digits=2)
NORMALISED = Score("eval/human_normalised", "human-normalised (%)", 100, 1)
ONLINE_ACCURACY = Score("online_accuracy", "online accuracy (%)", 100, 1)
LAST_ACCURACY = Score("online_accuracy_last_tasks", "last tasks (%)", 100, 1)
ONLINE_LOSS = Score("online_loss", "online loss")
LAST_LOSS = Score("online_loss_last_tasks", "last tasks")
HELD_OUT_LOSS = Score("eval/loss", "held-out loss")
HELD_OUT_ACCURACY = Score("eval/accuracy", "held-out accuracy (%)", 100, 1)
FIRST_PASS = Score("eval/return_first_pass", "return, first pass", digits=2)
LAST_PASS = Score("eval/return_last_pass", "return, last pass", digits=2)
FIRST_SHARE = Score("eval/human_normalised_first_pass", "first pass (% of human)", 100, 1)
LAST_SHARE = Score("eval/human_normalised_last_pass", "last pass (% of human)", 100, 1)


def finals(run: LoadedRun) -> dict[Score, float]:
    """What one seed came to, the number that it is judged by first; empty where there is none yet."""
    columns = set(run.records.columns)
    kinds: tuple[tuple[set[str], Callable[[LoadedRun], dict[Score, float | None]]], ...] = (
        ({"eval/return", "visit", "pass"}, _of_sequence),
        ({"eval/return"}, _of_game),
        ({"online_accuracy", "task"}, _of_stream),
        ({"eval/loss"}, _of_data),
    )
    found = next((of_kind(run) for needed, of_kind in kinds if needed <= columns), {})
    return {score: value for score, value in found.items() if value is not None and np.isfinite(value)}


def over_seeds(runs: Sequence[LoadedRun]) -> dict[Score, tuple[Interval, int]]:
    """Each number's mean over seeds with its 95 % interval, and how many seeds have it."""
    values: dict[Score, list[float]] = {}
    for run in runs:
        for score, value in finals(run).items():
            values.setdefault(score, []).append(value)
    return {score: (stratified_bootstrap(np.array(of_score)), len(of_score)) for score, of_score in values.items()}


def in_words(runs: Sequence[LoadedRun]) -> str:
    """What the seeds of one run came to: "return 1.00 [0.98, 1.00] (8 episodes)"."""
    found = over_seeds(runs)
    if not found:
        return "no score"
    (score, (interval, seeds)), *others = found.items()
    over = f"{seeds} seeds" if seeds > 1 else ""
    if len(runs) == 1 and (episodes := runs[0].last("eval/episodes")):
        interval = _of_episodes(runs[0], interval)
        over = f"{episodes:.0f} episode{'s' * (episodes > 1)}"
    first = _spoken(score, score.with_interval(interval)) + f" ({over})" * bool(over)
    return ", ".join([first, *(_spoken(other, other.told(mean.value)) for other, (mean, _) in others)])


def _spoken(score: Score, number: str) -> str:
    """A number behind its name, the unit behind the number: "accuracy 56.2 % [55, 57]"."""
    name, _, unit = score.words.partition(" (")
    value, _, interval = number.partition(" ")
    return " ".join(filter(None, [name, value, unit.rstrip(")"), interval]))


def _of_episodes(run: LoadedRun, interval: Interval) -> Interval:
    """The return of one seed with its interval over the episodes of the last evaluation, where it was recorded."""
    low, high = (run.last(f"eval/return_{end}") for end in ("low", "high"))
    return interval if low is None or high is None else Interval(interval.value, low, high)


def _of_game(run: LoadedRun) -> dict[Score, float | None]:
    return {RETURN: run.last("eval/return"), NORMALISED: run.last("eval/human_normalised")}


def _of_sequence(run: LoadedRun) -> dict[Score, float | None]:
    """Means over the visits of the first pass and of the last one; on the human scale where all tasks have one."""
    rows = run.records.filter((pl.col("phase") == "eval") & pl.col("eval/return").is_not_null())
    names = [name for name in ("eval/return", "eval/human_normalised") if name in rows.columns]
    ends = rows.group_by("visit", maintain_order=True).agg(pl.col("pass", *names).last())
    if not ends.height:
        return {}
    name, first, last = "eval/return", FIRST_PASS, LAST_PASS
    if "eval/human_normalised" in names and not ends["eval/human_normalised"].is_null().any():
        name, first, last = "eval/human_normalised", FIRST_SHARE, LAST_SHARE
    passes: Mapping[int, float] = dict(ends.group_by("pass").agg(pl.col(name).cast(pl.Float64).mean()).iter_rows())
    found: dict[Score, float | None] = {last: passes[max(passes)]}
    return found | ({first: passes[min(passes)]} if len(passes) > 1 else {})


def _of_stream(run: LoadedRun) -> dict[Score, float | None]:
    (cell,) = make_cells([run])
    metric: Metric = ACCURACY if cell.averages(ACCURACY.online) else LOSS
    average, last = (ONLINE_ACCURACY, LAST_ACCURACY) if metric is ACCURACY else (ONLINE_LOSS, LAST_LOSS)
    ends = cell.ends(metric.online)
    return {average: cell.averages(metric.online).get(run.seed), last: ends[1] if ends else None}


def _of_data(run: LoadedRun) -> dict[Score, float | None]:
    asked = [name for name in run.records.columns if name.endswith("/accuracy") and name != "eval/accuracy"]
    return {
        HELD_OUT_LOSS: run.last("eval/loss"),
        HELD_OUT_ACCURACY: run.last("eval/accuracy"),
        **{Score(name, f"{name} (%)", 100, 1): run.last(name) for name in asked},
    }
