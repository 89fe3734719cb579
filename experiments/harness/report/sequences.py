"""The part of a report that is on sequences of games: are later ones learned as well as by a fresh agent?"""

from collections.abc import Mapping, Sequence

from experiments.harness.read import LoadedRun, method_order
from experiments.harness.report import sequences_figures as figures
from experiments.harness.report import sequences_tables as tables
from experiments.harness.report.looks import Palette, palette
from experiments.harness.report.page import (
    commands,
    differences,
    figure,
    folded,
    listed,
    settings,
    software,
    text,
    unfinished,
)
from experiments.harness.report.panels import Plot
from experiments.harness.report.sequences_scores import Scores
from experiments.harness.report.sequences_studies import Method, Study, differing, make_studies
from experiments.harness.statistics import RESAMPLES, caution

_SCORES = (
    "How well it plays, with learning off, the task that is being learned; vertical lines are switches. The dotted "
    "level is what a fresh agent of the same method comes to on that task alone, with as many frames. <b>What to "
    "see:</b> an agent that stays plastic comes to the dotted level in the last visits as in the first."
)
_VISITS = (
    "The same in one number a visit: the score at its end less a fresh agent's, seed by seed. <b>What to see:</b> at 0 "
    "what was learned before is no help and no harm; a line that falls from visit to visit is an agent that loses its "
    "plasticity. The first visit of all is a fresh agent itself."
)
_TASKS = (
    "Each task's visits beside a fresh agent that is trained on it alone, as raw scores. <b>What to see:</b> a curve "
    "that rises earlier than a fresh agent's is helped by what came before; one that rises later or ends lower is "
    "hindered."
)
_WEIGHTS = (
    "What the whole sequence does to the weights. <b>Weight norm</b>: over its first record; with <i>nap</i> it is a "
    "level line, by construction. <b>Effective learning rate</b>: how far one update turns the weights, logarithmic; "
    "where the norm grows this falls from task to task, whatever <b>learning rate</b> is written below it. <b>Dormant "
    "units</b>: the share of units whose mean activity on a batch is at most 0.025 times their layer's average, as a "
    "mean over layers; one that climbs from task to task leaves fewer units to learn with. Norm and rate are geometric "
    "means over the layers that NaP projects, where the runs show which."
)
_TRAINING = (
    "The loss at each record (logarithmic), and the exploration that was set. Losses of different tasks, and of "
    "different methods, are not on one scale: look for jumps that do not heal."
)
_LAYER_NORMS = "The norms above, layer by layer; the output layer is projected under no method, so it may drift."
_LAYER_RATES = "The effective learning rates above, layer by layer, on a logarithmic axis."
_LAYER_DORMANT = "The dormant units above, layer by layer."
_SHADING = "Lines are means over seeds; the shading is a pointwise 95 % bootstrap interval of that mean over seeds."
_ONE_SEED = (
    "There is one seed a method, so there is no interval, and a difference between two lines may be chance: only more "
    "seeds can tell."
)
_MANY_TASKS = 20  # more are listed folded
_BRACKETS = (
    ", with 95 % bootstrap intervals over seeds; bold where the interval of the difference to the fresh agent, seed by "
    "seed, leaves 0 out"
)
_AT_A_SWITCH: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "replay": ("experience of earlier tasks", {"clear": "thrown away", "keep": "kept until it is written over"}),
    "moments": ("the optimizer's moments", {"keep": "kept", "reset": "reset"}),
    "target": ("the target network", {"copy": "a copy of the online one", "keep": "kept"}),
    "exploration": ("exploration", {"restart": "restarted", "go-on": "goes on over the run"}),
    "rate": ("the learning-rate schedule", {"restart": "restarted", "go-on": "stretched over the run"}),
    "importance": ("the importance exponent", {"restart": "rises anew", "go-on": "rises once over the run"}),
    "head": ("the output layer", {"shared": "shared by all tasks", "own": "one for each task"}),
    "protocol": ("observations and actions", {"machado": "one protocol for all, machado", "dqn-zoo": "one, dqn-zoo"}),
    "reward": ("rewards", {"clipped": "all clipped to -1 to 1", "raw": "as they are"}),
}


