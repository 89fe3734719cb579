"""A run's files lost, damaged, swapped or out of reach: each is told apart, nothing is believed, and nothing is cut."""

import json
import os
import shutil
import stat
from pathlib import Path

import counter
import pytest
from short_runs import HARMS, assert_equal, contents, copy_of, exit_code, flip, folder_in, records, run_until

from experiments import harness
from experiments.harness import checkpoint, storage
from experiments.harness.errors import Damaged, Unreadable
from experiments.harness.read import load_runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    return run_until(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The run after two of its three iterations."""
    return run_until(tmp_path_factory.mktemp("stopped"), 2, finish=False)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "timings.jsonl", "DONE", "summary.json", "checkpoints/3.json", "lock"]
)
def test_a_finished_run_whose_file_is_harmed_is_told_or_is_the_same(name, harm, whole, tmp_path, capfd):
    folder = copy_of(whole, tmp_path)
    HARMS[harm](folder / name)
    before = contents(folder)
    code = exit_code(tmp_path)
    assert code == 0 or contents(folder) == before, "what is refused is left as it is"
    if code:
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 2 and Path(name).name in line
        assert ("--fresh" in line) == (name == "metrics.jsonl" and harm != "dangling"), "nothing less would do"
    else:
        assert_equal(folder, whole)
    told = code or harm == "missing" or name in ("timings.jsonl", "checkpoints/3.json", "lock", "config.json")
    assert told or (folder / name).read_bytes() == (whole / name).read_bytes()
    report = harness.exit_code_of(lambda: load_runs([folder]) and 0)
    assert report == 2 or name in ("timings.jsonl", "checkpoints/3.json", "lock", "config.json") or harm == "missing"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "timings.jsonl", "checkpoints/2.json", "checkpoints/2/state/_METADATA"]
)
def test_a_stopped_run_whose_file_is_harmed_stops_untouched_or_ends_the_same(name, harm, stopped, whole, tmp_path):
    folder = copy_of(stopped, tmp_path)
    HARMS[harm](folder / name)
    before = contents(folder)
    code = exit_code(tmp_path)
    if code == 0:
        assert_equal(folder, whole)
    else:
        assert contents(folder) == before


# --- Checkpoints that are not there -----------------------------------------------------------------------------------


def lose_the_disk(folder: Path) -> None:
    (folder / "checkpoints").rename(folder / "elsewhere")
    (folder / "checkpoints").symlink_to("/mnt/of a disk that is not there")


def put_a_file_there(folder: Path) -> None:
    (folder / "checkpoints").rename(folder / "elsewhere")
    (folder / "checkpoints").touch()


def leave_an_empty_mount_point(folder: Path) -> None:
    (folder / "checkpoints").rename(folder / "elsewhere")
    (folder / "checkpoints").mkdir()


def lose_the_commits(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    for path in (folder / "checkpoints").glob("*.json"):
        path.rename(folder / "elsewhere" / path.name)


LOSSES = [
    lose_the_disk,
    put_a_file_there,
    leave_an_empty_mount_point,
    lose_the_commits,
    lambda folder: (folder / "checkpoints").rename(folder / "elsewhere"),
]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("config", ["there", "lost"])
def test_where_the_checkpoints_are_gone_nothing_is_cut(lose, config, stopped, tmp_path, capsys):
    folder = copy_of(stopped, tmp_path)
    lose(folder)
    if config == "lost":
        (folder / "config.json").unlink()
    before = contents(folder)
    assert exit_code(tmp_path) == 2
    assert exit_code(tmp_path) == 2, "nor the next time"
    assert contents(folder) | {"config.json": None} == before | {"config.json": None}
    assert "othing was changed" in capsys.readouterr().err


def test_fresh_begins_again_where_the_checkpoints_are_gone_and_lets_other_disks_alone(stopped, whole, tmp_path):
    folder = copy_of(stopped, tmp_path)
    (folder / "checkpoints").rename(tmp_path / "large disk")
    (folder / "checkpoints").symlink_to(tmp_path / "large disk")
    assert exit_code(tmp_path, fresh=True) == 0
    assert_equal(folder, whole)
    assert sorted(os.listdir(tmp_path / "large disk")) == ["3", "3.json"] and (folder / "checkpoints").is_symlink()


@pytest.mark.parametrize("saved", [0, 1])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_by_itself(saved, whole, tmp_path):
    """Also where it was killed in the first save; and not any more, once that is complete."""

    def be_killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_until(tmp_path, 1 + saved, be_killed)
    folder = folder_in(tmp_path)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"updates": 7}\n')
    (folder / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    if saved:
        shutil.rmtree(folder / "checkpoints")
        assert exit_code(tmp_path) == 2 and records(folder) == [0, 1, 7]
    else:
        assert exit_code(tmp_path) == 0
        assert_equal(folder, whole)


def test_a_run_of_which_nothing_but_its_saved_mark_was_lost_is_marked_again(stopped, tmp_path):
    """Killed behind its first checkpoint, before that was written down."""
    folder = copy_of(stopped, tmp_path)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(about | {"saved": False}), encoding="utf-8")
    run_until(tmp_path, 2, finish=False)
    shutil.rmtree(folder / "checkpoints")
    assert exit_code(tmp_path) == 2


def test_killed_while_fresh_clears_the_folder_it_begins_again(whole, tmp_path, monkeypatch):
    folder = copy_of(whole, tmp_path)

    def be_killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.storage, "remove", be_killed)
    with pytest.raises(KeyboardInterrupt):
        run_until(tmp_path, fresh=True)
    monkeypatch.undo()
    shutil.rmtree(folder / "checkpoints")
    assert not (folder / "DONE").exists()
    assert exit_code(tmp_path) == 0
    assert_equal(folder, whole)


def test_an_iteration_that_is_saved_again_has_a_checkpoint_all_the_while(tmp_path, monkeypatch):
    """As a run does that was stopped within an iteration; nothing older is there."""
    write = checkpoint.state_files.write

    def killed(folder: Path, state: object) -> None:
        write(folder, state)
        raise KeyboardInterrupt

    opened = lambda: harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path))  # noqa: E731
    with pytest.raises(KeyboardInterrupt), opened() as run:
        run.restore({"count": 0})
        run.save(1, {"count": 1})
        monkeypatch.setattr(checkpoint.state_files, "write", killed)
        run.save(1, {"count": 2})
    monkeypatch.undo()
    for count in (1, 2, 3):
        with opened() as run:
            assert run.restore({"count": 0}) == (1, {"count": count})
            run.save(1, {"count": count + 1})
    assert len(list((run.folder / "checkpoints").iterdir())) == 2


# --- Checkpoints and records that are not what their names say --------------------------------------------------------


def swap(folder: Path) -> None:
    for name in ("1", "1.json"):
        (folder / name).rename(folder / "kept")
        (folder / name.replace("1", "2")).rename(folder / name)
        (folder / "kept").rename(folder / name.replace("1", "2"))


def rename_the_last(folder: Path) -> None:
    for name in ("2", "2.json"):
        (folder / name).rename(folder / name.replace("2", "3"))


def rename_the_first(folder: Path) -> None:
    shutil.rmtree(folder / "2"), (folder / "2.json").unlink()
    for name in ("1", "1.json"):
        (folder / name).rename(folder / name.replace("1", "3"))


@pytest.mark.parametrize(("change", "code"), [(swap, 2), (rename_the_last, 0), (rename_the_first, 2)])
def test_a_checkpoint_is_not_believed_by_its_name(change, code, stopped, whole, tmp_path, capsys):
    folder = copy_of(stopped, tmp_path)
    change(folder / "checkpoints")
    before = contents(folder)
    assert exit_code(tmp_path) == code
    assert "and renamed" in capsys.readouterr().err
    if code:
        assert contents(folder) == before
    else:
        assert_equal(folder, whole)


@pytest.mark.parametrize("place", [0.1, 0.9])
def test_a_digit_that_flipped_in_the_records_is_told(place, stopped, whole, tmp_path, capsys):
    """In the second iteration's, the run goes back to the first; before that there is nothing to go back to."""
    folder = copy_of(stopped, tmp_path)
    flip(folder / "metrics.jsonl", place)
    assert harness.exit_code_of(lambda: load_runs([folder]) and 0) == 2
    assert exit_code(tmp_path) == (2 if place < 0.5 else 0)
    assert "metrics.jsonl is not what was saved" in capsys.readouterr().err
    if place > 0.5:
        assert_equal(folder, whole)


def test_records_that_were_cut_back_are_whole_for_whoever_reads_the_run_meanwhile(stopped, tmp_path):
    folder = copy_of(stopped, tmp_path)
    flip(folder / "checkpoints" / "2" / "state" / "_METADATA")
    with harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path)) as run:
        assert run.restore({"count": 0})[0] == 1
        assert records(folder) == [0, 1]
        assert load_runs([folder])[0].records.height == 2
        run.record({"iteration": 1, "updates": 2})
        assert load_runs([folder])[0].records.height == 3


