"""The learning-rate schedules of `nap.schedules`: what each does and where it is from; --plot draws them all."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from experiments import harness
from experiments.harness.bounds import read_if
from experiments.harness.drawing import plain_style

if TYPE_CHECKING:
    import optax

STEPS = 1000
"""Updates in the run that is drawn."""
_COLUMNS, _WIDTH, _HEIGHT = 7, 10.8, 1.72  # of the picture: panels in a row, inches, inches a row
_DPI = 130
_TITLE = "nap.schedules over a run. Orange: variants, branches, and the norms that refinement reads"


@dataclasses.dataclass(frozen=True)
class Options:
    """Whether to draw, and where to."""

    plot: bool = False
    """Draw all schedules into one picture."""
    out: Annotated[Path, read_if(lambda options: options.plot, "--plot")] = Path("schedules.png")
    """The picture: a file that ends in .png, .pdf or .svg."""


class Entry(NamedTuple):
    """A schedule, or a profile over one run.

    Attributes:
        name: in `nap.schedules`, or in `nap.schedules.profiles`.
        words: what it does, z being progress from 0 to 1.
        source: the paper.
        curves: drawn over `STEPS` updates with a peak of 1; branches or variants follow the first.
    """

    name: str
    words: str
    source: str
    curves: tuple[optax.Schedule, ...]


def main(argv: list[str]) -> int:
    """Prints the list, draws it if asked to; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def gallery() -> list[Entry]:
    """All profiles and schedules, with their defaults as far as they can be seen over so many updates."""
    import numpy as np

    from nap import schedules
    from nap.schedules import profiles
    from nap.schedules.profiles import Profile

    def once(profile: Profile) -> tuple[optax.Schedule]:
        return (schedules.follow(1.0, STEPS, profile),)

    warmup, tasks = STEPS // 20, (200, 500, 300)
    endless = schedules.infinite(1.0, STEPS // 2, warmup=warmup)
    annealing = profiles.exponential(0.1 / 0.55)
    rise = (profiles.warmup(), warmup)
    trunk = schedules.phases(1.0, [rise, (profiles.constant(), STEPS)])
    norms = 1 + 3 * np.exp(-np.linspace(0, 20, STEPS)) + 2 * np.linspace(0, 1, STEPS) ** 8
    refined, by_bound, logged = (
        once(profiles.table(values))
        for values in (schedules.refine(norms), schedules.refine_by_bound(norms), norms / norms.max())
    )
    return [
        Entry("constant", "1", "–", (schedules.constant(1.0),)),
        Entry("linear", "1 − z", "–", (schedules.linear(1.0, STEPS),)),
        Entry("cosine", "(1 + cos πz) / 2", "Loshchilov & Hutter 2017", (schedules.cosine(1.0, STEPS),)),
        Entry("rex", "(1 − z) / (1 − z/2)", "Chen et al. 2022", (schedules.rex(1.0, STEPS),)),
        Entry("polynomial", "(1 − z)²", "–", once(profiles.polynomial())),
        Entry("one_minus_sqrt", "1 − √z", "Hägele et al. 2024", once(profiles.one_minus_sqrt())),
        Entry("exponential", "0.1^z", "–", once(profiles.exponential())),
        Entry("reciprocal", "1 / (1 + 9z)", "Wen et al. 2024", once(profiles.reciprocal())),
        Entry("inverse_sqrt", "warm-up, then √(warm-up / update); as a profile, to 0",
              "Vaswani et al. 2017, Ibrahim et al. 2024",
              (schedules.inverse_sqrt(1.0, warmup), *once(profiles.inverse_sqrt()))),
        Entry("step", "a tenth at 30, 60 and 90 %", "–", (schedules.step(1.0, STEPS),)),
        Entry("one_cycle", "up, down, and far down", "Smith & Topin 2017",
              (schedules.one_cycle(1.0, STEPS),)),
        Entry("table", "any multipliers, and lines between them", "–", once(profiles.table([0.7, 1, 0.8, 0.2, 0.1]))),
        Entry("follow", "a profile, read at every update or rarely: rex 5 times, cosine at 50 and 75 %",
              "Chen et al. 2022",
              (schedules.follow(1.0, STEPS, profiles.rex(), readings=5),
               schedules.follow(1.0, STEPS, profiles.cosine(), readings=(0.5, 0.75)))),
        Entry("phases", "profiles one after another: warm-up, constant, 1 − √z", "–",
              (schedules.phases(1.0, [rise, (profiles.constant(), STEPS // 2),
                                      (profiles.one_minus_sqrt(), STEPS // 2 - warmup)]),)),
        Entry("wsd", "warm-up, stable, exponential decay over the last 10 %", "MiniCPM, Hu et al. 2024",
              (schedules.wsd(1.0, STEPS, warmup=warmup),)),
        Entry("wsd_s", "decays before each budget, and straight back to the peak", "Wen et al. 2024",
              (schedules.wsd_s(1.0, [STEPS // 4, STEPS // 2, STEPS], warmup=warmup),)),
        Entry("wsdc", "warm-up, stable, decay, constant", "PLM, Deng et al. 2025",
              (schedules.wsdc(1.0, STEPS, warmup=warmup, tail=STEPS // 5),)),
        Entry("infinite", "warm-up, cooldown, constant; annealed on branches", "Singh et al. 2025",
              (endless, *(schedules.branch(endless, at, STEPS // 10, annealing) for at in (500, 750)))),
        Entry("stable_then_decay", "a constant trunk, then branches that decay", "OctoThinker, Wang et al. 2025",
              (schedules.stable_then_decay(1.0, STEPS * 10 // 11),)),
        Entry("branch", "leaves a schedule at an update: here twice", "–",
              (trunk, *(schedules.branch(trunk, at, STEPS // 8, profiles.linear()) for at in (333, 667)))),
        Entry("warmup_cosine", "warm-up, then cosine", "NaP, Lyle et al. 2024",
              (schedules.warmup_cosine(1.0, STEPS, warmup=warmup),)),
        Entry("restarted", "one schedule, again in every task: here warmup_cosine", "NaP, Lyle et al. 2024",
              (schedules.restarted(schedules.warmup_cosine(1.0, STEPS // 4, warmup=warmup // 2), STEPS // 4),)),
        Entry("consecutive", "a schedule for each task: here warmup_cosine", "–",
              (schedules.consecutive([schedules.warmup_cosine(1.0, n, warmup=n // 10) for n in tasks], tasks),)),
        Entry("cosine_restarts", "cosine in every cycle, here each twice as long", "SGDR, Loshchilov & Hutter 2017",
              (schedules.cosine_restarts(1.0, [STEPS // 7, STEPS * 2 // 7, STEPS * 4 // 7]),)),
        Entry("rewarmed", "warm-up and cosine to a tenth, again in every stage", "Ibrahim et al. 2024",
              (schedules.rewarmed(1.0, [STEPS // 2, STEPS // 4, STEPS // 4], warmup=warmup // 2),)),
        Entry("slow_start_fast_decay", "up over 4 of 10 epochs, × 0.4 in each later one", "Jeddi et al. 2020",
              (schedules.slow_start_fast_decay(1.0, STEPS),)),
        Entry("refine", "what a finished run's gradient norms ask for", "Defazio et al. 2023",
              (*refined, *logged)),
        Entry("refine_by_bound", "the same, where the paper's bound is least", "Defazio et al. 2023",
              (*by_bound, *logged)),
    ]  # fmt: skip


@plain_style()
def draw(entries: list[Entry], path: Path) -> None:
    """One picture, a panel a schedule; what follows the first curve of an entry is drawn lighter and behind it."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.arange(STEPS + 1)
    rows = -(-len(entries) // _COLUMNS)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True).flat
    for axes, entry in zip(panels, entries, strict=False):
        for schedule in entry.curves[1:]:
            axes.plot(counts / STEPS, schedule(counts), color="#E69F00", linewidth=1.3)
        axes.plot(counts / STEPS, entry.curves[0](counts), color="#0072B2", linewidth=1.7)
        words = "\n".join(textwrap.wrap(entry.words, 30))
        axes.set_title(entry.name, fontsize=7.5, loc="left", fontweight="bold")
        axes.set_xlabel(words, fontsize=6.2, color="#444")
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=6.5, colors="#333")
        axes.set(xlim=(0, 1), ylim=(0, 1.08), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    for unused in list(figure.axes)[len(entries) :]:
        unused.set_axis_off()
    figure.supylabel("multiplier of the peak", fontsize=9)
    figure.suptitle(_TITLE, fontsize=9)
    figure.savefig(path, dpi=_DPI)


def _main(argv: list[str]) -> None:
    options = harness.parse_options(Options, argv, name="schedules", description=__doc__)
    if options.out.suffix not in (".png", ".pdf", ".svg"):
        raise harness.UserError(f"--out {options.out}: a file that ends in .png, .pdf or .svg; try {options.out}.png")
    if options.plot and not options.out.parent.is_dir():
        raise harness.UserError(f"--out {options.out}: there is no folder {options.out.parent}")
    from nap.tables import format_table

    entries = gallery()
    print(format_table(["name", "what it does", "source"], [entry[:3] for entry in entries]))
    if options.plot:
        try:
            draw(entries, options.out)
        except OSError as error:
            raise harness.UserError(f"--out {options.out}: {error.strerror}") from None
        print(options.out)
