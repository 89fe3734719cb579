"""Matplotlib as it comes: untouched by a notebook's backend, a matplotlibrc, or what it takes for mathematics."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType


def import_matplotlib() -> ModuleType:
    """Matplotlib; to be called before any other import of it.

    Figures are written to files here, which takes no backend. One that MPLBACKEND names, as notebooks do for the
    processes that they start, would have to be installed for the import to succeed.
    """
    asked = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl  # here, so that listing the experiments does not pay for it
    finally:
        if asked is not None:
            os.environ["MPLBACKEND"] = asked
    return mpl


@contextlib.contextmanager
def plain_style() -> Iterator[None]:
    """What is drawn and written within it has Matplotlib's own defaults, and its texts as they are typed.

    Without that, `$` in a text begins a formula: the name of a file could not be drawn, or not as it is.
    """
    matplotlib = import_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(defaults | {"text.parse_math": False}):
        yield
