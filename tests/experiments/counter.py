"""A tiny experiment for the harness's tests: a noisy counter, with a state of many kinds of leaf."""

import dataclasses
import sys
import time
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness
from experiments.harness.bounds import A_SEED


@dataclasses.dataclass(frozen=True)
class Inner:
    """A nested part of the configuration."""

    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """What is counted."""

    seed: Annotated[int, A_SEED] = 0
    iterations: int = 6
    rows: int = 5
    fail_at: int = -1
    inner: Inner = Inner()


@jax.jit
def _step(value: jax.Array, key: jax.Array) -> jax.Array:
    return value * 0.9 + jax.random.normal(key, value.shape)


step = jax.jit(_step, donate_argnums=0)


def initial_state(config: Config) -> dict:
    """The state before the first iteration."""
    return {
        "value": jnp.zeros((64,), jnp.float32),
        "key": jax.random.key(config.seed),
        "replay": np.zeros((100, 4), np.uint8),
        "count": 0,
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(0.25),
        "weak": jnp.asarray(1.0),
    }


def study(config: Config, options: harness.RunOptions, pause: float = 0.0) -> dict | None:
    """Counts, a record a row, a checkpoint an iteration; `pause` seconds between rows spread the moments of a kill."""
    with harness.open_run("counter", config, options, label=f"seed{config.seed}") as run:
        if run.done:
            return run.summary
        iteration, state = run.restore(initial_state(config))
        while iteration < config.iterations:
            for _ in range(config.rows):
                state["key"], key = jax.random.split(state["key"])
                state["value"] = step(state["value"], key)
                state["count"] += 1
                state["replay"][state["count"] % 100] = state["count"] % 256
                loss = jnp.nan if state["count"] == config.fail_at else state["value"].mean()
                run.check_finite("loss", loss, updates=state["count"])
                run.record({"phase": "train", "iteration": iteration, "updates": state["count"], "loss": loss})
                run.progress.update(frames=state["count"], loss=loss)
                time.sleep(pause)
            iteration += 1
            run.save(iteration, state)
            run.record_timing({"iteration": iteration})
            run.check_interrupted()
        run.finish({"value": state["value"].sum(), "count": state["count"]})
        return run.summary


def main(argv: list[str]) -> int:
    """Runs the counter; the environment names the pause."""
    import os

    pause = float(os.environ.get("COUNTER_PAUSE", "0"))
    return harness.run_command(
        lambda config, options: study(config, options, pause),
        Config,
        argv,
        name="counter",
        description=__doc__,
        presets={"long": Config(iterations=60), "short": Config(iterations=2)},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
