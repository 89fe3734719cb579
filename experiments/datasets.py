"""Which data sets are on this machine, and how to get the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from experiments import harness

NAMES = ("fashion-mnist", "mnist", "digits", "cifar10", "cifar100")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to fetch, if anything."""

    download: Literal["fashion-mnist"] | None = None
    """Fetch this one (31 MB, its checksums are compared) into $NAP_DATA, or into --root."""
    root: Path | None = None
    """The folder to look in, or to download to; by default $NAP_DATA, Debian's, and the installed packages."""


def main(argv: list[str]) -> int:
    """Prints a table; returns the exit code."""
    return harness.exit_code_of(lambda: run(harness.parse_options(Options, argv, name="datasets", description=__doc__)))


def run(options: Options) -> None:
    """Downloads what is asked for, then shows what is there."""
    from envs.datasets import DatasetMissing, load
    from nap.tables import format_table

    if options.download is not None:
        try:
            load(options.download, root=options.root, download=True)
        except ValueError as error:
            raise harness.UserError(f"--download {options.download}: {error}") from None
    rows = []
    for name in NAMES:
        try:
            found = load(name, root=options.root)
        except DatasetMissing as missing:
            rows.append([name, "–", "", str(missing).removeprefix(f"{name}: ")])
            continue
        shape = "×".join(map(str, found.images.shape[1:]))
        rows.append([name, f"{len(found.images):,} + {len(found.test_images):,}", shape, f"{found.classes} classes"])
    print(format_table(["data set", "images", "size", ""], rows))
