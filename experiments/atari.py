"""DQN on one Atari game, with and without Normalize-and-Project.

Trains an agent, evaluates it after every iteration, and logs what the question is about: the norm of every layer's
weights and how far an update turns them (the effective learning rate). The frames counted are the emulator's, 4 for an
agent step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from agents.dqn import make_agent
from agents.evaluation import evaluate
from agents.loops import Functions, Hooks, Log, Schedule, make_functions, train
from agents.replay import make_replay, replay_bytes, transitions
from envs.atari import PROTOCOLS, AtariEnvs, AtariProtocol, resolve_game
from envs.scores import human_normalised
from experiments import harness
from experiments.harness.methods import (
    NapConfig,
    OptimizerConfig,
    adapt_network,
    learning_rate,
    make_optimizer,
    norm_of,
    parse_method,
)
from experiments.harness.rivals import RivalsConfig, Setting
from nap.layers import NormAxes
from nap.networks import NatureCNN, as_functions


@dataclasses.dataclass(frozen=True)
class Config:
    """An Atari run. Frames are the emulator's: 4 for each agent step."""

    game: str = "pong"
    """Any of ale-py's games: pong, space_invaders, ..."""
    method: str = "nap"
    """none: the plain network; layernorm: a normalization before every nonlinearity; nap: that, and projection. With
    interventions joined by +: nap+redo, layernorm+l2-init."""
    agent: Literal["dqn", "double-dqn"] = "double-dqn"
    """Whether the target network alone or the online network too chooses the bootstrap action."""
    seed: int = 0
    """Determines the run, together with the other options and the version of the code."""
    frames: int = 10_000_000
    """Training frames."""
    iteration_frames: int = 100_000
    """Training frames between evaluations; a checkpoint is saved there, and new episodes begin."""
    evaluation_episodes: int = 8
    """Episodes of each evaluation, with learning off; rounded up to a multiple of the environments."""
    protocol: Literal["machado", "dqn-zoo"] = "machado"
    """machado: sticky actions, no life-loss signal. dqn-zoo: no-op starts, zero discount on life loss."""
    full_action_space: bool = False
    """All 18 actions, not only those that do something in the game."""
    environment: Annotated[AtariProtocol | None, tyro.conf.Suppress] = None
    """The protocol's settings, filled in from its name, so that the run's folder has them."""
    num_envs: int = 8
    """Environments stepped together."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    nap: NapConfig = dataclasses.field(default_factory=NapConfig)
    rivals: RivalsConfig = dataclasses.field(default_factory=RivalsConfig)
    norm_axes: NormAxes = "channels"
    """What a convolution's normalization averages over: channels, or all (height, width and channels)."""
    batch_size: int = 32
    """Transitions in an update."""
    update_period: int = 4
    """Agent steps for each update."""
    target_period: int = 2000
    """Updates between copies to the target network."""
    n_step: int = 1
    """Rewards summed before bootstrapping."""
    gamma: float = 0.99
    """Discount of one agent step."""
    replay_capacity: int = 1_000_000
    """Agent steps in replay; 7,069 bytes each."""
    min_replay_frames: int = 80_000
    """Frames before the first update."""
    exploration_frames: int = 1_000_000
    """Frames over which epsilon goes linearly from 1 to its end."""
    epsilon_end: float = 0.01
    """Probability of a random action in training, at last."""
    evaluation_epsilon: float = 0.001
    """Probability of a random action in evaluation."""
    log_every: int = 500
    """Updates between records."""

    @property
    def iterations(self) -> int:
        """Iterations in the run."""
        return self.frames // self.iteration_frames

    @property
    def total_updates(self) -> int:
        """Updates in the run."""
        return (self.frames - self.min_replay_frames) // (FRAME_SKIP * self.update_period)


FRAME_SKIP = 4

