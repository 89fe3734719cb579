"""What an option can be, when it is read, and whether it is a path: declared on its field, acted on in one place.

    @dataclasses.dataclass(frozen=True)
    class Config:
        batch_size: Annotated[int, at_least(1)] = 32
        gamma: Annotated[float, more_than(0, most=1)] = 0.99
        data: Annotated[str, A_PATH] = ""
        channels: Annotated[int, read_if(lambda config: config.network == "cnn", "--network cnn")] = 16
        protocol: Annotated[Protocol, inside(beta=at_least(0, most=1))] = Protocol()  # a class that knows nothing of us

A whole number without a declaration can be up to `MOST`, which is what 32 bits hold; every other number is finite.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from experiments.harness.errors import UserError

Configuration = TypeVar("Configuration")

MOST = 2**31 - 1
"""The largest whole number where nothing else is declared: counts are of 32 bits on the device."""
SEEDS = 2**32
"""How many seeds there are: JAX makes a random key of a seed's last 32 bits."""
_LONGEST = 40  # digits of a number that are written out


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a number can be; of several, each.

    Attributes:
        low: the least value, or what it must be above.
        high: the largest value, or what it must be below; None: `MOST` for a whole number, and finite for another.
        above: whether `low` itself is too small.
        below: whether `high` itself is too large.
    """

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number is within them. NaN is within none."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        high = self._high(value)
        large = value < high if self.below else value <= high
        return large and (value > self.low if self.above else value >= self.low)

    def words(self, value: float) -> str:
        """What must be, to someone who gave this value: the nearest right one is in it."""
        least = f"above {self.low:.16g}" if self.above else f"at least {self.low:.16g}"
        if self.high is not None:
            if self.above or self.below:
                return f"it must be {least} and {'below' if self.below else 'at most'} {self.high:.16g}"
            return f"it must lie in {self.low:.16g} to {self.high:.16g}"
        if isinstance(value, int):
            return f"it must be at most {MOST}" if value > MOST else f"it must be {least}"
        return f"it must be {least}, and finite" if math.isfinite(self.low) else "it must be finite"

    def _high(self, value: float) -> float:
        if self.high is not None:
            return self.high
        return MOST if isinstance(value, int) else math.inf


def at_least(low: float, *, most: float | None = None, below: float | None = None) -> Bounds:
    """From `low` on, to `most` or below `below`, if one of these is given."""
    return Bounds(low, most if below is None else below, below=below is not None)


def more_than(low: float, *, most: float | None = None, below: float | None = None) -> Bounds:
    """As `at_least`, but without `low` itself."""
    return Bounds(low, most if below is None else below, above=True, below=below is not None)


A_SEED = at_least(0, most=SEEDS - 1)
"""What every experiment declares of its seed."""


@dataclasses.dataclass(frozen=True)
class ReadIf:
    """Says when an option is read.

    Attributes:
        condition: whether a configuration, the whole of it, reads the option.
        words: what it is for: "--network cnn".
    """

    condition: Callable[[Any], bool]
    words: str


def read_if(condition: Callable[[Any], bool], words: str) -> ReadIf:
    """See `ReadIf`: someone who types an option that nothing reads is told so."""
    return ReadIf(condition, words)


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """What is declared of the fields of a nested class, by their names; see `inside`."""

    notes: Mapping[str, Any]


def inside(**notes: Any) -> Inside:
    """Declares something of a nested class's fields, by their names: one thing each, or a tuple of them.

    It comes before what the class itself declares.
    """
    return Inside(notes)


class _Mark:
    """The type of `A_PATH` and `NOT_EMPTY`."""


NOT_EMPTY = _Mark()
"""Declares that of several values at least one is needed."""
A_PATH = _Mark()
"""Declares that a text is the path of a file or a folder, or can be one: a leading ~ is the home folder. So it is in
what follows "=", and in every field of type `Path`."""


class Option(NamedTuple):
    """A field of a configuration, nested ones too.

    Attributes:
        name: as it is typed: "--batch-size".
        path: the fields' names from the configuration on: ("training", "batch_size").
        notes: what is declared of it.
    """

    name: str
    path: tuple[str, ...]
    notes: tuple[Any, ...]

    def value(self, config: Any) -> Any:
        """What a configuration has there."""
        return functools.reduce(getattr, self.path, config)


@functools.lru_cache(maxsize=64)
def options_of(config_type: type) -> tuple[Option, ...]:
    """The fields of a configuration, those of nested ones in their places; a class that may be None counts as one."""
    hints, found = typing.get_type_hints(config_type, include_extras=True), []
    for field in dataclasses.fields(config_type):
        kind, *notes = typing.get_args(hint) if hasattr(hint := hints[field.name], "__metadata__") else (hint,)
        if not dataclasses.is_dataclass(kind):
            found.append(Option(_typed(field.name), (field.name,), tuple(notes)))
            continue
        more = {name: given for note in notes if isinstance(note, Inside) for name, given in note.notes.items()}
        for option in options_of(kind):
            given = more.get(option.path[0], ())
            own = (*(given if isinstance(given, tuple) else (given,)), *option.notes)
            found.append(Option(option.name, (field.name, *option.path), own))
    return tuple(found)


def check_bounds(config: Any) -> None:
    """Raises UserError for the first value of a configuration that its field can't have, with the nearest right one."""
    for option in options_of(type(config)):
        value = option.value(config)
        if value == () and NOT_EMPTY in option.notes:
            raise UserError(f"{option.name}: at least one value is needed")
        declared = next((note for note in option.notes if isinstance(note, Bounds)), None)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                bounds = declared or Bounds(-MOST if isinstance(one, int) else -math.inf)
                if not bounds.hold(one):
                    raise UserError(f"{option.name} {_written(value)}: {bounds.words(one)}")
            if isinstance(one, (str, Path)) and "\0" in str(one):
                raise UserError(f"{option.name} {str(one)!r}: a text can't have the character NUL in it")


