"""Stacked layers: parameters of several layers, or members of an ensemble, as one array with a leading axis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from nap import paths
from nap.paths import Key


def stacked_axes(entries: Sequence[tuple[tuple[Key, ...], Any]], vectors: Collection[Key]) -> dict[str, int]:
    """Return how many leading axes of each leaf stack whole layers, by path.

    A subtree is stacked if all its arrays share their leading dimension and even its vectors have it; a normalization
    layer alone does not count, since its scale may have several axes. What has that axis alone is a number of each
    layer, like a slope.

    Args:
      entries: the leaves with their keys, as `paths.keys_and_leaves` returns them.
      vectors: what libraries call the vectors of a layer.
    """
    arrays = {keys: tuple(leaf.shape) for keys, leaf in entries if paths.is_weight_array(leaf)}
    depths = {paths.join(keys): 0 for keys, _ in entries}
    for subtree in {keys[:i] for keys in arrays for i in range(len(keys))}:
        inside = {keys: shape for keys, shape in arrays.items() if keys[: len(subtree)] == subtree}
        depth = 0
        while (
            all(len(shape) > depth + (keys[-1] in vectors) for keys, shape in inside.items())
            and len({shape[depth] for shape in inside.values()}) == 1
            and any(keys[-1] in vectors for keys in inside)
            and any(len(shape) > depth + 2 and keys[-1] not in vectors for keys, shape in inside.items())
        ):
            depth += 1
        for keys in inside:
            depths[paths.join(keys)] = max(depths[paths.join(keys)], depth)
    return depths