def test_names_that_are_no_numbers_are_let_alone(stopped, whole, tmp_path):
    folder = copy_of(stopped, tmp_path)
    strangers = [folder / "checkpoints" / name for name in ("².json", "٣.json", "03.json", "notes.txt")]
    for path in strangers:
        path.write_text("mine", encoding="utf-8")
    assert exit_code(tmp_path) == 0
    assert_equal(folder, whole)
    assert all(path.read_text(encoding="utf-8") == "mine" for path in strangers)


@pytest.mark.parametrize("resumed", ['"abc"', "5", '["abc"]', "{}"])
def test_a_config_file_with_something_of_another_type_is_told(resumed, stopped, whole, tmp_path, capsys):
    folder = copy_of(stopped, tmp_path)
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.rstrip().removesuffix("}") + f', "resumed": {resumed}}}', encoding="utf-8")
    assert exit_code(tmp_path) == 2
    assert "config.json is damaged ('resumed' is no list of objects)" in capsys.readouterr().err
    (folder / "config.json").rename(folder / "away")
    assert exit_code(tmp_path) == 0, "as the line advises"
    assert_equal(folder, whole)


def test_a_config_file_whose_settings_have_changed_is_not_believed(stopped, tmp_path, capsys):
    folder = copy_of(stopped, tmp_path)
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace('"rate": 0.5', '"rate": 0.4'), encoding="utf-8")
    assert exit_code(tmp_path) == 2
    assert "rate is 0.4 there and 0.5 here" in capsys.readouterr().err
    with pytest.raises(harness.UserError, match="not those of its hash"):
        load_runs([folder])