def title(runs: Sequence[LoadedRun]) -> str:
    """What the runs are."""
    names = [study.name for study in make_studies(runs) if study.sequence.visits]
    methods = labels(runs)
    told = listed(methods) if len(methods) <= 6 else f"{len(methods)} methods"
    what = f"A sequence of {names[0]}" if len(names) == 1 else f"{len(names)} sequences" if names else "Fresh agents"
    return f"{what}: {told}" + " compared" * (len(methods) > 1)


def labels(runs: Sequence[LoadedRun]) -> list[str]:
    """The methods, in the legend's order."""
    found = {method.label for study in make_studies(runs) for method in study.methods}
    return sorted(found, key=method_order)


def sections(runs: Sequence[LoadedRun]) -> list[str]:
    """The HTML below the title: what was run; of each sequence tables and figures; what the numbers are."""
    studies = make_studies(runs)
    looks = palette(labels(runs))
    seeds = sorted({run.seed for run in runs})
    told = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1 else listed(seeds)
    parts = [
        f"<p>{_counts(studies)} of the experiment <b>{text(runs[0].experiment)}</b>; seed{'s' * (len(seeds) > 1)} "
        f"{text(told)}; methods: <b>{text(listed(labels(runs)))}</b>.{unfinished(runs)}</p>",
        commands(runs),
        f"<p>{text(software(runs))}</p>",
    ]
    for study in studies:
        parts += [
            f"<h2>{text(study.name.capitalize())}</h2>" if len(studies) > 1 else "",
            *_study(Scores(study), looks),
        ]
    return [*parts, _definitions(), settings(runs)]


def plots(runs: Sequence[LoadedRun]) -> list[tuple[str, Plot]]:
    """All figures, each with its sequence's name where there are several."""
    studies = make_studies(runs)
    named = [(study, plot) for study in studies for plot, _ in _plots(Scores(study)).values()]
    return [(study.name if len(studies) > 1 else "", plot) for study, plot in named if plot is not None]


def overview(runs: Sequence[LoadedRun]) -> Plot:
    """The figure that says most, of the sequence that most runs are of."""
    studies = make_studies(runs)
    return figures.overview_plot(Scores(max(studies, key=lambda study: sum(len(m.runs) for m in study.methods))))


def _study(scores: Scores, looks: Palette) -> list[str]:
    several = max(len(method.seeds) for method in scores.study.methods) > 1
    seeds = _SHADING if several else _ONE_SEED
    brackets = _BRACKETS if several else ""
    parts = [
        _sequence(scores.study),
        differences(differing(scores.study)),
        _missing(scores),
        "<h3>Scores, averaged over tasks</h3>",
        tables.averages(scores),
        *tables.effects(scores),
        _how(scores),
        *_counting_diverged(scores),
        "<h3>Scores, task by task</h3>",
        tables.tasks(scores),
        f"<p class='note'>Mean returns of an episode, raw{brackets}. 0 % and 100 % are the ends of the scale on which "
        "tasks are averaged.</p>",
    ]
    return parts + [
        figure(heading, plot, looks, f"{caption} {seeds}") for heading, (plot, caption) in _plots(scores).items()
    ]


def _counting_diverged(scores: Scores) -> list[str]:
    """The same tables with diverged seeds; nothing where there are none."""
    if not any(method.any_diverged for method in scores.study.methods):
        return []
    counting = Scores(scores.study, counts_diverged=True)
    words = (
        "Above, a seed has no score from where it diverged: an average is over the others, or over fewer visits. Here "
        "it scores 0 % from there on, and a fresh agent that diverged does, too (forgetting is as above)."
    )
    return [
        "<h3>Scores, a diverged seed counted as random play</h3>",
        tables.averages(counting),
        *tables.effects(counting),
        f"<p class='note'>{words}</p>",
    ]


