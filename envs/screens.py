"""What people see of a game: screens in colours, whatever the agent is shown of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

Screen = UInt8[np.ndarray, "height width 3"]

_SIDE = 200
"""Pixels that the longer side of a painted screen has at least half of: cells are whole pixels."""
_LEVELS = np.array([0, 128, 255])
_OF_LEVELS = np.array([[18, 22, 38], [64, 140, 170], [255, 208, 96]])
"""Night, sea and sand: what is nowhere, what is there, and what moves or is steered, in most of the games."""
_OF_PLANES = np.array(
    [
        [255, 208, 96], [64, 140, 170], [220, 90, 90], [120, 190, 110], [170, 130, 210],
        [240, 150, 70], [120, 200, 210], [230, 140, 180], [160, 160, 160], [190, 190, 90],
    ]
)  # fmt: skip


class View(NamedTuple):
    """What is to be seen of an environment.

    Attributes:
        now: its screen after the last step; the first of a new episode where that ended one.
        ended: the last screen of the episode that the last step ended; None where it ended none.
    """

    now: Screen
    ended: Screen | None


def paint(frame: UInt8[np.ndarray, "*planes rows columns"]) -> Screen:
    """A frame of a game in JAX, in colours and large enough to be seen.

    Grey levels have a colour each. Where a frame has planes each plane has one, the later ones over the earlier ones.
    """
    if frame.ndim == 2:
        small = np.stack([np.interp(frame, _LEVELS, channel) for channel in _OF_LEVELS.T], axis=-1)
    else:
        small = np.full((*frame.shape[1:], 3), _OF_LEVELS[0], float)
        for number, plane in enumerate(frame):
            small[plane > 0] = _OF_PLANES[number % len(_OF_PLANES)]
    cell = max(1, _SIDE // max(small.shape[:2]))
    return np.rint(small).astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
