"""What a paper says must appear, beside what did: the table that a study ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from experiments.harness.statistics import Interval, caution
from nap.tables import format_table


class Claim(NamedTuple):
    """One thing that must appear.

    Attributes:
        must: what must appear, in words.
        came_out: the number that did, with its interval.
        holds: "yes", "no", or "open": the interval leaves both, or has no width, as one run says nothing of the spread.
    """

    must: str
    came_out: str
    holds: str


def claims_table(claims: Sequence[Claim], seeds: int) -> str:
    """The claims under their heading, a line each, and how far to trust intervals over so many seeds."""
    table = f"What must appear, and what did.\n{format_table(['must appear', 'came out', 'does it'], claims)}"
    return f"{table}\n{caution(seeds)}".rstrip()


def above(must: str, interval: Interval, bound: float = 0.0) -> Claim:
    """The claim that a number is above a bound; it is open where the interval has the bound inside."""
    return Claim(must, told(interval, "+" if bound == 0 else ""), _holds(interval, bound, float("inf")))


def near(must: str, interval: Interval, value: float, within: float) -> Claim:
    """The claim that a number is a value, up to a share of it; open where the interval lies across an edge."""
    return Claim(must, told(interval), _holds(interval, value * (1 - within), value * (1 + within)))


def _holds(interval: Interval, low: float, high: float) -> str:
    """Whether the number lies between two others, as far as its interval tells."""
    if interval.low == interval.high:
        return "open"
    if low < interval.low and interval.high < high:
        return "yes"
    return "no" if interval.high <= low or interval.low >= high else "open"


def told(interval: Interval, sign: str = "") -> str:
    """A number with its interval: "0.52 [0.5, 0.55]"; with the sign "+", "+0.02 [-0.01, +0.05]"."""
    return f"{interval.value:{sign}.3g} [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]"
