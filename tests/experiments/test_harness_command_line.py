"""The command line: one line an error, exit codes, presets and seeds, and a listing that is quick."""

import dataclasses
import enum
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import counter
import jax
import pytest

from experiments import harness
from experiments.harness.bounds import read_if
from experiments.harness.catalogue import catalogue, listing
from experiments.harness.identity import config_hash, difference, folder_name, plain

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str, presets=None, study=None) -> tuple[int, list]:
    """The exit code, and the (configuration, options) of every call of the study."""
    calls = []
    presets = {"long": counter.Config(iterations=60)} if presets is None else presets
    code = harness.run_command(
        lambda config, options: calls.append((config, options)) if study is None else study(config, options),
        counter.Config,
        argv,
        name="counter",
        description="Counts.",
        presets=presets,
    )
    return code, calls


def test_options_reach_the_configuration_and_the_shared_part(tmp_path):
    code, calls = run("--rows", "3", "--rate", "1", "--out", str(tmp_path), "--fresh")
    expected = counter.Config(rows=3, inner=counter.Inner(rate=1.0))
    assert (code, calls) == (0, [(expected, harness.RunOptions(1, tmp_path, True))])


def test_a_preset_gives_defaults_that_other_options_change():
    assert run("--rows", "3", "--preset", "long")[1][0][0] == counter.Config(iterations=60, rows=3)
    assert run("--preset=long", "--iterations", "2")[1][0][0] == counter.Config(iterations=2)


def test_without_a_preset_options_change_the_default_one():
    presets = {"default": counter.Config(iterations=7), "long": counter.Config(iterations=60)}
    options = {"name": "counter", "description": None, "presets": presets}
    for argv, expected in (([], 7), (["--preset", "long"], 60)):
        config, _ = harness.parse_command(counter.Config, [*argv, "--rows", "3"], **options)
        assert config == counter.Config(iterations=expected, rows=3)


def test_seeds_count_up_from_seed():
    assert [config.seed for config, _ in run("--seed", "4", "--seeds", "3")[1]] == [4, 5, 6]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--preset", "lnog"], "error: --preset: 'lnog' is not a preset; did you mean 'long'?"),
        (["--preset", "zzz"], "error: --preset: 'zzz' is not a preset; there are: long"),
        (["--seeds", "0"], "error: --seeds 0: it must lie in 1 to 4294967296"),
        (["--seeds", "9" * 11], f"error: --seeds {'9' * 11}: it must lie in 1 to 4294967296"),
        (
            ["--rows", "3", "--seed", "1", "--rows=4"],
            "error: --rows 3 and --rows=4: a run has one --rows; python -m experiments sweep counter ... runs all",
        ),
        (
            ["--seed", "4294967295", "--seeds", "2"],
            "error: --seed 4294967295: beyond 4294967295 seeds repeat; the nearest is 4294967294",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, line, capsys):
    assert run(*argv) == (2, [])
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--iteratons", "3"], "'--iteratons' is not an option; did you mean '--iterations'?"),
        (["--rows", "many"], "--rows: invalid literal for int() with base 10: 'many'\n"),
        (["--rows", "1e20"], "--rows: invalid literal for int() with base 10: '1e20'\n"),
        (["--rows", "1" + "0" * 400], "--rows (a number of some 400 digits): it must be at most 2147483647\n"),
        (["--rate", "nan"], "--rate nan: it must be finite\n"),
        (["--out", "~nobody-here/x"], "--out ~nobody-here/x: there is no home folder ~nobody-here\n"),
        (["--preset", "--out", "x"], "Missing value for argument '--preset'"),
        (["--rows"], "Missing value for argument '--rows'"),
        (["positional"], "Unrecognized options: positional"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "120"])
def test_a_typo_is_told_in_a_line(argv, words, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert run(*argv) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words}") and error.count("\n") == 1
    assert not set("│╭╰─") & set(error)


