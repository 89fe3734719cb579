"""What a method looks like in every figure of a report: its colour, its line style and its words in the legend."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from experiments.harness.read import split_method

Style = Literal["-", "--", "-.", ":"]

# Okabe and Ito's colours. The three methods that most reports compare have the three that differ most to colour-blind
# readers, of every kind (in simulation); what they are joined with takes the rest in alphabetical order.
_BASE_COLOURS = {"none": "#111111", "layernorm": "#E69F00", "rmsnorm": "#8C564B", "nap": "#0072B2"}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A4FBF", "#A6761D", "#7F7F7F", "#B2182B", "#66A61E")
_BASE_STYLES: Mapping[str, Style] = {"none": "--", "layernorm": "-.", "rmsnorm": ":", "nap": "-"}
_MARKERS = ("", "o", "s", "^", "D")
_MEANINGS = {
    "none": "none: the network as published",
    "layernorm": "layernorm: normalized, weights free",
    "nap": "nap: normalized and projected",
}
_FEW_METHODS = 4  # so few leave the legend space for what they mean


class Look(NamedTuple):
    """How a method's lines are drawn, as Matplotlib's words."""

    colour: str
    style: Style
    marker: str


Palette = Mapping[str, Look]


def palette(labels: Iterable[str]) -> Palette:
    """A look for each method of a report.

    A base ("nap") has a colour of its own and a solid line, also with settings behind it ("nap (schedule linear)") if
    it has no others. Of joined methods the colour tells what is joined ("redo"), the line its base: solid with nap,
    dashed on the plain network.

    Args:
        labels: the runs' labels, in the order of the legend; one may come many times.
    """
    parts = {label: split_method(label) for label in labels}
    bare = [base for base, rest in parts.values() if rest[:1] in ("", "(")]
    parts = {
        label: (base, "" if rest[:1] == "(" and bare.count(base) == 1 else rest)
        for label, (base, rest) in parts.items()
    }
    rests = sorted({rest for _, rest in parts.values() if rest})
    looks = {}
    for label, (base, rest) in parts.items():
        if rest:
            turn, number = divmod(rests.index(rest), len(_OTHER_COLOURS))
            looks[label] = Look(_OTHER_COLOURS[number], _BASE_STYLES[base], _MARKERS[turn % len(_MARKERS)])
        else:
            looks[label] = Look(_BASE_COLOURS[base], "-", "")
    return looks


def meaning(label: str, methods: int) -> str:
    """A method's words in a legend of so many methods."""
    return _MEANINGS.get(label, label) if methods <= _FEW_METHODS else label
