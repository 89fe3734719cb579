import re

import jax
import numpy as np
import pytest

from envs.scores import GAME_SETS
from envs.sequence import PRESETS, Sequence, Task, parse_tasks


def test_tasks_have_the_common_budget_or_their_own():
    assert parse_tasks("bricks, moving-goals-1:frames=32000", 64_000) == (
        Task("bricks", 64_000),
        Task("moving-goals-1", 32_000),
    )


def test_a_set_of_games_stands_for_its_games():
    assert [task.game for task in parse_tasks("atari-10,ALE/Pong-v5", 100)] == [*GAME_SETS["atari-10"], "pong"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a sequence needs a game at least"),
        ("brikcs", "unknown game"),
        ("bricks:frame=3", "there can be :order=N, :mode=N, :difficulty=N and :frames=N, not ':frame=3'"),
        ("pong:mode=-1", "not ':mode=-1'"),
        ("pong:order=1", "'pong:order=1': the frames of ale-py's games have no planes"),
        ("bricks:mode=1:difficulty=0", "'bricks:mode=1:difficulty=0': only ale-py's games have modes and difficulties"),
        ("pong,freeway:mode=8", "'freeway' has no mode 8; nearest: 7"),
        ("pong:difficulty=4", "'pong' has no difficulty 4; nearest: 3"),
    ],
)
def test_what_is_no_task_is_said_in_a_line(text, told):
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        parse_tasks(text, 100)
    assert "\n" not in str(error.value)


def test_visits_of_two_passes():
    sequence = Sequence(parse_tasks("bricks,moving-goals-0:frames=40", 100), passes=2)
    assert sequence.frames == 280
    assert [(v.number, v.place, v.passed, v.task.game, v.start) for v in sequence.visits] == [
        (0, 0, 0, "bricks", 0),
        (1, 1, 0, "moving-goals-0", 100),
        (2, 0, 1, "bricks", 140),
        (3, 1, 1, "moving-goals-0", 240),
    ]


def test_another_order_of_planes_is_another_task_of_the_same_game():
    pytest.importorskip("pgx")
    plain, other = (task.make() for task in parse_tasks("minatar-breakout,minatar-breakout:order=3", 100))
    state = jax.jit(plain.reset)(jax.random.key(0))
    seen, seen_otherwise = np.asarray(plain.frame(state)), np.asarray(other.frame(state))
    assert not np.array_equal(seen, seen_otherwise)
    order = np.random.default_rng(3).permutation(len(seen))
    np.testing.assert_array_equal(seen_otherwise, seen[order])


def test_another_mode_or_difficulty_is_another_task_of_the_same_game():
    plain, *others = parse_tasks("pong,pong:mode=1,pong:difficulty=2:mode=1:frames=30,pong:mode=0:difficulty=0", 100)
    assert plain == Task("pong", 100)
    assert others == [Task("pong", 100, mode=1), Task("pong", 30, mode=1, difficulty=2), plain]
    assert [task.name for task in others] == ["pong:mode=1", "pong:mode=1:difficulty=2", "pong"]
    assert parse_tasks(others[1].name, 30) == (others[1],)
    # One that is each game's default.
    assert parse_tasks("atari-10:difficulty=0", 100) == parse_tasks("atari-10", 100)


def test_human_scores_are_of_games_as_they_are_by_default():
    tasks = parse_tasks("pong:frames=3,pong:mode=1,pong:difficulty=1,pong:mode=0,tetris,bricks", 100)
    assert [task.reference for task in tasks] == [(-20.7, 14.6), None, None, (-20.7, 14.6), None, None]


@pytest.mark.parametrize("name", PRESETS)
def test_published_forms_can_be_played(name):
    text, frames, passes = PRESETS[name]
    if "minatar" in name:
        pytest.importorskip("pgx")
    sequence = Sequence(parse_tasks(text, frames), passes)
    assert len(sequence.visits) == passes * len(sequence.tasks) > 2
    assert len(set(sequence.tasks)) == len(sequence.tasks)


def test_the_permuted_form_has_each_game_once_in_every_cycle():
    pytest.importorskip("pgx")
    tasks = parse_tasks(*PRESETS["minatar-permuted"][:2])
    cycles = [tasks[i : i + 4] for i in range(0, len(tasks), 4)]
    assert len(cycles) == 20
    for number, cycle in enumerate(cycles):
        assert len({task.game for task in cycle}) == 4
        assert {task.order for task in cycle} == {number}
    assert [task.game for task in cycles[0]] != [task.game for task in cycles[1]]
