"""The DQN family on Atari games, with and without Normalize-and-Project.

Trains an agent, evaluates it after every iteration, and logs what the question is about: the norm of every layer's
weights and how far an update turns them (the effective learning rate). The frames counted are the emulator's, 4 for an
agent step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agents.compiled import Environment
from agents.dqn import layer_of
from agents.evaluation import evaluate
from agents.loops import Hooks, Log, LoopState, Schedule, Stretch, new_stretch, train
from envs.atari import AtariEnvs
from envs.games import GAMES, Game, GameEnvs
from envs.games.vector import advance, start
from envs.scores import games_in, human_normalised
from experiments import harness
from experiments.atari.agent import build, network_of
from experiments.atari.agent import trained as trained
from experiments.atari.config import FRAME_SKIP, PRESETS, STACK, Config, resolve
from experiments.atari.devices import devices_of
from experiments.atari.matching import Multipliers, free_of, multipliers_of
from experiments.atari.memory import check_environments, memory_needed, sized
from experiments.harness.command_line import DeviceOptions
from experiments.harness.grid import with_options
from experiments.harness.memory import require_memory
from experiments.harness.mesh import copies_in_memory
from experiments.harness.methods import MATCHING, learning_rate, method_label
from experiments.harness.processes import check_alone, together
from experiments.harness.sizes import what_fits
from experiments.harness.statistics import stratified_bootstrap


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit code."""
    return harness.run_command(
        lambda config, options: run(config, options, devices_of(config, options)),
        Config, argv, name="atari", description=__doc__, presets=PRESETS, options_type=DeviceOptions,
    )  # fmt: skip


def plan(argv: list[str]) -> list[harness.Job]:
    """A command for each run that a command line stands for: for each game and seed. Raises harness.UserError."""
    config, options = harness.parse_command(
        Config, argv, name="atari", description=__doc__, presets=PRESETS, options_type=DeviceOptions
    )
    check_alone(options.coordinator)
    return [
        harness.job_of(
            "atari",
            with_options(argv, {"--games": None, "--game": one.game, "--seeds": None, "--seed": one.seed}),
            [one],
            options,
            _label,
        )
        for of_game in by_game(config)
        for seed in harness.seeds_planned(config, options)
        for one in [dataclasses.replace(of_game, seed=seed)]
    ]


def run(config: Config, options: harness.RunOptions, mesh: Mesh | None = None) -> list[Path]:
    """One run, from its beginning or from where it was left; or one for each of several games.

    A run with a matching schedule begins with the one that it follows, which `options.fresh` does not start over.

    Args:
        config: the configuration.
        options: the shared options.
        mesh: the devices that share each batch; None: a single one.

    Returns:
        The folder of each game's run.

    Raises:
        NonFinite: a game's loss is not finite; the other games have been run.
    """
    folders, failed = [], []
    games = by_game(config)
    for one in games:
        try:
            folders.append(_run_one(one, options, mesh))
            harness.tell_end(folders[-1])
        except harness.NonFinite as error:
            if len(games) == 1:
                raise
            harness.print_error(error)
            failed.append(one.game)
    if failed:
        raise harness.NonFinite(f"{', '.join(failed)}: ended early, as told above; the other games have been run")
    return folders


def folder_of(config: Config, out: Path) -> Path:
    """The folder of the run of a resolved configuration, there or not."""
    return harness.run_folder("atari", config, out=out, label=_label(config))


def by_game(config: Config) -> list[Config]:
    """The resolved configuration of each game.

    Raises:
        harness.UserError: see `resolve`; or there is no such list of games.
    """
    try:
        games = games_in(config.games) if config.games else (config.game,)
    except ValueError as error:
        raise harness.UserError(f"--games: {error}") from None
    return [resolve(dataclasses.replace(config, game=game, games="")) for game in games]


def epsilon_at(config: Config, agent_steps: int) -> float:
    """Exploration in training: linear from 1, beginning with the first update; 0 where noisy layers explore."""
    if config.ingredients.noisy:
        return 0.0
    done = (FRAME_SKIP * agent_steps - config.min_replay_frames) / max(1, config.exploration_frames)
    return 1 + (config.epsilon_end - 1) * min(1.0, max(0.0, done))


def environment_of(game: Game, stack: int = STACK) -> Environment:
    """A game as compiled loops want it."""
    return Environment(
        functools.partial(start, game, stack), functools.partial(advance, game), lambda playing: playing.stack
    )


def make_environments(config: Config) -> AtariEnvs | GameEnvs:
    """The game, many times over."""
    if config.game in GAMES:
        return GameEnvs(
            GAMES[config.game](), num_envs=config.num_envs, seed=config.seed, stack=STACK, frames_per_step=FRAME_SKIP
        )
    assert config.environment is not None, "resolve(config) fills it in"
    return AtariEnvs(config.game, protocol=config.environment, num_envs=config.num_envs, seed=config.seed)


def _label(config: Config) -> str:
    method = method_label(config.method, config.optimizer)
    return f"{config.game}-{config.agent}-{method}-seed{config.seed}"


def _run_one(config: Config, options: harness.RunOptions, mesh: Mesh | None) -> Path:
    harness.enable_compilation_cache()
    free = None
    if config.optimizer.schedule in MATCHING:
        free = _run_one(free_of(config), dataclasses.replace(options, fresh=False), mesh)
    with harness.open_run("atari", config, options, label=_label(config), total=config.frames) as opened:
        if not opened.done:
            _run(config, opened, free, mesh)
        return opened.folder


def _run(config: Config, opened: harness.Run, free: Path | None, mesh: Mesh | None) -> None:
    together(lambda: check_environments(config))
    environments = make_environments(config)
    with contextlib.closing(environments):
        _train_and_evaluate(config, opened, environments, free, mesh)


