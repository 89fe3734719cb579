"""PQN on games in JAX, with and without Normalize-and-Project: many seeds side by side, compiled as a whole.

PQN is Q-learning without a replay: many environments, lambda returns and a normalized network (`--method layernorm` is
PQN as published). What is recorded is what atari records; frames are counted as there, 4 for an agent step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax
import tyro

from agents.compiled import Spread, vmapped
from agents.pqn import Pqn, Settings, Told, make_pqn
from envs.games import GAMES, Game
from envs.sequence import Task
from experiments import harness
from experiments.atari import environment_of
from experiments.atari.config import FRAME_SKIP, STACK
from experiments.harness.bounds import A_SEED, MOST, SEEDS, at_least, check_bounds, inside
from experiments.harness.diverged import Diverged, not_finite
from experiments.harness.divisors import divisors
from experiments.harness.memory import bytes_of, require_memory
from experiments.harness.methods import (
    MATCHING,
    NapConfig,
    OptimizerConfig,
    adapt_recipe,
    learning_rate,
    make_optimizer,
    norm_of,
    parse_method,
)
from experiments.harness.rivals import RivalsConfig, Setting
from experiments.harness.seeds import Seeds, seeds_label, use_all_cores
from experiments.harness.sizes import Sized, what_fits
from experiments.harness.stage import Stage
from experiments.harness.trained import Choice, Saved, Trained
from nap.networks import Recipe

SAVE_SECONDS = 60.0
"""A checkpoint is written when this long has passed since the last one."""


_OF_A_ROLLOUT = inside(
    num_envs=at_least(1),
    steps=at_least(1),
    epochs=at_least(1),
    minibatches=at_least(1),
    gamma=at_least(0, most=1),
    q_lambda=at_least(0, most=1),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A game, a method, and all seeds. Frames are counted as in atari: 4 for each agent step."""

    game: str = "bricks"
    """catch, bricks, moving-goals-0 (to 7), switching-bright, switching-dim; or, with pgx, minatar-asterix (breakout,
    freeway, seaquest, space_invaders)."""
    method: str = "nap"
    """none: the plain network; layernorm: a normalization before every nonlinearity; nap: that, and projection. With
    interventions joined by +: nap+redo, layernorm+l2-init."""
    agent: Annotated[Literal["pqn"], tyro.conf.Suppress] = "pqn"
    """What learns, for a report that compares it with others."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. The seeds, the other options and the version of the code determine a run."""
    seeds: Annotated[int, tyro.conf.Suppress, at_least(1, most=SEEDS)] = 1
    """How many seeds, as --seeds says."""
    frames: Annotated[int, at_least(1)] = 39_976_960
    """Training frames."""
    iteration_frames: Annotated[int, at_least(1)] = 1_998_848
    """Training frames between evaluations."""
    evaluation_episodes: Annotated[int, at_least(1)] = 128
    """Episodes of each evaluation, with learning off, each in an environment of its own."""
    evaluation_epsilon: Annotated[float, at_least(0, most=1)] = 0.0
    """Probability of a random action in evaluation."""
    pqn: Annotated[Settings, _OF_A_ROLLOUT] = dataclasses.field(default_factory=Settings)
    epsilon_end: Annotated[float, at_least(0, most=1)] = 0.05
    """Probability of a random action in training, at last."""
    exploration: Annotated[float, at_least(0, most=1)] = 0.1
    """Share of the run over which epsilon goes linearly from 1 to its end."""
    stack: Annotated[int, at_least(0)] = 0
    """Frames in an observation; 0: 1 in MinAtar, whose frames show motion, and 4 in the other games."""
    hidden: Annotated[int, at_least(1)] = 128
    """Units of the hidden dense layer. MinAtar has a convolution before it (16 of 3x3), other games have none."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig("radam", lr=5e-4, schedule="linear", lr_end=0.0, optimizer_epsilon=1e-8)
    )
    nap: NapConfig = dataclasses.field(default_factory=NapConfig)
    rivals: RivalsConfig = dataclasses.field(default_factory=RivalsConfig)
    log_every: Annotated[int, at_least(1)] = 10
    """Rollouts between records."""

    @property
    def rollouts(self) -> int:
        """Rollouts in the run."""
        return self.frames // (FRAME_SKIP * self.pqn.agent_steps)

    @property
    def iteration_rollouts(self) -> int:
        """Rollouts between evaluations."""
        return self.iteration_frames // (FRAME_SKIP * self.pqn.agent_steps)


PRESETS = {
    "default": Config(),
    "minatar": Config(game="minatar-breakout"),
    "quick": Config(
        game="catch",
        frames=409_600,
        iteration_frames=81_920,
        evaluation_episodes=64,
        pqn=Settings(num_envs=32, steps=16, minibatches=8),
    ),
}
"""default and minatar: PureJaxQL's settings for MinAtar, 10 million agent steps and 20 evaluations, on two games;
quick: less than a minute."""


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """The command itself, which makes one run of all its seeds. Raises harness.UserError."""
    use_all_cores()
    config, options = _parse(argv)
    return [harness.job_of("pqn", argv, [config], options, _label)]


def run(config: Config, options: harness.RunOptions) -> Path:
    """A run of a resolved configuration, from its beginning or from where it was left; returns its folder."""
    harness.enable_compilation_cache()
    with harness.open_run("pqn", config, options, label=_label(config), total=config.frames) as opened:
        if not opened.done:
            _run(config, opened)
    harness.tell_end(opened.folder)
    return opened.folder


def resolve(config: Config) -> Config:
    """The configuration with what it leaves open filled in; it can run.

    Raises:
        harness.UserError: a value that makes no sense, with the option and the nearest right value.
    """
    check_bounds(config)
    if config.game not in GAMES:
        raise harness.unknown("a game in JAX", config.game, GAMES, option="--game")
    try:
        game = GAMES[config.game]()
    except ValueError as error:
        raise harness.UserError(f"--game: {error}") from None
    if config.optimizer.schedule in MATCHING:
        raise harness.UserError(f"--schedule {config.optimizer.schedule}: it is for atari")
    size = config.pqn.agent_steps
    if size > MOST:
        raise harness.UserError(
            f"--num-envs {config.pqn.num_envs} --steps {config.pqn.steps}: {size} agent steps of a rollout; there can "
            f"be {MOST}"
        )
    if size % config.pqn.minibatches:
        nearest = min(divisors(size), key=lambda number: abs(math.log(number / config.pqn.minibatches)))
        raise harness.UserError(
            f"--minibatches {config.pqn.minibatches}: it must divide the {size} agent steps of a rollout (--num-envs "
            f"times --steps); the nearest is {nearest}"
        )
    _check_multiple(config, "iteration_frames", FRAME_SKIP * size, "a rollout's frames")
    _check_multiple(config, "frames", config.iteration_frames, "--iteration-frames")
    if (updates := config.rollouts * config.pqn.updates) > MOST:
        raise harness.UserError(
            f"--epochs {config.pqn.epochs}: {updates} updates in all; there can be {MOST}: --epochs "
            f"{max(1, MOST // (config.rollouts * config.pqn.minibatches))}"
        )
    config = dataclasses.replace(config, stack=config.stack or (1 if len(game.shape) == 3 else STACK))
    build(config)
    return config


def recipe_of(config: Config, game: Game) -> Recipe:
    """How the network is made, as the method trains it."""
    method = parse_method(config.method)
    *planes, height, width = game.shape
    arguments = {
        "actions": game.num_actions,
        "torso": "minatar" if planes else "flat",
        "observation": (math.prod([config.stack, *planes]), height, width),
        "hidden": config.hidden,
        "norm": norm_of(method, config.nap),
        "activation": method.activation,
    }
    return adapt_recipe(method, Recipe("QNetwork", arguments))


def trained(config: Config, saved: Saved, choice: Choice) -> Trained:
    """What a run has trained; see `experiments.harness.trained`."""
    recipe = recipe_of(config, GAMES[config.game]())
    stage = Stage(Task(config.game, config.frames), config.stack, None, config.evaluation_epsilon)
    return Trained(recipe, choice.of_seed(saved.read("0/params")), values=lambda outputs: outputs, stage=stage)


def memory_needed(config: Config) -> dict[str, int]:
    """What a run takes of a device's memory at least: all seeds' states, and a rollout and an evaluation of one."""
    game, seeds = GAMES[config.game](), Seeds(config.seeds)
    running = jax.eval_shape(build(config).begin, (), jax.eval_shape(lambda: jax.random.key(0)[None]))
    frames = config.pqn.agent_steps * config.stack * math.prod(game.shape)  # one byte a pixel
    order = 4 * config.pqn.epochs * config.pqn.agent_steps
    evaluation = config.evaluation_episodes * bytes_of(running.playing) // config.pqn.num_envs
    return {
        "networks, optimizers and environments": seeds.in_memory * bytes_of(running),
        "rollouts": seeds.at_once * (frames + order),
        "evaluations": seeds.at_once * evaluation,
    }


def epsilon_of(config: Config) -> optax.Schedule:
    """Exploration in training, by the number of rollouts before."""
    return optax.linear_schedule(1.0, config.epsilon_end, max(1, round(config.exploration * config.rollouts)))


def build(config: Config, spread: Spread = vmapped) -> Pqn:
    """The compiled functions of a resolved configuration.

    Raises:
        harness.UserError: a method that makes no sense here.
    """
    game, method = GAMES[config.game](), parse_method(config.method)
    network = recipe_of(config, game).functions()

    def optimizer(key: jax.Array) -> optax.GradientTransformation:
        setting = Setting(network, key, config.rollouts * config.pqn.updates)
        return make_optimizer(method, config.optimizer, config.nap, config.rivals, setting)

    return make_pqn(
        network,
        optimizer,
        environment_of(game, config.stack),
        config.pqn,
        epsilon=epsilon_of(config),
        evaluation_envs=config.evaluation_episodes,
        spread=spread,
    )


def _main(argv: list[str]) -> None:
    use_all_cores()
    run(*_parse(argv))


def _parse(argv: list[str]) -> tuple[Config, harness.RunOptions]:
    config, options = harness.parse_command(Config, argv, name="pqn", description=__doc__, presets=PRESETS)
    return resolve(dataclasses.replace(config, seeds=options.seeds)), options


def _label(config: Config) -> str:
    return f"{config.game}-{config.method}-{seeds_label(config.seed, config.seeds)}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_multiple(config: Config, name: str, of: int, what: str) -> None:
    value = getattr(config, name)
    if value % of:
        nearest = max(1, round(value / of)) * of
        raise harness.UserError(
            f"{_option(name)} {value}: it must be a multiple of {of}, {what}; the nearest is {nearest}"
        )


def _run(config: Config, opened: harness.Run) -> None:
    sized = map(Sized, ("seeds", "pqn.num_envs", "pqn.steps", "evaluation_episodes", "hidden", "stack"))
    remedy = what_fits(config, memory_needed, list(sized))
    require_memory(memory_needed(config), jax.local_devices()[0], remedy)
    seeds = Seeds(config.seeds)
    pqn = build(config, functools.partial(seeds.map, at_once=seeds.per_device))
    running, recorder = pqn.begin((), seeds.keys(config.seed)), _Recorder(config, opened)
    # The last evaluation is saved too: a run that is stopped between its last save and its end still has a summary.
    saved = seeds.drop_padding(running), np.full(config.seeds, np.nan), recorder.diverged.seeds
    done, (saved, last_returns, recorder.diverged.seeds) = opened.restore(saved)
    running = seeds.pad(saved, running)
    begun, started = done, time.monotonic()
    while done < config.rollouts:
        in_iteration = done % config.iteration_rollouts
        to_next = config.log_every - done % config.log_every if done else 1  # the first one alone: norms start from it
        count = min(to_next, config.iteration_rollouts - in_iteration)
        running, told = pqn.learn((), running, np.int32(count))
        done += count
        recorder.add(done, told)
        if done % config.iteration_rollouts == 0:
            recorder.flush()
            recorder.speed(done, (done - begun) / (time.monotonic() - started))
            recorder.diverged.add(not_finite(seeds.drop_padding(running.params)))
            recorder.diverged.tell(config.pqn.updates * done)
            returns = np.asarray(pqn.evaluate((), running, np.float32(config.evaluation_epsilon)))[: config.seeds]
            last_returns = recorder.evaluated(done, returns.mean(axis=1, dtype=np.float64))
            begun, started = done, time.monotonic()
        if done == config.rollouts or opened.save_due(SAVE_SECONDS):
            recorder.flush()
            opened.save(done, (seeds.drop_padding(running), last_returns, recorder.diverged.seeds))
            opened.check_interrupted()
    opened.finish({"seeds": config.seeds, "frames": config.frames, "eval/return": float(np.mean(last_returns))})


class _Recorder:
    """Writes down each stretch once the next one is running, so that the device does not wait for it.

    Attributes:
        diverged: the seeds that have diverged.
    """

    def __init__(self, config: Config, opened: harness.Run) -> None:
        self._config, self._opened = config, opened
        self._rate = learning_rate(config.optimizer, config.rollouts * config.pqn.updates)
        self._epsilon = epsilon_of(config)
        self._waiting: tuple[int, Told] | None = None
        self.diverged = Diverged(opened, config.seed, config.seeds)

    def add(self, done: int, told: Told) -> None:
        """Takes the stretch that has just been started, and writes down the one before."""
        self.flush()
        self._waiting = done, told

    def flush(self) -> None:
        """Writes down the stretch that is waiting."""
        if self._waiting is None:
            return
        done, told = self._waiting
        self._waiting = None
        found: Any = jax.device_get(told)
        measured_at = (done - 1) * self._config.pqn.updates
        common = {"learning_rate": np.asarray(self._rate(measured_at)), "epsilon": np.asarray(self._epsilon(done - 1))}
        self.diverged.add(not_finite(found.loss[: self._config.seeds]))
        returns = self.diverged.scores(found.mean_return[: self._config.seeds])
        for i in range(self._config.seeds):
            self._opened.record(
                {
                    "phase": "train",
                    "seed": self._config.seed + i,
                    **self._place(done),
                    "train/episodes": found.episodes[i],
                    "train/return": returns[i],  # null where no episode ended
                    "loss": found.loss[i],
                    **common,
                    **{name: value[i] for name, value in found.measured.items()},
                }
            )
        self.diverged.tell(self._place(done)["updates"])
        shown = {"return": float(np.nanmean(returns))} if np.isfinite(returns).any() else {}
        self._opened.progress.update(frames=self._place(done)["frames"], **shown)

    def evaluated(self, done: int, returns: np.ndarray) -> np.ndarray:
        """Writes down an evaluation, each seed's mean return, and gives it: NaN for a seed that diverged."""
        returns = self.diverged.scores(returns)
        for i, mean in enumerate(returns):
            row = {"phase": "eval", "seed": self._config.seed + i, **self._place(done)}
            self._opened.record({**row, "eval/episodes": self._config.evaluation_episodes, "eval/return": mean})
        return returns

    def speed(self, done: int, rollouts_per_second: float) -> None:
        """Writes down how fast training was, all seeds together, without the evaluation."""
        frames_per_second = rollouts_per_second * FRAME_SKIP * self._config.pqn.agent_steps * self._config.seeds
        frames = self._place(done)["frames"]
        self._opened.record_timing({"frames": frames, "frames_per_second": frames_per_second})

    def _place(self, done: int) -> dict[str, int]:
        agent_steps = done * self._config.pqn.agent_steps
        return {
            "iteration": -(-done // self._config.iteration_rollouts),
            "frames": FRAME_SKIP * agent_steps,
            "agent_steps": agent_steps,
            "updates": done * self._config.pqn.updates,
        }
