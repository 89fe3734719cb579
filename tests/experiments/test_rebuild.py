"""Configurations made again from what config.json has of them."""

import dataclasses
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from envs.streams import STREAMS
from experiments import (
    atari,
    images,
    implicit_schedule,
    language,
    plasticity,
    pqn,
    river_valley,
    schedule_budgets,
    schedule_matching,
    schedule_refinement,
    sequential_atari,
)
from experiments.harness import UserError
from experiments.harness.identity import plain
from experiments.harness.rebuild import from_plain

WITH_PRESETS = (atari, images, implicit_schedule, language, pqn, river_valley, schedule_budgets, sequential_atari)


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    other: Inner | None = None
    side: Side = Side.LEFT
    kind: Literal["a", "b"] = "a"
    place: Path = Path("here")
    pair: tuple[int, str] = (1, "x")
    number: Annotated[int, "told"] = 3
    flag: bool = False
    named: Mapping[str, float] = dataclasses.field(default_factory=dict)
    either: int | str = 1


def as_written(config: Any) -> dict[str, Any]:
    """What config.json has of a configuration."""
    return json.loads(json.dumps(plain(config)))


@pytest.mark.parametrize(
    "config",
    [config for module in WITH_PRESETS for config in module.PRESETS.values()]
    + [config for stream in STREAMS for config in plasticity.presets(stream).values()]
    + [schedule_matching.Config(), schedule_refinement.Config()]
    + [atari.resolve(atari.PRESETS["rainbow"]), sequential_atari.resolve(sequential_atari.PRESETS["quick"])],
    ids=lambda config: type(config).__module__,
)
def test_every_configuration_comes_back(config):
    again = from_plain(type(config), as_written(config))
    assert again == config
    assert as_written(again) == as_written(config)


def test_every_kind_of_value_comes_back():
    config = Outer(
        inner=Inner(2.0, (3,)), other=Inner(), side=Side.RIGHT, kind="b", place=Path("a/b"), pair=(2, "y"), flag=True,
        named={"x": 1.0}, either="text",
    )  # fmt: skip
    again = from_plain(Outer, as_written(config))
    assert again == config
    assert isinstance(again.inner.sizes, tuple) and isinstance(again.place, Path)


def test_what_an_older_version_did_not_have_is_at_its_default():
    assert from_plain(Outer, {"inner": {"rate": 1}}) == Outer(inner=Inner(rate=1.0))
    assert isinstance(from_plain(Outer, {"inner": {"rate": 1}}).inner.rate, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inner": {"rte": 1.0}}, "inner.rte"),
        ({"inner": {"rate": "fast"}}, "inner.rate is 'fast'"),
        ({"inner": {"sizes": [1, "two"]}}, r"inner.sizes\[1\] is 'two'"),
        ({"inner": 3}, "inner is 3"),
        ({"kind": "c"}, "kind: 'c' is not"),
        ({"side": "UP"}, "side is 'UP'"),
        ({"pair": [1]}, "pair is"),
        ({"number": True}, "number is True"),
        ({"flag": 1}, "flag is 1"),
        ({"other": {"nothing": 1}}, "other"),
    ],
)
def test_what_is_no_configuration_is_refused_by_its_place(values, words):
    with pytest.raises(UserError, match=words):
        from_plain(Outer, values)
