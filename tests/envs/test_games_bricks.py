"""Bricks by hand, and what chance and the paddle that follows the ball score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripted_play import chance, play

from envs.games import bricks
from envs.games.board import DOWN, LEFT, RIGHT, STAY, UP
from envs.games.bricks import BricksState

KEY = jax.random.key(0)
FULL = ["##########"] * 3
EMPTY = [".........."] * 3


def state(row: int, column: int, down: int, right: int, paddle: int, wall=FULL) -> BricksState:
    cells = jnp.asarray([[cell == "#" for cell in line] for line in wall])
    return BricksState(*(jnp.asarray(number, jnp.int32) for number in (row, column, down, right, paddle)), cells)


def told(state: BricksState) -> tuple[tuple[int, ...], list[str]]:
    wall = ["".join("#" if brick else "." for brick in line) for line in np.asarray(state.wall)]
    return tuple(int(number) for number in state[:-1]), wall


def without(*bricks: tuple[int, int]) -> list[str]:
    """The full wall without the bricks in these rows and columns of the board."""
    return ["".join("." if (row, column) in bricks else "#" for column in range(10)) for row in range(1, 4)]


def after(before: BricksState, *actions: int) -> tuple[BricksState, list[float], list[bool]]:
    rewards, ends = [], []
    for action in actions:
        before, reward, terminated = bricks().step(before, jnp.asarray(action), KEY)
        rewards.append(float(reward))
        ends.append(bool(terminated))
    return before, rewards, ends


@pytest.mark.parametrize(
    ("before", "moved"),
    [
        ((4, 3, 1, 1, 5), (5, 4, 1, 1, 5)),
        ((4, 3, 1, 0, 5), (5, 3, 1, 0, 5)),
        ((7, 3, -1, -1, 5), (6, 2, -1, -1, 5)),
        ((5, 9, 1, 1, 5), (6, 8, 1, -1, 5)),  # the sides
        ((5, 0, 1, -1, 5), (6, 1, 1, 1, 5)),
        ((5, 0, -1, 0, 5), (4, 0, -1, 0, 5)),
        ((1, 4, -1, 1, 5), (0, 5, -1, 1, 5)),
        ((0, 4, -1, 1, 5), (1, 5, 1, 1, 5)),  # the top
        ((0, 9, -1, 1, 5), (1, 8, 1, -1, 5)),  # a corner
    ],
)
def test_the_ball_moves_and_turns_back_from_the_edges(before, moved):
    ball, rewards, ends = after(state(*before, wall=EMPTY), STAY)
    assert (*told(ball), rewards, ends) == (moved, EMPTY, [0], [False])


@pytest.mark.parametrize(
    ("before", "moved", "gone"),
    [
        ((4, 4, -1, 0, 5), (4, 4, 1, 0, 5), (3, 4)),
        ((4, 4, -1, 1, 5), (4, 4, 1, 1, 5), (3, 5)),
        ((4, 9, -1, 1, 5), (4, 9, 1, -1, 5), (3, 8)),  # by way of the side
        ((0, 4, -1, 0, 5), (0, 4, -1, 0, 5), (1, 4)),  # by way of the top
        ((0, 4, 1, -1, 5), (0, 4, -1, -1, 5), (1, 3)),  # from above
    ],
)
def test_a_brick_goes_and_the_ball_turns_back_without_moving(before, moved, gone):
    ball, rewards, ends = after(state(*before), STAY)
    assert (*told(ball), rewards, ends) == (moved, without(gone), [1], [False])


def test_the_ball_passes_between_the_corners_of_two_bricks():
    ball, rewards, _ = after(state(4, 4, -1, 1, 5, without((3, 5))), STAY, STAY)
    assert (*told(ball), rewards) == ((3, 5, 1, 1, 5), without((3, 5), (2, 6)), [0, 1])


@pytest.mark.parametrize(
    ("column", "right", "paddle", "action", "away"),
    [
        (4, 0, 5, STAY, -1), (4, 0, 4, STAY, 0), (4, 0, 3, STAY, 1),  # by the part of the paddle, not as it came
        (4, 1, 5, STAY, 0), (4, -1, 5, LEFT, -1), (4, 1, 4, STAY, 1),
        (3, 0, 5, LEFT, -1),  # the last move still counts
        (9, 1, 9, STAY, -1), (0, 0, 0, STAY, 0),  # a paddle half outside
    ],
)  # fmt: skip
def test_the_paddle_sends_the_ball_back(column, right, paddle, action, away):
    ball, rewards, ends = after(state(8, column, 1, right, paddle), action)
    moved = paddle - (action == LEFT)
    assert (*told(ball), rewards, ends) == ((8, column, -1, away, moved), FULL, [0], [False])


@pytest.mark.parametrize(("column", "right", "paddle", "action"), [(3, 0, 5, STAY), (3, 0, 5, RIGHT), (4, -1, 5, STAY)])
def test_a_ball_that_is_missed_ends_the_episode(column, right, paddle, action):
    ball, rewards, ends = after(state(8, column, 1, right, paddle), action)
    assert (int(ball.row), int(ball.column), rewards, ends) == (9, column + right, [0], [True])


@pytest.mark.parametrize(
    ("action", "paddle", "moved"),
    [
        (LEFT, 5, 4), (STAY, 5, 5), (RIGHT, 5, 6), (UP, 5, 5), (DOWN, 5, 5), (LEFT, 0, 0), (RIGHT, 9, 9),
    ],
)  # fmt: skip
def test_the_paddle_moves_by_a_cell_and_stays_on_the_board(action, paddle, moved):
    assert int(after(state(4, 3, 1, 1, paddle), action)[0].paddle) == moved


def test_a_new_wall_stands_when_the_paddle_is_hit_after_the_last_brick():
    last = ["..........", "..........", "....#....."]
    ball, rewards, _ = after(state(4, 4, -1, 0, 4, last), STAY)
    assert (*told(ball), rewards) == ((4, 4, 1, 0, 4), EMPTY, [1])
    ball, rewards, _ = after(ball, STAY, STAY, STAY, STAY)
    assert (*told(ball), rewards) == ((8, 4, 1, 0, 4), EMPTY, [0] * 4)
    ball, rewards, _ = after(ball, STAY)
    assert (*told(ball), rewards) == ((8, 4, -1, 0, 4), FULL, [0])


def test_a_rally_by_hand():
    """Down four cells, off the paddle's right cell, up and off the side, a brick, and down past the paddle."""
    start = state(4, 2, 1, 1, 5)
    ball, rewards, ends = after(start, *[STAY] * 4, RIGHT, *[UP] * 4, DOWN)
    assert told(ball) == ((4, 8, 1, -1, 6), without((3, 7)))
    assert rewards == [0] * 9 + [1] and not any(ends)
    ball, rewards, ends = after(ball, *[RIGHT] * 5)
    assert (told(ball)[0][:2], ends) == ((9, 3), [False] * 4 + [True])


