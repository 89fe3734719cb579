"""Columns of Parquet files. What a file claims to hold is compared with the memory that is free before it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.reading import opened, require_memory

if TYPE_CHECKING:
    import polars as pl

_BYTES_A_ROW = 16
"""A row of a column in memory, the letters of texts aside; on the disk, one that repeats the last takes nothing."""


def schema_of(path: Path) -> dict[str, Any]:
    """The types of a file's columns, by name. Raises BadFile for what is no file, else whatever polars does."""
    import polars as pl

    with opened(path):  # of a folder polars would read what is in it, and wait for a pipe
        pass
    return dict(pl.scan_parquet(path, glob=False).collect_schema())


def rows_of(path: Path) -> int:
    """How many rows a file has, by its own account. Raises whatever polars does."""
    import polars as pl

    return pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()


def column_of(path: Path, name: str) -> pl.Series:
    """One column, whole. Raises BadFile where it does not fit into memory, else whatever polars does."""
    import polars as pl

    require_memory(path, rows_of(path) * _BYTES_A_ROW)
    return pl.read_parquet(path, columns=[name], glob=False)[name]


def rows_between(path: Path, expression: pl.Expr, first: int, count: int) -> list[Any]:
    """What an expression gives for some rows, from the given one on. Raises whatever polars does."""
    import polars as pl

    return (
        pl.scan_parquet(path, glob=False).slice(first, count).select(expression.alias("it")).collect()["it"].to_list()
    )
