"""A run's folder and its lock, renamed, deleted or replaced while the run writes it: one writer, nothing lost."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import counter
import pytest
from short_runs import records, run_until

from experiments import harness
from experiments.harness import held
from experiments.harness.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]


def ways_out(folder: Path) -> list[str]:
    """What lies in `folder.parent`: a run's folder under its own or another name."""
    return sorted(path.name for path in folder.parent.iterdir())


def taken(folder: Path) -> bool:
    """Whether another process is refused."""
    code = "import sys; from pathlib import Path; from experiments.harness.held import locked\n"
    code += "with locked(Path(sys.argv[1])): pass"
    other = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert other.returncode == 0 or "is being written by" in other.stderr, other.stderr
    return other.returncode != 0


@pytest.mark.parametrize("harm", ["delete", "replace"])
def test_a_lock_that_is_deleted_or_replaced_lets_nobody_else_in_and_the_run_goes_on(tmp_path, harm):
    def do(folder: Path) -> None:
        (folder / held.LOCK).unlink()
        if harm == "replace":
            (folder / held.LOCK).touch()
        assert held.held_by(folder) is not None
        assert taken(folder)

    folder = run_until(tmp_path, 3, do)
    assert records(folder) == list(range(6)) and (folder / "DONE").exists()
    assert held.held_by(folder) is None


def test_where_folders_have_no_locks_another_process_that_took_a_new_lock_is_noticed(tmp_path, monkeypatch):
    """As over a network: the lock of the file holds on all machines, and has been deleted."""
    flock = fcntl.flock

    def only_files(descriptor: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", only_files)
    others = []

    def do(folder: Path) -> None:
        (folder / held.LOCK).unlink()
        others.append(open(folder / held.LOCK, "w"))  # noqa: SIM115  # closed below
        flock(others[0], fcntl.LOCK_EX)

    with pytest.raises(harness.RunStopped, match=r"lock was replaced, and now another process has the run"):
        run_until(tmp_path, 3, do)
    others[0].close()
    (folder,) = (tmp_path / "counter").iterdir()
    assert records(folder) == [0, 1, 2, 3]


@pytest.mark.parametrize("errors", [(errno.ENOLCK, 2), (errno.EIO, 1)])
def test_a_file_system_without_locks_is_named(tmp_path, errors, monkeypatch, capsys):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errors[0], os.strerror(errors[0]))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert harness.exit_code_of(lambda: run_until(tmp_path, 1)) == errors[1]
    (line,) = capsys.readouterr().err.splitlines()
    assert ("no locks" in line) == (errors[0] == errno.ENOLCK) and str(tmp_path) in line


@pytest.mark.parametrize("harm", ["rename", "delete", "replace"])
@pytest.mark.parametrize("when", ["record", "save", "finish", "diverge"])
def test_a_folder_that_is_moved_or_deleted_stops_the_run_and_nothing_is_written_under_its_name(tmp_path, harm, when):
    moved = []

    def do(folder: Path) -> None:
        if harm == "delete":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "elsewhere")
        if harm == "replace":
            folder.mkdir()
        moved.append(folder)

    with (
        pytest.raises(harness.RunStopped, match="while this run wrote it") as caught,
        harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path)) as run,
    ):
        run.restore({"count": 0})
        run.record({"updates": 0})
        run.save(1, {"count": 1})
        do(run.folder)
        if when == "record":
            run.record({"updates": 1})
        elif when == "save":
            run.save(2, {"count": 2})
        elif when == "finish":
            run.finish({"count": 2})
        else:
            run.check_finite("loss", float("nan"), updates=1)
    assert caught.value.exit_code == 1 and str(caught.value).count("\n") == 0
    (folder,) = moved
    assert ways_out(folder) == ([folder.name] if harm == "replace" else [])
    if harm == "replace":
        assert list(folder.iterdir()) == []
        folder.rmdir()
    if harm != "delete":
        assert str(tmp_path / "elsewhere") in str(caught.value)
        (tmp_path / "elsewhere").rename(folder)
        assert records(folder) == [0] and (folder / "checkpoints" / "1.json").exists()
        assert not (folder / "DONE").exists() and not (folder / "DIVERGED").exists()


def test_a_folder_that_is_renamed_within_a_save_gets_it_nevertheless_and_then_the_run_stops(tmp_path, monkeypatch):
    """Orbax makes all the folders of a path that are missing."""
    save, places = Checkpoints.save, []

    def save_elsewhere(self, iteration, state, marks):
        if iteration == 2:
            (folder,) = (tmp_path / "counter").iterdir()
            places.append(folder)
            folder.rename(tmp_path / "elsewhere")
        return save(self, iteration, state, marks)

    monkeypatch.setattr(Checkpoints, "save", save_elsewhere)
    with pytest.raises(harness.RunStopped, match="renamed to"):
        run_until(tmp_path, 3)
    assert ways_out(places[0]) == []
    (tmp_path / "elsewhere").rename(places[0])
    monkeypatch.setattr(Checkpoints, "save", save)
    assert records(run_until(tmp_path, 3)) == list(range(6))


@pytest.mark.parametrize("harm", ["delete", "replace", "append", "cut"])
def test_records_that_somebody_else_writes_or_takes_away_stop_the_run(tmp_path, harm):
    def do(folder: Path) -> None:
        metrics = folder / "metrics.jsonl"
        if harm in ("delete", "replace"):
            text = metrics.read_bytes()
            metrics.unlink()
            if harm == "replace":
                metrics.write_bytes(text)
        elif harm == "append":
            with open(metrics, "ab") as file:
                file.write(b"{}\n")
        else:
            os.truncate(metrics, 5)

    with pytest.raises(harness.RunStopped, match=r"metrics\.jsonl .*the last good checkpoint is .*iteration 2"):
        run_until(tmp_path, 3, do)


def test_checkpoints_that_are_deleted_while_the_run_goes_on_are_written_anew(tmp_path):
    folder = run_until(tmp_path, 4, lambda folder: shutil.rmtree(folder / "checkpoints"))
    assert records(folder) == list(range(8)) and sorted(os.listdir(folder / "checkpoints")) == ["4", "4.json"]
