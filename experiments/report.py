"""Draw finished and running runs into one HTML file: performance, weight norms, effective learning rates."""

import dataclasses
from pathlib import Path
from typing import Annotated

from experiments import harness


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw, and where to."""

    runs: tuple[Path, ...]
    """Run folders, or folders that hold some: runs/atari."""
    out: Path | None = None
    """The HTML file; by default report.html in the folder that holds all the runs."""
    figure: Path | None = None
    """Also write this PNG: performance, weight norms and effective learning rates side by side."""
    figures: Path | None = None
    """Also write every figure into this folder: as PNG, as PDF and, in numbers, as CSV."""


def main(argv: list[str]) -> int:
    """Writes the report and prints its path; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def _main(argv: list[str]) -> None:
    import tyro

    positional = Annotated[Options, tyro.conf.PositionalRequiredArgs]
    options = harness.parse_options(positional, argv, name="report", description=__doc__)
    # matplotlib and polars: not for --help
    from experiments.harness.report import write_figure, write_figures, write_report

    if options.out is not None and options.out.suffix not in (".html", ".htm"):
        raise harness.UserError(
            f"--out {options.out}: the report is an .html file; --figure and --figures write pictures"
        )
    if options.out is not None and options.out.is_dir():
        raise harness.UserError(f"--out {options.out}: it is a folder; try {options.out / 'report.html'}")
    print(write_report(options.runs, options.out))
    if options.figure is not None:
        print(write_figure(options.runs, options.figure))
    if options.figures is not None:
        for path in write_figures(options.runs, options.figures):
            print(path)
