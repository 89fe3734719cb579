"""Reports on records and configurations that no run of ours wrote so: a page or one line, and never a traceback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from damaged_reports import damage
from made_up_runs import Config, PlasticityConfig, SequenceConfig, make_plasticity_run, make_run, make_sequence
from run_folders import unseal
from test_supervised import make_run as make_supervised_run

from experiments import report
from experiments.harness.errors import UserError
from experiments.harness.read import load_runs
from experiments.harness.report import page, write_report
from experiments.harness.report.atari import labels
from experiments.harness.report.atari_figures import returns_plot
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import draw, save

LAYER = ["torso/0/kernel"]


def config_with(**changes: object) -> Callable[[Path], None]:
    """Exchanges entries of config.json; a name such as config__seed means one within another."""

    def change(folder: Path) -> None:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for name, value in changes.items():
            *within, last = name.split("__")
            tree = about
            for part in within:
                tree = tree[part]
            tree[last] = value
        (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")

    return change


def file_with(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def record_with(name: str, value: str, *, seeds: bool = False) -> Callable[[Path], object]:
    """Writes a value into the second record, as it is typed; with `seeds` all others have a seed."""

    def change(folder: Path) -> None:
        rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [{**row, "seed": 0} if seeds else row for row in rows]
        rows[1].pop(name, None)
        lines = [json.dumps(row) for row in rows]
        if value:
            lines[1] = f'{lines[1][:-1]}, "{name}": {value}}}'
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return change


DAMAGE = {
    **{f"DIVERGED is {text}": file_with("DIVERGED", text) for text in ("{}", "[]", "5", '"x"', '{"updates": "3"}', "")},
    "DIVERGED is deep": file_with("DIVERGED", "[" * 100_000),
    "a record without a seed": record_with("seed", "", seeds=True),
    "a seed that is no whole number": record_with("seed", "1.5", seeds=True),
    "an object": record_with("loss", '{"a": 1}'),
    "a list": record_with("loss", "[1]"),
    "a text for a number": record_with("loss", '"x"'),
    "a number for a text": file_with("metrics.jsonl", '{"phase": 1, "frames": 1}\n'),
    "1e308": record_with("loss", "1e308"),
    "a number of 500 digits": record_with("frames", "9" * 500),
    "versions are a text": config_with(versions="x"),
    "resumed is a number": config_with(resumed=1),
    "resumed holds a text": config_with(resumed=["abc"]),
    "versions of resumed are a list": config_with(resumed=[{"versions": []}]),
    "the seed is a text": config_with(config__seed="one"),
    "the seed has 500 digits": config_with(config__seed=10**500),
    "the method is a list": config_with(config__method=["nap"]),
    "the experiment is a list": config_with(experiment=["atari"]),
    "config.json is deep": file_with("config.json", "[" * 100_000),
    "config.json has a number of 5,000 digits": file_with("config.json", "9" * 5_000),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("sound"), Config(), rows=3, layers=LAYER)


@pytest.mark.parametrize("name", DAMAGE)
def test_what_no_run_writes_is_told_in_one_line(sound, tmp_path, name):
    folder = shutil.copytree(sound, tmp_path / "run")
    DAMAGE[name](folder)
    with pytest.raises(UserError, match=f"^the run in {folder} is damaged: ") as told:
        load_runs([tmp_path])
    assert len(str(told.value)) < 500


def test_an_optimizer_of_another_type_is_told_in_one_line(tmp_path):
    make_supervised_run(tmp_path, "nap", 0.1, 0, 1.0)
    config_with(config__optimizer="adam")(tmp_path / "nap-0.1-0")
    with pytest.raises(UserError, match=r"is damaged: config.json: optimizer.lr is null, and must be a number"):
        write_report([tmp_path])


@pytest.mark.parametrize("label", ["$x_{$", r"$\frac{$", "a$b$c", "\ud800", "_hidden"])
def test_a_setting_is_drawn_as_it_is_typed(tmp_path, label):
    for protocol in (label, "b"):
        unseal(make_run(tmp_path, Config(protocol=protocol), rows=3, layers=LAYER))
    runs = load_runs([tmp_path])
    plot = returns_plot(runs)
    assert plot is not None
    figure = draw(plot, palette(labels(runs)))
    (legend,) = figure.legends
    shown = label.replace("\ud800", "?")
    assert [text.get_text() for text in legend.get_texts()] == sorted([f"nap (protocol {shown})", "nap (protocol b)"])
    assert not any(text.get_parse_math() for text in legend.get_texts())
    save(plot, palette(labels(runs)), tmp_path / "figure.svg", "svg")
    ET.parse(tmp_path / "figure.svg")
    assert "<h1>Pong: nap (protocol" in write_report([tmp_path]).read_text(encoding="utf-8")


def test_a_matplotlibrc_changes_nothing(sound, tmp_path):
    runs = load_runs([sound])
    plot = returns_plot(runs)
    assert plot is not None
    pictures = []
    for number, settings in enumerate(({}, {"text.usetex": True, "font.size": 30.0, "axes.facecolor": "red"})):
        with mpl.rc_context(settings):
            save(plot, palette(labels(runs)), tmp_path / f"{number}.png", "png")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_a_notebooks_backend_is_not_needed():
    code = "import experiments.harness.report, os; print(os.environ['MPLBACKEND'])"
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend_inline"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout) == (0, "module://not_installed.backend_inline\n"), done.stderr


def test_a_learning_rate_of_zero_is_one_among_others(tmp_path):
    for lr, loss in ((0, 1.0), (1e-3, 1.01), (1e-2, 2.0)):
        make_supervised_run(tmp_path, "nap", lr, 0, loss)
    written = write_report([tmp_path]).read_text(encoding="utf-8")
    assert "0 to 0.001<" in written and "-fold" not in written


@pytest.mark.parametrize("name", ["page.html", "page.html.draft"])
def test_a_folder_in_the_reports_place_is_told(sound, tmp_path, name, capsys):
    (tmp_path / name).mkdir()
    assert report.main([str(sound), "--out", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err
    assert name in told and "a folder" in told and told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


SEEDS = 8
"""Mutants of each kind of run that are met here."""


def _atari(out: Path) -> None:
    for game, method in (("pong", "none"), ("breakout", "nap")):
        make_run(out, Config(game=game, method=method), rows=20, layers=LAYER)


def _plasticity(out: Path) -> None:
    for method in ("none", "nap"):
        make_plasticity_run(out, PlasticityConfig(method=method, seeds=2, hidden=(10,)), tasks=3, stretches=2)


def _sequences(out: Path) -> None:
    make_sequence(out, SequenceConfig(seeds=2, frames=16_000), layers=LAYER)


def _supervised(out: Path) -> None:
    for lr in (1e-3, 1e-4):
        make_supervised_run(out, "nap", lr, 0, 1.0 + lr)


@pytest.mark.parametrize("make", [_atari, _plasticity, _sequences, _supervised])
def test_mutants_get_a_page_or_one_line(make, tmp_path, monkeypatch):
    # What is drawn is laid out and written in other tests: it takes nearly all of the time.
    monkeypatch.setattr(page, "save", lambda plot, looks, file, kind: file.write(str(draw(plot, looks)).encode()))
    make(tmp_path / "sound")
    answers = []
    for seed in range(SEEDS):
        copy = shutil.copytree(tmp_path / "sound", tmp_path / str(seed))
        what = damage(sorted(path.parent for path in copy.rglob("config.json")), seed)
        try:
            answers.append(write_report([copy]).read_text(encoding="utf-8")[:9])
        except UserError:
            answers.append("one line")
        except Exception as error:
            raise AssertionError(f"seed {seed}: {what}") from error
    assert set(answers) <= {"<!doctype", "one line"}
