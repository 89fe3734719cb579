"""Games one after another, the whole list more than once: does an agent go on learning?

One agent plays a sequence of games, `--passes` times; the same is then trained on each game alone, from fresh weights
and for as many frames, and is what its visits are measured by. Games of ale-py are stepped from Python, one seed at a
time. Of games in JAX whole runs are compiled, and all seeds of a run are trained side by side.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListOf
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from agents.loops import Log, Schedule
from envs.sequence import Task, Visit
from experiments import atari, harness
from experiments.atari.agent import Span, importance_exponent
from experiments.atari.config import FRAME_SKIP
from experiments.atari.memory import check_environments, sized
from experiments.harness.diverged import Diverged, not_finite
from experiments.harness.grid import with_options
from experiments.harness.memory import require_memory
from experiments.harness.methods import learning_rate, method_label
from experiments.harness.seeds import use_all_cores
from experiments.harness.sizes import Sized, what_fits
from experiments.sequential_atari.config import PRESETS, Config, of_visit, resolve
from experiments.sequential_atari.players import InJax, OnTheHost, State, memory_needed, shape_in_jax
from nap import schedules

NAME = "sequential-atari"


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def plan(argv: list[str]) -> list[harness.Job]:
    """A command for each sequence that a command line stands for. Raises harness.UserError."""
    config, options = _parse(argv)
    harness.seeds_planned(config, options)
    return [
        harness.job_of(
            NAME,
            with_options(argv, {"--seeds": one.seeds, "--seed": one.seed}),
            [one, *references(one)],
            options,
            _label,
        )
        for one in _by_run(config, options)
    ]


def references(config: Config) -> list[Config]:
    """A fresh agent for each task alone, with the same budget; none for a sequence of one visit.

    What is stretched over the sequence is not stretched over a fresh agent's budget: at its updates all is as at the
    same, the first ones, of the sequence. So the first task's fresh agent is trained as the first visit is.
    """
    sequence = config.sequence
    if len(sequence.visits) == 1:
        return []
    alone = [dataclasses.replace(config, tasks=task.name, frames=task.frames, passes=1) for task in sequence.tasks]
    return list(dict.fromkeys(alone))


def _main(argv: list[str]) -> int:
    use_all_cores()
    config, options = _parse(argv)
    harness.enable_compilation_cache()
    runs = (each for one in _by_run(config, options) for each in (one, *references(one)))
    return harness.each_alone(functools.partial(_run_one, each, options) for each in runs)


def _parse(argv: list[str]) -> tuple[Config, harness.RunOptions]:
    return harness.parse_command(Config, argv, name=NAME, description=__doc__, presets=PRESETS)


def _by_run(config: Config, options: harness.RunOptions) -> Iterator[Config]:
    """The resolved configuration of each run: one for all seeds of games in JAX, else one a seed."""
    config = resolve(config)
    if config.in_jax:
        yield dataclasses.replace(config, seeds=options.seeds)
    else:
        yield from (dataclasses.replace(config, seed=config.seed + i) for i in range(options.seeds))


def _label(config: Config) -> str:
    tasks = config.sequence.tasks
    what = tasks[0].name.replace(":", "-") if len(tasks) == 1 else f"{len(tasks)}games{config.passes}passes"
    method = method_label(config.method, config.optimizer)
    return f"{what}-{config.agent}-{method}-seed{config.seed}"


def _run_one(config: Config, options: harness.RunOptions) -> Path:
    with harness.open_run(NAME, config, options, label=_label(config), total=config.sequence.frames) as opened:
        if not opened.done:
            _run(config, opened)
        return opened.folder


def _run(config: Config, opened: harness.Run) -> None:
    span = span_of(config)
    task = config.sequence.tasks[0]
    check_environments(of_visit(config, task.game, task.frames))
    # Games in JAX have their seeds side by side, and none is made before all are known to fit.
    host = None if config.in_jax else OnTheHost(config, span)
    needs = functools.partial(memory_needed, span, *(shape_in_jax(config) if host is None else host.shape))
    more = [Sized("seeds"), Sized("evaluation_episodes")] if config.in_jax else []
    remedy = what_fits(config, needs, [*sized(config), *more])
    opened.progress.say(require_memory(needs(config), jax.local_devices()[0], remedy))
    player = host or InJax(config, span)
    begun = player.init()
    visits = config.sequence.visits
    scores, diverged = np.full((len(visits), config.seeds), np.nan), Diverged(opened, config.seed, config.seeds)
    done, (saved, scores, diverged.seeds) = opened.restore((player.saved(begun), scores, diverged.seeds))
    state = player.loaded(saved, begun)
    del begun
    done -= int(_is_begun(state))
    iterations = [visit for visit in visits for _ in range(visit.task.frames // config.iteration_frames)]

    def saved_with(state: State) -> Any:
        return player.saved(state), scores, diverged.seeds

    def stop_if_asked(iteration: int, now: Callable[[], State]) -> None:
        opened.save_and_stop_if_asked(iteration, lambda: saved_with(now()))

    while done < len(iterations):
        visit = iterations[done]
        recorder = _Recorder(config, opened, visit, span.rate, diverged, functools.partial(stop_if_asked, done + 1))
        if visit.number > 0 and iterations[done - 1] is not visit and not _is_begun(state):
            state = player.switch(state, visits[visit.number - 1].place, visit.place)
        started = time.monotonic()
        state = player.train(state, visit, schedule_of(config, visit), done, recorder)
        frames = FRAME_SKIP * int(state.loop.agent_steps)
        opened.record_timing(
            {"frames": frames, "frames_per_second": config.iteration_frames / (time.monotonic() - started)}
        )
        done += 1
        diverged.add(not_finite(player.params(state)))
        diverged.tell(int(np.max(np.asarray(state.loop.agent.updates))))
        returns = player.evaluate(state, visit, visit.place, done, recorder)
        scores[visit.number] = recorder.evaluated("eval", state, visit.task, returns)
        if done == len(iterations) or iterations[done] is not visit:
            # Every task is played at a visit's end: what is forgotten, and what a new one profits from.
            for place in sorted(config.sequence.places.values()):
                opened.check_interrupted()
                of_task = returns if place == visit.place else player.evaluate(state, visit, place, done, recorder)
                recorder.evaluated("all", state, config.sequence.tasks[place], of_task)
        opened.save(done, saved_with(state))
        opened.check_interrupted()
    opened.finish(
        {"frames": config.sequence.frames}
        | {f"eval/return/visit{visit.number + 1}": _mean(scores[visit.number]) for visit in visits}
    )


def span_of(config: Config) -> Span:
    """The updates of the whole sequence, and what happens at each; a fresh agent has a part of them, the first."""
    each = [config.updates_of(visit.task.frames) for visit in config.sequence.visits]
    whole = config.run_updates or sum(each)

    def over_all(one: Callable[[int], optax.Schedule], choice: str) -> optax.Schedule:
        return one(whole) if choice == "go-on" else schedules.consecutive([one(updates) for updates in each], each)

    return Span(
        whole,
        each[0] if len(set(each)) == 1 else 0,
        over_all(lambda updates: learning_rate(config.optimizer, updates), config.rate),
        over_all(lambda updates: importance_exponent(config, updates), config.importance),
        tuple(itertools.accumulate(each[:-1])) if config.moments == "reset" else (),
    )


def schedule_of(config: Config, visit: Visit) -> Schedule:
    """When what happens in a visit."""
    of_task, start = of_visit(config, visit.task.game, visit.task.frames), visit.start // FRAME_SKIP

    def epsilon(agent_steps: int) -> float:
        return atari.epsilon_at(of_task, agent_steps - (start if config.exploration == "restart" else 0))

    return Schedule(
        update_period=config.update_period,
        learning_starts=config.min_replay_frames // FRAME_SKIP,
        log_every=config.log_every,
        epsilon=epsilon,
        begun_steps=start,
        begun_updates=sum(config.updates_of(v.task.frames) for v in config.sequence.visits[: visit.number]),
    )


def _is_begun(state: State) -> bool:
    """Whether a signal ended its iteration."""
    return state.begun is not None and bool(state.begun.steps)


def _mean(values: ListOf[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) and np.all(np.isfinite(values)) else None


class _Recorder:
    """Writes down what an iteration of a visit finds, for each seed; those that have diverged have no scores."""

    def __init__(
        self,
        config: Config,
        opened: harness.Run,
        visit: Visit,
        rate: optax.Schedule,
        diverged: Diverged,
        stop_if_asked: Callable[[Callable[[], State]], None],
    ) -> None:
        self._stop_if_asked = stop_if_asked
        self._config, self._opened, self._visit, self._rate, self._diverged = config, opened, visit, rate, diverged
        self._shown = f"{visit.task.name} ({visit.number + 1}/{len(config.sequence.visits)})"
        self._returns, self._frames = np.full(config.seeds, np.nan), visit.start

    def on_step(self, agent_steps: int) -> None:
        """After a stretch, or a step."""
        shown = {"return": f"{np.nanmean(self._returns):.1f}"} if np.any(np.isfinite(self._returns)) else {}
        self._frames = FRAME_SKIP * agent_steps
        self._opened.progress.update(frames=self._frames, task=self._shown, **shown)

    def on_evaluation(self, agent_steps: int) -> None:
        """After a step of an evaluation."""
        self._opened.check_interrupted()
        shown = {"evaluation_frames": FRAME_SKIP * agent_steps}
        self._opened.progress.update(frames=self._frames, task=self._shown, **shown)

    def on_state(self, now: Callable[[], State] | None) -> None:
        """Before `on_step`: stops the run where a signal came, with what `now()` gives saved, if there is that."""
        if now is None:
            self._opened.check_interrupted()
        else:
            self._stop_if_asked(now)

    def on_log(self, seed: int, log: Log) -> None:
        """What training tells of one seed."""
        if log.loss is not None and not math.isfinite(log.loss):
            self._diverged.add([seed])
        mean = None if self._diverged.seeds[seed] else _mean(log.returns)
        if mean is not None:
            self._returns[seed] = mean
        self._opened.record(
            {
                "phase": "train",
                **self._place(seed, log.agent_steps, log.updates),
                "train/episodes": len(log.returns),
                "train/return": mean,
                "train/human_normalised": _normalised(self._visit.task, mean),
                "loss": log.loss,
                "epsilon": log.epsilon,
                "learning_rate": np.asarray(self._rate(max(0, log.updates - 1))),
                **log.measured,
            }
        )
        self._diverged.tell(log.updates)

    def evaluated(self, phase: str, state: State, played: Task, returns: ListOf[ListOf[float]]) -> np.ndarray:
        """Records each seed's returns in a game, `played`; gives their means, NaN for a seed that diverged."""
        returns = [[] if diverged else of_seed for diverged, of_seed in zip(self._diverged.seeds, returns, strict=True)]
        steps, updates = int(state.loop.agent_steps), np.max(np.asarray(state.loop.agent.updates))
        for seed, of_seed in enumerate(returns):
            mean = _mean(of_seed)
            self._opened.record(
                {
                    "phase": phase,
                    **self._place(seed, steps, int(updates)),
                    "played": played.name,
                    "eval/episodes": len(of_seed),
                    "eval/return": mean,
                    "eval/human_normalised": _normalised(played, mean),
                }
            )
        return np.asarray([np.mean(of_seed) if of_seed else np.nan for of_seed in returns])

    def _place(self, seed: int, agent_steps: int, updates: int) -> dict[str, Any]:
        return {
            "seed": self._config.seed + seed,
            "task": self._visit.task.name,
            "visit": self._visit.number + 1,
            "pass": self._visit.passed + 1,
            "frames": FRAME_SKIP * agent_steps,
            "visit_frames": FRAME_SKIP * agent_steps - self._visit.start,
            "agent_steps": agent_steps,
            "updates": updates,
        }


def _normalised(task: Task, score: float | None) -> float | None:
    return None if score is None or task.reference is None else task.reference.normalised(score)
