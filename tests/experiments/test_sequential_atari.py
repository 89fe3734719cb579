"""Sequences of games: records, the schedule of each task, interrupted and diverging runs, bad input."""

import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sequences import UPDATES, assert_heads_differ, rows_of, run_one, tiny

import experiments
from agents import compiled
from experiments import harness, sequential_atari
from experiments.harness.catalogue import dispatch
from experiments.harness.errors import Interrupted
from experiments.sequential_atari import references, span_of
from experiments.sequential_atari.config import PRESETS
from experiments.sequential_atari.players import InJax, OnTheHost


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run_one(tiny(), tmp_path_factory.mktemp("whole"))


def test_a_visit_has_the_updates_that_its_schedule_is_made_for(whole):
    rows = rows_of(whole, "train")
    for visit in range(4):
        of_visit = [row for row in rows if row["visit"] == visit + 1 and row["seed"] == 1]
        # Not what is left to tell at the end of an iteration.
        of_visit = [row for row in of_visit if any(name.startswith("elr/") for name in row)]
        assert of_visit[0]["updates"] == visit * UPDATES + 1
        np.testing.assert_allclose(of_visit[0]["learning_rate"], 1e-3, rtol=1e-6)
        assert of_visit[-1]["updates"] == visit * UPDATES + UPDATES // 4 * 4
        assert of_visit[-1]["learning_rate"] < 1e-4
    assert rows_of(whole, "eval")[-1]["updates"] == 4 * UPDATES


def test_records_say_where_in_the_sequence_they_are(whole):
    evaluated = rows_of(whole, "eval")
    assert len(evaluated) == 4 * 2 * 2  # visits, iterations, seeds
    row = evaluated[2 * 2 * 2 + 3]  # the third visit's last evaluation, of the second seed
    assert {name: row[name] for name in ("seed", "task", "played", "visit", "pass", "frames", "visit_frames")} == {
        "seed": 1, "task": "moving-goals-0", "played": "moving-goals-0", "visit": 3, "pass": 2, "frames": 960,
        "visit_frames": 320,
    }  # fmt: skip
    everything = rows_of(whole, "all")
    assert [row["played"] for row in everything if row["seed"] == 0] == 4 * ["moving-goals-0", "switching-dim"]
    # The task just played is evaluated on the same episodes twice, so its figures agree.
    for row in everything:
        if row["played"] == row["task"]:
            (same,) = [e for e in evaluated if (e["seed"], e["frames"]) == (row["seed"], row["frames"])]
            assert same["eval/return"] == row["eval/return"]
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    last = [row["eval/return"] for row in evaluated[-2:]]
    np.testing.assert_allclose(summary["eval/return/visit4"], np.mean(last))