PRESETS = {
    "default": Config(),
    "demo": Config(
        frames=48_000,
        iteration_frames=24_000,
        n_step=3,
        replay_capacity=20_000,
        min_replay_frames=8_000,
        exploration_frames=30_000,
        target_period=250,
        update_period=8,
        log_every=50,
        optimizer=OptimizerConfig(lr=2.5e-4),
    ),
}


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit code."""
    return harness.run_command(run, Config, argv, name="atari", description=__doc__, presets=PRESETS)


def run(config: Config, options: harness.RunOptions) -> None:
    """One run, from its beginning or from where it was left."""
    config = resolve(config)
    harness.enable_compilation_cache()
    label = f"{config.game}-{config.agent}-{config.method}-seed{config.seed}"
    with harness.open_run(
        "atari", config, out=options.out, fresh=options.fresh, label=label, total=config.frames
    ) as opened:
        if not opened.done:
            _run(config, opened)


def resolve(config: Config) -> Config:
    """The configuration with ale-py's name of the game and the protocol's settings.

    Raises:
      harness.UserError: a value that makes no sense, with the option and the nearest right value.
    """
    try:
        game = resolve_game(config.game)
    except ValueError as error:
        raise harness.UserError(f"--game: {error}") from None
    parse_method(config.method)
    positive = ("frames", "iteration_frames", "evaluation_episodes", "num_envs", "batch_size", "update_period")
    positive += ("target_period", "n_step", "replay_capacity", "log_every", "project_every")
    values = {**vars(config), **vars(config.optimizer), **vars(config.nap)}
    lowest = dict.fromkeys(positive, 1) | dict.fromkeys(("seed", "lr", "lr_end", "optimizer_epsilon", "clip"), 0)
    for name, least in lowest.items():
        if not values[name] >= least:
            raise harness.UserError(f"--{name.replace('_', '-')} {values[name]}: it must be at least {least}")
    for name in ("epsilon_end", "evaluation_epsilon"):
        if not 0 <= values[name] <= 1:
            raise harness.UserError(f"--{name.replace('_', '-')} {values[name]}: it must lie in 0 to 1")
    if config.frames % config.iteration_frames:
        nearest = max(1, round(config.frames / config.iteration_frames)) * config.iteration_frames
        raise harness.UserError(
            f"--frames {config.frames}: it must be a multiple of --iteration-frames {config.iteration_frames}; "
            f"the nearest is {nearest}"
        )
    step = FRAME_SKIP * config.num_envs
    if config.iteration_frames % step:
        raise harness.UserError(
            f"--iteration-frames {config.iteration_frames}: it must be a multiple of {step} "
            f"(4 frames a step in each of {config.num_envs} environments); "
            f"the nearest is {max(1, round(config.iteration_frames / step)) * step}"
        )
    sequence = FRAME_SKIP * config.num_envs * (4 + config.n_step)
    if config.min_replay_frames < max(sequence, FRAME_SKIP * config.batch_size):
        raise harness.UserError(
            f"--min-replay-frames {config.min_replay_frames}: it must be at least "
            f"{max(sequence, FRAME_SKIP * config.batch_size)}, for the first batch"
        )
    if config.total_updates < 1:
        raise harness.UserError(
            f"--min-replay-frames {config.min_replay_frames}: it must be at most "
            f"{config.frames - FRAME_SKIP * config.update_period}, for an update within --frames {config.frames}"
        )
    if config.replay_capacity < sequence // FRAME_SKIP:
        raise harness.UserError(
            f"--replay-capacity {config.replay_capacity}: it must be at least {sequence // FRAME_SKIP}, "
            f"{4 + config.n_step} steps of each of {config.num_envs} environments"
        )
    if not 0 < config.gamma <= 1:
        raise harness.UserError(f"--gamma {config.gamma}: it must be above 0 and at most 1")
    protocol = dataclasses.replace(PROTOCOLS[config.protocol], full_action_space=config.full_action_space)
    return dataclasses.replace(config, game=game, environment=protocol)


def build(config: Config, num_actions: int) -> Functions:
    """The agent and its replay, as jitted functions."""
    method = parse_method(config.method)
    network = as_functions(
        lambda rngs: NatureCNN(
            num_actions,
            norm=norm_of(method, config.nap),
            norm_axes=config.norm_axes,
            activation=method.activation,
            rngs=rngs,
        )
    )
    network = adapt_network(method, network)
    setting = Setting(network, jax.random.fold_in(jax.random.key(config.seed), 3), config.total_updates)
    optimizer = make_optimizer(method, config.optimizer, config.nap, config.rivals, setting)
    agent = make_agent(network, optimizer, double=config.agent == "double-dqn", target_period=config.target_period)
    replay = make_replay(config.replay_capacity, config.num_envs, config.batch_size, n_step=config.n_step)
    one = functools.partial(transitions, stack=4, n_step=config.n_step, gamma=config.gamma, clip_reward=True)
    return make_functions(agent, replay, one)


def epsilon_at(config: Config, agent_steps: int) -> float:
    """Exploration in training: linear from 1, beginning with the first update."""
    done = (FRAME_SKIP * agent_steps - config.min_replay_frames) / max(1, config.exploration_frames)
    return 1 + (config.epsilon_end - 1) * min(1.0, max(0.0, done))


def _run(config: Config, opened: harness.Run) -> None:
    assert config.environment is not None, "resolve(config) fills it in"
    environments = AtariEnvs(config.game, protocol=config.environment, num_envs=config.num_envs, seed=config.seed)
    with contextlib.closing(environments):
        _train_and_evaluate(config, opened, environments)


def _train_and_evaluate(config: Config, opened: harness.Run, environments: AtariEnvs) -> None:
    functions = build(config, environments.num_actions)
    key = jax.random.key(config.seed)
    init_key, train_key, evaluation_key = jax.random.split(key, 3)
    opened.progress.say(f"replay: {replay_bytes(config.replay_capacity) / 1e9:.2f} GB on {jax.devices()[0]}")
    # The last evaluation is saved too: a run that is stopped between its last save and its end still has a summary.
    iteration, (state, last_return) = opened.restore((functions.init(init_key), np.asarray(np.nan)))
    while iteration < config.iterations:
        started, before = time.monotonic(), int(state.agent_steps)
        state = train(
            functions,
            _schedule(config),
            state,
            environments,
            key=train_key,
            seed=_environment_seed(config, iteration, "train"),
            steps=config.iteration_frames // FRAME_SKIP,
            hooks=_hooks(config, opened, iteration),
        )
        jax.block_until_ready(state.agent.params)
        frames = FRAME_SKIP * int(state.agent_steps)
        speed = FRAME_SKIP * (int(state.agent_steps) - before) / (time.monotonic() - started)
        opened.record_timing({"frames": frames, "frames_per_second": speed})
        returns = evaluate(
            functions,
            state.agent.params,
            environments,
            epsilon=config.evaluation_epsilon,
            key=jax.random.fold_in(evaluation_key, iteration),
            seed=_environment_seed(config, iteration, "evaluation"),
            episodes=config.evaluation_episodes,
            on_step=opened.check_interrupted,
        )
        last_return = np.mean(returns)
        iteration += 1
        opened.record(
            {
                "phase": "eval",
                "iteration": iteration,
                "frames": frames,
                "agent_steps": int(state.agent_steps),
                "updates": int(state.agent.updates),
                "eval/episodes": len(returns),
                **_evaluation(config, last_return),
            }
        )
        opened.save(iteration, (state, np.asarray(last_return)))
    opened.finish({"frames": config.frames, **_evaluation(config, last_return)})


def _evaluation(config: Config, mean_return: np.floating | np.ndarray) -> dict[str, float | None]:
    score = float(mean_return)
    return {"eval/return": score, "eval/human_normalised": human_normalised(config.game, score)}


def _environment_seed(config: Config, iteration: int, purpose: Literal["train", "evaluation"]) -> int:
    """Every iteration plays episodes of its own, and evaluation others than training."""
    stream = {"train": 0, "evaluation": 1}[purpose]
    return int(np.random.SeedSequence([config.seed, iteration, stream]).generate_state(1)[0])


def _schedule(config: Config) -> Schedule:
    return Schedule(
        update_period=config.update_period,
        learning_starts=config.min_replay_frames // FRAME_SKIP,
        log_every=config.log_every,
        epsilon=functools.partial(epsilon_at, config),
    )


def _hooks(config: Config, opened: harness.Run, iteration: int) -> Hooks:
    """What the loop tells goes to the run's records, its progress bar and its interrupt flag."""
    rate = learning_rate(config.optimizer, config.total_updates)
    shown: dict[str, str] = {}

    def on_step(agent_steps: int) -> None:
        opened.check_interrupted()
        opened.progress.update(frames=FRAME_SKIP * agent_steps, **shown)

    def on_loss(updates: int, loss: float) -> None:
        opened.check_finite("loss", loss, updates=updates)

    def on_log(log: Log) -> None:
        mean = float(np.mean(log.returns)) if log.returns else None
        if mean is not None:
            shown["return"] = f"{mean:.1f}"
        opened.record(
            {
                "phase": "train",
                "iteration": iteration + 1,
                "frames": FRAME_SKIP * log.agent_steps,
                "agent_steps": log.agent_steps,
                "updates": log.updates,
                "train/episodes": len(log.returns),
                "train/return": mean,
                "train/human_normalised": None if mean is None else human_normalised(config.game, mean),
                "loss": log.loss,
                "epsilon": log.epsilon,
                "learning_rate": np.asarray(rate(log.updates - 1)),
                **log.measured,
            }
        )

    return Hooks(on_step, on_loss, on_log)
