"""The HTML of a report: pieces that all kinds of reports are made of."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.harness.identity import flatten
from experiments.harness.read import LoadedRun, method_order, option
from experiments.harness.report.looks import Palette
from experiments.harness.report.panels import Plot, save
from experiments.harness.statistics import Interval

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { margin-top: 2.5rem; border-bottom: 2px solid #ddd; }
h1, h2, h3, p { overflow-wrap: anywhere; }
h3 { margin: 2rem 0 .3rem; } figure { margin: 0 0 1rem; } img { width: 100%; min-width: 46rem; height: auto; }
figcaption, .note { color: #444; max-width: 52rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .25rem .45rem; border-bottom: 1px solid #ddd; }
th { text-align: left; vertical-align: bottom; } td { white-space: nowrap; } tr.mean { font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; } small { color: #555; }
pre { background: #f5f5f5; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; } summary { cursor: pointer; }
"""
_FEW_COMMANDS = 8
_FEW_SETTINGS = 6  # more that differ are folded away, too

Head = Sequence[tuple[str, bool]]  # the columns' names, and whether they hold numbers


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def figure(heading: str, plot: Plot | None, looks: Palette, caption: str) -> str:
    """A heading, the picture as SVG and its caption (HTML); nothing where there is no plot."""
    if plot is None:
        return ""
    buffer = io.BytesIO()
    save(plot, looks, buffer, "svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<h3>{text(heading)}</h3><figure><div class='scroll'>"
        f"<img alt='{text(heading)}' src='data:image/svg+xml;base64,{data}'></div>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(head: Head, rows: Iterable[str]) -> str:
    """A table that scrolls in its own box.

    Args:
        head: the columns.
        rows: as `row` makes them.
    """
    names = "".join(f"<th{_number(is_number)}>{text(name)}</th>" for name, is_number in head)
    return f"<div class='scroll'><table><tr>{names}</tr>{''.join(rows)}</table></div>"


def row(head: Head, cells: Sequence[str], attributes: str = "") -> str:
    """A row of a table; `cells` are HTML."""
    filled = (f"<td{_number(number)}>{cell}</td>" for (_, number), cell in zip(head, cells, strict=True))
    return f"<tr{attributes}>{''.join(filled)}</tr>"


def commands(runs: Sequence[LoadedRun]) -> str:
    """The commands that made the runs; folded where there are many."""
    lines = dict.fromkeys(str(run.about.get("command", "")) for run in runs)
    listing = f"<pre>{text(chr(10).join(lines))}</pre>"
    if len(lines) > _FEW_COMMANDS:
        return folded(f"Made by {len(lines)} commands", listing)
    return f"<p>Made by:</p>{listing}"


def folded(summary: str, content: str) -> str:
    """HTML that is shown when its summary, plain text, is clicked."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def settings(runs: Sequence[LoadedRun]) -> str:
    """Every field of the configurations: one value where all runs agree, all values where they do not."""
    rows = "".join(
        f"<tr><td>{text(name)}</td><td class='long'>{text(', '.join(of))}</td></tr>"
        for name, of in _values(runs).items()
    )
    return folded("All settings of these runs", f"<div class='scroll'><table>{rows}</table></div>")


def confounded(runs: Sequence[LoadedRun]) -> str:
    """A warning of the settings in which methods differ on the same problem without a label that says so; or ""."""
    found: dict[str, dict[str, list[str]]] = {}
    for problem in dict.fromkeys((run.experiment, run.problem) for run in runs):
        of_problem = [run for run in runs if (run.experiment, run.problem) == problem]
        methods = {run.method for run in of_problem}
        told = {"method", "seed", "seeds"} | {name for run in of_problem for name, _ in run.differences}
        for name, values in _values(of_problem).items():
            if name not in told and any(of != methods for of in values.values()):
                found[option(name)] = {value: sorted(of, key=method_order) for value, of in values.items()}
    return differences(found)


def differences(found: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """The settings in which methods differ, {setting: {value: methods}}, as a sentence; folded where there are many."""
    if not found:
        return ""
    each = [
        f"<b>{text(name)}</b> {text(', '.join(f'{value} for {listed(of)}' for value, of in values.items()))}"
        for name, values in found.items()
    ]
    told = f"<p>Beside the method, they differ in: {'; '.join(each)}.</p>"
    return folded(f"{len(found)} settings in which the methods differ", told) if len(found) > _FEW_SETTINGS else told


def _values(runs: Sequence[LoadedRun]) -> dict[str, dict[str, set[str]]]:
    """By setting and value the methods that have it."""
    values: dict[str, dict[str, set[str]]] = {}
    for run in {run.folder: run for run in runs}.values():
        for name, value in flatten(run.config):
            values.setdefault(name, {}).setdefault(str(value), set()).add(run.method)
    return values


def software(runs: Sequence[LoadedRun]) -> str:
    """The versions that the runs were made with, as plain text."""
    used = [of for run in runs for of in (run.about, *run.about.get("resumed", ()))]
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in of.get("versions", {}).items()) for of in used
    )
    commits = dict.fromkeys(str(of.get("git_commit") or "no git commit") for of in used)
    resumed = sum("resumed" in run.about for run in {run.folder: run for run in runs}.values())
    changed = f" {resumed} run{'s' * (resumed > 1)} went on with other software or code." if resumed else ""
    return f"Software: {'; or '.join(versions)}; code: {', '.join(commits)}.{changed}"


def unfinished(runs: Sequence[LoadedRun]) -> str:
    """Sentences on the runs that have not finished, those apart that have ended by diverging; "" if all have."""
    ended = {run.folder: run.diverged_at for run in runs if not run.done}
    lost = sorted(updates for updates in ended.values() if updates is not None)
    count = len(ended) - len(lost)
    told = f" {count} of them {'has' if count == 1 else 'have'} not finished." if count else ""
    if lost:
        told += f" {len(lost)} of them diverged, by update {listed(dict.fromkeys(f'{updates:,}' for updates in lost))}."
    return told


def diverged_by(runs: Sequence[LoadedRun]) -> str:
    """By which update all of some seeds had diverged, and their runs ended; "" where that is not so."""
    lost = [run.diverged_at for run in runs if run.diverged_at is not None]
    return f"diverged by update {max(lost):,}" if lost and len(lost) == len(runs) else ""


def spoken(name: str) -> str:
    """A name from a configuration as a title."""
    return name.replace("_", " ").replace("-", " ").title()


def listed(words: Iterable[Any]) -> str:
    """a, b and c."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def short(value: float | None, digits: int = 4) -> str:
    """A number with so many digits at least, without an exponent however large it is; "–" for None."""
    if value is None:
        return "–"
    return minus(f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#,.{digits}g}".rstrip("."))


def minus(number: str) -> str:
    """A written number with a true minus."""
    return number.replace("-", "−") if number.startswith("-") else number


def signed(number: str) -> str:
    """A written number with its sign; none for zero."""
    if not float(number):
        return number.removeprefix("-")
    return minus(number) if number.startswith("-") else f"+{number}"


def bracketed(interval: Interval | None, written: Callable[[float], str]) -> str:
    """value [low, high]; the value alone where nothing is known of its spread; "–" for None."""
    if interval is None:
        return "–"
    value, low, high = map(written, interval)
    return value if interval.low == interval.high else f"{value} [{low}, {high}]"


def bold_if_apart(interval: Interval | None, shown: str) -> str:
    """A difference as it is shown, bold (HTML) where its interval leaves 0 out."""
    apart = interval is not None and interval.low < interval.high and (interval.low > 0 or interval.high < 0)
    return f"<b>{shown}</b>" if apart else shown


def text(value: str) -> str:
    """Plain text as HTML."""
    return html.escape(value)


def _number(is_number: bool) -> str:
    return " class='number'" if is_number else ""
