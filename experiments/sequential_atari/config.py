"""What a sequential run is: the sequence, what happens at a switch, and how each task is trained."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from agents.compiled import Round
from envs.games import GAMES
from envs.sequence import PRESETS as SEQUENCES
from envs.sequence import Sequence, parse_tasks
from experiments import atari, harness
from experiments.atari.config import EXPLORES, FRAME_SKIP, PRIORITIZES
from experiments.harness.bounds import MOST, SEEDS, at_least, check_bounds, read_if
from experiments.harness.methods import MATCHING, OptimizerConfig, parse_method
from experiments.harness.rivals import ONCE_A_TASK

Hidden = tyro.conf.Suppress
MOST_VISITS = 100_000
"""Visits of a sequence: all are listed before the first one."""
_SCHEDULED = read_if(lambda config: config.optimizer.schedule != "constant", "a --schedule that is not constant")
_SWITCHES = read_if(lambda config: len(config.sequence.visits) > 1, "sequences of more than one visit")


@dataclasses.dataclass(frozen=True)
class Config(atari.Config):
    """A sequence of games, played by one agent. The agent's own options are those of `atari`."""

    game: Annotated[str, Hidden] = ""
    games: Annotated[str, Hidden] = ""
    tasks: str = SEQUENCES["quick"][0]
    """Games joined by commas; atari-10 stands for ten. Behind a game, :frames=N is its own budget, :order=N puts the
    planes of a MinAtar game's frames in another order, and :mode=N and :difficulty=N set a game of ale-py's."""
    passes: Annotated[int, at_least(1, most=MOST_VISITS)] = SEQUENCES["quick"][2]
    """How often the tasks are played, one after another."""
    frames: Annotated[int, at_least(1)] = SEQUENCES["quick"][1]
    """Frames of each visit of a task. It begins with --min-replay-frames without an update."""
    replay: Annotated[Literal["clear", "keep"], _SWITCHES] = "clear"
    """At a switch, experience of earlier tasks is thrown away, or stays until it is written over."""
    moments: Annotated[Literal["keep", "reset"], _SWITCHES] = "keep"
    """At a switch, what the optimizer remembers of gradients stays, or is forgotten; its learning rate is --rate's."""
    target: Annotated[Literal["copy", "keep"], _SWITCHES] = "copy"
    """At a switch, the target network becomes a copy of the online one, or stays as it is until its time."""
    exploration: Annotated[Literal["restart", "go-on"], EXPLORES] = "restart"
    """Epsilon falls anew in every visit, or once, over the first --exploration-frames of the run."""
    rate: Annotated[Literal["restart", "go-on"], _SCHEDULED] = "restart"
    """The learning-rate schedule starts over in every visit, counted in updates; or it is stretched over the run, and
    fresh agents follow the beginning of that, for as many updates as they have."""
    importance: Annotated[Literal["restart", "go-on"], PRIORITIZES] = "restart"
    """With prioritized replay, the importance exponent rises to 1 in every visit; or once over the run, and fresh
    agents have the beginning of that."""
    head: Literal["shared", "own"] = "shared"
    """The output layer is the same for all tasks; or each task has one, which is put in when its visits begin."""
    seeds: Annotated[int, Hidden, at_least(1, most=SEEDS)] = 1
    """How many seeds are trained side by side; filled in for games in JAX."""
    run_updates: Annotated[int, Hidden, at_least(0)] = 0
    """Updates of the whole sequence, in the runs of its fresh agents too: so what comes once, at a share of the run,
    comes at the same update of both, and a schedule that goes on begins alike. Filled in where there is such a method
    or schedule; 0 otherwise."""

    @property
    def on_ale(self) -> bool:
        """Whether it is played on ale-py's emulator, so that the protocol is of use."""
        return not self.in_jax

    @property
    def sequence(self) -> Sequence:
        """The sequence; ValueError for one that can't be played."""
        return Sequence(parse_tasks(self.tasks, self.frames), self.passes)

    @property
    def in_jax(self) -> bool:
        """Whether its games are written in JAX, so that whole runs are compiled and seeds trained side by side."""
        return self.sequence.tasks[0].game in GAMES

    def updates_of(self, frames: int) -> int:
        """Updates of a visit of so many frames: those due before its last step."""
        steps = frames // FRAME_SKIP - self.num_envs - self.min_replay_frames // FRAME_SKIP
        return max(0, steps) // self.update_period


_SMALL: dict[str, Any] = {
    "agent": "double-dqn",
    "hidden": 128,
    "n_step": 3,
    "num_envs": 8,
    "update_period": 8,
    "target_period": 100,
    "replay_capacity": 20_000,
    "min_replay_frames": 3_200,
    "exploration_frames": 80_000,
    "evaluation_episodes": 16,
    "log_every": 100,
    "optimizer": OptimizerConfig(lr=1e-3),
}
"""For small boards."""

_MINATAR = {
    **_SMALL,
    "log_every": 500,
    "replay_capacity": 100_000,
    "min_replay_frames": 20_000,
    "exploration_frames": 400_000,
}


def _preset(name: str, iteration_frames: int, options: dict[str, Any]) -> Config:
    tasks, frames, passes = SEQUENCES[name]
    given = {field.name: options[field.name] for field in dataclasses.fields(atari.Config) if field.name in options}
    given |= {"tasks": tasks, "frames": frames, "passes": passes, "iteration_frames": iteration_frames, "game": ""}
    return Config(**given)


_A_FEW_GAMES: dict[str, Any] = {
    "n_step": 3,
    "full_action_space": True,
    "update_period": 8,
    "target_period": 500,
    "replay_capacity": 80_000,
    "min_replay_frames": 32_000,
    "exploration_frames": 160_000,
    "log_every": 250,
    "optimizer": OptimizerConfig(lr=2.5e-4),
}
"""Some hours on two cores."""

