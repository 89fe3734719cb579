"""What a process finds around it: closed, full and broken streams, locales, homes, variables that cannot be meant."""

import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from run_folders import folder_in

from experiments import harness
from experiments.harness import environment, interrupt
from experiments.harness.catalogue import dispatch
from experiments.harness.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


def started(*arguments: str, redirection: str = "", **environment: str) -> subprocess.CompletedProcess:
    """A Python with these arguments, its streams redirected as a shell has it."""
    command = ["sh", "-c", f'exec "$0" "$@" {redirection}', sys.executable, *arguments]
    around = {name: value for name, value in os.environ.items() if name not in ("PYTHONUTF8", "PYTHONIOENCODING")}
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.run(
        command, cwd=ROOT, env={**around, "PYTHONPATH": path, **environment}, capture_output=True, timeout=200
    )


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirection", "exit_code", "told"),
    [
        (">&-", 0, b""),
        ("2>&-", 0, b""),
        ("<&- >&- 2>&-", 0, b""),
        ("2>/dev/full", 0, b""),
        (">/dev/full", 1, b"error: standard output: No space left on device"),
        (">/dev/full 2>/dev/full", 1, b""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_that_are_closed_or_full(redirection, exit_code, told, unbuffered):
    ended = started("-m", "experiments", redirection=redirection, PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == exit_code
    assert ended.stderr.startswith(told) and ended.stderr.count(b"\n") == bool(told)
    assert (b"  report " in ended.stdout) == (">" not in redirection.replace("2>", ""))


# A command that runs as `python -m experiments schedules` does.
AS_AN_EXPERIMENT = """
import runpy, sys
from experiments import schedules
{}
schedules.main, sys.argv = main, ["experiments", "schedules", *sys.argv[1:]]
runpy.run_module("experiments", run_name="__main__")
"""


def test_a_run_whose_terminal_vanishes_goes_on_and_no_file_of_it_becomes_a_stream(tmp_path):
    """Of standard error the reader goes in the middle; standard output is closed, and then full, where all is done."""
    main = """
import os, counter
def main(argv):
    exit_code = counter.main(argv)
    print(os.path.realpath("/proc/self/fd/1"))
    return exit_code
"""
    program, out = AS_AN_EXPERIMENT.format(main), str(tmp_path)
    arguments = [sys.executable, "-c", program, "--iterations", "40", "--out", out]
    around = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    with subprocess.Popen(
        ["sh", "-c", 'exec "$0" "$@" >&-', *arguments], cwd=ROOT, env=around, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline()
        process.stderr.close()
    assert process.returncode == 0
    folder = folder_in(tmp_path / "counter")
    assert (folder / "DONE").exists()
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)  # and nothing else is in it
    again = started("-c", program, "--iterations", "40", "--out", out, redirection=">/dev/full")
    assert again.returncode == 1 and again.stderr.splitlines()[-1].startswith(b"error: standard output: No space")


def test_descriptors_that_were_closed_lead_nowhere_also_for_children():
    program = """if True:
        import os, subprocess, sys
        from experiments.harness.surroundings import surroundings
        surroundings()
        assert sys.stdin.read() == ""
        for descriptor in (0, 1, 2):
            assert os.path.realpath(f"/proc/self/fd/{descriptor}") == "/dev/null", descriptor
        child = "import os; print(*(os.path.realpath(f'/proc/self/fd/{i}') for i in (0, 2)))"
        print("lost")
        sys.exit(subprocess.check_output([sys.executable, "-c", child]).split() != [b"/dev/null"] * 2)
    """
    assert started("-c", program, redirection="<&- >&- 2>&-").returncode == 0


def test_a_stream_that_does_not_wait_is_waited_for():
    """O_NONBLOCK is shared with whoever opened the pipe; it holds 64 KB."""
    program = """if True:
        import os
        from experiments.harness.surroundings import delivered, surroundings
        surroundings()
        os.set_blocking(1, False)
        for _ in range(300):
            print("x" * 999)
        raise SystemExit(delivered(0))
    """
    ended = started("-c", program)
    assert (ended.returncode, len(ended.stdout), ended.stderr) == (0, 300_000, b"")


def test_a_signal_is_taken_though_nobody_can_be_told(monkeypatch):
    def gone(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(interrupt.os, "write", gone)
    with interrupt.InterruptFlag() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.received == signal.SIGTERM


def test_progress_without_standard_error_is_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    progress = Progress("pong")
    progress.update(frames=1)
    progress.say("a line")
    progress.close()


# A signal's handler runs wherever Python is, and what it raises in a callback of a weak reference goes no further.
IN_A_CALLBACK = """
import os, signal, time, weakref
from experiments.harness.interrupt import InterruptFlag
def main(argv):
    class Thing: pass
    def callback(_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    thing = Thing()
    reference = weakref.ref(thing, callback)
    with InterruptFlag():
        del thing
        time.sleep(100)
"""


def test_a_second_signal_ends_at_once_wherever_it_comes():
    ended = started("-c", AS_AN_EXPERIMENT.format(IN_A_CALLBACK))
    assert ended.returncode == 143
    lines = ended.stderr.splitlines()
    assert len(lines) == 2 and lines[1].startswith(b"stopped at once")


# --- Text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "printed"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, "28×28 ü"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}, r"28\xd728 \xfc"),
        ({"PYTHONIOENCODING": "latin-1"}, "28×28 ü".encode("latin-1")),
    ],
)
def test_every_locale_takes_every_letter_and_every_folder(variables, printed, tmp_path):
    program = """if True:
        import sys
        from pathlib import Path
        from experiments.harness.surroundings import surroundings
        surroundings()
        path = Path(sys.argv[1])
        path.write_text("28\\xd728")
        print(path.read_text(), path.name)
    """
    ended = started("-c", program, str(tmp_path / "ü"), **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.rstrip() == (printed if isinstance(printed, bytes) else printed.encode())
    assert (tmp_path / "ü").read_bytes() == "28×28".encode()


def test_an_argument_that_is_not_utf8_is_refused_in_a_line(capsys):
    assert dispatch(["schedules", "--plot", os.fsdecode(b"\xff.png")]) == 2
    assert r"'\udcff.png': it is not UTF-8" in capsys.readouterr().err


def test_help_in_a_terminal_of_one_column():
    around = {"COLUMNS": "1", "TERM": "dumb", "NO_COLOR": "1"}
    ended = started("-m", "experiments", "report", "--help", redirection="<&-", **around)
    assert ended.returncode == 0 and b"--figures" in ended.stdout


# --- Variables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PJRT_NPROC", "abc"),
        ("PJRT_NPROC", "0"),
        ("PJRT_NPROC", "-1"),
        ("NAP_DATA", "~nobody-of-this-name/data"),
        ("XLA_FLAGS", "nonsense"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named_and_the_listing_does_not_mind(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert dispatch(["schedules"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {name}={value}: ") and told.err.count("\n") == 1
    assert (dispatch([]), told.out) == (0, "")


@pytest.mark.parametrize(
    ("variable", "arguments"),
    [
        ("JAX_ENABLE_X64=garbage", "audit"),
        ("JAX_DEFAULT_PRNG_IMPL=nonsense", "sweep schedule-budgets --dry-run"),
        ("JAX_PLATFORMS=nonsense", "audit"),
        ("JAX_PLATFORMS=cuda", "atari --game catch --out {}"),
    ],
)
def test_jax_that_cannot_start_is_told_in_a_line_with_its_variable_and_nothing_is_begun(variable, arguments, tmp_path):
    name, _, value = variable.partition("=")
    words = arguments.format(tmp_path).split()
    ended = started("-m", "experiments", *words, CUDA_VISIBLE_DEVICES="", **{name: value})
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.decode()
    assert line.startswith("error: ") and variable in line and line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_64_bits_are_refused(tmp_path, capsys):
    with jax.enable_x64(True):
        assert dispatch(["atari", "--game", "catch", "--out", str(tmp_path)]) == 2
    assert "JAX_ENABLE_X64" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_while_jax_runs_is_no_fault_of_its_variables():
    assert environment.why_jax_cannot_start(ValueError("other")) is None


# --- Homes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings():
    """JAX's settings of its cache, as they were, when the test is over."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_without_a_home_nothing_is_kept_or_where_it_is_named(tmp_path, monkeypatch, capsys, settings):
    def unknown(_: int) -> Any:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert harness.enable_compilation_cache() is None
    assert "HOME" in capsys.readouterr().err
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
    assert harness.enable_compilation_cache() == tmp_path / "named"


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path, monkeypatch, capsys, settings):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    assert harness.enable_compilation_cache() is None
    told = capsys.readouterr().err
    assert str(tmp_path / "file") in told and told.count("\n") == 1
