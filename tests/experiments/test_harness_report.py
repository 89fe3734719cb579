"""The report: it stands alone, it reads what runs really leave, and it does not average what is not alike."""

import base64
import csv
import errno
import html.parser
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import LAYERS, Config, PlasticityConfig, make_plasticity_run, make_run, make_runs
from PIL import Image
from run_folders import unseal

from experiments import report
from experiments.harness import UserError, exit_code_of
from experiments.harness.curves import mean_curve, over_layers, relative, returns, shortened, telling_layers
from experiments.harness.read import load_runs
from experiments.harness.report import write_figure, write_figures, write_report
from experiments.harness.report.atari import labels
from experiments.harness.report.atari_figures import dormant_plot, returns_plot
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import draw


class Page(html.parser.HTMLParser):
    """What a browser would load, and the words that it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.words.append(data)


ONE_LAYER = LAYERS[:1]


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    """Four runs with their report and their figure."""
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder, ["nap", "none"], seeds=2, rows=20)
    assert report.main([str(folder), "--figure", str(folder / "figures" / "overview.png")]) == 0
    return folder


def test_one_file_that_needs_no_other_and_no_network(runs_folder):
    page = Page((runs_folder / "atari" / "report.html").read_text(encoding="utf-8"))
    assert len(page.loaded) == 5 and all(source.startswith("data:image/svg+xml;base64,") for source in page.loaded)
    for source in page.loaded:
        picture = base64.b64decode(source.partition(",")[2]).decode()
        assert not re.search(r"(href|src)=['\"](?!#)", picture), "a picture inside loads something"
        assert picture.count("<path") > 20
    words = " ".join(page.words)
    for expected in (
        "Pong: none and nap compared",
        "seeds 0 and 1",
        "160,000 emulator frames",
        "protocol machado",
        "jax ",
    ):
        assert expected in words, expected
    with Image.open(runs_folder / "figures" / "overview.png") as image:
        assert image.width > 1000


def test_the_table_says_what_the_records_say(runs_folder):
    (run,) = [run for run in load_runs([runs_folder]) if (run.method, run.seed) == ("none", 1)]
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row["eval/return"] for row in rows if row["phase"] == "eval"][-1]
    assert run.last("eval/return") == last
    frames, returns = run.series("train/return")
    expected = [(row["frames"], row["train/return"]) for row in rows if row.get("train/return") is not None]
    assert list(zip(frames, returns, strict=True)) == expected
    words = " ".join(Page((runs_folder / "atari" / "report.html").read_text(encoding="utf-8")).words)
    assert f"{last:,.4g}".replace("-", "−") in words


def test_layers_keep_the_order_in_which_they_were_recorded(runs_folder):
    assert all(run.layers("weight_norm") == list(LAYERS) for run in load_runs([runs_folder]))


def test_the_layers_that_projection_holds_are_found(runs_folder):
    runs = load_runs([runs_folder])
    assert telling_layers(runs) == list(LAYERS[:-1])
    free = [run for run in runs if run.method == "none"]
    assert telling_layers(free) == list(LAYERS)
    for run in runs:
        _, norms = over_layers(run, "weight_norm", telling_layers(runs), relative)
        assert (norms[-1] == pytest.approx(1)) == (run.method == "nap")


def test_an_unfinished_run_with_a_line_cut_short_is_drawn(tmp_path, capsys):
    folder = make_run(tmp_path, Config(), rows=10, finish=False, layers=ONE_LAYER)
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"phase":"tra')
    (run,) = load_runs([folder])
    assert run.records.height == 11 and not run.done
    assert report.main([str(folder)]) == 0
    path = folder / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    words = " ".join(Page(path.read_text(encoding="utf-8")).words)
    assert "1 of them has not finished" in words and "only more seeds can tell" in words


@pytest.mark.parametrize(
    "content",
    ["empty folder", "no records", "damaged record", "other record", "text for a number", "text for a seed", "missing"],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, content, capsys):
    folder = tmp_path / "runs"
    if content != "missing":
        folder.mkdir()
    second = {
        "no records": None,
        "damaged record": '{"phase":',
        "other record": "[1]",
        "text for a number": '{"phase":"train","frames":2,"elr/0":"fast"}',
        "text for a seed": '{"phase":"train","frames":2,"seed":"two"}',
    }
    if content in second:
        run, row = make_run(folder, Config(), rows=3), second[content]
        text = "" if row is None else f'{{"phase":"train","frames":1}}\n{row}\n{{"frames":2}}\n'
        (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert exit_code_of(lambda: report.main([str(folder)])) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and str(folder) in shown


@pytest.mark.parametrize("name", ["", "page.png", "page.html/page.html"], ids=["folder", "picture", "below a file"])
def test_where_no_report_can_be_written_is_one_line(runs_folder, tmp_path, name, capsys):
    (tmp_path / "page.html").touch()
    assert report.main([str(runs_folder), "--out", str(tmp_path / name)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and str(tmp_path) in shown


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    for seed in range(2):
        make_run(tmp_path, Config(seed=seed), rows=4)
        make_run(tmp_path, Config(seed=seed, optimizer={"name": "adam", "lr": 1e-3}), rows=4)
        make_run(tmp_path, Config(seed=seed, method="none", frames=160_000), rows=4)
    found = labels(load_runs([tmp_path]))
    assert found == ["none (lr 0.00025)", "nap (lr 0.00025)", "nap (lr 0.001)"]


def test_settings_that_follow_the_method_make_no_variant(tmp_path):
    for method, rate in (("none", 1e-4), ("nap", 1e-3)):
        make_run(tmp_path, Config(method=method, optimizer={"name": "adam", "lr": rate}), rows=4)
    assert labels(load_runs([tmp_path])) == ["none", "nap"]


def test_methods_at_different_schedules_are_told_apart_by_these_too(tmp_path):
    for method, schedule in (("layernorm", "constant"), ("nap", "linear")):
        make_run(tmp_path, Config(method=method, optimizer={"name": "adam", "schedule": schedule}), rows=4)
    assert labels(load_runs([tmp_path])) == ["layernorm (schedule constant)", "nap (schedule linear)"]


def test_several_games_have_a_section_each_and_one_colour_a_method(tmp_path):
    for game, method in itertools.product(["pong", "ms_pacman"], ["redo", "nap"]):
        make_run(tmp_path, Config(game=game, method=method), rows=4, layers=ONE_LAYER)
    runs = load_runs([tmp_path])
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "Ms Pacman" in words and "Pong" in words
    assert palette(labels(runs)) == palette(labels([run for run in runs if run.problem == "pong"]))


def test_html_in_a_name_stays_text(tmp_path):
    folder = make_run(tmp_path, Config(game="<script>alert(1)</script>"), rows=3, layers=ONE_LAYER)
    assert "<script" not in write_report([folder]).read_text(encoding="utf-8").lower()


def test_numbers_that_are_missing_or_constant_do_not_stop_it(tmp_path):
    folder = make_run(tmp_path, Config(), rows=4)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row.update({name: None for name in row if name.startswith(("train/", "dormant", "loss"))})
        row.update({name: 0.0 for name in row if name.startswith(("elr/", "weight_norm/head"))})
    unseal(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_report([folder])
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "metrics.jsonl").write_text('{"phase":"train","updates":1,"loss":0.5}\n', encoding="utf-8")
    write_report([tmp_path / "bare"])


def test_the_mean_of_curves_and_the_shortening_of_one():
    x, y = mean_curve([(np.array([0.0, 2.0]), np.array([0.0, 2.0])), (np.array([1.0, 3.0]), np.array([3.0, 5.0]))])
    np.testing.assert_allclose(x, [1, 2])
    np.testing.assert_allclose(y, [2, 3])
    long = np.arange(10_000.0)
    x, y = shortened((long, 2 * long))
    assert x.size == 300
    np.testing.assert_allclose(y, 2 * x)
    np.testing.assert_allclose(x.mean(), long.mean(), rtol=1e-2)


def test_returns_are_thinned_out_by_the_number_of_their_episodes(tmp_path):
    folder = make_run(tmp_path, Config(), rows=4)
    # In turn a record of one episode with return 0, of three with return 4, and of none; and evaluations of 2 episodes.
    trained = [{"train/return": [0.0, 4.0, None][i % 3], "train/episodes": [1, 3, 0][i % 3]} for i in range(1800)]
    rows = [{"phase": "train", "updates": i, **of} for i, of in enumerate(trained)]
    rows += [{"phase": "eval", "updates": i, "eval/return": 1.5, "eval/episodes": 2} for i in range(900)]
    unseal(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (run,) = load_runs([folder])
    updates, means = returns(run, "train")
    assert updates.size == 300
    np.testing.assert_allclose(means, 3.0)  # not 2: four records, eight episodes
    np.testing.assert_allclose(updates[0], (0 + 1 * 3 + 3 + 4 * 3) / 8)
    np.testing.assert_allclose(returns(run, "eval")[1], 1.5)


def test_a_warm_up_from_zero_is_left_out_and_a_layer_that_dies_is_not(tmp_path):
    folder = make_run(tmp_path, Config(), rows=4)
    rates = {"elr/a": [0.0, 4.0, 1.0, 0.0], "elr/b": [0.0, 1.0, 4.0, 9.0], "elr/still": [0.0] * 4}
    rows = [{"phase": "train", "updates": i + 1} | {name: of[i] for name, of in rates.items()} for i in range(4)]
    unseal(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (run,) = load_runs([folder])
    updates, mean = over_layers(run, "elr", run.layers("elr"))
    np.testing.assert_allclose(updates, [2, 3, 4])
    np.testing.assert_allclose(mean, [2, 2, 0])
    write_figure([folder], tmp_path / "overview.png")


def test_a_run_counts_once_however_its_folder_is_named_and_copies_do_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_run(Path("runs"), Config(), rows=4)
    shutil.copytree(folder, "runs/backup")
    unseal(Path("runs/backup"))
    (Path("runs/backup") / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes() + b'{"frames":9}\n')
    for content in ({"model": "x"}, ["model"]):
        foreign = Path("runs") / f"foreign-{len(content)}-{type(content).__name__}"
        foreign.mkdir()
        (foreign / "config.json").write_text(json.dumps(content), encoding="utf-8")
        (foreign / "metrics.jsonl").write_text('{"loss": 1}\n', encoding="utf-8")
    (run,) = load_runs([Path("runs"), Path("runs/../runs"), folder.absolute()])
    assert run.method == "nap" and run.reached == 160_000
    mixed = [folder, make_run(tmp_path / "others", Config(seed=1), rows=4)]
    assert write_report(mixed) == tmp_path / "report.html"


def test_methods_that_differ_in_more_than_the_method_are_named(tmp_path):
    make_run(tmp_path, Config(method="none", protocol="v5"), rows=4, layers=ONE_LAYER)
    make_run(tmp_path, Config(method="nap", seed=1), rows=4, layers=ONE_LAYER)
    words = "".join(Page(write_report([tmp_path]).read_text(encoding="utf-8")).words)
    assert "Beside the method, they differ in: protocol v5 for none, machado for nap." in words
    make_run(tmp_path, Config(method="none"), rows=4, layers=ONE_LAYER)  # now it is in the label
    assert "Beside the method" not in "".join(Page(write_report([tmp_path]).read_text(encoding="utf-8")).words)


def test_a_full_disk_leaves_the_earlier_report(tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path, Config(), rows=4, layers=ONE_LAYER)
    path = write_report([folder])
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert report.main([str(folder)]) == 1
    assert "No space left on device" in capsys.readouterr().err and path.read_bytes() == before


def test_a_base_keeps_its_look_with_its_only_settings_behind_it():
    plain, looks = palette(["layernorm", "nap"]), palette(["layernorm (lr 0.1)", "layernorm (lr 1)", "nap (lr 0.1)"])
    assert looks["nap (lr 0.1)"] == plain["nap"]
    assert len({plain["layernorm"], looks["layernorm (lr 0.1)"], looks["layernorm (lr 1)"]}) == 3


def test_thin_lines_are_seeds_and_the_thick_one_their_mean(runs_folder):
    runs = [run for run in load_runs([runs_folder]) if run.method == "nap"]
    panel = draw(returns_plot(runs), palette(labels(runs))).axes[0]
    assert sorted(line.get_linewidth() for line in panel.lines) == [0.7, 0.7, 1.9]
    assert {line.get_color() for line in panel.lines} == {"#0072B2"}


def test_joined_methods_share_a_colour_and_differ_in_their_lines():
    looks = palette(["none", "nap", "redo", "nap+redo", "layernorm+redo", "none+crelu"])
    assert looks["redo"].colour == looks["nap+redo"].colour == looks["layernorm+redo"].colour
    assert looks["none+crelu"].colour != looks["redo"].colour
    assert [looks[name].style for name in ("redo", "nap+redo", "none+crelu")] == ["--", "-", "--"]
    assert looks["none"].style == looks["nap"].style == "-"
    many = palette([f"nap+method{number}" for number in range(20)])
    assert len(set(many.values())) == 20


def test_dormant_units_are_shaded_from_one_threshold_to_the_other(runs_folder):
    runs = [run for run in load_runs([runs_folder]) if run.method == "none" and run.seed == 0]
    line = dormant_plot(runs).panels[0].lines[0]
    np.testing.assert_allclose(line.low, 100 * runs[0].series("dormant_fraction_0/torso/conv_0")[1])
    np.testing.assert_allclose(line.high - line.low, 5)
    np.testing.assert_allclose(line.y - line.low, 1)


def test_every_figure_is_also_written_as_files_with_the_numbers_drawn(runs_folder, tmp_path):
    written = write_figures([runs_folder], tmp_path / "figures")
    names = {path.name for path in written}
    assert {"pong-returns.png", "pong-returns.pdf", "pong-returns.csv", "pong-weight-norm.csv"} <= names
    assert len(written) == 15 and all(path.stat().st_size > 500 for path in written)
    with open(tmp_path / "figures" / "pong-returns.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (run,) = [run for run in load_runs([runs_folder]) if (run.method, run.seed) == ("nap", 1)]
    drawn = [
        (float(row["x"]), float(row["y"]))
        for row in rows
        if (row["panel"], row["method"], row["statistic"]) == ("in evaluation", "nap", "seed 1")
    ]
    assert drawn == list(zip(*run.series("eval/return"), strict=True)) and len(drawn) == 2
    assert {(row["problem"], row["statistic"]) for row in rows} == {
        ("pong", statistic) for statistic in ("mean", "seed 0", "seed 1")
    }


def test_an_overview_of_two_kinds_of_experiment_is_refused(tmp_path):
    make_run(tmp_path, Config(), rows=3, layers=ONE_LAYER)
    make_plasticity_run(tmp_path, PlasticityConfig(seeds=1), tasks=2)
    with pytest.raises(UserError, match="these runs are of atari and plasticity: name one"):
        write_figure([tmp_path], tmp_path / "overview.png")
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "Pong: nap" in words and "Plasticity on random-labels: nap" in words
