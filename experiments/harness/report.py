"""One HTML file about some runs that stands alone: what was run, how it went, and what to look at in each picture."""

import base64
import html
import io
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.harness import plots
from experiments.harness.curves import Curve, over_layers, telling_layers
from experiments.harness.identity import flatten
from experiments.harness.read import LoadedRun, common_folder, load_runs

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { margin-top: 2.5rem; border-bottom: 2px solid #ddd; }
h3 { margin: 2rem 0 .3rem; } figure { margin: 0 0 1rem; } img { width: 100%; height: auto; }
figcaption { color: #444; max-width: 52rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd; }
th { text-align: left; vertical-align: bottom; } td { white-space: nowrap; } tr.mean { font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f5f5f5; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; } summary { cursor: pointer; }
"""

_RETURNS = (
    "How well it plays. The return is the game's own score, summed over an episode; a point is the mean of the "
    "episodes that ended since the point before. While training, the agent explores, so its return is lower than in "
    "evaluation, where it plays by what it has learned, apart from training."
)
_NORMS = (
    "How large the weights are: each layer's Frobenius norm, divided by its value at the first record. <b>What to "
    "see:</b> without projection the norm drifts, mostly upwards, as the layer learns. With <i>nap</i> every projected "
    "layer is a flat line at 1, by construction. The output layer is projected under no method, so it may drift."
)
_ELR = (
    "How far one update turns a layer: ‖update‖ / ‖weights‖, on a logarithmic axis. For a normalized layer this, not "
    "the learning rate that was written, sets how fast its function changes. <b>What to see:</b> where the norm above "
    "grows, this falls, even under a constant learning rate: a schedule that nobody wrote. With <i>nap</i> the norm "
    "cannot do that; what still moves the line is the written learning rate and the size of the optimizer's own step."
)
_DORMANT = (
    "How many units have stopped answering: the share of a layer's units whose mean activity on a batch is at most τ "
    "times the layer's average (τ = 0: silent on the whole batch). The lines are means over seeds. <b>What to see:</b> "
    "a share that climbs means that the layer has fewer units left to learn with; near 0 is healthy."
)
_TRAINING = (
    "The loss at each record (logarithmic), and what was set by hand. In Q-learning the loss follows the size of the "
    "values, so it may well rise while the agent improves: compare methods by return, not by loss."
)
_SEEDS = "Thin lines are single seeds, thick lines their mean."
_ONE_SEED = (
    "There is one seed a method here, so a difference between two lines may be chance: only more seeds can tell."
)


def write_report(paths: Iterable[Path], output: Path | None = None) -> Path:
    """Writes the report on all runs under some folders.

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
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_document(runs), encoding="utf-8")
    return output


def write_figure(paths: Iterable[Path], output: Path) -> Path:
    """Writes one PNG with returns, weight norms and effective learning rates side by side; see `write_report`."""
    runs = load_runs(paths)
    figure = plots.overview_figure(runs, plots.palette(runs))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png", dpi=160)
    return output


def _document(runs: Sequence[LoadedRun]) -> str:
    title = _title(runs)
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_about(runs)}</p>",
        _commands(runs),
        _table(runs),
    ]
    games = sorted({run.game for run in runs})
    for game in games:
        of_game = [run for run in runs if run.game == game]
        if len(games) > 1:
            parts.append(f"<h2>{_text(_spoken(game))}</h2>")
        parts += _figures(of_game, plots.palette(runs))
    parts.append(_settings(runs))
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _figures(runs: Sequence[LoadedRun], colours: plots.Palette) -> list[str]:
    methods = {run.label for run in runs}
    seeds = _ONE_SEED if len(runs) == len(methods) else _SEEDS
    norms = plots.layers_figure(runs, colours, "weight_norm", "norm / norm at the start", from_start=True)
    rates = plots.layers_figure(runs, colours, "elr", "‖update‖ / ‖weights‖, per update", log=True)
    return [
        _figure("Returns", plots.returns_figure(runs, colours), f"{_RETURNS} {seeds}"),
        _figure("Weight norm, layer by layer", norms, _NORMS),
        _figure("Effective learning rate, layer by layer", rates, _ELR),
        _figure("Dormant units, layer by layer", plots.dormant_figure(runs, colours), _DORMANT),
        _figure("Loss and settings over time", plots.training_figure(runs, colours), _TRAINING),
    ]


def _figure(heading: str, figure: Figure | None, caption: str) -> str:
    if figure is None:
        return ""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<h3>{heading}</h3><figure><img alt='{heading}' src='data:image/svg+xml;base64,{data}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _title(runs: Sequence[LoadedRun]) -> str:
    games = ", ".join(dict.fromkeys(_spoken(run.game) for run in runs))
    methods = list(plots.palette(runs))
    return f"{games}: {_listed(methods)}" + " compared" * (len(methods) > 1)


