"""What lies in a run's folder, read into values of the types that a run writes, whoever wrote it.

Reports index into configurations and records: here is where their types are looked at, once. All functions raise
ValueError, in one line, for what no run of ours could have written.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from experiments.harness.records import STEP_NAMES

LARGEST = 1e100
"""Numbers beyond it are in no record of float32, and their squares, or sums, are in no figure."""
_MOST_WHOLE = 2**53
_MOST_LEVELS = 50  # of objects within objects
_ROWS_WITH_ALL_NAMES = 100

# Columns that must hold whole numbers, numbers and texts, if they are there; `name/of` holds numbers, whatever it is.
_WHOLE = ("seed", *STEP_NAMES, "task_updates", "visit", "pass", "visit_frames")
_NUMBERS = ("loss", "accuracy", "online_loss", "online_accuracy", "test_loss", "test_accuracy", "learning_rate",
            "epsilon", "effective_rank", "srank", "approximate_rank", "stable_rank", "feature_rank",
            "feature_norm")  # fmt: skip
_TEXTS = ("phase", "played")
# By the setting that names the tasks of a run, what each of its records has.
_OF_EACH_RECORD = {"": (), "stream": ("task",), "tasks": ("visit", "visit_frames")}

_ABOUT: Mapping[str, tuple[type, ...]] = {
    "experiment": (str,), "config": (dict,), "versions": (dict,), "resumed": (list,), "command": (str,),
    "git_commit": (str, type(None)),
}  # fmt: skip
_WORDS = {
    str: "a text", dict: "an object", list: "a list", int: "a whole number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


def parse_about(data: bytes) -> dict[str, Any] | None:
    """A config.json; None where another program's file has that name.

    Texts are such that they can be written down again, in UTF-8.
    """
    about = _json(data, "config.json")
    if not isinstance(about, dict) or "experiment" not in about or not isinstance(about.get("config"), dict):
        return None
    _require(about, _ABOUT, "config.json")
    for resumed in about.get("resumed", ()):
        if not isinstance(resumed, dict):
            raise ValueError(f"config.json: resumed holds {words_of(resumed)}, and not objects alone")
        _require(resumed, _ABOUT, "config.json: resumed")
    return about


def parse_diverged(data: bytes) -> int:
    """The update that a file DIVERGED tells of."""
    found = _json(data, "DIVERGED")
    updates = found.get("updates") if isinstance(found, dict) else None
    if not isinstance(updates, int) or isinstance(updates, bool) or not 0 <= updates <= _MOST_WHOLE:
        raise ValueError('DIVERGED is not {"updates": a whole number}')
    return updates


def parse_records(data: bytes, kind: str) -> pl.DataFrame:
    """A metrics.jsonl: a row a record, a column a name; the last line may be cut short.

    Args:
        data: the file.
        kind: the setting that names the tasks of the run: "stream" or "tasks"; "" for a single game.
    """
    data = data[: data.rfind(b"\n") + 1]  # a last line without its end is being written, or was cut short
    if not data.strip():
        return pl.DataFrame()
    try:
        records = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(f"metrics.jsonl: {str(error).partition(chr(10))[0]}") from None
    # Polars finds the columns in no fixed order; the run wrote them in the network's.
    first_rows = itertools.islice((line for line in io.BytesIO(data) if line.strip()), _ROWS_WITH_ALL_NAMES)
    names = dict.fromkeys(name for row in first_rows for name in json.loads(row))
    names = [name for name in names if name in records.columns]
    return _checked(records.select(*names, pl.exclude(*names)) if names else records, kind)


def words_of(value: Any) -> str:
    """What a value from a JSON file is, in words."""
    return _WORDS.get(type(value), type(value).__name__)


def words_for(kind: type) -> str:
    """What a value of a type would be, in words."""
    return _WORDS[kind]


def is_number(value: Any) -> bool:
    """Whether a value is a number, and one that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _json(data: bytes, name: str) -> Any:
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from None
    return _plain(found, name, _MOST_LEVELS)


def _plain(value: Any, name: str, levels: int) -> Any:
    """The value without halves of characters, which no file can hold."""
    if not levels:
        raise ValueError(f"{name} has objects within objects, more than {_MOST_LEVELS} deep")
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_plain(item, name, levels - 1) for item in value]
    if isinstance(value, dict):
        return {_plain(key, name, levels - 1): _plain(item, name, levels - 1) for key, item in value.items()}
    return value


def _require(found: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], where: str) -> None:
    for name, allowed in kinds.items():
        if name in found and not isinstance(found[name], allowed):
            raise ValueError(f"{where}: {name} is {words_of(found[name])}, and must be {words_for(allowed[0])}")


def _checked(records: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The records, their whole numbers as Int64; ValueError for a column of another type than it must have."""
    for name, dtype in records.schema.items():
        if dtype.is_nested():
            raise ValueError(f"metrics.jsonl: a record holds more than a number or a text under {name}")
        if dtype.is_numeric() and records.height:
            largest = records[name].cast(pl.Float64).abs().max()
            if isinstance(largest, float) and not largest <= LARGEST:
                raise ValueError(f"metrics.jsonl: {name} is {largest:g} in some record, beyond {LARGEST:g}")
        of_numbers = name in _WHOLE or name in _NUMBERS or "/" in name or (name == "task" and kind == "stream")
        if dtype == pl.String and of_numbers:
            raise ValueError(f"metrics.jsonl: {name} is a text in some record, and must be a number")
        if name in _TEXTS and dtype not in (pl.String, pl.Null):
            raise ValueError(f"metrics.jsonl: {name} is no text in some record")
        if name == "scored" and dtype not in (pl.Boolean, pl.Null):
            raise ValueError(f"metrics.jsonl: {name} is neither true nor false in some record")
    needed = ("seed", *_OF_EACH_RECORD[kind])
    for name in needed:
        if name in records.columns and records[name].null_count():
            raise ValueError(f"metrics.jsonl: a record has no {name}")
    whole = [name for name in (*_WHOLE, *(["task"] if kind == "stream" else [])) if name in records.columns]
    for name in whole:
        values = records[name].cast(pl.Float64).drop_nulls()
        if not ((values == values.floor()) & (values.abs() <= _MOST_WHOLE)).all():
            raise ValueError(f"metrics.jsonl: {name} is no whole number in some record")
    return records.cast(dict.fromkeys(whole, pl.Int64))
