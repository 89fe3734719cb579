"""Which data sets are on this machine, and how to get the others."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
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
    """The folder to look for images in, or to download to; by default $NAP_DATA, Debian's, and installed packages."""


def main(argv: list[str]) -> int:
    """Prints a table; returns the exit code."""
    return harness.exit_code_of(lambda: run(harness.parse_options(Options, argv, name="datasets", description=__doc__)))


def run(options: Options) -> None:
    """Downloads what is asked for, then shows what is there."""
    from envs.datasets import load
    from nap.tables import format_table

    if options.download is not None:
        try:
            load(options.download, root=options.root, download=True)
        except ValueError as error:
            raise harness.UserError(f"--download {options.download}: {error}") from None
    entries = [*_images(options.root), *_texts()]
    print(format_table(["data set", "examples", "each", ""], [row for row in entries if not isinstance(row, str)]))
    if missing := [line for line in entries if isinstance(line, str)]:
        print("\nNot here:", *missing, sep="\n  ")


def _images(root: Path | None) -> Iterator[list[str] | str]:
    """A row for each set that is here, a line for each that is not."""
    from envs.datasets import load
    from envs.loaders.image_files import find_images

    for name in NAMES:
        try:
            found = load(name, root=root)
        except ValueError as wrong:  # missing, or damaged
            yield _why(name, wrong)
            continue
        shape = "×".join(map(str, found.images.shape[1:]))
        yield [name, f"{len(found.images):,} + {len(found.test_images):,}", shape, f"{found.classes} classes"]
    try:
        train, held_out = find_images(root)
        yield ["imagenet", "not counted", "JPEG", f"{train[0]} and {held_out[0]}"]
    except ValueError as wrong:  # missing, or damaged
        yield _why("imagenet", wrong)


def _texts() -> Iterator[list[str] | str]:
    from envs.loaders import FORMS, load_questions, load_text

    corpus = load_text()
    letters = sum(map(len, corpus.documents + corpus.held_out))
    counts = f"{len(corpus.documents):,} + {len(corpus.held_out):,}"
    yield ["stdlib", counts, "file", f"{letters / 1e6:.1f} million letters: the sources of Python's library"]
    if importlib.util.find_spec("datasets") is not None:
        yield ["c4", "not counted", "text", "the Hugging Face Hub streams it"]
    else:
        yield "c4: it is streamed: `pip install datasets`, or the extra data"
    for name in FORMS:
        try:
            questions = load_questions(name)
            yield [name, f"{len(questions):,}", "question", f"choices: {len(questions[0].choices)}"]
        except ValueError as wrong:  # missing, or damaged
            yield _why(name, wrong)


def _why(name: str, wrong: ValueError) -> str:
    return f"{name}: {str(wrong).removeprefix(f'{name}: ')}"
