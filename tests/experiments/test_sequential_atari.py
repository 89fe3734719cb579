"""Sequences of games: what happens at a switch, the schedule of each task, interrupted runs, records, bad input."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.replay import Step
from experiments import harness, sequential_atari
from experiments.harness.catalogue import dispatch
from experiments.harness.errors import Interrupted
from experiments.harness.methods import OptimizerConfig
from experiments.sequential_atari import references, span_of
from experiments.sequential_atari.config import PRESETS, Config, resolve
from experiments.sequential_atari.players import InJax
from nap import paths

# Two games, two passes; a visit has two iterations of 40 steps, the first 16 without an update.
TINY = Config(
    tasks="moving-goals-0,switching-dim",
    passes=2,
    frames=320,
    iteration_frames=160,
    min_replay_frames=64,
    replay_capacity=200,
    num_envs=2,
    evaluation_episodes=2,
    batch_size=4,
    update_period=2,
    target_period=1000,
    log_every=4,
    exploration_frames=160,
    hidden=8,
    seeds=2,
    optimizer=OptimizerConfig(lr=1e-3, schedule="cosine"),
)
UPDATES = (80 - 2 - 16) // 2  # of each visit


def tiny(**changes) -> Config:
    return resolve(dataclasses.replace(TINY, **changes))


def run_one(config: Config, out: Path) -> Path:
    return sequential_atari._run_one(config, harness.RunOptions(out=out))


def rows_of(folder: Path, phase: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]


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
    summary = json.loads((whole / "summary.json").read_text())
    last = [row["eval/return"] for row in evaluated[-2:]]
    np.testing.assert_allclose(summary["eval/return/visit4"], np.mean(last))


@pytest.mark.parametrize(("exploration", "expected"), [("restart", 1.0), ("go-on", 0.01)])
def test_exploration_starts_over_or_goes_on(exploration, expected):
    config = tiny(exploration=exploration)
    second = config.sequence.visits[1]
    schedule = sequential_atari.schedule_of(config, second)
    assert schedule.epsilon(second.start // 4 + 16) == pytest.approx(expected)


@pytest.mark.parametrize("stop", [30, 110, 80 * 2 + 2], ids=["within-a-task", "behind-a-switch", "between-passes"])
def test_interrupted_and_resumed_it_equals_the_uninterrupted_run(stop, whole, tmp_path, monkeypatch):
    on_step = sequential_atari._Recorder.on_step

    def stopping(self, agent_steps: int) -> None:
        if agent_steps >= stop:
            raise Interrupted("stopped by the test", 15)
        on_step(self, agent_steps)

    monkeypatch.setattr(sequential_atari._Recorder, "on_step", stopping)
    with pytest.raises(Interrupted):
        run_one(tiny(), tmp_path)
    monkeypatch.undo()
    folder = run_one(tiny(), tmp_path)
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


def player(**changes) -> InJax:
    config = tiny(**changes)
    return InJax(config, span_of(config))


def marked(playing: InJax):
    """A state whose target network, moments and replay can be told from fresh ones."""
    state = playing.init()
    agent, replay, _ = state.loop
    old = jax.tree.map(lambda leaf: leaf + 1, agent.target_params)
    moments = jax.tree.map(lambda leaf: leaf + 3 if leaf.dtype == jnp.float32 else leaf, agent.opt_state)
    ring = replay.replace(experience=replay.experience._replace(reward=replay.experience.reward + 7))
    return state._replace(
        loop=state.loop._replace(agent=agent._replace(target_params=old, opt_state=moments), replay=ring)
    )


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_kept_at_a_switch(kept):
    playing = player(replay="keep" if kept else "clear", target="keep" if kept else "copy")
    before = marked(playing)
    copy = jax.tree.map(jnp.copy, before)  # the switch takes the memory of its argument
    after = playing.switch(before, 0, 1)
    agent, was = after.loop.agent, copy.loop.agent
    assert isinstance(after.loop.replay.experience, Step)
    np.testing.assert_array_equal(after.loop.replay.experience.reward, 7 * kept)
    for leaf, online, target in zip(
        *map(jax.tree.leaves, (agent.target_params, was.params, was.target_params)), strict=True
    ):
        np.testing.assert_array_equal(leaf, target if kept else online)
    for leaf, expected in zip(
        *map(jax.tree.leaves, ((agent.params, agent.opt_state), (was.params, was.opt_state))), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)


def test_heads_of_their_own_are_put_in_and_come_back():
    playing = player(head="own")
    start = marked(playing)
    copy = jax.tree.map(jnp.copy, start)
    second = playing.switch(start, 0, 1)
    second_params = jax.tree.map(jnp.copy, second.loop.agent.params)
    moments = paths.leaves(jax.tree.map(jnp.copy, second.loop.agent.opt_state))
    back = playing.switch(second, 1, 0)
    first, other, again = (
        paths.leaves(params) for params in (copy.loop.agent.params, second_params, back.loop.agent.params)
    )
    head = [path for path in first if path.startswith("output/")]
    assert sorted(head) == sorted(copy.heads) == ["output/bias", "output/kernel"]
    for path in first:
        np.testing.assert_array_equal(again[path], first[path])
        same = np.array_equal(other[path], first[path])
        assert same == (path != "output/kernel")  # biases start at 0 in all
    # What the optimizer remembers of gradients is forgotten for the head, and for the head alone.
    of_gradients = {path: leaf for path, leaf in moments.items() if "/mu/" in path or "/nu/" in path}
    assert of_gradients
    for path, leaf in of_gradients.items():
        np.testing.assert_array_equal(leaf, 0 if "output/" in path else 3)


def test_moments_that_are_reset_are_those_of_the_intervention():
    assert tiny(moments="reset").switching_method == "nap+reset-optimizer"
    assert tiny(moments="reset", method="nap+reset-optimizer").switching_method == "nap+reset-optimizer"
    assert tiny().switching_method == "nap"


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


def test_ale_games_one_after_another_resume_at_an_iterations_end(tmp_path, monkeypatch):
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

    def stopping(self, agent_steps: int) -> None:
        if agent_steps >= 90:
            raise Interrupted("stopped by the test", 15)
        on_step(self, agent_steps)

    monkeypatch.setattr(sequential_atari._Recorder, "on_step", stopping)
    with pytest.raises(Interrupted):
        run_one(config, tmp_path / "resumed")
    monkeypatch.undo()
    folder = run_one(config, tmp_path / "resumed")
    assert (folder / "metrics.jsonl").read_bytes() == (wanted / "metrics.jsonl").read_bytes()
    assert [row["task"] for row in rows_of(folder, "eval")] == [
        task.name for task in config.sequence.tasks for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tasks", "brikcs"], "--tasks: unknown game"),
        (["--tasks", "bricks,bricks:order=1"], "have no planes to permute"),
        (["--passes", "0"], "--passes 0: it must be at least 1"),
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
    ],
)
def test_bad_input_is_one_line(flags, told, capsys, tmp_path):
    assert dispatch(["sequential-atari", *flags, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