def test_the_frame_shows_the_wall_the_ball_and_the_paddle():
    grey = {".": 0, "#": 128, "o": 255, "=": 255}
    drawn = """
        ..........
        #########.
        ##########
        .#########
        ..........
        ..........
        ...o......
        ..........
        ..........
        ........==
    """
    ball = state(6, 3, 1, 1, 9, without((1, 9), (3, 0)))
    wanted = [[grey[cell] for cell in line] for line in drawn.split()]
    assert bricks().frame(ball).tolist() == wanted


def test_starts():
    """Every column and every direction, equally often."""
    starts = jax.jit(jax.vmap(bricks().reset))(jax.random.split(KEY, 6000))
    counts = np.histogram2d(starts.column, starts.right, bins=[10, 3])[0]
    assert (np.abs(counts - 200) < 60).all()
    fixed = starts.row, starts.down, starts.paddle
    assert {tuple(map(int, numbers)) for numbers in zip(*fixed, strict=True)} == {(4, 1, 5)}
    assert starts.wall.all()


def following(state: BricksState, key: jax.Array) -> jax.Array:
    """To where the ball will be next, and there to a random part of the paddle."""
    ahead = state.column + state.right
    ahead = jnp.where((ahead < 0) | (ahead > 9), state.column - state.right, ahead)
    return jnp.sign(ahead + jax.random.randint(key, (), -1, 2) - state.paddle) + 1


def test_what_chance_and_following_the_ball_score():
    returns, _, terminated = play(bricks(), chance(bricks()), 2000)
    assert np.mean(returns) == pytest.approx(0.6, abs=0.08) and terminated.all()
    returns, steps, terminated = play(bricks(), following, 200)
    assert np.mean(returns) == pytest.approx(20, abs=1)
    assert not terminated.any() and (steps == 500).all()