def test_a_file_that_cannot_be_read_is_told_in_a_line(tmp_path, capsys):
    assert run(study=lambda config, options: (tmp_path / "missing").read_text()) == (2, [])
    assert capsys.readouterr().err == f"error: {tmp_path / 'missing'}: No such file or directory\n"


def test_help_shows_the_shared_options_and_the_presets(capsys):
    assert run("--help") == (0, [])
    shown = capsys.readouterr().out
    for words in ("--seed ", "--seeds", "--out", "--fresh", "--preset", "long", "--rate", "Counts."):
        assert words in shown, words


def raising(error: BaseException):
    def study(config, options):
        raise error

    return study


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (harness.UserError("no game\n'pongg'"), 2),
        (harness.NonFinite("the loss is nan"), 1),
        (harness.DiskFull("full"), 1),
        (harness.Interrupted("stopped", 2), 130),
        (harness.Interrupted("stopped", 15), 143),
    ],
)
def test_every_expected_end_is_one_line_and_its_exit_code(error, code, capsys):
    assert run(study=raising(error))[0] == code
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "Traceback" not in shown


@pytest.mark.parametrize(("number", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_ends_at_once_whatever_threads_are_left(number, exit_code):
    """As orbax leaves some, when the signal comes in the middle of a save."""
    program = f"""if True:
        import os, runpy, signal, sys, threading, time
        from experiments import schedules
        from experiments.harness.interrupt import InterruptFlag
        def main(argv):
            threading.Thread(target=time.sleep, args=(100,)).start()
            with InterruptFlag():
                os.kill(os.getpid(), signal.{number})
                os.kill(os.getpid(), signal.{number})
                time.sleep(100)
        schedules.main = main
        sys.argv = ["experiments", "schedules"]
        runpy.run_module("experiments", run_name="__main__")
    """
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, timeout=80, capture_output=True, text=True)
    assert ended.returncode == exit_code
    told = f"{number}: stopping at the next safe point (once more: at once)"
    assert ended.stderr == f"{told}\nstopped at once; the same command goes on from the last checkpoint\n"


def test_an_unexpected_error_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(study=raising(ZeroDivisionError()))


def test_a_seed_that_diverges_ends_alone(capsys):
    seen = []

    def study(config, options):
        seen.append(config.seed)
        if config.seed == 1:
            raise harness.NonFinite("the loss is nan")

    assert run("--seeds", "3", study=study)[0] == 1
    assert seen == [0, 1, 2]
    assert capsys.readouterr().err == "error: the loss is nan\n"


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


def test_the_listing_is_of_this_folder_and_imports_nothing_slow():
    code = (
        "import sys; from experiments.harness import dispatch; dispatch([]);"
        "slow = {'jax', 'numpy', 'orbax', 'tyro', 'rich', 'polars', 'matplotlib', 'tensorboardX'} & set(sys.modules);"
        "sys.exit(f'imported: {slow}' if slow else 0)"
    )
    ended = python("-c", code)
    assert ended.returncode == 0, ended.stderr
    assert "  report " in ended.stdout


def test_an_unknown_experiment_names_the_nearest():
    ended = python("-m", "experiments", "reprot")
    assert (ended.returncode, ended.stderr) == (2, "error: 'reprot' is not an experiment; did you mean 'report'?\n")


def test_the_catalogue_reads_modules_and_packages(tmp_path):
    (tmp_path / "sequential_atari.py").write_text('"""Games in a row.\n\nMore."""\n\ndef main(argv):\n    return 0\n')
    (tmp_path / "helper.py").write_text('"""No experiment."""\n')
    (tmp_path / "_private.py").write_text("def main(argv): ...\n")
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "__init__.py").write_text('"""A folder."""\n\ndef main(argv):\n    return 0\n')
    found = catalogue(tmp_path, "pkg")
    assert {name: entry.module for name, entry in found.items()} == {
        "grid": "pkg.grid",
        "sequential-atari": "pkg.sequential_atari",
    }
    assert listing(found).splitlines()[2:] == ["  grid              A folder.", "  sequential-atari  Games in a row."]


