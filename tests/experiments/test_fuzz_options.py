"""Hostile values for every option of every experiment: a plan, or one line. `make fuzz` runs it, seeded and bounded.

NAP_FUZZ_SEED chooses other cases, NAP_FUZZ_CASES how many of each experiment: 0 for all of them, which takes long.
"""

import contextlib
import importlib
import io
import os
import random
import signal
from collections.abc import Iterator

import pytest

from experiments import audit, bench, datasets, report, schedules, sweep
from experiments.harness import UserError, parse_options, print_error
from experiments.harness.bounds import MOST
from experiments.harness.study import _options_of

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(1800)]

SEED, CASES = (int(os.environ.get(f"NAP_FUZZ_{name}", default)) for name, default in (("SEED", 0), ("CASES", 150)))
SECONDS = 60  # of one case: a plan takes far less than one, where nothing else keeps the machine busy
SMALL = {
    "atari": {"--game": "catch"},
    "sequential-atari": {},
    "pqn": {"--preset": "quick"},
    "plasticity": {"--data": "digits"},
    "images": {"--data": "digits"},
    "language": {"--preset": "quick"},
    "schedule-matching": {},
    "schedule-refinement": {"--data": "digits"},
    "schedule-budgets": {"--data": "digits"},
    "river-valley": {"--data": "digits"},
    "implicit-schedule": {"--preset": "catch"},
}
"""What is given beside the option that is tried."""
VALUES = (
    "", "nan", "inf", "-inf", "-1", "0", "0.5", "1e20", str(10**20), str(10**12), str(10**400), "9" * 5000, str(MOST),
    str(MOST + 1), "ü漢😀", "../x/y", "/", "~nobody-here/x", "--seed", "-h", "\0", "\udcff", "$x_{$", "%s", "a b",
)  # fmt: skip
TOOLS = (audit, bench, datasets, report, schedules, sweep)


class Hang(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(command, argv: list[str]) -> str:
    """What is wrong with how a command answers; nothing where it does what it should, or says why not in a line."""
    shown, told = io.StringIO(), io.StringIO()
    try:
        with limited(SECONDS), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
            jobs = command(argv)
    except UserError as error:
        with contextlib.redirect_stderr(told):
            print_error(error)
        last = told.getvalue().splitlines()[-1]
        return "" if len(last) < 1000 else f"a line of {len(last)} letters"
    except SystemExit as end:
        return "" if end.code in (0, None) else f"exit code {end.code}"
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    names = [folder.name for job in jobs or [] for folder in getattr(job, "folders", [])]
    return "" if all(len(name.encode()) <= 255 for name in names) else "a folder's name that can't be"


def cases(options: dict[str, bool], given: dict[str, str], name: str) -> list[list[str]]:
    """Command lines, each with a hostile value of one option."""
    all_cases = []
    for option, takes in options.items():
        others = [word for words in given.items() if words[0] != option for word in words]
        all_cases += [[*others, *([f"{option}={value}"] if takes else [option, value])] for value in VALUES]
    return random.Random(f"{SEED} {name}").sample(all_cases, min(CASES or len(all_cases), len(all_cases)))


@pytest.mark.parametrize("name", SMALL)
def test_every_option_of_an_experiment_takes_a_value_or_says_why_not(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = importlib.import_module(f"experiments.{name.replace('-', '_')}").plan
    found = {tuple(argv): outcome(plan, argv) for argv in cases(_options_of(plan), SMALL[name], name)}
    assert not {argv: wrong for argv, wrong in found.items() if wrong}
    assert not list(tmp_path.iterdir()), "a plan leaves nothing behind"


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_every_option_of_a_tool_takes_a_value_or_says_why_not(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def parse(argv: list[str]) -> None:
        parse_options(tool.Options, argv, name="tool", description=None)

    given = {"--runs": "."} if tool is report else {}
    found = {tuple(argv): outcome(parse, argv) for argv in cases(_options_of(parse), given, tool.__name__)}
    assert not {argv: wrong for argv, wrong in found.items() if wrong}
