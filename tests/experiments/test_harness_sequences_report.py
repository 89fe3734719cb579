"""The report on sequences of games: scores beside fresh agents, what is forgotten, what is missing."""

import csv
import dataclasses
import itertools

import numpy as np
import pytest
from made_up_runs import (
    LAYERS,
    Config,
    SequenceConfig,
    make_run,
    make_sequence,
    sequence_rows,
    write_sequence_run,
)
from test_harness_plasticity_report import Tables

from envs.scores import REFERENCES
from envs.sequence import Sequence, Task, parse_tasks
from experiments.harness.errors import UserError
from experiments.harness.read import load_runs
from experiments.harness.report import atari, sequences, sequences_figures, write_figure, write_figures, write_report
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import draw, numbers
from experiments.harness.report.sequences_scores import Scores, difference, summary
from experiments.harness.report.sequences_studies import differing, make_studies

CONSTANT = {"optimizer": "adam", "lr": 1e-3, "schedule": "constant"}
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


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """Two methods on two games, two passes, with fresh agents."""
    folder = tmp_path_factory.mktemp("worked")
    write(folder, config_of(), NAP, KEPT)
    write_fresh(folder, config_of(), FRESH)
    write(folder, config_of("none"), NONE)
    write_fresh(folder, config_of("none"), [[(1, 1)] * 2, [(0.5, 0.5)] * 2])
    return folder


@pytest.fixture(scope="module")
def worked_page(worked):
    """The report on it, as HTML."""
    return write_report([worked]).read_text()


def scores_in(*paths):
    (study,) = make_studies(load_runs(paths))
    return Scores(study)


def pages(*paths):
    return Tables(write_report(paths).read_text())


def test_the_averages_are_those_worked_by_hand(worked_page):
    page = Tables(worked_page)
    assert page.column(0, "fresh agents (%)") == {"none": "50.0", "nap": "100.0"}
    assert page.column(0, "visit 1 (%)") == {"none": "50.0", "nap": "87.5 [75.0, 100.0]"}
    assert page.column(0, "visit 2 (%)")["nap"] == "68.8 [62.5, 75.0]"
    # Over all visits, seed 0: 81.25 - 50, seed 1: 75 - 50.
    assert page.column(0, "all visits: difference to none") == {"none": "baseline", "nap": "+28.1 [+25.0, +31.2]"}
    assert page.column(0, "seeds") == {"none": "2", "nap": "2"} and "state" not in page.tables[0][0]


def test_plasticity_transfer_and_forgetting_are_those_worked_by_hand(worked_page):
    page = Tables(worked_page)
    # The first visit of catch: 100 and 50 against 100; that of bricks is left out, for nothing came before.
    assert page.column(1, "first visit − fresh")["nap"] == "−25.0 [−50.0, 0.0]"
    # Seed 0: (75 + 50)/2 - 100, seed 1: (50 + 100)/2 - 100.
    assert page.column(1, "last visit − fresh")["nap"] == "−31.2 [−37.5, −25.0]"
    # Seed 0: (-25 - 50)/2, seed 1: (-50 + 50)/2.
    assert page.column(1, "last − first visit")["nap"] == "−18.8 [−37.5, 0.0]"
    # Means over the evaluations of catch: 0.875 and 0.375 against 0.75.
    assert page.column(1, "forward transfer")["nap"] == "−12.5 [−37.5, +12.5]"
    # bricks after catch, catch after bricks, bricks after catch. Seed 0: (50 + 50 + 25)/3, seed 1: (75 + 25 + 0)/3.
    assert page.column(1, "forgetting") == {"none": "–", "nap": "+37.5 [+33.3, +41.7]"}
    assert "<b>−31.2 [−37.5, −25.0]</b>" in worked_page and "<b>−25.0 [−50.0, 0.0]</b>" not in worked_page


