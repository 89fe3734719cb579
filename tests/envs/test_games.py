"""The games in JAX: Catch by hand, and the environments made of it against a replay of the game's own functions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.games import GameEnvs, catch
from envs.games.catch import CatchState
from envs.games.game import Game, Outcome
from envs.timestep import Episode

KEY = jax.random.key(0)
LEFT, STAY, RIGHT = 0, 1, 2


def state(row: int, column: int, paddle: int) -> CatchState:
    return CatchState(*(jnp.asarray(number, jnp.int32) for number in (row, column, paddle)))


def numbers(state: CatchState) -> tuple[int, ...]:
    return tuple(int(number) for number in state)


@pytest.mark.parametrize(
    ("before", "action", "after", "reward", "terminated"),
    [
        ((0, 3, 2), STAY, (1, 3, 2), 0, False),
        ((0, 3, 2), LEFT, (1, 3, 1), 0, False),
        ((4, 3, 2), RIGHT, (5, 3, 3), 0, False),
        ((4, 3, 0), LEFT, (5, 3, 0), 0, False),  # a wall
        ((4, 3, 4), RIGHT, (5, 3, 4), 0, False),
        ((8, 3, 2), RIGHT, (9, 3, 3), 1, True),  # the last move still counts
        ((8, 3, 3), STAY, (9, 3, 3), 1, True),
        ((8, 3, 3), LEFT, (9, 3, 2), -1, True),
        ((8, 0, 4), LEFT, (9, 0, 3), -1, True),
    ],
)
def test_a_step_by_hand(before, action, after, reward, terminated):
    outcome = catch().step(state(*before), jnp.asarray(action), KEY)
    assert (numbers(outcome.state), float(outcome.reward), bool(outcome.terminated)) == (after, reward, terminated)


def test_the_frame_shows_the_ball_and_the_paddle():
    game = catch(rows=4, columns=3)
    assert game.shape == (4, 3)
    assert game.frame(state(1, 2, 0)).tolist() == [[0, 0, 0], [0, 0, 255], [0, 0, 0], [255, 0, 0]]
    assert game.frame(state(3, 1, 1)).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 255, 0]]


@pytest.mark.parametrize(("rows", "columns"), [(10, 5), (3, 5), (2, 2), (4, 7)])
def test_every_column_can_be_reached_in_time(rows, columns):
    """With the best play every ball is caught, after rows - 1 steps, and none a step earlier."""
    game = catch(rows, columns)
    for column in range(columns):
        playing = state(0, column, columns // 2)
        for step in range(1, rows):
            towards = np.sign(column - int(playing.paddle)) + 1
            playing, reward, terminated = game.step(playing, jnp.asarray(towards), KEY)
            assert (bool(terminated), float(reward)) == ((True, 1.0) if step == rows - 1 else (False, 0.0))


def test_balls_fall_in_every_column_equally_often():
    starts = jax.vmap(catch().reset)(jax.random.split(KEY, 5000))
    counts = np.bincount(starts.column, minlength=5)
    assert counts.size == 5 and (np.abs(counts - 1000) < 150).all()
    assert not starts.row.any() and (starts.paddle == 2).all()


def test_chance_scores_what_the_docstring_says():
    envs = GameEnvs(catch(), num_envs=500, seed=0)
    envs.reset()
    rng, returns = np.random.default_rng(0), []
    for _ in range(36):
        envs.send(rng.integers(0, 3, 500))
        returns += [episode.episode_return for episode in envs.recv().episodes]
    assert len(returns) == 4 * 500
    assert np.mean(returns) == pytest.approx(-0.6, abs=0.06)


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (5, 1), (3, 7)])
def test_a_board_that_cannot_be_played_is_refused(rows, columns):
    with pytest.raises(ValueError, match=f"catch: a board of {rows} rows and {columns} columns can't be played"):
        catch(rows, columns)


def counting(ends_at: int, max_steps: int) -> Game:
    """Counts its steps: the frame shows the count, the reward is count / 10, and it ends at a count."""
    return Game(
        reset=lambda key: jnp.zeros((), jnp.int32),
        step=lambda count, action, key: Outcome(count + 1, (count + 1) / 10, count + 1 == ends_at),
        frame=lambda count: jnp.full((1, 2), count, jnp.uint8),
        num_actions=2,
        shape=(1, 2),
        max_steps=max_steps,
    )


def stacks(steps: int, envs: GameEnvs) -> list:
    """The time steps of a reset and so many steps."""
    made = [envs.reset()]
    for _ in range(steps):
        envs.send(np.zeros(envs.num_envs, int))
        made.append(envs.recv())
    return made


@pytest.mark.parametrize(("ends_at", "max_steps", "discount"), [(3, 99, 0.0), (99, 3, 1.0), (3, 3, 0.0)])
def test_an_episode_that_ends_is_followed_by_the_next_within_the_step(ends_at, max_steps, discount):
    """Terminated, truncated, and both at once, which is a termination."""
    envs = GameEnvs(counting(ends_at, max_steps), num_envs=2, seed=0, stack=3, frames_per_step=4)
    assert (envs.num_actions, envs.observation_shape) == (2, (3, 1, 2))
    made = stacks(7, envs)
    frames = [step.observation[0, :, 0, 0].tolist() for step in made]
    assert frames == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert [step.first.tolist() for step in made] == [[t % 3 == 0] * 2 for t in range(8)]
    np.testing.assert_allclose([step.reward[1] for step in made], [0, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1], rtol=1e-6)
    assert [float(step.discount[0]) for step in made] == [1, 1, 1, discount, 1, 1, discount, 1]
    for t, step in enumerate(made):
        wanted = [Episode(env, pytest.approx(0.6), 12) for env in range(2)] if t in (3, 6) else []
        assert list(step.episodes) == wanted
    for step in made:
        assert (step.observation.dtype, step.reward.dtype, step.first.dtype) == (np.uint8, np.float32, np.bool_)


def test_stacks_are_zero_before_the_start_and_then_the_last_frames():
    envs = GameEnvs(catch(), num_envs=3, seed=1)
    made = stacks(12, envs)
    for before, after in itertools.pairwise(made):
        for env in range(3):
            if after.first[env]:
                assert not after.observation[env, :-1].any() and after.observation[env, -1].any()
            else:
                np.testing.assert_array_equal(after.observation[env, :-1], before.observation[env, 1:])


def played(seed: int, reset_with: int | None = None) -> np.ndarray:
    envs = GameEnvs(catch(), num_envs=4, seed=seed)
    observations = [envs.reset(reset_with).observation]
    rng = np.random.default_rng(0)
    for _ in range(30):
        envs.send(rng.integers(0, 3, 4))
        observations.append(envs.recv().observation)
    return np.stack(observations)


def test_the_seed_determines_everything_and_environments_differ():
    first = played(3)
    np.testing.assert_array_equal(first, played(3))
    np.testing.assert_array_equal(first, played(8, reset_with=3))
    assert (first != played(4)).any()
    assert (first[:, 0] != first[:, 1]).any()
    episodes = first[[0, 9, 18, 27], :, -1, 0].argmax(-1)  # the columns that the balls start in
    assert len({tuple(row) for row in episodes.tolist()}) > 1, "each episode has a ball of its own"


def test_a_reset_without_a_seed_repeats_the_last_one():
    envs = GameEnvs(catch(), num_envs=4, seed=3)
    first, again = envs.reset(9).observation, envs.reset().observation
    np.testing.assert_array_equal(first, again)


def test_misuse_is_told():
    with pytest.raises(ValueError, match="num_envs is 0, must be at least 1"):
        GameEnvs(catch(), num_envs=0, seed=0)
    envs = GameEnvs(catch(), num_envs=2, seed=0)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        envs.send([0, 0])
    with pytest.raises(RuntimeError, match="no actions were sent"):
        envs.recv()
    envs.reset()
    for actions, message in (
        ([0], r"of shape \(1,\), must be 2 integers"),
        ([0.0, 1.0], "float64 of shape"),
        ([0, 3], "must lie in 0 to 2, got 0 to 3"),
        ([-1, 0], "got -1 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.send(actions)
    envs.send([0, 2])
    with pytest.raises(RuntimeError, match=r"call recv\(\) first"):
        envs.send([0, 0])
    envs.recv()
    envs.close()
