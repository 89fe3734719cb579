"""How much memory there is, so that a run that can't fit is refused before it starts."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from envs.memory import host_bytes
from experiments.harness.errors import UserError


def bytes_of(tree: Any) -> int:
    """Memory that the arrays of a pytree take, or the shapes that `jax.eval_shape` gave."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available_bytes(device: jax.Device) -> int | None:
    """Memory that arrays on this device may still take; None where nobody tells."""
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    if device.platform == "cpu":
        return host_bytes()
    return None


def require_memory(parts: Mapping[str, int], device: jax.Device, remedy: str) -> str:
    """A line that says what each part needs, in bytes, and what there is.

    Raises:
        UserError: all together do not fit; with the remedy.
    """
    each, needed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items()), sum(parts.values())
    available = available_bytes(device)
    if available is not None and needed > available:
        there = f"{needed / 1e9:.2f} GB on {device}, and {available / 1e9:.2f} GB are free there"
        raise UserError(f"{each}: they need {there}; {remedy}")
    free = "" if available is None else f", of {available / 1e9:.2f} GB free"
    return f"memory: {each}{free} on {device}"
