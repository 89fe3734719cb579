"""What the system refuses a run: it is never called damage, it is one line, and what was saved stays whole."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import counter
import pytest
from short_runs import assert_equal, contents, copy_of, exit_code, folder_in, records, run_until

from experiments import harness
from experiments.harness import storage
from experiments.harness.errors import Unreadable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    return run_until(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The run after two of its three iterations."""
    return run_until(tmp_path_factory.mktemp("stopped"), 2, finish=False)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "checkpoints/2.json", "checkpoints/2/state/_METADATA"]
)
def test_what_cannot_be_read_is_not_called_damaged(name, number, stopped, whole, tmp_path, monkeypatch, capsys):
    folder, opened = copy_of(stopped, tmp_path), os.open

    def refuse(path, flags, *mode, **place):
        if str(path).endswith(name) and not flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *mode, **place)

    before = contents(folder)
    monkeypatch.setattr(os, "open", refuse)
    assert exit_code(tmp_path) == 2
    monkeypatch.undo()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert os.strerror(number) in line and name in line and "--fresh" not in line and "damaged" not in line
    assert contents(folder) == before
    assert exit_code(tmp_path) == 0
    assert_equal(folder, whole)


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "listdir", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied"))
    )
    with pytest.raises(Unreadable, match="Permission denied"):
        storage.names_in(tmp_path)


def test_what_orbax_cannot_load_though_it_is_whole_is_not_damaged(stopped, whole, tmp_path, monkeypatch, capsys):
    from orbax.checkpoint import v1 as ocp

    folder = copy_of(stopped, tmp_path)
    before = contents(folder)

    def refuse(*_):
        raise RuntimeError("Unable to cast Python instance")

    monkeypatch.setattr(ocp, "load", refuse)
    assert exit_code(tmp_path) == 2
    assert "whose files are whole (RuntimeError: Unable" in (line := capsys.readouterr().err) and "--fresh" not in line
    assert contents(folder) == before
    monkeypatch.undo()
    assert exit_code(tmp_path) == 0
    assert_equal(folder, whole)


def refuse_to_sync(monkeypatch, path: str, error: Exception) -> None:
    def sync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(path):
            raise error

    monkeypatch.setattr(os, "fsync", sync)


def refuse_to_rename(monkeypatch, path: str, error: Exception) -> None:
    replace = Path.replace

    def refuse(draft: Path, target: Path) -> Path:
        if str(target).endswith(path):
            raise error
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", refuse)


def refuse_in_orbax(monkeypatch, path: str, error: Exception) -> None:
    from orbax.checkpoint import v1 as ocp

    def save(*_) -> None:
        raise error

    monkeypatch.setattr(ocp, "save", save)


EIO = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("refuse", "path", "error", "words"),
    [
        *((refuse_to_sync, name, EIO, "Input/output error") for name in ("metrics.jsonl", "timings.jsonl")),
        (refuse_to_sync, "3.json.draft", EIO, "Input/output error"),
        *((refuse_to_rename, name, EIO, "Input/output error") for name in ("summary.json", "DONE", "config.json")),
        (refuse_to_rename, "3.json", OSError(errno.EDQUOT, "Disk quota exceeded"), "is full"),
        (refuse_in_orbax, "", OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/path"), "Too many open files"),
        (refuse_in_orbax, "", ValueError("INTERNAL: Failed writing: x [os_error_code='27']"), "File too large"),
        (refuse_in_orbax, "", ValueError("RESOURCE_EXHAUSTED: Failed writing: x [os_error_code='28']"), "is full"),
        (refuse_in_orbax, "", RuntimeError("can't start new thread"), "can't start new thread"),
        (refuse_in_orbax, "", MemoryError(), "out of memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_one_line_and_what_was_saved_is_whole(
    refuse, path, error, words, stopped, whole, tmp_path, monkeypatch, capsys
):
    folder = copy_of(stopped, tmp_path)
    refuse(monkeypatch, path, error)
    assert exit_code(tmp_path) == 1
    monkeypatch.undo()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line and str(folder) in line and "the last good checkpoint is " in line and "/proc/" not in line
    assert exit_code(tmp_path) == 0
    assert_equal(folder, whole)


@pytest.mark.parametrize(("limit", "words"), [("-f 4", "File too large"), ("-n 32", "Too many open files")])
def test_a_limit_of_the_shell_is_one_line_and_the_run_goes_on_without_it(limit, words, tmp_path):
    command = f"ulimit {limit}; exec '{sys.executable}' '{counter.__file__}' --rows 40 --out {tmp_path}"
    # Without the tests' cache of what was compiled, whose files the limit would cut.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": ""}
    ended = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("seed0: ")]
    assert line.startswith("error: ") and words in line
    counter.study(counter.Config(rows=40), harness.RunOptions(out=tmp_path))
    assert records(folder_in(tmp_path)) == list(range(1, 241))


def test_a_folder_that_the_locale_cannot_say_is_written_and_read(tmp_path):
    command = [sys.executable, counter.__file__, "--preset", "short", "--out", str(tmp_path / "ü")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0"}
    for _ in range(2):
        ended = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
        assert ended.returncode == 0, ended.stderr
        (folder_in(tmp_path / "ü") / "DONE").unlink()
    assert "after iteration 2" in ended.stderr
