"""The report on streams of tasks: the seeds of a folder, the numbers of the table, the choice of a learning rate."""

import csv
import html.parser

import numpy as np
import pytest
from made_up_runs import PlasticityConfig, make_plasticity_run, plasticity_rows, write_plasticity_run

from experiments import report
from experiments.harness.read import load_runs
from experiments.harness.report import plasticity, plasticity_figures, write_report
from experiments.harness.report.cells import ACCURACY, LOSS, average, choose, difference, make_cells, metric_of
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import draw, numbers
from experiments.harness.scoreboard import scoreboard


class Tables(html.parser.HTMLParser):
    """The words of each table's cells: [table][row][cell]; and all words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.words = ""
        self.inside = False  # a cell
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        self.words += data
        if self.inside:
            self.tables[-1][-1][-1] += data

    def column(self, table: int, name: str) -> dict[str, str]:
        head, *rows = self.tables[table]
        return {row[0]: row[head.index(name)] for row in rows}


def tables(*paths):
    return Tables(write_report(paths).read_text(encoding="utf-8"))


def config_of(method="none", lr=1e-3, seeds=2, **changes):
    optimizer = {"optimizer": "adam", "lr": lr}
    return PlasticityConfig(method=method, seeds=seeds, optimizer=optimizer, **changes)


def rows_of(accuracies, first_seed=0, name="online_accuracy", **more):
    """One row a task and seed: `accuracies` is [seeds][tasks]."""
    return [
        {"seed": first_seed + seed, "task": task + 1, "updates": 10 * (task + 1), "task_updates": 10}
        | {"scored": True, name: values[task], "loss": 0.5, **more}
        for task in range(len(accuracies[0]))
        for seed, values in enumerate(accuracies)
    ]


def test_a_folder_gives_a_run_for_each_seed(tmp_path):
    folder = make_plasticity_run(tmp_path, config_of(seed=4, seeds=3), tasks=5)
    runs = load_runs([folder])
    assert [run.seed for run in runs] == [4, 5, 6]
    assert all(run.records.height == 5 and run.problem == "random-labels" and run.done for run in runs)
    assert runs[0].reached == 5 * 750 and runs[0].label == "none"
    assert set(runs[1].records["seed"]) == {5}


def test_folders_that_differ_in_their_seeds_are_one_cell_and_no_seed_counts_twice(tmp_path):
    write_plasticity_run(tmp_path, config_of(seeds=2), rows_of([[0.1, 0.1], [0.3, 0.3]]))
    write_plasticity_run(tmp_path, config_of(seed=1, seeds=2), rows_of([[0.9], [0.5]], first_seed=1))
    (cell,) = make_cells(load_runs([tmp_path]))
    assert cell.averages("online_accuracy") == pytest.approx({0: 0.1, 1: 0.3, 2: 0.5})


def test_what_makes_the_tasks_differ_makes_another_problem_and_other_settings_a_variant(tmp_path):
    write_plasticity_run(tmp_path, config_of(), rows_of([[0.1]]))
    write_plasticity_run(tmp_path, config_of(data="digits"), rows_of([[0.1]]))
    write_plasticity_run(tmp_path, config_of("l2-init", data="digits"), rows_of([[0.1]]))
    write_plasticity_run(
        tmp_path, config_of("l2-init", data="digits", rivals={"l2_init_strength": 1}), rows_of([[1.0]])
    )
    cells = make_cells(load_runs([tmp_path]))
    assert [cell.problem for cell in cells] == ["random-labels (data digits)"] * 3 + [
        "random-labels (data fashion-mnist)"
    ]
    assert [cell.label for cell in cells][1:3] == [
        "l2-init (l2_init_strength 0.01)",
        "l2-init (l2_init_strength 1)",
    ]


def test_a_task_is_the_mean_of_its_stretches_online_and_the_last_of_them_at_its_end(tmp_path):
    stretches = [(1, 5, 0.2, 9.0), (1, 10, 0.4, 1.0), (2, 5, 0.0, 9.0), (2, 10, 0.0, 2.0), (3, 5, 0.5, 9.0)]
    stretches += [(3, 10, 0.9, 3.0), (4, 5, 0.0, 9.0)]  # the last task is still going on
    rows = [
        {"seed": 0, "task": task, "updates": 10 * task + part, "task_updates": part, "scored": task != 2}
        | {"online_accuracy": online, "loss": loss, "weight_norm/hidden": 1.0}
        for task, part, online, loss in stretches
    ]
    write_plasticity_run(tmp_path, config_of(seeds=1), rows, finish=False)
    (cell,) = make_cells(load_runs([tmp_path]))
    tasks, online = cell.matrix("online_accuracy", scored=True)
    np.testing.assert_allclose(tasks, [1, 3])
    np.testing.assert_allclose(online, [[0.3, 0.7]])
    np.testing.assert_allclose(cell.matrix("loss")[1], [[1, 2, 3]])
    assert cell.averages("online_accuracy") == pytest.approx({0: 0.5}) and cell.tasks == 3
    plot = plasticity_figures.within_plot([cell])
    assert plot is None  # no units were recorded


def test_the_table_says_what_the_rows_say(tmp_path):
    # Twenty tasks: the first and the last tenth are two each. Seed 1 is always 10 points above seed 0.
    falling = np.linspace(0.8, 0.42, 20)
    write_plasticity_run(tmp_path, config_of(), rows_of([falling, falling + 0.1], accuracy=0.25))
    write_plasticity_run(tmp_path, config_of("nap"), rows_of([falling + 0.2, falling + 0.34], accuracy=0.75))
    found = tables(tmp_path)
    assert found.column(0, "average online accuracy (%)") == {"none": "66.0 [61.0, 71.0]", "nap": "88.0 [81.0, 95.0]"}
    assert found.column(0, "difference to none") == {"none": "baseline", "nap": "+22.0 [+20.0, +24.0]"}
    assert found.column(0, "online accuracy (%), first → last")["none"] == "84.0 → 48.0"
    assert found.column(0, "accuracy at a task's end (%), first → last")["nap"] == "75.0 → 75.0"
    assert found.column(0, "loss at a task's end, first → last")["nap"] == "0.500 → 0.500"
    assert found.column(0, "seeds") == {"none": "2", "nap": "2"}
    assert "state" not in found.tables[0][0] and "All learning rates" not in found.words
    assert "seeds are too narrow" in found.words


def test_the_best_learning_rate_is_chosen_and_all_are_told(tmp_path):
    for lr, accuracy in ((1e-2, 0.5), (1e-3, 0.7), (1e-4, 0.6)):
        write_plasticity_run(tmp_path, config_of(lr=lr), rows_of([[accuracy] * 3] * 2))
        write_plasticity_run(tmp_path, config_of("nap", lr=lr), rows_of([[1 - accuracy] * 3] * 2))
    # Ahead while it runs, but it has not got as far as the others of its method.
    write_plasticity_run(tmp_path, config_of(lr=1e-1), rows_of([[0.99] * 2] * 2), finish=False)
    found = tables(tmp_path)
    assert found.column(0, "learning rate") == {"none": "0.001", "nap": "0.01"}
    assert found.column(0, "average online accuracy (%)") == {"none": "70.0", "nap": "50.0"}
    assert found.tables[1][0] == ["method", "lr 0.0001", "lr 0.001", "lr 0.01", "lr 0.1"]
    assert found.tables[1][1] == ["none", "60.0", "70.0", "50.0", "99.0 2 of 20 tasks"]
    assert found.tables[1][2] == ["nap", "40.0", "30.0", "50.0", "–"]
    assert "the best average online score" in found.words


def test_one_lucky_seed_does_not_choose_the_learning_rate(tmp_path):
    write_plasticity_run(tmp_path, config_of(lr=1e-3), rows_of([[0.5] * 2] * 2))
    write_plasticity_run(tmp_path, config_of(lr=1e-2), rows_of([[0.9] * 2]))
    assert [cell.lr for cell in choose(make_cells(load_runs([tmp_path])))] == [1e-3]


def test_regressions_are_scored_by_their_loss_and_a_seed_that_diverged_is_told(tmp_path):
    stream = "slowly-changing-regression"
    for lr, losses in ((1e-3, [[2.0, 4.0], [4.0, 4.0]]), (1e-2, [[1.0, 1.0], [1.0, None]])):
        rows = rows_of(losses, name="online_loss", online_accuracy=None, accuracy=None)
        rows[-1]["loss"] = rows[-1]["online_loss"]
        write_plasticity_run(tmp_path, config_of(lr=lr, stream=stream), rows)
    write_plasticity_run(tmp_path, config_of("nap", stream=stream), rows_of([[1.0, 1.0]] * 2, name="online_loss"))
    cells = make_cells(load_runs([tmp_path]))
    assert metric_of(cells) is LOSS and metric_of(cells[:0]) is LOSS
    # The larger rate has the lower loss, but only for the seed that did not diverge.
    assert [(cell.label, cell.lr) for cell in choose(cells)] == [("none", 1e-3), ("nap", 1e-3)]
    told = [line.split("  ")[-1].strip() for line in scoreboard([tmp_path]).splitlines()]
    assert told[3:6] == ["2", "2, 1 diverged", "2"]
    found = tables(tmp_path)
    assert found.column(0, "average online loss") == {"none": "3.50 [3.00, 4.00]", "nap": "1.00"}
    assert found.column(0, "difference to none")["nap"] == "−2.50 [−3.00, −2.00]"
    assert "accuracy (%)" not in " ".join(found.tables[0][0])
    assert found.tables[1][1] == ["none", "3.50 [3.00, 4.00]", "1.00 1 of 2 seeds diverged"]
    assert "Online loss over tasks" in found.words


def test_one_seed_half_way_through(tmp_path):
    make_plasticity_run(tmp_path, config_of(seeds=1), tasks=7, finish=False)
    found = tables(tmp_path)
    assert found.column(0, "state") == {"none": "7 of 20 tasks"}
    assert "[" not in found.column(0, "average online accuracy (%)")["none"]
    assert "One seed has no interval" in found.words and "1 of them has not finished" in found.words
    assert "only more seeds can tell" in found.words


def test_a_difference_is_over_the_tasks_that_both_have(tmp_path):
    write_plasticity_run(tmp_path, config_of(), rows_of([[0.5, 0.1, 0.1]] * 2))
    write_plasticity_run(tmp_path, config_of("nap"), rows_of([[0.6]] * 2), finish=False)
    none, nap = make_cells(load_runs([tmp_path]))
    assert difference(nap, none, "online_accuracy") == pytest.approx((0.1, 0.1, 0.1))
    assert difference(nap, none, "no such record") is None


def test_a_cell_in_its_first_task_shows_nothing_beside_one_that_has_whole_tasks(tmp_path):
    write_plasticity_run(tmp_path, config_of(), rows_of([[0.5, 0.1]] * 2))
    begun = [{**row, "updates": 5, "task_updates": 5} for row in rows_of([[0.9]] * 2)]
    write_plasticity_run(tmp_path, config_of("nap"), begun, finish=False)
    found = tables(tmp_path)
    assert found.column(0, "average online accuracy (%)") == {"none": "30.0", "nap": "–"}
    assert found.column(0, "state")["nap"] == "0 of 20 tasks"


def test_columns_that_are_missing_do_not_stop_it(tmp_path):
    rows = [{"seed": 0, "task": 1, "updates": 5, "online_accuracy": 0.5}]
    write_plasticity_run(tmp_path, config_of(seeds=1), rows)
    bare = write_plasticity_run(tmp_path, config_of("nap", seeds=1), [{"seed": 0, "updates": 5, "loss": None}])
    found = tables(tmp_path)
    assert found.column(0, "average online accuracy (%)") == {"none": "50.0", "nap": "–"}
    assert "nap" in tables(bare).words


def test_html_in_a_name_stays_text(tmp_path):
    write_plasticity_run(tmp_path, config_of("<script>alert(1)</script>", stream="<script>", seeds=1), rows_of([[0.5]]))
    assert "<script" not in write_report([tmp_path]).read_text(encoding="utf-8").lower()


def test_weight_norms_are_geometric_means_over_hidden_layers_from_their_first_value(tmp_path):
    rows = rows_of([[0.5, 0.5]])
    for row, (first, second, output) in zip(rows, [(2.0, 10.0, 1.0), (4.0, 80.0, 9.0)], strict=True):
        row |= {"weight_norm/hidden/0": first, "weight_norm/hidden/1": second, "weight_norm/output": output}
    write_plasticity_run(tmp_path, config_of(seeds=1), rows)
    (cell,) = make_cells(load_runs([tmp_path]))
    _, values = plasticity_figures.over_layers(cell, "weight_norm", relative=True)
    np.testing.assert_allclose(values, [[1, 4]])  # sqrt(2 x 8)


def test_norms_start_at_the_first_record_even_within_the_first_task(tmp_path):
    rows = [{**row, "updates": 5, "task_updates": 5, "weight_norm/hidden": 1.0} for row in rows_of([[0.5], [0.5]])]
    rows += [{**row, "weight_norm/hidden": 2.0 + row["seed"]} for row in rows_of([[0.5, 0.5], [0.5, 0.5]])]
    write_plasticity_run(tmp_path, config_of(), rows)
    (cell,) = make_cells(load_runs([tmp_path]))
    np.testing.assert_allclose(plasticity_figures.over_layers(cell, "weight_norm", relative=True)[1], [[2, 2], [3, 3]])


def test_a_rate_of_zero_is_zero_in_the_mean_over_layers(tmp_path):
    rows = rows_of([[0.5, 0.5]])
    for row, (first, second) in zip(rows, [(2.0, 8.0), (0.0, 8.0)], strict=True):
        row |= {"elr/hidden/0": first, "elr/hidden/1": second}
    write_plasticity_run(tmp_path, config_of(seeds=1), rows)
    (cell,) = make_cells(load_runs([tmp_path]))
    np.testing.assert_allclose(plasticity_figures.over_layers(cell, "elr")[1], [[4, 0]])


@pytest.fixture(scope="module")
def two_streams(tmp_path_factory):
    """Two streams with two methods each, one with three stretches a task; their report and its figures."""
    folder = tmp_path_factory.mktemp("streams")
    kept = (
        "seed",
        "task",
        "updates",
        "scored",
        "online_accuracy",
        "dormant_fraction_0/",
        "dead_fraction",
        "weight_norm",
    )
    for stream, stretches in (("random-labels", 3), ("five-plus-one", 1)):
        for method in ("none", "nap+redo"):
            config = config_of(method, stream=stream, hidden=(10,))
            rows = plasticity_rows(config, tasks=6, stretches=stretches)
            # Fewer records are fewer figures, which take their time.
            rows = [{name: row[name] for name in row if name.startswith((*kept, "task_"))} for row in rows]
            write_plasticity_run(folder, config, rows)
    overview = folder / "figures" / "overview.png"
    assert report.main([str(folder), "--figures", str(folder / "figures"), "--figure", str(overview)]) == 0
    return folder


def test_several_streams_have_a_panel_and_a_table_each(two_streams):
    found = Tables((two_streams / "plasticity" / "report.html").read_text(encoding="utf-8"))
    assert found.tables[0][0] == ["method", "five-plus-one: online accuracy (%)", "random-labels: online accuracy (%)"]
    runs = load_runs([two_streams])
    assert [row[0] for row in found.tables[0][1:]] == plasticity.labels(runs) == ["none", "nap+redo"]
    by_name = {(problem, plot.name): plot for problem, plot in plasticity.plots(runs)}
    assert [panel.title for panel in by_name["", "online-accuracy"].panels] == ["five-plus-one", "random-labels"]
    np.testing.assert_allclose(by_name["", "online-accuracy"].panels[0].lines[0].x, [1, 3, 5])  # the scored ones
    assert ("random-labels", "units-within-tasks") in by_name and ("five-plus-one", "units-within-tasks") not in by_name
    assert by_name["random-labels", "units-within-tasks"].marks == (750, 1500, 2250, 3000, 3750)


def test_the_numbers_written_are_those_drawn(two_streams):
    runs = load_runs([two_streams])
    plots = {plot.name: plot for problem, plot in plasticity.plots(runs) if problem in ("", "random-labels")}
    plot = plots["online-accuracy"]
    with open(two_streams / "figures" / "online-accuracy.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values())[:4] for row in rows] == [row[:4] for row in numbers(plot)]
    axes = draw(plot, palette(plot.methods)).axes[1]
    for line, method in zip(axes.lines, ("none", "nap+redo"), strict=True):
        written = [
            (float(row["x"]), float(row["y"]))
            for row in rows
            if (row["problem"], row["method"], row["statistic"]) == ("random-labels", method, "mean")
        ]
        assert written == list(zip(line.get_xdata(), line.get_ydata(), strict=True)) and len(written) == 6
    cell = make_cells([run for run in runs if run.problem == "random-labels"])[0]
    expected = 100 * average(cell, ACCURACY.online).value
    means = [float(row["y"]) for row in rows if (row["problem"], row["method"]) == ("random-labels", "none")][:6]
    assert np.mean(means) == pytest.approx(expected)
    files = {path.name for path in (two_streams / "figures").iterdir()}
    assert {
        "overview.png",
        "online-accuracy.pdf",
        "random-labels-weights.png",
        "five-plus-one-layers-weight-norm.csv",
    } <= files


def test_shared_axes_from_zero_hold_all_that_is_drawn(two_streams):
    runs = [run for run in load_runs([two_streams]) if run.problem == "random-labels"]
    plot = plasticity_figures.within_plot(make_cells(runs))
    for axes in draw(plot, palette(plot.methods)).axes:
        low, high = axes.get_ylim()
        assert low == 0 and high >= max(np.max(line.get_ydata()) for line in axes.lines)


def test_long_curves_are_thinned_by_averaging(tmp_path):
    accuracies = np.linspace(0, 1, 1000)
    write_plasticity_run(tmp_path, config_of(seeds=1), rows_of([accuracies]))
    (line,) = plasticity_figures.online_plot(make_cells(load_runs([tmp_path]))).panels[0].lines
    assert line.x.size == 300 and line.low is None
    np.testing.assert_allclose(line.y, 100 * np.interp(line.x, np.arange(1, 1001), accuracies))


def test_settings_in_the_document_are_those_of_all_folders(tmp_path):
    for method, network in (("none", "mlp"), ("nap", "cnn")):
        write_plasticity_run(tmp_path, config_of(method, network=network), rows_of([[0.5]] * 2))
    shown = {row[0]: row[1] for row in tables(tmp_path).tables[-1]}
    assert shown["network"] in ("mlp, cnn", "cnn, mlp") and shown["seeds"] == "2"
