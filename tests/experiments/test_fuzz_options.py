"""Every option of every command with hostile values: one line and exit code 2, or what was asked for. `make fuzz`."""

import contextlib
import importlib
import io
import os
import random
import re

import pytest
from fuzzing import COMMANDS, Ended, command, experiments, is_told_in_a_line, limited, make_data, options_of, run, tools

from experiments import harness
from experiments.harness.catalogue import catalogue

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]

VALUES = (
    "", "nan", "inf", "-inf", "-1", "0", "0.5", "1e20", str(10**12), str(10**20), str(10**400), "ä→🎲", "../x/y",
    "/nowhere/at/all", "~nobody-here/x", "--lr", "\0", "\udcff", "$x_{$", "%s", "a b",
)  # fmt: skip
SEED, CASES = (int(os.environ.get(f"NAP_FUZZ_{name}", default)) for name, default in (("SEED", 0), ("CASES", 150)))
"""Which cases are chosen, and how many of each command; 0 for all of them, which takes long."""
RUNS = 6
"""How many of the hostile commands that an experiment takes are run to their end."""
NO_PART = (
    "--out",
    "--fresh",
    "--wait",
    "--seeds",
    "--devices",
    "--coordinator",
    "--processes",
    "--process",
    "--profile",
)
"""Options that do not change what a run is."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def test_every_experiment_is_tried():
    assert sorted(COMMANDS) == sorted(experiments())


def cases(command: str) -> list[tuple[str, str]]:
    """Options of a command, each with a hostile value."""
    every = [(option, value) for option in options_of(command) for value in VALUES]
    return random.Random(f"{SEED} {command}").sample(every, min(CASES or len(every), len(every)))


def planned(argv: list[str]) -> tuple[Ended, tuple]:
    """How a plan of a command ended, and the folders of its runs."""
    folders: list = []

    def plan() -> None:
        for job in importlib.import_module(catalogue()[argv[0]].module).plan(argv[1:]):
            folders.extend(job.folders)

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), limited():
        exit_code = harness.exit_code_of(plan)
    return Ended(exit_code, "", errors.getvalue()), tuple(folders)


def shown(value: str) -> str:
    return repr(value) if len(value) < 40 else f"{value[:8]!r}... of {len(value)} characters"


def is_default(text: str, option: str, value: str) -> bool:
    """Whether a value is an option's default, as the help has it."""
    found = re.search(rf"{option}\b.*?\(default:(.*?)\)", text, flags=re.DOTALL)
    default = re.sub(r"[\s│]+", " ", found[1]).strip() if found else ""
    try:
        return float(default) == float(value)
    except ValueError:
        return default == value


@pytest.mark.parametrize("experiment", experiments())
def test_an_option_of_an_experiment_with_a_hostile_value(experiment, data, tmp_path):
    usual = command(experiment, data, tmp_path / "runs")
    help_text = run([experiment, "--help"]).out
    as_usual = planned(usual)[1]
    wrong, taken = [], []
    for option, value in cases(experiment):
        argv = usual
        if option in usual:
            place = usual.index(option)
            end = next((i for i in range(place + 1, len(usual)) if usual[i].startswith("--")), len(usual))
            argv = usual[:place] + usual[end:]
        argv = [*argv, option, value]
        try:
            ended, folders = planned(argv)
        except Exception as error:  # what gets out is a finding, not the end of the search
            wrong.append(f"{option} {shown(value)}: {type(error).__name__}: {error}")
            continue
        if ended.exit_code:
            if ended.exit_code != 2 or not is_told_in_a_line(ended):
                wrong.append(f"{option} {shown(value)}: exit code {ended.exit_code}: {ended.errors[-400:]!r}")
        elif option in NO_PART or folders != as_usual or is_default(help_text, option, value):
            taken.append(argv)
        else:
            wrong.append(f"{option} {shown(value)}: it is taken and changes nothing")
    chosen = random.Random(f"{SEED} runs of {experiment}").sample(taken, min(RUNS, len(taken)))
    for argv in chosen:
        try:
            ended = run(argv)
        except Exception as error:
            wrong.append(f"run of {argv[-2]} {shown(argv[-1])}: {type(error).__name__}: {error}")
            continue
        if ended.exit_code not in (0, 1, 2) or (ended.exit_code and not is_told_in_a_line(ended)):
            wrong.append(f"run of {argv[-2]} {shown(argv[-1])}: exit code {ended.exit_code}: {ended.errors[-400:]!r}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("tool", [name for name in tools() if name != "bench"])
def test_an_option_of_a_tool_with_a_hostile_value(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = []
    for option, value in cases(tool):
        try:
            ended = run([tool, option, value])
        except Exception as error:
            wrong.append(f"{option} {shown(value)}: {type(error).__name__}: {error}")
            continue
        if ended.exit_code and (ended.exit_code != 2 or not is_told_in_a_line(ended)):
            wrong.append(f"{option} {shown(value)}: exit code {ended.exit_code}: {ended.errors[-400:]!r}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
