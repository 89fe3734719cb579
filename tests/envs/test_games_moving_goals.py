"""Moving goals by hand, its phases, and what chance and the shortest way score."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripted_play import chance, play

from envs.games import moving_goals
from envs.games.board import DOWN, LEFT, RIGHT, STAY, UP
from envs.games.moving_goals import MovingGoalsState, places

KEY = jax.random.key(0)
STEPS = {LEFT: (0, -1), STAY: (0, 0), RIGHT: (0, 1), UP: (-1, 0), DOWN: (1, 0)}


def at(row: int, column: int) -> MovingGoalsState:
    return MovingGoalsState(jnp.asarray(row, jnp.int32), jnp.asarray(column, jnp.int32))


def test_the_places_are_what_they_were():
    """A phase is the same task on every machine, for good."""
    assert [places(phase) for phase in range(4)] == [(84, 63), (63, 84), (46, 51), (51, 46)]


@pytest.mark.parametrize("phase", [0, 2, 6])
def test_two_phases_exchange_the_goals_and_the_next_has_others(phase):
    assert places(phase + 1) == places(phase)[::-1]
    assert not {*places(phase)} & {*places(phase + 2)}


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        ((1, 1), LEFT, (1, 0)), ((1, 1), STAY, (1, 1)), ((1, 1), RIGHT, (1, 2)), ((1, 1), UP, (0, 1)),
        ((1, 1), DOWN, (2, 1)), ((0, 0), LEFT, (0, 0)), ((0, 0), UP, (0, 0)), ((9, 9), RIGHT, (9, 9)),
        ((9, 9), DOWN, (9, 9)),
    ],
)  # fmt: skip
def test_a_step_by_hand(before, action, after):
    outcome = moving_goals(0).step(at(*before), jnp.asarray(action), KEY)
    assert (int(outcome.state.row), int(outcome.state.column)) == after
    assert (float(outcome.reward), bool(outcome.terminated)) == (0, False)


@pytest.mark.parametrize("phase", [0, 1, 3])
def test_the_marked_cells_end_the_episode_from_every_side(phase):
    game, entered = moving_goals(phase), 0
    for reward, cell in zip((1, -1), places(phase), strict=True):
        row, column = divmod(cell, 10)
        for action, (down, right) in STEPS.items():
            before = row - down, column - right
            if action != STAY and min(before) >= 0 and max(before) < 10:
                outcome = game.step(at(*before), jnp.asarray(action), KEY)
                assert (int(outcome.state.row), int(outcome.state.column)) == (row, column)
                assert (float(outcome.reward), bool(outcome.terminated)) == (reward, True)
                entered += 1
    assert entered >= 4


def test_the_frame_shows_the_agent_and_two_cells_that_look_alike():
    for phase in (0, 1):
        frame = np.asarray(moving_goals(phase, size=4).frame(at(0, 1)))
        assert frame.shape == (4, 4) and np.flatnonzero(frame == 128).tolist() == sorted(places(0, 4))
        assert np.argwhere(frame == 255).tolist() == [[0, 1]] and np.count_nonzero(frame) == 3


@pytest.mark.parametrize("phase", [0, 2])
def test_every_cell_that_is_not_marked_is_a_start_equally_often(phase):
    starts = jax.jit(jax.vmap(moving_goals(phase, size=3).reset))(jax.random.split(KEY, 7000))
    counts = np.bincount(3 * starts.row + starts.column, minlength=9)
    free = np.delete(counts, places(phase, 3))
    assert free.size == 7 and free.sum() == 7000 and (np.abs(free - 1000) < 150).all()


def ways(good: int, bad: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each cell, how far the good one is without the bad one, and the action that leads there."""
    distance, action = np.full(size * size, -1), np.full(size * size, STAY)
    distance[good], waiting = 0, deque([good])
    while waiting:
        cell = waiting.popleft()
        for taken, (down, right) in STEPS.items():
            row, column = cell // size - down, cell % size - right
            before = size * row + column
            if 0 <= row < size and 0 <= column < size and before != bad and distance[before] < 0:
                distance[before], action[before] = distance[cell] + 1, taken
                waiting.append(before)
    return distance, action


@pytest.mark.parametrize(("phase", "size"), [(0, 10), (5, 10), (3, 2)])
def test_the_shortest_way_is_perfect_and_the_worst_in_the_next_phase(phase, size):
    distance, action = ways(*places(phase, size), size)
    longest = max(distance)

    def perfect(state, key):
        return jnp.asarray(action)[size * state.row + state.column]

    returns, steps, terminated = play(moving_goals(phase, size), perfect, 300)
    assert (returns == 1).all() and terminated.all() and steps.max() == longest
    assert (play(moving_goals(phase ^ 1, size), perfect, 300).returns == -1).all()


def test_chance_scores_what_the_docstring_says():
    """In a phase the opposite of the one with the goals exchanged."""
    first, second = (play(moving_goals(phase), chance(moving_goals(phase)), 1000) for phase in (2, 3))
    np.testing.assert_array_equal(first.returns, -second.returns)
    assert abs(np.mean(first.returns)) < 0.15
    assert 0 < np.mean(first.terminated) < 1 and (first.steps[~first.terminated] == 100).all()


@pytest.mark.parametrize(("phase", "size"), [(-1, 10), (0, 1)])
def test_what_cannot_be_played_is_refused(phase, size):
    with pytest.raises(ValueError, match=f"phase is {phase} and size {size}, must be at least 0 and 2"):
        moving_goals(phase, size)
