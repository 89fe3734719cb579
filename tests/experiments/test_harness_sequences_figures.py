"""The figures on sequences of games: scores over all frames, a row for each task, weights."""

import csv
import dataclasses
import itertools

import numpy as np
import pytest
from made_up_runs import SequenceConfig, make_sequence, write_sequence_run
from worked_sequences import FRESH, NAP, ONE_LAYER, config_of, scores_in, write, write_fresh, write_worked

from experiments.harness.read import load_runs
from experiments.harness.report import sequences, sequences_figures, write_figures
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import draw, numbers
from experiments.harness.report.sequences_studies import make_studies


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    return write_worked(tmp_path_factory.mktemp("worked"))


def test_the_score_is_drawn_over_all_frames_with_switches_and_fresh_levels(worked):
    scores = scores_in(worked)
    plot = sequences_figures.scores_plot(scores)
    assert plot.marks == (100, 200, 300) and [name for *_, name in plot.stretches] == ["bricks", "catch"] * 2
    lines = {(line.method, line.statistic): line for line in plot.panels[0].lines}
    third = lines["nap", "mean, visit 3"]
    np.testing.assert_allclose(third.x, [250, 300])
    np.testing.assert_allclose(third.y, [50, 62.5])
    np.testing.assert_allclose([third.low[-1], third.high[-1]], [50, 75])
    level = lines["none", "fresh, visit 4"]
    np.testing.assert_allclose((level.x, level.y), ([300, 400], [50, 50]))
    figure = draw(plot, palette(["none", "nap"]))
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert len(dotted) == 8 and figure.legends[0].get_texts()[-1].get_text() == "fresh agents"
    (panel,) = sequences_figures.visits_plot(scores).panels
    by_method = {line.method: line for line in panel.lines}
    np.testing.assert_allclose(by_method["nap"].y, [0, -25, -37.5, -25])
    assert panel.level == 0


def test_tasks_have_a_row_each_with_fresh_agents_beside_where_there_are_many_methods(tmp_path, worked):
    few = sequences_figures.tasks_plot(scores_in(worked))
    titles = [panel.title for panel in few.panels]
    assert titles == ["bricks, visit 1", "bricks, visit 2", "catch, visit 1", "catch, visit 2"]
    assert [line.statistic for line in few.panels[0].lines] == ["fresh", "mean"] * 2
    for method in ("none", "layernorm", "nap", "redo"):
        write(tmp_path, config_of(method, passes=4), NAP[:2])
        write_fresh(tmp_path, config_of(method, passes=4), FRESH)
    scores = scores_in(tmp_path)
    many = sequences_figures.tasks_plot(scores)
    titles = [panel.title for panel in many.panels[:4]]
    assert titles == ["bricks, fresh agents", "bricks, visit 1", "bricks, visit 2", "bricks, visit 4"]
    assert many.columns == 4 and not many.panels[3].lines
    axes = draw(many, palette(many.methods)).axes
    assert [text.get_text() for text in axes[3].texts] == ["nothing yet"] and not axes[1].texts
    assert axes[0].get_ylim() == axes[3].get_ylim() != axes[4].get_ylim()
    each = sequences_figures.scores_plot(scores).panels
    assert [panel.title for panel in each] == ["all methods", "none", "layernorm", "nap", "redo"]
    assert not any(line.statistic.startswith("fresh") for line in each[0].lines)


def test_weights_are_thinned_within_visits_and_their_norms_start_at_one(tmp_path):
    config = config_of(tasks="bricks", passes=2, frames=10_000, seeds=1)
    rows = [
        {"phase": "train", "seed": 0, "task": "bricks", "visit": visit + 1, "frames": 10_000 * visit + 10 * record}
        | {"visit_frames": 10 * record, "weight_norm/hidden": 3.0 + 3 * visit, "elr/hidden": 0.01, "learning_rate": 0.1}
        for visit, record in itertools.product(range(2), range(1, 1001))
    ]
    write_sequence_run(tmp_path, config, rows, finish=False)
    (study,) = make_studies(load_runs([tmp_path]))
    plot = sequences_figures.weights_plot(study)
    assert [panel.title for panel in plot.panels] == [
        "weight norm",
        "effective learning rate",
        "learning rate, as written",
    ]
    (line,) = plot.panels[0].lines
    assert line.x.size == 500 and set(line.y.round(9)) == {1, 2}, "no point lies on both sides of the switch"
    assert plot.panels[1].log and plot.marks == (10_000,)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Two methods with a layer; their figures."""
    folder = tmp_path_factory.mktemp("made-up")
    for method in ("none", "nap"):
        make_sequence(folder, SequenceConfig(method=method, passes=1, seeds=2), layers=ONE_LAYER)
    write_figures([folder], folder / "figures")
    return folder


def test_all_figures_are_written_with_the_numbers_that_are_drawn(made_up):
    runs = load_runs([made_up])
    plots = {plot.name: plot for _, plot in sequences.plots(runs)}
    assert set(plots) == {
        *("scores", "against-fresh-agents", "tasks", "weights", "training"),
        *("layers-weight-norm", "layers-elr", "layers-dormant-fraction"),
    }
    files = {path.name for path in (made_up / "figures").iterdir()}
    endings = ("png", "pdf", "csv")
    assert files == {f"{name}.{ending}" for name in plots for ending in endings}
    with open(made_up / "figures" / "scores.csv", encoding="utf-8") as file:
        written = [(row["method"], row["statistic"], float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    assert written == [row[2:] for row in numbers(plots["scores"])] and len(written) > 100
    panels = sequences.overview(runs).panels
    assert [panel.title for panel in panels] == ["score in evaluation", "weight norm", "effective learning rate"]
    norms = {line.method: line.y for line in panels[1].lines}
    np.testing.assert_allclose(norms["nap"], 1)
    assert norms["none"][-1] > 1.5


def test_level_curves_are_not_blown_up_to_their_rounding_errors(made_up):
    runs = [run for run in load_runs([made_up]) if run.method == "nap"]
    (plot,) = [plot for _, plot in sequences.plots(runs) if plot.name == "layers-weight-norm"]
    (line,) = plot.panels[0].lines
    jitter = line._replace(y=line.y + 1e-7 * np.arange(line.y.size) % 3e-7, low=None, high=None)
    plot = dataclasses.replace(plot, panels=(dataclasses.replace(plot.panels[0], lines=(jitter,)),))
    low, high = draw(plot, palette(["nap"])).axes[0].get_ylim()
    assert low < 0.96 and high > 1.04