class Colour(enum.Enum):
    """For the test of plain values."""

    RED = 1


@dataclasses.dataclass(frozen=True)
class Wide:
    """A configuration with a value of every kind."""

    rate: float = 1
    sizes: tuple[int, ...] = (32, 64)
    colour: Colour = Colour.RED
    folder: Path = Path("data/x")
    name: str | None = None


def test_the_hash_is_fixed_by_the_values_alone():
    # Written down, so that a change of Python, of this code or of the process shows: old folders must be found again.
    assert config_hash("counter", Wide()) == "4e94a6a1"
    assert config_hash("counter", Wide()) == config_hash("counter", dataclasses.replace(Wide(), rate=1.0))
    others = [dataclasses.replace(Wide(), rate=2.0), dataclasses.replace(Wide(), sizes=(32,))]
    hashes = {config_hash("counter", config) for config in [Wide(), *others]} | {config_hash("other", Wide())}
    assert len(hashes) == 4


def test_a_configuration_as_plain_values():
    assert plain(Wide()) == {"rate": 1.0, "sizes": [32, 64], "colour": "RED", "folder": "data/x", "name": None}
    with pytest.raises(TypeError, match="not function"):
        plain({"act": test_a_configuration_as_plain_values})


def test_a_folders_name_is_one_that_file_systems_allow():
    long, longer = "a" * 246, "a" * 247
    assert folder_name(long, "1a2b3c4d") == f"{long}-1a2b3c4d", "what could be made before keeps its name"
    assert folder_name(longer, "1a2b3c4d") == f"{'a' * 100}-1a2b3c4d"
    assert folder_name("ü" * 300 + "nap", "1a2b3c4d") == "nap-1a2b3c4d"
    assert folder_name("nap " * 100, "1a2b3c4d") == "-".join(["nap"] * 25) + "-1a2b3c4d"


def test_a_word_of_an_error_is_no_longer_than_a_line_but_for_paths(capsys):
    harness.print_error(ValueError("x" * 5000 + " is wrong in /" + "y" * 300))
    said = capsys.readouterr().err
    assert said == f"error: {'x' * 40}...{'x' * 40} is wrong in /{'y' * 300}\n"


@dataclasses.dataclass(frozen=True)
class Picky:
    """A configuration with an option that is not always read."""

    seed: int = 0
    network: str = "mlp"
    channels: Annotated[int, read_if(lambda config: config.network == "cnn", "--network cnn")] = 16


def test_what_nothing_reads_is_told_once_and_the_run_goes_on(capsys):
    def went(*argv: str) -> str:
        options = {"name": "picky", "description": None, "presets": {"small": Picky(channels=8)}}
        assert harness.run_command(lambda *_: None, Picky, argv, **options) == 0
        return capsys.readouterr().err

    assert went("--preset", "small") == went("--channels=4", "--network", "cnn") == ""
    assert went("--channels=4") == "note: --channels is not read here: it is for --network cnn\n"
    assert went("--channels=5") == "", "once is enough in a process: a grid has many cells"


def test_the_folder_name_keeps_to_plain_letters():
    assert folder_name("Ms Pac/Man-nap+redo-seed0", "1a2b3c4d") == "Ms-Pac-Man-nap+redo-seed0-1a2b3c4d"
    assert folder_name("", "1a2b3c4d") == "1a2b3c4d"
    assert folder_name("../..", "1a2b3c4d") == "1a2b3c4d"


def test_the_first_difference_is_named():
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) is None
    assert difference({"a": {"b": 1}}, {"a": {"b": None}}) == "a.b is 1 there and None here"
    assert difference({}, {"a": 1}) == "a is 'absent' there and 1 here"


def test_the_compilation_cache_is_the_users_or_the_one_they_name(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert harness.enable_compilation_cache() == tmp_path / "nap-jax"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert harness.enable_compilation_cache() == tmp_path / "home" / ".cache" / "nap-jax"
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
        assert harness.enable_compilation_cache() == tmp_path / "named"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "named")
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "experiments"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
