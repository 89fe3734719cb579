"""What arguments are checked for. Of numbers what is known beforehand; what JAX traces is taken as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Number = int | float | np.number | np.ndarray | Array
"""A number or an array of them, traced or not."""
LARGEST_COUNT = 2**31 - 1  # optimizers count their updates in int32


def is_known(value: Number) -> bool:
    """Whether a number can be looked at now; under `jit` and `vmap` it may not."""
    return not isinstance(value, jax.core.Tracer)


def require(what: str, holds: Callable[[np.ndarray], np.ndarray], **values: Number) -> None:
    """Raise a ValueError that says `<name> must be <what>` for the first known value of which `holds` does not."""
    for name, value in values.items():
        if is_known(value) and not np.all(holds(np.asarray(value))):
            raise ValueError(f"{name} must be {what}, got {value}")


def positive(**values: Number) -> None:
    """Require numbers above 0."""
    require("a finite number above 0", lambda value: (value > 0) & np.isfinite(value), **values)


def not_negative(**values: Number) -> None:
    """Require numbers of 0 or more."""
    require("a finite number of at least 0", lambda value: (value >= 0) & np.isfinite(value), **values)


def share(name: str, value: Number, explained: str = "") -> None:
    """Require a number in 0 to 1; `explained` says in the message what that means."""
    require(f"in 0 to 1{explained}", lambda value: (value >= 0) & (value <= 1), **{name: value})


def updates(name: str, value: Number, least: int = 0) -> Any:
    """A number of updates, as an integer where it is known.

    Args:
      name: what the message calls it.
      value: a whole number; 1e5 is one.
      least: the smallest that makes sense.

    Returns:
      An int; or what was given, where it is traced.

    Raises:
      ValueError: it is an array with axes; or it is known, and not whole, below `least`, or above what an int32 holds.
    """
    if np.ndim(value):
        raise ValueError(f"{name} must be one number of updates, got an array of shape {np.shape(value)}")
    require(
        f"a whole number of updates from {least} to {LARGEST_COUNT:,}",
        lambda value: (value >= least) & (value <= LARGEST_COUNT) & (value == np.floor(value)),
        **{name: value},
    )
    return int(value) if is_known(value) else value


def updates_or_share(name: str, value: Number | None, part: float, steps: Any) -> Any:
    """The number of updates that is given, or where none is, `part` of the steps, rounded."""
    if value is not None:
        return updates(name, value)
    return round(part * steps) if isinstance(steps, int) else jnp.round(part * steps)


def rest(steps: Any, **taken: Any) -> Any:
    """What is left of the steps.

    Raises:
      ValueError: less than 0, as far as is known.
    """
    left = steps - sum(taken.values())
    if is_known(left) and np.any(np.asarray(left) < 0):
        raise ValueError(f"{' + '.join(taken)} is {sum(taken.values())} updates, more than the {steps} there are")
    return left


def places_in_run(name: str, at: Sequence[float]) -> tuple[float, ...]:
    """Increasing places in a run, as shares of it; ValueError where they are not."""
    places = tuple(at)
    if not all(0 < place < 1 for place in places) or sorted(set(places)) != list(places):
        raise ValueError(f"{name} must be increasing shares of the run between 0 and 1, got {places}")
    return places


def check_choice(argument: str, value: str, choices: Any) -> None:
    """ValueError, with the choices, unless the value is one of those of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