def test_the_table_of_tasks_has_raw_scores_bold_where_they_differ_from_a_fresh_agents(worked_page):
    page = Tables(worked_page)
    assert page.tables[2][0] == ["task", "method", "fresh", "visit 1", "visit 2", "0 %", "100 %"]
    assert page.tables[2][2] == ["bricks", "nap", "2.00", "2.00", "1.25 [1.00, 1.50]", "0.00", "2.00 fresh"]
    assert page.tables[2][3] == ["catch", "none", "0.500", "0.500", "0.500", "0.00", "1.00 fresh"]
    assert "<b>1.25 [1.00, 1.50]</b>" in worked_page and "<b>0.750 [0.500, 1.00]</b>" not in worked_page


def test_the_page_says_what_the_sequence_is_and_what_happens_at_a_switch(worked_page):
    page = Tables(worked_page)
    assert "A sequence of bricks and catch, 2 passes: none and nap compared" in page.words
    assert "bricks → catch, 2 times: 4 visits; 100 frames a visit, 400 frames in all" in page.words
    assert "experience of earlier tasks: thrown away" in page.words
    assert "2 runs of sequences and 4 runs of fresh agents" in page.words
    assert "Missing here" not in page.words and "differ in" not in page.words


def test_fresh_agents_are_those_that_differ_in_nothing_but_the_task(tmp_path):
    write(tmp_path, config_of(), NAP)
    write_fresh(tmp_path, config_of(), FRESH)
    for other in (config_of(head="own"), config_of(frames=200), config_of("redo")):
        write_fresh(tmp_path, other, FRESH)
    study, rest = make_studies(load_runs([tmp_path]))
    (method,) = study.methods
    assert [sorted(seeds) for seeds in method.fresh.values()] == [[0, 1], [0, 1]]
    assert all(run.config["frames"] == 100 for run in method.all_runs)
    assert rest.name == "fresh agents" and len(rest.tasks) == 4 and not rest.sequence.visits
    assert {label.label for label in rest.methods} == {"nap (head own)", "nap (head shared)", "redo"}
    words = pages(tmp_path).words
    assert "Fresh agents, of no sequence in this report: bricks (100 frames)" in words


def test_a_task_has_a_budget_of_its_own(tmp_path):
    tasks = "bricks,catch:frames=200,bricks"
    config = config_of(tasks=tasks, passes=1, seeds=1)
    write(tmp_path, config, [[(1, 2)], [(0.5, 1)], [(1, 1)]], [[(2, 0, 2)], [(1, 1, 1)], [(1, 1, 1)]])
    for task in parse_tasks(tasks, 100)[:2]:
        write(tmp_path, config.alone(task), [[(1, 2)]])
    scores = scores_in(tmp_path)
    (method,) = scores.study.methods
    bricks, catch = scores.study.tasks
    assert catch == Task("catch", 200) and [visit.number for visit in scores.study.visits[bricks]] == [0, 2]
    assert scores.plasticity(method) == {bricks: {0: pytest.approx(-50)}}
    # bricks: 2, then 1 when catch is over; catch 1, then 1; the last visit has no other after it.
    lost = scores.forgetting(method)
    assert {visit.number: of for visit, of in lost.items()} == {0: {0: pytest.approx(50)}, 1: {0: pytest.approx(0)}}
    assert "catch (200 frames)" in pages(tmp_path).words


def test_games_with_human_scores_are_normalised_by_them_without_any_fresh_agent(tmp_path):
    pong, breakout = REFERENCES["pong"], REFERENCES["breakout"]
    half = (breakout.random + breakout.human) / 2
    evaluations = [[(0, pong.human)], [(0, half)], [(0, pong.random)], [(0, half)]]
    write(tmp_path, config_of(tasks="pong,breakout", seeds=1), evaluations)
    page = pages(tmp_path)
    assert page.tables[0][1] == ["nap", "–", "75.0", "25.0", "1"]
    assert page.column(1, "last − first visit")["nap"] == "−50.0" and page.column(1, "last visit − fresh")["nap"] == "–"
    assert "nap: no fresh agent for any task yet" in page.words and "no scale" not in page.words
    assert "0 % is random play and 100 % a human tester" in page.words
    assert "One seed has no interval" in page.words