def unread(config_type: type, configs: Sequence[Any], typed: Iterable[str]) -> Iterator[str]:
    """A line for each option that was typed and that nothing reads.

    Args:
        config_type: whose fields the options are.
        configs: of the runs that a command makes, at least one: one that reads an option is enough.
        typed: the options' names.
    """
    typed = frozenset(typed)
    for option in options_of(config_type):
        when = next((note for note in option.notes if isinstance(note, ReadIf)), None)
        if option.name in typed and when is not None and not any(_reads(config, when) for config in configs):
            yield f"{option.name} is not read here: it is for {when.words}"


def expanded(config: Configuration) -> Configuration:
    """The configuration, in whose paths a leading ~ has become the home folder.

    Raises:
        UserError: there is no such home folder.
    """
    for option in options_of(type(config)):
        value = option.value(config)
        of_path = A_PATH in option.notes
        both = [(one, _at_home(option.name, one, of_path)) for one in (value if isinstance(value, tuple) else (value,))]
        if any(before is not after for before, after in both):
            new = tuple(after for _, after in both)
            config = replaced(config, option.path, new if isinstance(value, tuple) else new[0])
    return config


def replaced(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """The configuration with another value in a field, which may be nested."""
    name, *rest = path
    return dataclasses.replace(config, **{name: replaced(getattr(config, name), tuple(rest), value) if rest else value})


def _reads(config: Any, when: ReadIf) -> bool:
    try:
        return when.condition(config)
    except ValueError:  # something else is wrong in it, which will be told
        return True


def _at_home(name: str, value: Any, of_path: bool) -> Any:
    """The same object where there is nothing to expand."""
    if not (isinstance(value, Path) or (of_path and isinstance(value, str))):
        return value
    before, equals, path = ("", "", str(value))
    if isinstance(value, str) and not path.startswith("~"):
        before, equals, path = value.partition("=")
    if not path.startswith("~"):
        return value
    if (found := os.path.expanduser(path)).startswith("~"):
        raise UserError(f"{name} {value}: there is no home folder {path.partition('/')[0]}")
    return type(value)(f"{before}{equals}{found}")


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _written(value: Any) -> str:
    """A value, or several, as they are typed; a very long number by how long it is."""
    if isinstance(value, tuple):
        return " ".join(map(_written, value))
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:
        return f"(a number of some {round(value.bit_length() * math.log10(2))} digits)"
    return str(value)
