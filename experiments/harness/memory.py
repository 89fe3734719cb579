"""How much memory there is, so that a run that can't fit is refused before it starts."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from envs.memory import host_bytes
from experiments.harness.errors import UserError


def bytes_of(tree: Any) -> int:
    """Memory that the arrays of a pytree take, or the shapes that `jax.eval_shape` gave."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available_bytes(device: jax.Device | None) -> int | None:
    """Memory that arrays on this device, or on the host (None), may still take; None where nobody tells."""
    if device is None or device.platform == "cpu":
        return host_bytes()
    statistics = device.memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return None


def require_memory(parts: Mapping[str, int], device: jax.Device | None, remedy: str | Callable[[int], str]) -> str:
    """A line that says what each part needs, in bytes, and what there is.

    Args:
        parts: the bytes of each.
        device: where they must fit; None: in the host's memory.
        remedy: what is said if they do not; or a function that says it, of the bytes that there are.

    Raises:
        UserError: all together do not fit; with the remedy.
    """
    each, needed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items()), sum(parts.values())
    available, device = available_bytes(device), device or "the host"
    if available is not None and needed > available:
        there = f"{needed / 1e9:.2f} GB on {device}, and {available / 1e9:.2f} GB are free there"
        said = remedy if isinstance(remedy, str) else remedy(available)
        raise UserError(f"{each}: they need {there}; {said}")
    free = "" if available is None else f", of {available / 1e9:.2f} GB free"
    return f"memory: {each}{free} on {device}"
