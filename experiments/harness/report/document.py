"""The report on some runs, whatever experiments they are of, and its figures as files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from experiments.harness.errors import UserError
from experiments.harness.identity import folder_name
from experiments.harness.read import LoadedRun, common_folder, load_runs
from experiments.harness.report import atari, page, plasticity, sequences, supervised
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import save, write
from experiments.harness.storage import write_atomically

# By experiment; all others are reported on as Atari runs are.
_KINDS: dict[str, ModuleType] = {
    "plasticity": plasticity,
    "sequential-atari": sequences,
    **dict.fromkeys(("images", "language"), supervised),
}


def write_report(paths: Iterable[Path], output: Path | None = None) -> Path:
    """Writes the report on all runs under some folders, with a part for each kind of experiment.

    Args:
        paths: run folders, or folders that hold some.
        output: the HTML file; by default `report.html` in the folder that holds all the runs.

    Returns:
        The file. It needs no other file and no network: pictures are inside, as SVG.

    Raises:
        UserError: there is no run, none with a record, or a damaged one.
    """
    runs = load_runs(paths)
    output = output or common_folder(runs) / "report.html"
    for path in (output, output.with_name(f"{output.name}.draft")):  # the latter is written first
        if path.is_dir():
            raise UserError(f"the report can't be written to {output}: {path} is a folder; give another --out")
    parts = list(_by_kind(runs))
    titles = [kind.title(of_kind) for kind, of_kind in parts]
    content: list[str] = []
    for title, (kind, of_kind) in zip(titles, parts, strict=True):
        content += [f"<h1>{page.text(title)}</h1>", *kind.sections(of_kind)]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page.page("; ".join(titles), content))
    return output


def write_figure(paths: Iterable[Path], output: Path) -> Path:
    """Writes the overview as one PNG: performance, weight norms and effective learning rates together.

    Raises:
        UserError: as `write_report`, or runs of different kinds.
    """
    parts = list(_by_kind(load_runs(paths)))
    if len(parts) > 1:
        names = sorted({run.experiment for _, runs in parts for run in runs})
        raise UserError(f"--figure shows one kind of experiment, and these runs are of {page.listed(names)}: name one")
    (kind, runs) = parts[0]
    output.parent.mkdir(parents=True, exist_ok=True)
    save(kind.overview(runs), palette(kind.labels(runs)), output, "png")
    return output


def write_figures(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Writes each figure of the report as PNG, as PDF and, in numbers, as CSV; returns their paths.

    Raises:
        UserError: as `write_report`.
    """
    written: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for kind, runs in _by_kind(load_runs(paths)):
        looks = palette(kind.labels(runs))
        for problem, plot in kind.plots(runs):
            written += write(plot, looks, folder / folder_name(problem, plot.name))
    return written


def _by_kind(runs: Sequence[LoadedRun]) -> Iterator[tuple[ModuleType, list[LoadedRun]]]:
    kinds = dict.fromkeys(_KINDS.get(run.experiment, atari) for run in runs)
    for kind in kinds:
        yield kind, [run for run in runs if _KINDS.get(run.experiment, atari) is kind]