def test_a_game_that_no_fresh_agent_has_learned_has_no_scale(tmp_path):
    write(tmp_path, config_of(), NAP)
    # One seed's evaluations are no better than its first record, which is 0, though both seeds end above it.
    write_fresh(tmp_path, config_of(), [FRESH[0], [(0.1, 0.2), (-0.3, 0.1)]])
    scores = scores_in(tmp_path)
    assert [task.game for task in scores.scales] == ["bricks"] and not scores.has_all_scales
    page = pages(tmp_path)
    assert "catch: no scale, so left out of all averages" in page.words
    assert page.column(0, "visit 2 (%)")["nap"] == "62.5 [50.0, 75.0] over 1 of 2"  # of bricks
    assert page.column(0, "fresh agents (%)")["nap"] == "100.0 over 1 of 2"
    plot = sequences_figures.scores_plot(scores)
    assert plot.label.startswith("return per episode") and max(plot.panels[0].lines[0].y) == 2


def test_a_sequence_in_its_third_visit(tmp_path):
    write(tmp_path, config_of(), [*NAP[:2], [(1, 1), (1, 1)]][:3], KEPT[:3], finish=False)
    rows = rows_of(config_of("none"), NONE[:3])
    write_sequence_run(tmp_path, config_of("none"), rows[:-1], finish=False)  # seed 1 is halfway through the third
    write_fresh(tmp_path, config_of(), FRESH)
    page = pages(tmp_path)
    assert page.column(0, "state") == {"none": "2 to 3 of 4 visits", "nap": "3 of 4 visits"}
    # Seed 0 of none is the one that has most.
    assert page.column(0, "visit 2 (%)") == {"none": "50.0 over 1 of 2", "nap": "50.0 over 1 of 2"}
    assert page.column(1, "forgetting")["nap"].endswith("over 2 of 3")
    assert "2 of them have not finished" in page.words and "compare it with care" in page.words
    assert "none: no fresh agent for any task yet" in page.words


def test_differences_between_methods_are_over_what_both_have():
    visits = ("first", "second")
    ours = {visits[0]: {0: 10.0, 1: 20.0}, visits[1]: {0: 50.0}}
    theirs = {visits[0]: {0: 0.0, 1: 10.0, 2: 99.0}, visits[1]: {0: 10.0, 1: 10.0}}
    found = difference(ours, theirs)  # seed 0: 30 - 5, seed 1: 20 - 10
    assert found == pytest.approx((17.5, 10, 25)) and difference(ours, {}) is None
    assert summary(ours).interval == (30, 30, 30), "seed 0 has both"
    assert summary(ours)[1:] == (2, 2, 1) and summary({"first": {}}) is None
    assert summary({"first": {0: 1.0}, "second": {1: 1.0}}) is None, "no visit that both seeds have"


def test_one_method_with_two_schedules_has_them_in_its_label_and_no_other_has(tmp_path):
    write(tmp_path, config_of(), NAP)
    write(tmp_path, config_of(optimizer=CONSTANT), NAP)
    write(tmp_path, config_of("none", optimizer=CONSTANT), NONE)
    runs = load_runs([tmp_path])
    assert sequences.labels(runs) == ["none", "nap (schedule constant)", "nap (schedule cosine)"]
    (study,) = make_studies(runs)
    constant = ["none", "nap (schedule constant)"]
    assert differing(study) == {"schedule": {"constant": constant, "cosine": ["nap (schedule cosine)"]}}
    words = pages(tmp_path).words
    assert "schedule constant for none and nap (schedule constant), cosine for nap (schedule cosine)" in words


