"""Run folders with made-up numbers of a plausible shape, for the report's tests and for looking at the report."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import harness

LAYERS = ("torso/conv_0/kernel", "torso/conv_1/kernel", "torso/conv_2/kernel", "head/hidden/kernel", "head/out/kernel")


@dataclasses.dataclass(frozen=True)
class Config:
    """What the report reads of a configuration, and something nested."""

    game: str = "pong"
    method: str = "nap"
    seed: int = 0
    protocol: str = "machado"
    frames: int = 160_000
    optimizer: dict = dataclasses.field(default_factory=lambda: {"name": "adam", "lr": 2.5e-4})


def make_run(out: Path, config: Config, rows: int = 60, finish: bool = True, layers: Sequence[str] = LAYERS) -> Path:
    """Writes one run's folder and returns it."""
    random = np.random.default_rng([config.seed, len(config.method), len(config.game)])
    skill = {"none": 6, "layernorm": 14, "nap": 20}.get(config.method, 10)
    with harness.open_run("atari", config, out=out, label=f"{config.game}-{config.method}-seed{config.seed}") as run:
        run.restore({"count": 0})
        for row in range(rows):
            part = (row + 1) / rows
            frames, updates = int(config.frames * part), int(config.frames * part / 32)
            score = -21 + skill / (1 + np.exp(-9 * (part - 0.55))) + random.normal() * 0.6
            record: dict = {"phase": "train", "iteration": row // 15, "frames": frames, "agent_steps": frames // 4}
            record |= {"updates": updates, "loss": 0.02 * np.exp(random.normal() * 0.3) * (1.2 - part)}
            record |= {"epsilon": max(0.01, 1 - 2 * part), "learning_rate": 2.5e-4}
            record |= {"train/return": None if row % 3 else score, "train/human_normalised": (score + 20.7) / 35.3}
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
                evaluation = {"eval/return": score + 1.5, "eval/human_normalised": (score + 22.2) / 35.3}
                run.record({"phase": "eval", "frames": frames, "updates": updates, **evaluation})
        if finish:
            run.finish({"eval/return": score + 1.5})
        return run.folder


def make_runs(out: Path, methods: Sequence[str], seeds: int, rows: int = 60) -> None:
    """Writes a run for every method and seed."""
    for method in methods:
        for seed in range(seeds):
            make_run(out, Config(method=method, seed=seed), rows)


if __name__ == "__main__":
    make_runs(Path(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))
