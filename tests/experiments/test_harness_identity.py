"""What a run is and what it was made with: settings of JAX, the contents of files, and numbers that are none."""

import dataclasses
import json
import math

import counter
import jax
import pytest
from short_runs import assert_equal, contents, exit_code, folder_in, run_until

from experiments import harness
from experiments.harness import folder as files
from experiments.harness.identity import plain, settings
from experiments.harness.read import load_runs


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_enable_x64", True), ("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False)],
)
def test_an_unfinished_run_does_not_go_on_with_other_kinds_of_numbers(name, value, tmp_path, capsys):
    whole, folder = run_until(tmp_path / "whole"), run_until(tmp_path / "part", 2, finish=False)
    before, usual = contents(folder), getattr(jax.config, name)
    assert json.loads(before["config.json"])["settings"] == settings()
    jax.config.update(name, value)
    try:
        assert exit_code(tmp_path / "part") == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert f"set {name.upper()}={usual}, or give another --out" in line
        assert exit_code(tmp_path / "whole") == 0, "a finished one is finished, and tells"
        assert f"settings.{name.upper()} is {usual!r} there and {value!r} here" in capsys.readouterr().err
    finally:
        jax.config.update(name, usual)
    assert contents(folder) == before
    assert exit_code(tmp_path / "part") == 0
    assert_equal(folder, whole)


@pytest.mark.parametrize(("name", "value"), [("device", "H100"), ("XLA_FLAGS", "--xla_x"), ("backend", "gpu")])
def test_where_it_computes_is_told_when_it_changes_and_written_down(name, value, tmp_path, monkeypatch, capsys):
    folder, here = run_until(tmp_path, 2, finish=False), settings()
    monkeypatch.setattr(files, "settings", lambda: here | {name: value})
    assert exit_code(tmp_path) == 0
    assert f"settings.{name} is {here[name]!r} there and {value!r} here" in capsys.readouterr().err
    (resumed,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["resumed"]
    assert resumed["settings"] == here | {name: value}


TEXT = {"--text": "5f3a", "--tokenizer": "77aa"}


def test_a_run_goes_on_with_the_data_that_it_began_with_only(tmp_path, capsys):
    whole, folder = run_until(tmp_path / "whole", data=TEXT), run_until(tmp_path / "part", 2, finish=False, data=TEXT)
    before = contents(folder)
    assert json.loads(before["config.json"])["data"] == TEXT
    for out in (tmp_path / "part", tmp_path / "whole"):
        assert exit_code(out, data=TEXT | {"--tokenizer": "77ab"}) == 2, "a finished one was not made with these either"
        assert "what --tokenizer was read from has changed" in capsys.readouterr().err
    assert contents(folder) == before
    (folder / "config.json").unlink()
    assert exit_code(tmp_path / "part", data=TEXT | {"--text": "0000"}) == 2, "each checkpoint knows, too"
    assert "what --text was read from has changed" in capsys.readouterr().err
    (folder / "config.json").write_bytes(before["config.json"])
    assert exit_code(tmp_path / "part", data=TEXT) == 0
    assert_equal(folder, whole)
    assert exit_code(tmp_path / "part", data=TEXT | {"--text": "0000"}, fresh=True) == 0
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["data"] == TEXT | {"--text": "0000"}


def test_a_run_of_an_earlier_version_keeps_the_data_that_it_goes_on_with(tmp_path):
    folder = run_until(tmp_path, 1, finish=False)
    run_until(tmp_path, 2, finish=False, data=TEXT)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["data"] == TEXT
    assert exit_code(tmp_path, data=TEXT | {"--text": "0000"}) == 2


@dataclasses.dataclass(frozen=True)
class Rivals:
    l2_strength: float = 1.0
    sizes: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    rivals: Rivals = Rivals()
    table: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda value: Config(Rivals(value)), "--l2-strength"),
        (lambda value: Config(Rivals(sizes=(1.0, value))), "--sizes"),
        (lambda value: Config(table={"a_b": value}), "--a-b"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_name_before_anything_is_written(config, words, value, tmp_path):
    with pytest.raises(harness.UserError, match=f"^{words} {value}: it must be a finite number$"):
        plain(config(value))
    with pytest.raises(harness.UserError), harness.open_run("made-up", config(value), harness.RunOptions(out=tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def old_version(folder) -> None:
    """Makes a run look as version 0 left it: no checksums, settings or data; DONE is empty."""
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("settings", "data", "saved"):
        del about[name]
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    for path in (folder / "checkpoints").glob("*.json"):
        content = files.read_sealed(path)
        for name in ("data", "folder"):
            del content[name]
        content["marks"] = {of: value for of, value in content["marks"].items() if not of.endswith("crc32")}
        path.write_text(files.sealed(content), encoding="utf-8")
    if (folder / "DONE").exists():
        (folder / "DONE").write_bytes(b"")


def test_runs_of_earlier_versions_are_read_finished_and_gone_on_with(tmp_path):
    whole, folder = run_until(tmp_path / "whole"), run_until(tmp_path / "part", 2, finish=False)
    for each in (whole, folder):
        old_version(each)
    with harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path / "whole")) as run:
        assert run.done and run.summary == {"count": 3}
    assert (folder_in(tmp_path / "whole") / "DONE").read_bytes() == b""
    for each in (whole, folder):
        assert harness.exit_code_of(lambda: load_runs([each]) and 0) == 0  # noqa: B023  # called at once
    assert exit_code(tmp_path / "part") == 0
    assert_equal(folder, whole)


def test_a_summary_of_an_earlier_version_that_is_damaged_is_one_line(tmp_path, capsys):
    whole = run_until(tmp_path)
    old_version(whole)
    (whole / "summary.json").write_text('{"count": ', encoding="utf-8")
    with harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path)) as run:
        assert harness.exit_code_of(lambda: run.summary and 0) == 2
    assert "remove DONE, and the same command ends it again" in capsys.readouterr().err
