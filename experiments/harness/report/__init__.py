"""Reports: one self-contained HTML file about some runs, and its figures as files."""

from experiments.harness.drawing import import_matplotlib

import_matplotlib()  # before a module of this package does

from experiments.harness.report.document import write_figure, write_figures, write_report  # noqa: E402

__all__ = ["write_figure", "write_figures", "write_report"]
