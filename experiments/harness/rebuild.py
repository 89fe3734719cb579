"""A configuration made again from its plain values: the inverse of `identity.plain`."""

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.harness.errors import UserError, unknown

Made = TypeVar("Made")


def from_plain(config_type: type[Made], values: Mapping[str, Any]) -> Made:
    """The dataclass instance of which `plain` gave these values, nested ones and all.

    Fields that are not among the values have their defaults: the code that wrote them did not have these yet.

    Args:
        config_type: a dataclass.
        values: what `plain` gave, from a config.json.

    Raises:
        UserError: a value that no such field can have, or a field that the dataclass does not have; by its place.
    """
    return _dataclass(config_type, values, "")


def _dataclass(wanted: Any, values: Any, place: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{place or 'the configuration'} is {values!r}: it must be an object")
    types_of = _types_of(wanted)
    for name in values:
        if name not in types_of:
            raise UserError(f"written by other code: {unknown('a setting', _below(place, name), types_of)}")
    given = {name: _made(types_of[name], value, _below(place, name)) for name, value in values.items()}
    try:
        return wanted(**given)
    except (ValueError, TypeError) as error:
        raise UserError(f"{place or 'the configuration'}: {error}") from None


@functools.cache
def _types_of(wanted: type) -> dict[str, Any]:
    hints = typing.get_type_hints(wanted)
    return {field.name: hints[field.name] for field in dataclasses.fields(wanted) if field.init}


def _made(wanted: Any, value: Any, place: str) -> Any:
    """A value of the type wanted. Raises UserError where there is none."""
    kind, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if kind is typing.Annotated:
        return _made(parts[0], value, place)
    if kind in (typing.Union, types.UnionType):
        return _one_of(parts, value, place)
    if kind is typing.Literal:
        if value in parts:
            return value
        raise unknown("one of its values", str(value), map(str, parts), option=place)
    if dataclasses.is_dataclass(wanted):
        return _dataclass(wanted, value, place)
    if kind in (tuple, list) and isinstance(value, list):
        each = parts[:1] * len(value) if kind is list or parts[1:] == (...,) else parts
        if len(each) == len(value):
            return kind(
                _made(one, item, f"{place}[{i}]") for i, (one, item) in enumerate(zip(each, value, strict=True))
            )
    if kind in (dict, Mapping) and isinstance(value, Mapping):
        return {name: _made(parts[1], item, _below(place, name)) for name, item in value.items()}
    return _simple(kind or wanted, value, place)


def _one_of(choices: tuple[Any, ...], value: Any, place: str) -> Any:
    """A value of the first type that it can be of."""
    refused: list[UserError] = []
    for choice in choices:
        try:
            return _made(choice, value, place)
        except UserError as error:
            refused.append(error)
    raise refused[0]


def _simple(wanted: Any, value: Any, place: str) -> Any:
    if wanted is Any or (wanted in (dict, list) and isinstance(value, wanted)):
        return value
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum) and value in wanted.__members__:
        return wanted[value]
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, and to nobody else.
    if wanted in (bool, int, str, type(None)) and type(value) is wanted:
        return value
    raise UserError(f"{place} is {value!r}, which is no {getattr(wanted, '__name__', wanted)}")


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
