"""Reports: one self-contained HTML file about some runs, and its figures as files."""

from experiments.harness.report.document import write_figure, write_figures, write_report

__all__ = ["write_figure", "write_figures", "write_report"]
