"""Arguments that are several numbers: a sequence of them, or an array with one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from nap.checks import Number, is_known, places_in_run

Numbers = Sequence[Number] | np.ndarray | Array
"""Several numbers, each of which may be traced; an array has one axis."""


def listed(given: Any) -> Any:
    """Several numbers as a list; anything else as it is."""
    # In this order: NumPy's ndim makes an array of a sequence, and of traced numbers there is none.
    return list(given) if isinstance(given, Sequence) or np.ndim(given) == 1 else given


def one_for_each(name: str, what: str, given: Number | Numbers | None, count: int) -> list[Any]:
    """A number for each of so many: those that are given, or the single one again and again."""
    numbers = listed(given)
    if not isinstance(numbers, list):
        return [numbers] * count
    if len(numbers) != count:
        raise ValueError(f"{name} must be one number or one for each {what}, got {len(numbers)} for {count}")
    return numbers


def places(name: str, at: Numbers) -> tuple[Any, ...]:
    """Increasing places in a run, as shares of it; ValueError where those that are known are not."""
    given: tuple[Any, ...] = tuple(float(place) if is_known(place) else place for place in at)
    places_in_run(name, [place for place in given if is_known(place)])
    return given
