"""What is declared on an option's field: bounds, when it is read, paths; and that every number of ours has bounds."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Annotated

import pytest

from experiments import harness
from experiments.harness.bounds import (
    A_PATH,
    A_SEED,
    MOST,
    NOT_EMPTY,
    Bounds,
    at_least,
    check_bounds,
    expanded,
    inside,
    more_than,
    options_of,
    read_if,
    replaced,
    unread,
)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A class that declares nothing."""

    beta: float = 0.5
    slots: int = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """A field of every kind."""

    count: Annotated[int, at_least(1)] = 1
    share: Annotated[float, at_least(0, most=1)] = 0.5
    decay: Annotated[float, at_least(0, below=1)] = 0.5
    gamma: Annotated[float, more_than(0, most=1)] = 0.5
    scale: Annotated[float, more_than(0)] = 1.0
    free: float = 0.0
    whole: int = 0
    seed: Annotated[int, A_SEED] = 0
    widths: Annotated[tuple[int, ...], at_least(1), NOT_EMPTY] = (4,)
    maybe: Annotated[int | None, at_least(1)] = None
    flag: bool = False
    kind: str = "a"
    data: Annotated[str, A_PATH, read_if(lambda config: config.kind == "a", "--kind a")] = ""
    files: Annotated[tuple[str, ...], A_PATH] = ()
    out: Path = Path("runs")
    foreign: Annotated[Foreign, inside(beta=(at_least(0, most=1), read_if(lambda config: config.flag, "--flag")))] = (
        Foreign()
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("count", 0, "--count 0: it must be at least 1"),
        ("count", 2**31, f"--count {2**31}: it must be at most {MOST}"),
        ("count", 10**400, f"digits): it must be at most {MOST}"),
        ("share", 1.5, "--share 1.5: it must lie in 0 to 1"),
        ("share", math.nan, "--share nan: it must lie in 0 to 1"),
        ("decay", 1.0, "--decay 1.0: it must be at least 0 and below 1"),
        ("gamma", 0.0, "--gamma 0.0: it must be above 0 and at most 1"),
        ("scale", math.inf, "--scale inf: it must be above 0, and finite"),
        ("free", -math.inf, "--free -inf: it must be finite"),
        ("free", math.nan, "--free nan: it must be finite"),
        ("whole", 10**20, f"it must be at most {MOST}"),
        ("seed", 2**32, "--seed 4294967296: it must lie in 0 to 4294967295"),
        ("widths", (4, 0, 4), "--widths 4 0 4: it must be at least 1"),
        ("widths", (), "--widths: at least one value is needed"),
        ("maybe", 0, "--maybe 0: it must be at least 1"),
        ("kind", "a\0b", "NUL"),
        ("foreign.beta", 2.0, "--beta 2.0: it must lie in 0 to 1"),
        ("foreign.slots", 2**31, f"--slots {2**31}: it must be at most {MOST}"),
    ],
)
def test_a_value_beyond_its_bounds_is_told_with_the_option_and_the_nearest(path, value, words):
    with pytest.raises(harness.UserError) as found:
        check_bounds(replaced(Config(), tuple(path.split(".")), value))
    assert words in str(found.value)


def test_the_bounds_themselves_are_within():
    check_bounds(Config())
    for path, values in {
        "count": (1, MOST), "share": (0, 1.0), "decay": (0.0, 0.999), "gamma": (1.0,), "free": (1e308, -1e308),
        "seed": (0, 2**32 - 1), "widths": ((1,),), "maybe": (None, 1), "scale": (1e-300,), "flag": (True,),
    }.items():  # fmt: skip
        for value in values:
            check_bounds(replaced(Config(), (path,), value))


@pytest.mark.parametrize(
    ("changes", "typed", "told"),
    [
        ({}, ["--data"], []),
        ({"kind": "b"}, ["--data"], ["--data is not read here: it is for --kind a"]),
        ({"kind": "b"}, ["--kind"], []),  # what stands for a default is nobody's mistake
        ({}, ["--beta"], ["--beta is not read here: it is for --flag"]),
        ({"flag": True}, ["--beta", "--count"], []),
    ],
)
def test_an_option_that_was_typed_and_is_not_read_is_told(changes, typed, told):
    assert list(unread(Config, [dataclasses.replace(Config(), **changes)], typed)) == told


def test_one_of_several_runs_that_reads_an_option_is_enough():
    configs = [Config(kind="b"), Config(kind="a")]
    assert not list(unread(Config, configs, ["--data"]))


def test_a_wrong_configuration_has_no_unread_options():
    """What is wrong with it is told when it is resolved."""

    def wrong(config):
        raise ValueError("there is no such kind")

    @dataclasses.dataclass(frozen=True)
    class Wrong:
        data: Annotated[str, read_if(wrong, "nothing")] = ""

    Wrong.__annotations__ = {"data": Annotated[str, read_if(wrong, "nothing")]}
    assert not list(unread(Wrong, [Wrong()], ["--data"]))


def test_home_is_found_in_paths_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = Config(kind="~/a", data="~/b.npz", files=("piqa=~/c", "~/d=e", "siqa", "a~b"), out=Path("~/runs"))
    found = expanded(given)
    assert (found.kind, found.data, found.out) == ("~/a", f"{tmp_path}/b.npz", tmp_path / "runs")
    assert found.files == (f"piqa={tmp_path}/c", f"{tmp_path}/d=e", "siqa", "a~b")
    assert expanded(Config()) == Config()
    with pytest.raises(harness.UserError, match=r"--out ~nobody-here/x: there is no home folder ~nobody-here"):
        expanded(Config(out=Path("~nobody-here/x")))


def test_a_declaration_changes_no_hash():
    @dataclasses.dataclass(frozen=True)
    class Before:
        share: float = 1
        count: int = 1

    @dataclasses.dataclass(frozen=True)
    class After:
        share: float = 1
        count: int = 1

    Before.__annotations__ = {"share": float, "count": int}
    After.__annotations__ = {"share": Annotated[float, at_least(0)], "count": Annotated[int, at_least(0)]}
    hashes = {harness.config_hash("x", of(share=one)) for of in (Before, After) for one in (1, 1.0)}
    assert len(hashes) == 1


EXPERIMENTS = (
    "atari", "sequential_atari", "pqn", "plasticity", "images", "language", "river_valley", "schedule_budgets",
    "schedule_matching", "schedule_refinement",
)  # fmt: skip
NO_LEAST = {"--lr", "--redo-tau", "--beta", "--frequency", "--growth", "--rates"}
"""Numbers that can be anything finite; the rates of the studies are looked at with the optimizer."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_number_of_every_experiment_has_a_least_value(name):
    config_type = importlib.import_module(f"experiments.{name}").Config
    default = config_type()
    check_bounds(default)
    for option in options_of(config_type):
        value = option.value(default)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(one) in (int, float) for one in numbers):
            declared = [note for note in option.notes if isinstance(note, Bounds)]
            assert declared or option.name in NO_LEAST, f"{option.name} of {name} has no bounds"
