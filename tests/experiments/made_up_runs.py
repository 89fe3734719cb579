"""Run folders with made-up numbers of a plausible shape, for the report's tests and for looking at the report."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import envs.sequence
from envs.scores import REFERENCES, games_in, human_normalised
from envs.sequence import Task, Visit, parse_tasks
from experiments import harness

LAYERS = ("torso/conv_0/kernel", "torso/conv_1/kernel", "torso/conv_2/kernel", "head/hidden/kernel", "head/out/kernel")


@dataclasses.dataclass(frozen=True)
class Config:
    """What the report reads of a configuration, and something nested."""

    game: str = "pong"
    method: str = "nap"
    agent: str = "double-dqn"
    seed: int = 0
    protocol: str = "machado"
    frames: int = 160_000
    optimizer: dict = dataclasses.field(default_factory=lambda: {"name": "adam", "lr": 2.5e-4})


def make_run(out: Path, config: Config, rows: int = 60, finish: bool = True, layers: Sequence[str] = LAYERS) -> Path:
    """Writes one run's folder and returns it."""
    random = np.random.default_rng([config.seed, len(config.method), len(config.game)])
    skill = {"none": 6, "layernorm": 14, "nap": 20}.get(config.method, 10)
    with harness.open_run(
        "atari",
        config,
        harness.RunOptions(out=out),
        label=f"{config.game}-{config.agent}-{config.method}-seed{config.seed}",
    ) as run:
        run.restore({"count": 0})
        for row in range(rows):
            part = (row + 1) / rows
            frames, updates = int(config.frames * part), int(config.frames * part / 32)
            score = -21 + skill / (1 + np.exp(-9 * (part - 0.55))) + random.normal() * 0.6
            score, evaluated = _in_units_of(config.game, score), _in_units_of(config.game, score + 1.5)
            iteration = row // 10 + 1
            record: dict = {"phase": "train", "iteration": iteration, "frames": frames, "agent_steps": frames // 4}
            record |= {"updates": updates, "loss": 0.02 * np.exp(random.normal() * 0.3) * (1.2 - part)}
            record |= {"epsilon": max(0.01, 1 - 2 * part), "learning_rate": 2.5e-4}
            record |= {"train/return": None if row % 3 else score, "train/episodes": 0 if row % 3 else 1 + row % 2}
            record |= {"train/human_normalised": _human_normalised(config.game, score)}
            for number, layer in enumerate(layers):
                projected = config.method.startswith("nap") and layer != LAYERS[-1]
                growth = 1 + (0 if projected else (0.5 + 0.4 * number) * np.sqrt(part) * (1 + 0.05 * random.normal()))
                update = 2.5e-3 * (1.3 - part) * np.exp(0.2 * random.normal())
                norm = (3.0 + number) * growth
                record |= {f"weight_norm/{layer}": norm, f"update_norm/{layer}": update}
                record |= {f"elr/{layer}": update / norm, f"angle/{layer}": np.arctan(update / norm)}
                if layer != LAYERS[-1]:
                    dead = 0.3 * part * (config.method == "none") * (number + 1) / 4
                    for tau, more in (("0", 0.0), ("0.025", 0.01), ("0.1", 0.05)):
                        record[f"dormant_fraction_{tau}/{layer.removesuffix('/kernel')}"] = dead + more
            run.record(record)
            if row % 10 == 9:
                evaluation = {
                    "eval/return": evaluated,
                    "eval/human_normalised": _human_normalised(config.game, evaluated),
                }
                run.record({"phase": "eval", "iteration": iteration, "frames": frames, "updates": updates} | evaluation)
        if finish:
            run.finish({"eval/return": evaluated})
        return run.folder


def _in_units_of(game: str, score: float) -> float:
    """Pong's score as a score of another game: as far from random play, times what the game is easier by."""
    if game == "pong" or game not in REFERENCES:
        return score
    pong, reference = REFERENCES["pong"], REFERENCES[game]
    ease = 0.3 + sum(map(ord, game)) % 11 / 4
    return reference.random + ease * pong.normalised(score) * (reference.human - reference.random)


def _human_normalised(game: str, score: float) -> float | None:
    return human_normalised(game, score) if game in REFERENCES else None


def make_runs(out: Path, methods: Sequence[str], seeds: int, rows: int = 60, games: Sequence[str] = ("pong",)) -> None:
    """Writes a run for every game, method and seed."""
    for game, method, seed in itertools.product(games, methods, range(seeds)):
        make_run(out, Config(game=game, method=method, seed=seed), rows)


@dataclasses.dataclass(frozen=True)
class PlasticityConfig:
    """A cell of a study of plasticity: the fields that the report reads, and some that it only shows."""

    stream: str = "random-labels"
    data: str = "fashion-mnist"
    method: str = "nap"
    seed: int = 0
    seeds: int = 3
    network: str = "mlp"
    hidden: tuple[int, ...] = (100, 100)
    protocol: dict = dataclasses.field(
        default_factory=lambda: {"tasks": 20, "epochs": 10, "examples": 1200, "batch_size": 16}
    )
    optimizer: dict = dataclasses.field(default_factory=lambda: {"optimizer": "adam", "lr": 1e-3})
    rivals: dict = dataclasses.field(default_factory=lambda: {"l2_init_strength": 0.01})


def write_plasticity_run(out: Path, config: PlasticityConfig, rows: Sequence[dict], finish: bool = True) -> Path:
    """Writes one cell's folder with given rows and returns it."""
    lr = config.optimizer["lr"]
    label = f"{config.stream}-{config.method}-lr{lr:g}"
    with harness.open_run("plasticity", config, harness.RunOptions(out=out), label=label) as run:
        run.restore({"count": 0})
        for row in rows:
            run.record({"phase": "task", **row})
        if finish:
            run.finish({})
        return run.folder


def make_plasticity_run(
    out: Path, config: PlasticityConfig, tasks: int | None = None, stretches: int = 1, finish: bool = True
) -> Path:
    """Writes one cell's folder: free networks grow, slow down and forget how to learn; projected ones do not."""
    return write_plasticity_run(out, config, plasticity_rows(config, tasks, stretches), finish)


def plasticity_rows(config: PlasticityConfig, tasks: int | None = None, stretches: int = 1) -> list[dict]:
    """The rows of `make_plasticity_run`."""
    tasks = config.protocol["tasks"] if tasks is None else tasks
    return [
        _plasticity_row(config, task, stretch, stretches, seed)
        for task in range(tasks)
        for stretch in range(stretches)
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def _plasticity_row(config: PlasticityConfig, task: int, stretch: int, stretches: int, seed: int) -> dict:
    random = np.random.default_rng([seed, task, stretch, sum(map(ord, config.method + config.stream))])
    parts = config.method.split("+")
    projected, rivals = "nap" in parts, [part for part in parts if part not in ("none", "layernorm", "nap")]
    lr = config.optimizer["lr"]
    age = (task + (stretch + 1) / stretches) / config.protocol["tasks"]
    decay = (0.1 if projected else 0.45 if not rivals else 0.2 + 0.02 * len(rivals[0])) * (
        1 + 0.3 * np.log10(lr / 1e-3)
    )
    within = (stretch + 1) / stretches
    skill = (0.9 - decay * age) * (0.7 + 0.3 * within) - 0.05 * abs(np.log10(lr / 1e-3)) + 0.01 * random.normal()
    regression = config.stream.endswith("regression")
    row: dict = {"seed": seed, "task": task + 1, "updates": 750 * task + 750 * (stretch + 1) // stretches}
    row |= {"task_updates": 750 * (stretch + 1) // stretches, "learning_rate": lr}
    row |= {"scored": config.stream != "five-plus-one" or task % 2 == 0}
    row |= {"online_loss": 3 * (1 - skill) ** 2, "online_accuracy": None if regression else skill - 0.1}
    row |= {"loss": 4 * (1 - skill) ** 4, "accuracy": None if regression else skill}
    if config.stream == "permuted-inputs":
        row |= {"test_loss": 1.2 - skill, "test_accuracy": skill - 0.05}
    for number, layer in enumerate((*(f"hidden/{i}" for i in range(len(config.hidden))), "output")):
        held = projected and layer != "output"
        shrunk = 0.4 if rivals else 1.0
        norm = (8 + number) * (
            1 + (0 if held else shrunk * (1.5 + number) * np.sqrt(age) * np.exp(random.normal() / 40))
        )
        update = 50 * lr * np.exp(0.15 * random.normal())
        row |= {f"weight_norm/{layer}": norm, f"gradient_norm/{layer}": 0.3, f"update_norm/{layer}": update}
        row |= {f"elr/{layer}": update / norm, f"angle/{layer}": np.arctan(update / norm)}
        row |= {f"distance_to_init/{layer}": 0.05 * np.sqrt(age) * (0.5 if projected else 1.5)}
        if layer != "output":
            dead = decay * age * (1.2 - 0.4 * within) * np.exp(0.2 * random.normal())
            row |= {f"dormant_fraction_0/{layer}": 0.3 * dead, f"dormant_fraction_0.025/{layer}": 0.6 * dead}
            row |= {f"dormant_fraction_0.1/{layer}": dead, f"dead_fraction/{layer}": 0.4 * dead}
            row |= {f"linearized_fraction/{layer}": 0.01}
    row |= {"feature_norm": 4.0, "srank": round(70 * (1 - decay * age)), "approximate_rank": 20, "stable_rank": 3.0}
    return row | {"effective_rank": 50 * (1 - decay * age), "feature_rank": 60}


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """A sequence of games: the fields that the report reads, and one that it only shows."""

    tasks: str = "bricks,switching-dim"
    passes: int = 2
    frames: int = 80_000
    method: str = "nap"
    agent: str = "double-dqn"
    seed: int = 0
    seeds: int = 3
    replay: str = "clear"
    moments: str = "keep"
    target: str = "copy"
    exploration: str = "restart"
    rate: str = "restart"
    head: str = "shared"
    iteration_frames: int = 8_000
    optimizer: dict = dataclasses.field(default_factory=lambda: {"optimizer": "adam", "lr": 1e-3, "schedule": "cosine"})

    def alone(self, task: Task) -> "SequenceConfig":
        """A fresh agent on a task."""
        return dataclasses.replace(self, tasks=task.name, frames=task.frames, passes=1)


def write_sequence_run(out: Path, config: SequenceConfig, rows: Sequence[dict], finish: bool = True) -> Path:
    """Writes the folder of a sequence, or of a fresh agent, with given rows and returns it."""
    label = f"{config.tasks[:40]}-{config.passes}passes-{config.method}-{config.optimizer['schedule']}"
    with harness.open_run("sequential-atari", config, harness.RunOptions(out=out), label=label) as run:
        run.restore({"count": 0})
        for row in rows:
            run.record(row)
        if finish:
            run.finish({})
        return run.folder


def make_sequence(
    out: Path, config: SequenceConfig, visits: int | None = None, layers: Sequence[str] = LAYERS[2:]
) -> None:
    """Writes a sequence, up to so many visits, and a fresh agent on each of its tasks, in shapes as they may come."""
    sequence = envs.sequence.Sequence(parse_tasks(config.tasks, config.frames), config.passes)
    rows = sequence_rows(config, visits, layers)
    write_sequence_run(out, config, rows, finish=visits is None or visits == len(sequence.visits))
    for task in dict.fromkeys(sequence.tasks):
        alone = config.alone(task)
        write_sequence_run(out, alone, sequence_rows(alone, None, layers))


def sequence_rows(
    config: SequenceConfig, visits: int | None = None, layers: Sequence[str] = LAYERS[2:], records: int = 20
) -> list[dict]:
    """The rows of a run of `make_sequence`."""
    sequence = envs.sequence.Sequence(parse_tasks(config.tasks, config.frames), config.passes)
    rows = []
    for visit in sequence.visits[:visits]:
        for seed, record in itertools.product(range(config.seed, config.seed + config.seeds), range(1, records + 1)):
            rows += _sequence_rows(config, visit, seed, record / records, len(sequence.visits), layers)
        ends = [row for row in rows if row["phase"] == "eval" and row["visit_frames"] == visit.task.frames]
        rows += [
            {**ends[-1], "phase": "all", "seed": seed, "played": task.name}
            | {"eval/return": _level(config, task.game, 1.0 if task == visit.task else 0.3, visit.number, seed)}
            for task in sequence.tasks
            for seed in range(config.seed, config.seed + config.seeds)
        ]
    return rows


def _sequence_rows(
    config: SequenceConfig, visit: Visit, seed: int, part: float, visits: int, layers: Sequence[str]
) -> list[dict]:
    """A record of training and, at an iteration's end, one of evaluation."""
    random = np.random.default_rng([seed, visit.number, int(1000 * part), sum(map(ord, config.method))])
    within = int(part * visit.task.frames)
    place = {"seed": seed, "task": visit.task.name, "visit": visit.number + 1, "pass": visit.passed + 1}
    place |= {"frames": visit.start + within, "visit_frames": within, "updates": (visit.start + within) // 32}
    projected, age = "nap" in config.method, (visit.number + part) / visits
    rate = 1e-3 * (np.cos(np.pi * part / 2) ** 2 + 0.01 if config.optimizer["schedule"] == "cosine" else 1.0)
    score = _level(config, visit.task.game, 0.9 * part - 0.1, visit.number, seed)
    row = {"phase": "train", **place, "train/return": score, "loss": 0.05 * np.exp(random.normal() / 5) * (1.2 - part)}
    row |= {"epsilon": max(0.01, 1 - part), "learning_rate": rate}
    for number, layer in enumerate(layers):
        norm = 5.0 if projected and layer != LAYERS[-1] else 5 * (1 + (1 + number) * np.sqrt(age))
        update = 10 * rate * np.exp(random.normal() / 6)
        row |= {f"weight_norm/{layer}": norm, f"elr/{layer}": update / norm}
        if layer != LAYERS[-1]:
            dormant = (0.05 if projected else 0.4) * age * (1.2 - part) * np.exp(random.normal() / 8)
            row[f"dormant_fraction_0.025/{layer.removesuffix('/kernel')}"] = dormant
    if within % config.iteration_frames:
        return [row]
    evaluated = _level(config, visit.task.game, part, visit.number, seed)
    return [row, {"phase": "eval", **place, "played": visit.task.name, "eval/return": evaluated}]


def _level(config: SequenceConfig, game: str, part: float, visit: int, seed: int) -> float:
    """A score: what a method comes to falls from visit to visit, less with projection."""
    random = np.random.default_rng([seed, visit, int(1000 * part) + 100, len(config.method), sum(map(ord, game))])
    schedule = 0.03 * (config.optimizer["schedule"] == "cosine")
    lost = 0.01 if "nap" in config.method else 0.08 - 0.005 * (len(config.method) % 8)
    skill = (0.8 + schedule - min(0.7, lost * visit)) * part + 0.04 * random.normal()
    reference = REFERENCES.get(game)
    return reference.random + skill * (reference.human - reference.random) if reference else 2 * skill


if __name__ == "__main__":
    if sys.argv[3] == "sequential-atari":
        tasks, passes, *methods = sys.argv[4:]
        for method in methods:
            make_sequence(Path(sys.argv[1]), SequenceConfig(tasks, int(passes), method=method, seeds=int(sys.argv[2])))
    elif sys.argv[3] == "plasticity":
        for stream in ("random-labels", "permuted-inputs"):
            for method in sys.argv[4:]:
                for rate in (1e-3, 1e-4):
                    optimizer = {"optimizer": "adam", "lr": rate}
                    config = PlasticityConfig(stream, method=method, seeds=int(sys.argv[2]), optimizer=optimizer)
                    make_plasticity_run(Path(sys.argv[1]), config, stretches=1 + 4 * (stream == "random-labels"))
    else:
        make_runs(Path(sys.argv[1]), sys.argv[4:], int(sys.argv[2]), games=games_in(sys.argv[3]))