@pytest.mark.parametrize(("exploration", "expected"), [("restart", 1.0), ("go-on", 0.01)])
def test_exploration_starts_over_or_goes_on(exploration, expected):
    config = tiny(exploration=exploration)
    second = config.sequence.visits[1]
    schedule = sequential_atari.schedule_of(config, second)
    assert schedule.epsilon(second.start // 4 + 16) == pytest.approx(expected)


def signal_at(monkeypatch, hook: str, moments: list[int]) -> None:
    """Sends SIGTERM where a recorder's hook is first called with a number at or above the first of the moments."""
    heard = getattr(sequential_atari._Recorder, hook)

    def signalled(self, number: int) -> None:
        if moments and number >= moments[0]:
            del moments[0]
            signal.raise_signal(signal.SIGTERM)  # looked at behind the next stretch
        heard(self, number)

    monkeypatch.setattr(sequential_atari._Recorder, hook, signalled)


def test_stopped_by_signals_and_resumed_it_equals_the_uninterrupted_run(whole, tmp_path, monkeypatch):
    """A signal saves between stretches: before the first update, within a visit, and behind a switch."""
    moments = [2, 60, 110]  # a visit has 80 agent steps, an iteration 40
    stops, begins, train = list(moments), [], compiled.train
    monkeypatch.setattr(
        compiled, "train", lambda loop, schedule, state, **how: (
            begins.append(int(state.agent_steps)), train(loop, schedule, state, **how)
        )[1],
    )  # fmt: skip
    signal_at(monkeypatch, "on_step", moments)
    for stop in stops:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            run_one(tiny(), tmp_path / "resumed")
        assert stop not in moments
        begins.clear()
    folder = run_one(tiny(), tmp_path / "resumed")
    assert begins[0] >= stops[-1]  # nothing is trained again
    for name in ("metrics.jsonl", "summary.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_papers_schedule_starts_over_at_every_task():
    config = PRESETS["nap"]
    span = span_of(config)
    each = config.updates_of(20_000_000)
    assert each == (20_000_000 // 4 - 8 - 80_000 // 4) // 4
    assert span.updates == 20 * each
    assert span.task_updates == each
    for task in (0, 1, 19):
        first = task * each
        np.testing.assert_allclose(span.rate(first), 1e-8, rtol=1e-3)
        np.testing.assert_allclose(span.rate(first + 999), 1e-8 + (6.25e-4 - 1e-8) * 0.999, rtol=1e-4)
        np.testing.assert_allclose(span.rate(first + 1000), 6.25e-4, rtol=1e-5)
        np.testing.assert_allclose(span.rate(first + each - 1), 1e-6, rtol=1e-2)


def test_a_schedule_that_goes_on_is_stretched_over_the_sequence():
    config = tiny(rate="go-on")
    rate = span_of(config).rate
    assert rate(4 * UPDATES // 2) == pytest.approx(0.5 * 1e-3 * (1 + 0.01), rel=1e-3)


def test_every_task_is_also_trained_alone_with_its_own_budget():
    config = tiny(tasks="moving-goals-0,switching-dim:frames=480")
    alone = references(config)
    assert [(one.tasks, one.passes, one.frames) for one in alone] == [
        ("moving-goals-0", 1, 320),
        ("switching-dim", 1, 480),
    ]
    assert [one.sequence.frames for one in alone] == [320, 480]
    same = {"tasks", "passes", "frames"}
    assert all(vars(one)[name] == value for one in alone for name, value in vars(config).items() if name not in same)
    assert [references(one) for one in alone] == [[], []]


def test_ale_games_one_after_another_resume_within_a_visit(tmp_path, monkeypatch):
    """A signal saves: in the first iteration, twice in the one behind the switch, and in an evaluation of the last."""
    changes = {
        "tasks": "breakout,space_invaders:mode=7:difficulty=1",
        "passes": 1,
        "seeds": 1,
        "full_action_space": True,
        "hidden": 4,
        "head": "own",
        "evaluation_epsilon": 1.0,  # games played at random end soon
    }
    config = tiny(**changes)
    wanted = run_one(config, tmp_path / "whole")
    on_step = sequential_atari._Recorder.on_step
    stops = [30, 90, 112, 158]  # a visit has 80 agent steps, an iteration 40

    def signalled(self, agent_steps: int) -> None:
        if stops and agent_steps == stops[0]:
            os.kill(os.getpid(), signal.SIGTERM)  # looked at behind the next step
        on_step(self, agent_steps)

    monkeypatch.setattr(sequential_atari._Recorder, "on_step", signalled)
    on_evaluation, played = sequential_atari._Recorder.on_evaluation, []

    def in_evaluation(self, agent_steps: int) -> None:
        if len(stops) == 0:
            played.append(agent_steps)
            if len(played) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        on_evaluation(self, agent_steps)

    monkeypatch.setattr(sequential_atari._Recorder, "on_evaluation", in_evaluation)
    saved, save = [], harness.Run.save
    monkeypatch.setattr(harness.Run, "save", lambda run, *what: (save(run, *what), saved.append(what[0])))
    for iteration in (1, 3, 3, 4, 4):
        with pytest.raises(Interrupted, match=rf"stopped by SIGTERM; .* \(iteration {iteration}\)"):
            run_one(config, tmp_path / "resumed")
        del stops[:1]
    assert played == [2, 4]
    folder = run_one(config, tmp_path / "resumed")
    assert saved == [1, 1, 2, 3, 3, 3, 4, 4, 4]
    for name in ("metrics.jsonl", "summary.json"):
        assert (folder / name).read_bytes() == (wanted / name).read_bytes(), name
    assert [row["task"] for row in rows_of(folder, "eval")] == [
        task.name for task in config.sequence.tasks for _ in range(2)
    ]
    last, first = experiments.load(folder), experiments.load(folder, task="breakout")
    assert last.stage.task == config.sequence.tasks[1] and first.stage.task == config.sequence.tasks[0]
    assert_heads_differ(last, first, last.saved.read("0/heads"), place=(0,))


def test_plasticity_injection_comes_at_the_same_update_of_a_sequence_and_of_its_fresh_agents():
    config = tiny(method="nap+plasticity-injection")
    assert {span_of(one).updates for one in (config, *references(config))} == {4 * UPDATES}
    # Fresh agents of other methods belong to every sequence of the same tasks.
    assert references(tiny(passes=2)) == references(tiny(passes=3))


def test_a_seed_that_diverges_ends_alone(whole, tmp_path, monkeypatch, capsys):
    begin = InJax.init

    def with_a_broken_seed(self):
        state = begin(self)
        params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), state.loop.agent.params)
        return state._replace(loop=state.loop._replace(agent=state.loop.agent._replace(params=params)))

    monkeypatch.setattr(InJax, "init", with_a_broken_seed)
    folder = run_one(tiny(), tmp_path)
    assert capsys.readouterr().err.count("seed 1: the loss is not finite") == 1
    for phase in ("eval", "all"):
        rows, wanted = rows_of(folder, phase), rows_of(whole, phase)
        assert [row for row in rows if row["seed"] == 0] == [row for row in wanted if row["seed"] == 0]
        broken = [row for row in rows if row["seed"] == 1]
        assert broken and all((row["eval/return"], row["eval/episodes"]) == (None, 0) for row in broken)
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["eval/return/visit4"] is None


def test_a_run_whose_seeds_all_diverge_ends(tmp_path, monkeypatch):
    begin = InJax.init

    def broken(self):
        state = begin(self)
        agent = state.loop.agent
        params = jax.tree.map(lambda leaf: leaf * jnp.nan, agent.params)
        return state._replace(loop=state.loop._replace(agent=agent._replace(params=params)))

    monkeypatch.setattr(InJax, "init", broken)
    with pytest.raises(harness.NonFinite, match="loss of every seed is nan"):
        run_one(tiny(), tmp_path)


def test_a_sequence_that_diverges_keeps_no_fresh_agent_from_training(tmp_path, monkeypatch, capsys):
    ran = []

    def diverging(config, options):
        ran.append(config.tasks)
        if config.passes > 1:
            raise harness.NonFinite("the loss is nan")

    monkeypatch.setattr(sequential_atari, "_run_one", diverging)
    assert (
        dispatch(["sequential-atari", "--tasks", "switching-dim,bricks", "--passes", "2", "--out", str(tmp_path)]) == 1
    )
    assert ran == ["switching-dim,bricks", "switching-dim", "bricks"]
    assert capsys.readouterr().err.splitlines()[-1] == "error: the loss is nan"


def test_memory_is_asked_for_before_it_is_taken(tmp_path, monkeypatch):
    def none_left(parts, device, remedy):
        assert parts["replay"] > 60_000 and parts["networks and optimizers"] > 1_000  # of two seeds
        raise harness.UserError("nothing is free")

    monkeypatch.setattr(sequential_atari, "require_memory", none_left)
    made = InJax.init
    monkeypatch.setattr(InJax, "init", lambda self: made(self) if _is_traced() else pytest.fail("it was taken"))
    with pytest.raises(harness.UserError, match="nothing is free"):
        run_one(tiny(), tmp_path)


def _is_traced() -> bool:
    return isinstance(jnp.zeros([]) + 1, jax.core.Tracer)


def test_a_game_that_can_not_be_loaded_ends_the_run_before_it_has_begun(tmp_path, monkeypatch, capsys):
    def missing(self, task):
        raise RuntimeError("Failed to load ROM")

    monkeypatch.setattr(OnTheHost, "_environments", missing)
    flags = ["--preset", "three-games", "--tasks", "pong,breakout", "--out", str(tmp_path)]
    assert dispatch(["sequential-atari", *flags]) == 2
    assert "error: --tasks: pong can't be loaded: Failed to load ROM\n" in capsys.readouterr().err
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_signal_in_the_evaluations_at_a_visits_end_loses_none_and_no_training(whole, tmp_path, monkeypatch):
    evaluated, played, signals = InJax.evaluate, [], [(2, 0), (4, 0)]

    def signalled(self, state, visit, place, iteration, told):
        played.append((iteration, place))
        if signals and signals[0] == played[-1]:
            del signals[0]
            signal.raise_signal(signal.SIGTERM)
        return evaluated(self, state, visit, place, iteration, told)

    monkeypatch.setattr(InJax, "evaluate", signalled)
    with pytest.raises(Interrupted, match=r"\(iteration 2\)"):
        run_one(tiny(), tmp_path)
    assert played == [(1, 0), (2, 0)]  # the first iteration's evaluation, and the second's: not the other game's
    played.clear()
    train = InJax.train
    monkeypatch.setattr(InJax, "train", lambda self, *others: (played.append("train"), train(self, *others))[1])
    with pytest.raises(Interrupted, match=r"\(iteration 4\)"):
        run_one(tiny(), tmp_path)
    assert played == [(2, 0), (2, 1), "train", (3, 1), "train", (4, 1), (4, 0)]
    played.clear()
    folder = run_one(tiny(), tmp_path)
    # Of the second visit's own game the returns of before are on record, and are found again for its end.
    assert played[:2] == [(4, 1), "train"]
    for name in ("metrics.jsonl", "summary.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_checkpoint_holds_the_environments_of_a_game_once_whatever_the_order_of_its_planes():
    pytest.importorskip("pgx")
    config = tiny(tasks="minatar-breakout,minatar-breakout:order=1,minatar-breakout:order=2", passes=1)
    player = InJax(config, span_of(config))
    assert list(player._not_begun(jax.eval_shape(player.init)).playing) == ["minatar-breakout"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tasks", "brikcs"], "--tasks: unknown game"),
        (["--tasks", "bricks,bricks:order=1"], "have no planes to permute"),
        (["--passes", "0"], "--passes 0: it must lie in 1 to 100000"),
        (["--tasks", "bricks,pong"], "can't be in one sequence"),
        (["--tasks", "bricks,catch"], "one network can't play both"),
        (["--tasks", "pong,freeway:mode=9"], "--tasks: 'freeway' has no mode 9; nearest: 7"),
        (["--tasks", "bricks:difficulty=1"], "--tasks: 'bricks:difficulty=1': only ale-py's games"),
        (["--tasks", "pong,breakout"], "--full-action-space is missing"),
        (["--frames", "100000"], "the nearest is 80000"),
        (["--update-period", "7"], "the nearest is an update every 8"),
        (["--min-replay-frames", "3216"], "--min-replay-frames 3216: it must be a multiple of 32"),
        (["--schedule", "matching"], "--schedule matching: it is for atari"),
        (["--method", "nap+redoo"], "did you mean"),
        (["--evaluation-frames", "64000"], "games in JAX are evaluated by --evaluation-episodes"),
        (["--tasks", "bricks,moving-goals-0:frames=100000"], "--tasks, moving-goals-0: --frames 100000: it must be"),
        (
            ["--tasks", "bricks,moving-goals-0:frames=80000", "--method", "dash"],
            "these tasks differ in length",
        ),
    ],
)
def test_bad_input_is_one_line(flags, told, capsys, tmp_path):
    assert dispatch(["sequential-atari", *flags, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
