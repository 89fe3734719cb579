"""The switching game by hand, and what chance, perfect play and perfect play of the other task score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripted_play import chance, play

from envs.games import switching
from envs.games.board import DOWN, LEFT, RIGHT, STAY, UP
from envs.games.switching import SwitchingState

KEY = jax.random.key(0)


def state(*numbers: int) -> SwitchingState:
    return SwitchingState(*(jnp.asarray(number, jnp.int32) for number in numbers))


@pytest.mark.parametrize(
    ("before", "action", "after", "reward", "terminated"),
    [
        ((0, 3, 7, 5), STAY, (1, 3, 7, 5), 0, False),
        ((0, 3, 7, 5), LEFT, (1, 3, 7, 4), 0, False),
        ((0, 3, 7, 5), UP, (1, 3, 7, 5), 0, False),
        ((0, 3, 7, 5), DOWN, (1, 3, 7, 5), 0, False),
        ((4, 3, 7, 0), LEFT, (5, 3, 7, 0), 0, False),  # a side
        ((4, 3, 7, 9), RIGHT, (5, 3, 7, 9), 0, False),
        ((7, 3, 7, 3), STAY, (8, 3, 7, 3), 0, False),
        ((8, 3, 7, 3), STAY, (9, 3, 7, 3), 1, True),
        ((8, 3, 7, 4), LEFT, (9, 3, 7, 3), 1, True),  # the last move still counts
        ((8, 3, 7, 6), RIGHT, (9, 3, 7, 7), -1, True),
        ((8, 3, 7, 5), STAY, (9, 3, 7, 5), 0, True),
    ],
)
def test_a_step_by_hand_in_both_tasks(before, action, after, reward, terminated):
    for task, sign in (("bright", 1), ("dim", -1)):
        outcome = switching(task).step(state(*before), jnp.asarray(action), KEY)
        assert tuple(int(number) for number in outcome.state) == after
        assert (float(outcome.reward), bool(outcome.terminated)) == (sign * reward, terminated)


def test_the_frame_shows_the_balls_and_the_paddle_and_not_the_task():
    frames = [np.asarray(switching(task).frame(state(2, 3, 7, 5))) for task in ("bright", "dim")]
    np.testing.assert_array_equal(*frames)
    wanted = np.zeros((10, 10))
    wanted[2, 3], wanted[2, 7], wanted[9, 5] = 255, 128, 255
    np.testing.assert_array_equal(frames[0], wanted)


def test_every_pair_of_columns_is_a_start_equally_often():
    starts = jax.jit(jax.vmap(switching("dim").reset))(jax.random.split(KEY, 9000))
    counts = np.histogram2d(starts.bright, starts.dim, bins=[10, 10])[0]
    assert not np.diag(counts).any()
    assert (np.abs(counts[~np.eye(10, dtype=bool)] - 100) < 50).all()
    assert not starts.row.any() and (starts.paddle == 5).all()


def test_what_is_perfect_in_one_task_is_the_worst_in_the_other():
    def under_the_bright(state, key):
        return jnp.sign(state.bright - state.paddle) + 1

    returns, steps, terminated = play(switching("bright"), under_the_bright, 300)
    assert (returns == 1).all() and (steps == 9).all() and terminated.all()
    assert (play(switching("dim"), under_the_bright, 300).returns == -1).all()


def test_chance_scores_nothing_in_both_tasks():
    for task in ("bright", "dim"):
        returns = play(switching(task), chance(switching(task)), 4000).returns
        assert abs(np.mean(returns)) < 0.04 and {*returns} == {-1, 0, 1}


def test_a_task_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match="task is 'both', must be 'bright' or 'dim'"):
        switching("both")