def _about(runs: Sequence[LoadedRun]) -> str:
    """The opening paragraph: what was run, how far, on what."""
    first = runs[0]
    experiments = _listed(dict.fromkeys(run.about["experiment"] for run in runs))
    seeds = sorted({run.seed for run in runs})
    reached = sorted({run.reached for run in runs})
    spread = f"{reached[0]:,}" if len(reached) == 1 else f"{reached[0]:,} to {reached[-1]:,}"
    axis = plots.axis_words(first.axis)
    unfinished = sum(not run.done for run in runs)
    sentences = [
        f"{len(runs)} run{'s' * (len(runs) > 1)} of the experiment <b>{_text(experiments)}</b> on "
        f"{_text(_listed(dict.fromkeys(_spoken(run.game) for run in runs)))}",
        f"methods compared: <b>{_text(_listed(plots.palette(runs)))}</b>",
        f"seed{'s' * (len(seeds) > 1)} {_text(_listed(map(str, seeds)))}",
        f"{spread} {axis} a run",
    ]
    protocol = _protocol(first.config)
    if protocol:
        sentences.append(f"protocol {_text(protocol)}")
    text = "; ".join(sentences) + "."
    if unfinished:
        text += f" {unfinished} of them {'has' if unfinished == 1 else 'have'} not finished."
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run.about.get("versions", {}).items()) for run in runs
    )
    commits = dict.fromkeys(str(run.about.get("git_commit") or "no git commit") for run in runs)
    return f"{text} Software: {_text('; or '.join(versions))}; code: {_text(', '.join(commits))}."


def _protocol(config: Mapping[str, Any]) -> str:
    protocol = config.get("protocol")
    if isinstance(protocol, Mapping):
        return str(protocol.get("name") or ", ".join(f"{name} {value}" for name, value in protocol.items()))
    return str(protocol) if protocol else ""


def _commands(runs: Sequence[LoadedRun]) -> str:
    commands = dict.fromkeys(str(run.about.get("command", "")) for run in runs)
    return f"<p>Made by:</p><pre>{_text(chr(10).join(commands))}</pre>"


def _table(runs: Sequence[LoadedRun]) -> str:
    axis = runs[0].axis
    columns = ["game", "method", "seed", plots.axis_words(axis), "updates", "training return", "evaluation return"]
    columns += ["human-normalized", "weight norm", "effective learning rate", "state"]
    head = "".join(f"<th{_number(column)}>{column}</th>" for column in columns)
    layers = {game: telling_layers([run for run in runs if run.game == game]) for game in {run.game for run in runs}}
    body = ""
    for (game, _), group in itertools.groupby(runs, key=lambda run: (run.game, run.label)):
        of_method = list(group)
        body += "".join(_row(columns, _cells(run, layers[game])) for run in of_method)
        if len(of_method) > 1:
            body += _row(columns, _mean_cells(of_method), " class='mean'")
    return (
        "<h3>Summary</h3><div class='scroll'><table><tr>" + head + "</tr>" + body + "</table></div>"
        "<p>Returns are the last ones recorded (mean ± standard deviation over seeds). Human-normalized: the last "
        "evaluation's, 0 % as a random player, 100 % as a human tester. Weight norm and effective learning rate: the "
        "last over the first, as a geometric mean over layers (those that NaP projects, where the runs show which).</p>"
    )


def _row(columns: Sequence[str], cells: Sequence[str], attributes: str = "") -> str:
    filled = (f"<td{_number(column)}>{_text(cell)}</td>" for column, cell in zip(columns, cells, strict=True))
    return f"<tr{attributes}>{''.join(filled)}</tr>"


def _cells(run: LoadedRun, layers: Sequence[str]) -> list[str]:
    human = run.last("eval/human_normalised")
    updates = run.last("updates")
    return [
        _spoken(run.game),
        run.label,
        str(run.seed),
        f"{run.reached:,}",
        "–" if updates is None else f"{updates:,.0f}",
        _short(run.last("train/return")),
        _short(run.last("eval/return")),
        "–" if human is None else f"{100 * human:.1f} %",
        _change(over_layers(run, "weight_norm", layers)),
        _change(over_layers(run, "elr", layers)),
        "finished" if run.done else "not finished",
    ]


def _mean_cells(runs: Sequence[LoadedRun]) -> list[str]:
    """The table's row for all seeds of one method."""
    human = [100 * value for run in runs if (value := run.last("eval/human_normalised")) is not None]
    returns = [_mean([run.last(f"{phase}/return") for run in runs]) for phase in ("train", "eval")]
    name = [_spoken(runs[0].game), runs[0].label, f"mean of {len(runs)}"]
    return [*name, "", "", *returns, f"{_mean(human)} %" if human else "–", "", "", ""]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return _short(known[0] if known else None)
    return f"{statistics.mean(known):.3g} ± {statistics.stdev(known):.2g}"


def _settings(runs: Sequence[LoadedRun]) -> str:
    """Every field of the configurations: one value where all runs agree, all values where they do not."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in flatten(run.config):
            values.setdefault(name, {})[str(value)] = None
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(', '.join(of))}</td></tr>" for name, of in values.items())
    return f"<details><summary>All settings of these runs</summary><table>{rows}</table></details>"


def _number(column: str) -> str:
    return "" if column in ("game", "method", "state") else " class='number'"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}"


def _change(curve: Curve) -> str:
    return f"× {curve[1][-1] / curve[1][0]:.3g}" if curve[1].size else "–"


def _spoken(game: str) -> str:
    return game.replace("_", " ").replace("-", " ").title()


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _text(value: str) -> str:
    return html.escape(value)