_RAINBOW = {
    **{field.name: getattr(atari.PRESETS["rainbow"], field.name) for field in dataclasses.fields(atari.Config)},
    "full_action_space": True,
}
_NAP_COSINE = dataclasses.replace(atari.PRESETS["rainbow"].optimizer, lr=6.25e-4, schedule="nap-cosine")

PRESETS = {
    "default": _preset("quick", 40_000, _SMALL),
    "quick": _preset("quick", 40_000, _SMALL),
    "moving-goals": _preset("moving-goals", 48_000, _SMALL),
    "minatar": _preset("minatar", 200_000, _MINATAR),
    "minatar-permuted": _preset("minatar-permuted", 1_000_000, _MINATAR),
    "three-games": _preset("three-games", 80_000, _A_FEW_GAMES),
    "space-invaders-modes": _preset("space-invaders-modes", 80_000, _A_FEW_GAMES),
    "nap": _preset("nap", 1_000_000, {**_RAINBOW, "method": "nap", "optimizer": _NAP_COSINE}),
    "switching-ale": _preset("switching-ale", 1_000_000, _RAINBOW),
    "cora": _preset("cora", 1_000_000, _RAINBOW),
}


def of_visit(config: Config, game: str, frames: int) -> Config:
    """The configuration as `experiments.atari` sees it during a visit."""
    return dataclasses.replace(config, game=game, frames=frames)


def resolve(config: Config) -> Config:
    """The configuration with the protocol's settings.

    Raises:
        harness.UserError: a value that makes no sense, with the option and the nearest right value.
    """
    check_bounds(config)
    try:
        sequence = config.sequence
    except ValueError as error:
        raise harness.UserError(f"--tasks: {error}") from None
    _check_length(config, sequence)
    if config.optimizer.schedule in MATCHING:
        raise harness.UserError(
            f"--schedule {config.optimizer.schedule}: it is for atari, where one run follows another"
        )
    _check_method(config, sequence)
    mixed = {task.game in GAMES for task in sequence.tasks}
    if len(mixed) > 1:
        raise harness.UserError("--tasks: games of ale-py and games in JAX can't be in one sequence")
    resolved = config
    for task in sequence.tasks:
        try:
            of_task = atari.resolve(of_visit(config, task.game, task.frames))
        except harness.UserError as error:
            if task.frames == config.frames:
                raise
            raise harness.UserError(f"--tasks, {task.name}: {error}") from None
        resolved = dataclasses.replace(config, environment=of_task.environment)
        if config.updates_of(task.frames) < 1:
            raise harness.UserError(f"--frames: {task.frames} frames of {task.name} are too few for an update")
    if mixed == {True}:
        _check_games(config, sequence)
    elif not config.full_action_space:
        raise harness.UserError("--full-action-space is missing: the games of a sequence need the same actions")
    goes_on = "go-on" in (config.rate, config.importance)
    if goes_on or "plasticity-injection" in parse_method(config.method).interventions:
        updates = sum(config.updates_of(visit.task.frames) for visit in sequence.visits)
        resolved = dataclasses.replace(resolved, run_updates=updates)
    return resolved


def _check_length(config: Config, sequence: Sequence) -> None:
    """Refuses more visits, or agent steps, than can be counted."""
    frames = sum(task.frames for task in sequence.tasks)
    most = min(MOST_VISITS // len(sequence.tasks), FRAME_SKIP * MOST // max(1, frames))
    if config.passes > most:
        raise harness.UserError(
            f"--passes {config.passes}: of {len(sequence.tasks)} tasks, {frames:,} frames in all, there can be {most} "
            f"({MOST_VISITS:,} visits, and {FRAME_SKIP * MOST:,} frames)"
        )


def _check_method(config: Config, sequence: Sequence) -> None:
    """Refuses what comes once a task, where no one number of updates says when that is."""
    chosen = parse_method(config.method).interventions
    if len({task.frames for task in sequence.tasks}) > 1 and not config.rivals.every:
        for name in ONCE_A_TASK:
            if name in chosen:
                raise harness.UserError(
                    f"--method {config.method}: {name} comes once a task, and these tasks differ in length: give "
                    "--every N (updates)"
                )


def _check_games(config: Config, sequence: Sequence) -> None:
    """Games in JAX: one network for all, whole rounds of steps and updates, and evaluations by episodes."""
    if config.evaluation_frames:
        raise harness.UserError(
            f"--evaluation-frames {config.evaluation_frames}: it is for ale-py's games; games in JAX are evaluated by "
            "--evaluation-episodes"
        )
    first = sequence.tasks[0]
    try:
        made = {task.name: task.make() for task in sequence.tasks}
    except ValueError as error:
        raise harness.UserError(f"--tasks: {error}") from None
    like = made[first.name]
    for name, game in made.items():
        if (game.shape, game.num_actions) != (like.shape, like.num_actions):
            raise harness.UserError(
                f"--tasks: {name} has frames of {game.shape} and {game.num_actions} actions, {first.name} {like.shape} "
                f"and {like.num_actions}; one network can't play both"
            )
    try:
        steps = Round.of(config.num_envs, config.update_period).steps * config.num_envs * FRAME_SKIP
    except ValueError as error:
        raise harness.UserError(f"--num-envs, --update-period: {error}") from None
    for name in ("iteration_frames", "min_replay_frames"):
        value = getattr(config, name)
        if value % steps:
            raise harness.UserError(
                f"--{name.replace('_', '-')} {value}: it must be a multiple of {steps}, the frames of a round of steps "
                f"and updates; the nearest is {max(1, round(value / steps)) * steps}"
            )
