"""Runs of a few stages, each of seconds to minutes and of all seeds: what the studies of schedules resume by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.harness.command_line import RunOptions
from experiments.harness.run import Run, open_run
from experiments.harness.trace import Trace, load_trace, save_trace

SAVE_SECONDS = 30.0
"""A checkpoint is written at the end of a stage, when this long has passed since the last one."""


def trace_of(
    experiment: str,
    config: Any,
    options: RunOptions,
    run: Callable[[Run], None],
    *,
    label: str,
    stages: int,
    data: Mapping[str, str],
) -> Trace:
    """The trace of a run, which `run` leaves and finishes, from the beginning or from where it was left."""
    with open_run(experiment, config, options, label=label, total=stages, unit="stages", data=data) as opened:
        if not opened.done:
            run(opened)
        return load_trace(opened.folder)


def run_stages(opened: Run, trace: Trace, stages: Sequence[Callable[[], None]]) -> None:
    """One stage after another, but for those that a checkpoint holds; leaves the trace in the run's folder.

    Args:
        opened: the run, of which nothing has been restored yet.
        trace: the arrays that the stages fill.
        stages: each fills in its part.
    """
    done, saved = opened.restore(trace)
    for name, values in saved.items():
        trace[name][...] = values
    while done < len(stages):
        stages[done]()
        done += 1
        opened.progress.update(stages=done)
        if done == len(stages) or opened.save_due(SAVE_SECONDS):
            opened.save(done, trace)
            opened.check_interrupted()
    save_trace(opened, trace)