def _train_and_evaluate(
    config: Config, opened: harness.Run, environments: AtariEnvs | GameEnvs, free: Path | None, mesh: Mesh | None
) -> None:
    shape = environments.num_actions, environments.observation_shape
    multipliers = multipliers_of(config, network_of(config, *shape), free) if free else {}
    needs = functools.partial(memory_needed, *shape, multipliers, copies_in_memory(mesh))
    remedy = what_fits(config, needs, sized(config))
    opened.progress.say(together(lambda: require_memory(needs(config), jax.local_devices()[0], remedy)))
    functions = build(config, *shape, multipliers, mesh=mesh)
    key = jax.random.key(config.seed)
    init_key, train_key, evaluation_key = jax.random.split(key, 3)
    steps = config.iteration_frames // FRAME_SKIP
    new = new_stretch(steps, config.num_envs)
    # The last evaluation is saved too: a run that is stopped between its last save and its end still has a summary.
    iteration, (state, last_return, unevaluated, begun) = opened.restore(
        (functions.init(init_key), np.asarray(np.nan), np.asarray(False), new)
    )
    if begun.steps:
        frames = FRAME_SKIP * config.num_envs * int(begun.steps)
        opened.progress.say(f"iteration {iteration} goes on {frames:,} frames in, to which its games are played again")
    iteration -= int(bool(unevaluated) or bool(begun.steps))
    while iteration < config.iterations:
        if not unevaluated:
            started, before = time.monotonic(), int(state.agent_steps)
            state = train(
                functions,
                _schedule(config),
                state,
                environments,
                key=train_key,
                seed=environment_seed(config.seed, iteration, 0),
                steps=steps,
                hooks=_hooks(config, opened, iteration, multipliers, last_return),
                begun=begun,
            )
            begun = new
            jax.block_until_ready(state.agent.params)
            speed = FRAME_SKIP * (int(state.agent_steps) - before) / (time.monotonic() - started)
            opened.record_timing({"frames": FRAME_SKIP * int(state.agent_steps), "frames_per_second": speed})
        frames, trained = FRAME_SKIP * int(state.agent_steps), (state, last_return, np.asarray(True), new)
        returns = evaluate(
            functions,
            state.agent.params,
            environments,
            epsilon=config.evaluation_epsilon,
            key=jax.random.fold_in(evaluation_key, iteration),
            seed=environment_seed(config.seed, iteration, 1),
            episodes=0 if config.evaluation_frames else config.evaluation_episodes,
            steps=config.evaluation_frames // FRAME_SKIP,
            on_step=functools.partial(_on_evaluation, opened, frames, iteration + 1, trained),
        )
        last_return, unevaluated = np.asarray(np.mean(returns)), np.asarray(False)
        over_episodes = stratified_bootstrap(np.asarray(returns))
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
                "eval/return_low": over_episodes.low,
                "eval/return_high": over_episodes.high,
            }
        )
        opened.save(iteration, (state, last_return, unevaluated, new))
    opened.finish({"frames": config.frames, **_evaluation(config, last_return)})


def _on_evaluation(opened: harness.Run, frames: int, iteration: int, trained: Any, agent_steps: int) -> None:
    """After a step of an evaluation; `frames` are training's, which is saved where a signal ends the evaluation."""
    opened.save_and_stop_if_asked(iteration, lambda: trained)
    opened.progress.update(frames=frames, evaluation_frames=FRAME_SKIP * agent_steps)


def _evaluation(config: Config, mean_return: np.ndarray) -> dict[str, float | None]:
    score = float(mean_return)
    return {"eval/return": score, "eval/human_normalised": _human_normalised(config, score)}


def _human_normalised(config: Config, score: float) -> float | None:
    return None if config.game in GAMES else human_normalised(config.game, score)


def environment_seed(seed: int, iteration: int, stream: int) -> int:
    """What the environments of an iteration are seeded with: stream 0 in training, the others in evaluations."""
    return int(np.random.SeedSequence([seed, iteration, stream]).generate_state(1)[0])


def _schedule(config: Config) -> Schedule:
    return Schedule(
        update_period=config.update_period,
        learning_starts=config.min_replay_frames // FRAME_SKIP,
        log_every=config.log_every,
        epsilon=functools.partial(epsilon_at, config),
    )


def _hooks(
    config: Config, opened: harness.Run, iteration: int, multipliers: Multipliers, last_return: np.ndarray
) -> Hooks:
    """What the loop tells goes to the run's records and its progress bar; a signal has it save and stop."""
    written = learning_rate(config.optimizer, config.total_updates)
    shown: dict[str, str] = {}

    def on_state(now: Callable[[], tuple[LoopState, Stretch]]) -> None:
        def state() -> Any:
            loop, begun = now()
            return loop, last_return, np.asarray(False), begun

        opened.save_and_stop_if_asked(iteration + 1, state)

    def on_step(agent_steps: int) -> None:
        opened.progress.update(frames=FRAME_SKIP * agent_steps, **shown)

    def on_loss(updates: int, loss: float) -> None:
        opened.check_finite("loss", loss, updates=updates)

    def on_log(log: Log) -> None:
        mean = float(np.mean(log.returns)) if log.returns else None
        last = max(0, log.updates - 1)  # before the first update: the rate that it will have
        rate = np.asarray(written(last))
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
                "train/human_normalised": None if mean is None else _human_normalised(config, mean),
                "loss": log.loss,
                "epsilon": log.epsilon,
                "learning_rate": rate,
                **{f"learning_rate/{layer_of(path)}": rate * of_path(last) for path, of_path in multipliers.items()},
                **log.measured,
            }
        )

    return Hooks(on_step, on_loss, on_log, on_state)
