"""Sequences of two games with evaluations that can be worked by hand."""

from made_up_runs import LAYERS, SequenceConfig, write_sequence_run

from envs.sequence import Sequence, parse_tasks
from experiments.harness.read import load_runs
from experiments.harness.report.sequences_scores import Scores
from experiments.harness.report.sequences_studies import make_studies

ONE_LAYER = LAYERS[3:4]
TWO_GAMES = "bricks,catch"  # their scales are 0 to 2 and 0 to 1 in FRESH


def config_of(method="nap", tasks=TWO_GAMES, frames=100, seeds=2, **changes):
    return SequenceConfig(tasks, frames=frames, iteration_frames=50, method=method, seeds=seeds, **changes)


def rows_of(config, evaluations, kept=()):
    """Rows of given evaluations, halfway and at the end of each visit, and of what is kept of all tasks after it.

    Args:
        evaluations: [visits][seeds][2].
        kept: [visits][seeds][tasks].
    """
    sequence = Sequence(parse_tasks(config.tasks, config.frames), config.passes)
    rows = []
    for visit, of_visit in zip(sequence.visits, evaluations, strict=False):
        for seed, (half, end) in enumerate(of_visit, config.seed):
            place = {"seed": seed, "task": visit.task.name, "visit": visit.number + 1}
            rows.append(
                {"phase": "train", **place, "frames": visit.start + 10, "visit_frames": 10, "train/return": 0.0}
            )
            for part, score in ((0.5, half), (1.0, end)):
                within = int(part * visit.task.frames)
                row = {"phase": "eval", **place, "frames": visit.start + within, "visit_frames": within}
                rows.append(row | {"played": visit.task.name, "eval/return": score})
        for seed, of_tasks in enumerate(kept[visit.number] if kept else (), config.seed):
            for task, score in zip(sequence.tasks, of_tasks, strict=True):
                row = {"phase": "all", "seed": seed, "task": visit.task.name, "visit": visit.number + 1}
                row |= {"frames": visit.start + visit.task.frames, "visit_frames": visit.task.frames}
                rows.append(row | {"played": task.name, "eval/return": score})
    return rows


def write(out, config, evaluations, kept=(), finish=True):
    return write_sequence_run(out, config, rows_of(config, evaluations, kept), finish)


def write_fresh(out, config, of_tasks):
    """Fresh agents with the given evaluations, [tasks][seeds][2]."""
    for task, evaluations in zip(parse_tasks(config.tasks, config.frames), of_tasks, strict=True):
        write(out, config.alone(task), [evaluations])


# Two seeds each. In percent of the scales, nap's visits end with 100, 100, 75, 50 and with 100, 50, 50, 100.
FRESH = [[(1, 2), (1, 2)], [(0.5, 1), (0.5, 1)]]
NAP = [[(1, 2), (1, 2)], [(0.75, 1), (0.25, 0.5)], [(1, 1.5), (1, 1)], [(0.25, 0.5), (0.5, 1)]]
KEPT = [[(2, 0), (2, 0)], [(1, 1), (0.5, 0.5)], [(1.5, 0.5), (1, 0.25)], [(1, 0.5), (1, 1)]]
NONE = [[(1, 1)] * 2, [(0.5, 0.5)] * 2] * 2


def write_worked(folder):
    """Two methods on two games, two passes, with fresh agents."""
    write(folder, config_of(), NAP, KEPT)
    write_fresh(folder, config_of(), FRESH)
    write(folder, config_of("none"), NONE)
    write_fresh(folder, config_of("none"), [[(1, 1)] * 2, [(0.5, 0.5)] * 2])
    return folder


def scores_in(*paths):
    (study,) = make_studies(load_runs(paths))
    return Scores(study)