def test_seeds_in_several_folders_are_one_method_and_none_counts_twice(tmp_path):
    write(tmp_path, config_of(), [of[:1] * 2 for of in NAP])
    write(tmp_path, config_of(seed=1), [of[1:] * 2 for of in NAP[:3]])  # seeds 1 and 2, not as far
    (study,) = make_studies(load_runs([tmp_path]))
    (method,) = study.methods
    assert sorted(method.runs) == [0, 1, 2]
    last = study.sequence.visits[2]
    assert {seed: y[-1] for seed, (_, y) in method.curves(last).items()} == {0: 1.5, 1: 1.5, 2: 1}


def test_several_sequences_have_a_part_each(tmp_path):
    for tasks, passes in (("bricks", 3), ("bricks,catch", 2), ("catch,bricks", 2), ("bricks,catch,moving-goals-0", 1)):
        write(tmp_path, config_of(tasks=tasks, passes=passes), NAP)
    runs = load_runs([tmp_path])
    names = {study.name for study in make_studies(runs)}
    assert names == {"bricks, 3 passes", "bricks and catch, 2 passes", "catch and bricks, 2 passes", "3 games, 1 pass"}
    assert sequences.title(runs) == "4 sequences: nap"
    assert {name for name, _ in sequences.plots(runs)} == names
    write(tmp_path, config_of(tasks="bricks,catch", passes=2, frames=200), NAP)
    assert "bricks and catch, 2 passes (2)" in {study.name for study in make_studies(load_runs([tmp_path]))}


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


def test_many_tasks_are_folded_and_have_no_panel_each(tmp_path):
    tasks = ",".join(f"{game}:frames={50 * n}" for n in range(1, 12) for game in ("bricks", "catch"))
    write(tmp_path, config_of(tasks=tasks, passes=1, seeds=1), [[(0, 1)]] * 22)
    assert sequences_figures.tasks_plot(scores_in(tmp_path)) is None
    html = write_report([tmp_path]).read_text()
    assert "<summary>The 22 tasks</summary>" in html and "22 tasks, once: 22 visits" in Tables(html).words


def test_a_single_record_makes_a_page(tmp_path):
    config = config_of(seeds=1)
    write_sequence_run(tmp_path, config, sequence_rows(config, 1, ONE_LAYER, records=2)[:1], finish=False)
    page = pages(tmp_path)
    assert page.column(0, "state") == {"nap": "0 of 4 visits"}
    assert "no fresh agent for any task yet" in page.words and "bricks and catch: no scale" in page.words
    assert write_figure([tmp_path], tmp_path / "overview.png").stat().st_size > 10_000


def test_fresh_agents_alone_make_a_page(tmp_path):
    write_fresh(tmp_path, config_of(), FRESH)
    page = pages(tmp_path)
    assert "Fresh agents: nap" in page.words and page.tables[0][1] == ["nap", "100.0", "2"]
    assert page.tables[1][0] == ["task", "method", "fresh", "0 %", "100 %"]
    assert write_figure([tmp_path], tmp_path / "overview.png").stat().st_size > 10_000


def test_tasks_that_can_not_be_read_are_named(tmp_path):
    write_sequence_run(tmp_path, config_of(), rows_of(config_of(), NAP))
    (config,) = tmp_path.rglob("config.json")
    config.write_text(config.read_text().replace("bricks,catch", "brics"))
    with pytest.raises(UserError, match=r"tasks of .* can't be read: .*brics"):
        write_report([tmp_path])


def test_runs_of_other_experiments_beside_keep_their_labels(tmp_path, worked):
    make_run(tmp_path, Config(game="pong"), rows=10, layers=ONE_LAYER)
    runs = load_runs([tmp_path, worked])
    assert atari.labels([run for run in runs if run.experiment == "atari"]) == ["nap"]
    problems = {run.problem for run in runs if run.experiment != "atari"}
    assert problems == {"bricks,catch", "bricks", "catch"}


def test_html_in_a_method_stays_text(tmp_path):
    write(tmp_path, config_of("<script>alert(1)</script>"), NAP)
    assert "<script" not in write_report([tmp_path]).read_text().lower()
