"""Play with a trained agent: the returns of some episodes, and a film of them.

The game is played as the run's evaluations are, but for what is asked for otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

import experiments
from agents.dqn import epsilon_greedy
from agents.evaluation import evaluate
from envs.atari import AtariEnvs
from envs.games import GameEnvs
from envs.timestep import TimeStep
from experiments import harness
from experiments.harness.film import Shot, find_ffmpeg, write_gif, write_video
from experiments.harness.finals import NORMALISED, RETURN
from experiments.harness.progress import Progress
from experiments.harness.stage import Stage, action_names
from experiments.harness.statistics import stratified_bootstrap
from experiments.harness.trained import TrainedRun

AT_ONCE = 8
"""Games that are played side by side where none is filmed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which agent, and how it plays."""

    run: Path
    """The folder of a run: runs/atari/pong-..."""
    episodes: int | None = None
    """How many episodes; if not given 8, and 1 for a film."""
    epsilon: float | None = None
    """Probability of a random action; if not given, that of the run's evaluations."""
    protocol: str | None = None
    """machado or dqn-zoo, for ale-py's games; if not given, the run's own."""
    seed: int = 0
    """Of the games."""
    of_seed: int | None = None
    """Which agent of a run of several seeds; if not given, that of the first."""
    task: str = ""
    """Which game of a sequence, as --tasks has it; if not given, the last one trained on."""
    gif: Path | None = None
    """Write a film into this file: game, what the agent sees, and what it expects of each action."""
    video: Path | None = None
    """The same as MP4, by ffmpeg."""
    seconds: float = 60.0
    """The longest that a film is to be; what is played after it is not filmed."""


class Camera:
    """An agent and its game, which are filmed as `agents.evaluation.evaluate` has the one play the other."""

    num_envs = 1

    def __init__(self, environments: AtariEnvs | GameEnvs, decide: Callable[..., Any], longest: int) -> None:
        """`longest`: moments that are kept."""
        self._environments, self._decide, self._longest = environments, decide, longest
        self._earned = 0.0
        self.shots: list[Shot] = []

    def play(self, params: Any, observations: Any, epsilon: Any, key: Any, step: Any) -> np.ndarray:
        """The agent's actions, with which a moment is complete."""
        actions, values = map(np.asarray, self._decide(params, observations, epsilon, key, step))
        self._keep(Shot(self._environments.view(0).now, observations[0, -1], values[0], int(actions[0]), self._earned))
        return actions

    def reset(self, seed: int) -> TimeStep:
        """As the game's."""
        return self._environments.reset(seed)

    def send(self, actions: np.ndarray) -> None:
        """As the game's."""
        self._environments.send(actions)

    def recv(self) -> TimeStep:
        """As the game's."""
        time_step = self._environments.recv()
        self._earned += float(time_step.reward[0])
        ended = self._environments.view(0).ended
        if ended is not None:
            self._keep(Shot(ended, np.zeros_like(time_step.observation[0, -1]), None, -1, self._earned))
            self._earned = 0.0
        return time_step

    def _keep(self, shot: Shot) -> None:
        if len(self.shots) < self._longest:
            self.shots.append(shot)


class _Player:
    """An agent that nobody films."""

    def __init__(self, decide: Callable[..., Any]) -> None:
        self._decide = decide

    def play(self, *given: Any) -> Any:
        return self._decide(*given)[0]


def main(argv: list[str]) -> int:
    """Plays and prints the returns; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def decider(run: TrainedRun) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`decide(params, observations, epsilon, key, step)`: the actions as in the run's evaluations, and the values."""

    @jax.jit
    def decide(params: Any, observations: Any, epsilon: Any, key: Any, step: Any) -> tuple[jax.Array, jax.Array]:
        values = run.apply(params, observations)
        return epsilon_greedy(values, epsilon, jax.random.fold_in(key, step)), values

    return decide


def _main(argv: list[str]) -> None:
    positional = Annotated[Options, tyro.conf.PositionalRequiredArgs]
    options = harness.parse_options(positional, argv, name="play", description=__doc__)
    _check(options)
    harness.enable_compilation_cache()
    run = experiments.load(options.run, seed=options.of_seed, task=options.task)
    stage = run.stage.under(options.protocol) if options.protocol else run.stage
    epsilon = stage.epsilon if options.epsilon is None else options.epsilon
    play = _film if options.gif or options.video else _play
    returns = play(run, stage, epsilon, options)
    print(textwrap.fill(f"returns: {', '.join(f'{value:g}' for value in returns)}", 80, subsequent_indent="  "))
    interval = stratified_bootstrap(np.array(returns))
    told = f"return {RETURN.with_interval(interval)}"
    if stage.reference is not None:
        told += f", {NORMALISED.told(stage.reference.normalised(interval.value))} % of human"
    under = "" if stage.protocol is None else f", {options.protocol or run.config.protocol}"
    print(f"{stage.task.name}{under}, epsilon {epsilon:g}, {len(returns)} episode{'s' * (len(returns) > 1)}: {told}")
    for path in filter(None, (options.gif, options.video)):
        print(path)


def _check(options: Options) -> None:
    if options.episodes is not None and options.episodes < 1:
        raise harness.UserError(f"--episodes {options.episodes}: it must be at least 1")
    if options.epsilon is not None and not 0 <= options.epsilon <= 1:
        raise harness.UserError(f"--epsilon {options.epsilon}: it must lie in 0 to 1")
    if not 0 < options.seconds < math.inf:
        raise harness.UserError(f"--seconds {options.seconds}: it must be above 0, and finite")
    for name, path, suffix in (("gif", options.gif, ".gif"), ("video", options.video, ".mp4")):
        if path is not None and path.suffix.lower() != suffix:
            raise harness.UserError(f"--{name} {path}: it is a file {suffix}")
    if options.video is not None:
        find_ffmpeg()  # before an hour is played


def _play(run: TrainedRun, stage: Stage, epsilon: float, options: Options) -> list[float]:
    """Returns of the episodes, games side by side."""
    episodes = options.episodes or AT_ONCE
    with contextlib.closing(stage.open(min(episodes, AT_ONCE), options.seed)) as environments:
        return _episodes(run, _Player(decider(run)), environments, epsilon, options.seed, episodes)


def _film(run: TrainedRun, stage: Stage, epsilon: float, options: Options) -> list[float]:
    """Returns of the episodes of one game, which are filmed."""
    with contextlib.closing(stage.open(1, options.seed, filmed=True)) as environments:
        longest = max(1, round(options.seconds * stage.steps_per_second))
        camera, names = Camera(environments, decider(run), longest), action_names(environments)
        returns = _episodes(run, camera, camera, epsilon, options.seed, options.episodes or 1)
    for path, write in ((options.gif, write_gif), (options.video, write_video)):
        if path is not None:
            write(path, camera.shots, names, stage.steps_per_second)
    return returns


def _episodes(run: TrainedRun, player: Any, environments: Any, epsilon: float, seed: int, episodes: int) -> list[float]:
    progress = Progress("play", unit="agent_steps")
    with contextlib.closing(progress):
        return evaluate(
            player,
            run.params,
            environments,
            epsilon=epsilon,
            key=jax.random.key(seed),
            seed=seed,
            episodes=episodes,
            on_step=lambda agent_steps: progress.update(agent_steps=agent_steps),
        )[:episodes]