@pytest.mark.parametrize(("name", "advice"), [("summary.json", "remove DONE"), ("DONE", "; remove DONE, and")])
def test_the_lost_end_of_a_finished_run_is_written_again_from_its_checkpoint(name, advice, whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path)
    flip(folder / name)
    assert exit_code(tmp_path) == 2
    assert advice in capsys.readouterr().err
    (folder / "DONE").unlink()
    assert exit_code(tmp_path) == 0
    assert_equal(folder, whole)


def test_timings_that_have_changed_are_told_and_nothing_is_lost_for_them(stopped, whole, tmp_path, capsys):
    folder = copy_of(stopped, tmp_path)
    os.truncate(folder / "timings.jsonl", (folder / "timings.jsonl").stat().st_size - 3)
    assert exit_code(tmp_path) == 0
    assert "timings.jsonl has " in capsys.readouterr().err
    assert_equal(folder, whole)
    assert [
        json.loads(line)["iteration"] for line in (folder / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    ] == [0, 2]
    flip(folder / "timings.jsonl")
    assert exit_code(tmp_path) == 0
    assert "timings.jsonl is not what was saved" in capsys.readouterr().err


def test_a_file_is_absent_damaged_or_unreadable(tmp_path):
    path = tmp_path / "file.json"
    assert storage.read(path) is None and storage.read_json(path) is None and storage.read_sealed(path) is None
    storage.write_atomically(path, storage.sealed({"a": [1, 0.5, "é"]}))
    assert storage.read_sealed(path) == {"a": [1, 0.5, "é"]} and stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    for harm in ("empty", "half", "flip", "twice", "list", "deep", "not UTF-8", "folder"):
        HARMS[harm](path)
        with pytest.raises(Damaged, match=r"^file\.json is "):
            storage.read_sealed(path)
        storage.remove(path)
        storage.write_atomically(path, storage.sealed({"a": 1}))
    HARMS["dangling"](path)
    with pytest.raises(Unreadable, match="/nowhere/at/all, which is not there"):
        storage.read(path)