def _plots(scores: Scores) -> Mapping[str, tuple[Plot | None, str]]:
    study = scores.study
    return {
        "Scores through the sequence": (figures.scores_plot(scores), _SCORES),
        "Visits against fresh agents": (figures.visits_plot(scores), _VISITS),
        "Task by task": (figures.tasks_plot(scores), _TASKS),
        "Weights through the sequence": (figures.weights_plot(study), _WEIGHTS),
        "Loss and exploration": (figures.training_plot(study), _TRAINING),
        "Weight norm, layer by layer": (figures.layers_plot(study, "weight_norm"), _LAYER_NORMS),
        "Effective learning rate, layer by layer": (figures.layers_plot(study, "elr"), _LAYER_RATES),
        "Dormant units, layer by layer": (figures.layers_plot(study, "dormant_fraction_0.025"), _LAYER_DORMANT),
    }


def _counts(studies: Sequence[Study]) -> str:
    """How many runs there are, of which kind."""
    methods = [method for study in studies for method in study.methods]
    played = len({run.folder for method in methods for run in method.runs.values()})
    alone = len({run.folder for method in methods for run in method.all_runs}) - played
    words = [f"{count} run{'s' * (count > 1)} of {what}" for count, what in
             ((played, "a sequence" if played == 1 else "sequences"), (alone, "fresh agents")) if count]  # fmt: skip
    return listed(words)


def _sequence(study: Study) -> str:
    """The tasks, their budgets and what happens at a switch."""
    budgets = list(dict.fromkeys(task.frames for task in study.tasks))
    alike = len(budgets) == 1
    told = [task.name if alike else f"{task.name} ({task.frames:,} frames)" for task in study.sequence.tasks]
    visits = len(study.sequence.visits)
    if not visits:
        return f"<p><b>Fresh agents</b>, of no sequence in this report: {text(', '.join(told))}.</p>"
    each = f"; {budgets[0]:,} frames a visit" if alike else ""
    passes = "once" if study.sequence.passes == 1 else f"{study.sequence.passes} times"
    order = " → ".join(told)
    many = len(told) > _MANY_TASKS
    return (
        f"<p><b>The sequence:</b> {f'{len(told)} tasks' if many else text(order)}, {passes}: {visits} visits{each}, "
        f"{study.sequence.frames:,} frames in all. <b>At a switch:</b> {text(_switch(study))}.</p>"
        + (folded(f"The {len(told)} tasks", f"<p>{text(order)}</p>") if many else "")
    )


def _switch(study: Study) -> str:
    runs = [run for method in study.methods for run in method.runs.values()]
    words = []
    for name, (what, meanings) in _AT_A_SWITCH.items():
        values = dict.fromkeys(str(run.config[name]) for run in runs if name in run.config)
        if values:
            words.append(f"{what}: {' or '.join(meanings.get(value, value) for value in values)}")
    return "; ".join(words) or "nothing is recorded of it"


def _missing(scores: Scores) -> str:
    """What is not there yet, and how it comes to be; "" where nothing is missing."""
    study = scores.study
    missing = []
    for method in study.methods:
        if study.sequence.visits and not method.runs:
            missing.append(f"{method.label}: the sequence has not begun")
        none = [task.name for task in study.tasks if not method.fresh_curves(task) and not method.fresh_diverged(task)]
        if none and method.runs:
            every = "any task" if len(none) == len(study.tasks) else listed(none)
            missing.append(f"{method.label}: no fresh agent for {every} yet, which the sequence's own command trains")
        missing += _diverged(study, method)
    without = [task.name for task in study.tasks if task not in scores.scales]
    if without:
        missing.append(
            f"{listed(without)}: no scale, so left out of all averages; a game without human scores has one once fresh "
            "agents have been trained on it and have learned it: all their evaluations together are, for certain, "
            "better than their first record"
        )
    items = "".join(f"<li>{text(words)}</li>" for words in missing)
    return f"<p><b>Missing here:</b></p><ul>{items}</ul>" if items else ""


def _diverged(study: Study, method: Method) -> list[str]:
    """A sentence on each seed whose loss was no finite number any more, in the sequence or of a fresh agent."""
    told = []
    for seed, number in method.diverged.items():
        visit = study.sequence.visits[number]
        told.append(
            f"{method.label}, seed {seed}: diverged in visit {number + 1} ({visit.task.name}), so it has no score from "
            "there on; what needs one is over the other seeds"
        )
    for task in study.tasks:
        told += [
            f"{method.label}, seed {seed}: its fresh agent on {task.name} diverged, so what is compared with that is "
            "over the other seeds"
            for seed in method.fresh_diverged(task)
        ]
    return told


def _how(scores: Scores) -> str:
    """How the numbers came about, and what to beware of."""
    study = scores.study
    human = {task.name for task, scale in scores.scales.items() if scale.human}
    own = {task.name for task, scale in scores.scales.items() if not scale.human}
    kinds = []
    if human:
        kinds.append("0 % is random play and 100 % a human tester")
    if own:
        whom = "a game without human scores, " if human else ""
        kinds.append(
            f"of {whom or 'these games, which have no human scores, '}0 % is what fresh agents score at their first "
            "record, of almost random play, and 100 % what those of the best method score at the end of their training"
        )
    sentences = [f"Scores: {'; '.join(kinds)}." if kinds else "", "Averages are over tasks, then over seeds."]
    counts = [max(1, len(method.seeds - method.any_diverged)) for method in study.methods]
    if max(counts) > 1:
        sentences.append(
            f"Brackets: 95 % bootstrap intervals over seeds ({RESAMPLES:,} resamples); a difference is taken seed by "
            "seed, and is bold where its interval leaves 0 out. The ends of the scale are taken as they are."
        )
    sentences.append(caution(min(counts)))
    if not tables.is_complete(scores):
        sentences.append(
            "Where not all visits are over, an average is over those that are, of the seeds that have most of them, "
            "and says so: compare it with care."
        )
    return f"<p class='note'>{' '.join(filter(None, sentences))}</p>"


def _definitions() -> str:
    """What each number is, and where it comes from."""
    words = {
        "score": "the mean return of the evaluation at a visit's end, with learning off",
        "fresh agent": "the same method, trained from fresh weights on one task alone, for as many frames as a visit "
        "has; seed by seed it begins with the same weights",
        "first visit − fresh, last visit − fresh": "the score at the end of a task's first (last) visit less its fresh "
        "agent's, averaged over tasks; the very first visit, which nothing came before, is left out, and of last "
        "visits those that are first ones, too. The claim of plasticity: not below 0, in the last visits either",
        "last − first visit": "plasticity without a fresh agent: the score at the end of a task's last visit less "
        "that at the end of its first",
        "forward transfer": "the mean over all evaluations of a task's first visit less the mean over a fresh agent's: "
        "the area between their curves over the area's width, as in Wołczyk et al., “Continual World” (2021), whose "
        "AUC − AUC of the reference it is. They divide it by 1 − the reference's AUC, what there is left to win of a "
        "success rate; a score has no such bound, so it is not divided here. The sequence's first task is left out",
        "forgetting": "the score in a visit's task right at its end less that just before the next visit of the same "
        "task, or at the end of the sequence, averaged over visits: Continual World's, taken for each visit. Visits "
        "that no other task follows are left out. Above 0: forgotten",
    }
    listing = "".join(f"<dt><b>{text(name)}</b></dt><dd>{text(meaning)}.</dd>" for name, meaning in words.items())
    return folded("What the numbers are", f"<dl>{listing}</dl>")
