"""What holds of all games of our own, and of the games made of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.games import GAMES, Game, GameEnvs, bricks, moving_goals, permute_actions, permute_channels
from envs.games.game import Outcome
from envs.games.moving_goals import MovingGoalsState

KEY = jax.random.key(0)
OWN = [name for name in GAMES if not name.startswith("minatar")]
ONE_BOARD = [name for name in OWN if name != "catch"]


def test_the_names():
    own = ["catch", "bricks", *(f"moving-goals-{phase}" for phase in range(8)), "switching-bright", "switching-dim"]
    assert own == OWN
    minatar = ["asterix", "breakout", "freeway", "seaquest", "space_invaders"]
    assert [*GAMES][len(OWN) :] == [f"minatar-{name}" for name in minatar]


def test_all_but_catch_have_one_board_and_one_set_of_actions():
    games = [GAMES[name]() for name in ONE_BOARD]
    assert {(game.shape, game.num_actions) for game in games} == {((10, 10), 5)}


@pytest.mark.parametrize("name", ["catch", "bricks", "moving-goals-3", "switching-dim"])
def test_step_by_step_and_jitted_over_many_in_a_scan_are_the_same(name):
    """Twelve steps of three games."""
    game, games, steps = GAMES[name](), 3, 12
    keys = jax.random.split(KEY, games)
    actions = jax.random.randint(KEY, (games, steps), 0, game.num_actions)

    def episode(key, actions):
        def step(state, action):
            outcome = game.step(state, action, key)
            return outcome.state, (outcome, game.frame(outcome.state))

        return jax.lax.scan(step, game.reset(key), actions)[1]

    outcomes, frames = jax.jit(jax.vmap(episode))(keys, actions)
    assert frames.shape == (games, steps, *game.shape) and frames.dtype == jnp.uint8
    assert (outcomes.reward.dtype, outcomes.terminated.dtype) == (jnp.float32, jnp.bool_)
    for i in range(games):
        state = game.reset(keys[i])
        for t in range(steps):
            outcome = game.step(state, actions[i, t], keys[i])
            state = outcome.state
            together = jax.tree.map(lambda leaf: leaf[i, t], outcomes)  # noqa: B023
            jax.tree.map(np.testing.assert_array_equal, outcome, together)
            np.testing.assert_array_equal(game.frame(state), frames[i, t])


def planes() -> Game:
    """Three planes, each full of its number, and of the count of steps added to it."""
    return Game(
        reset=lambda key: jnp.zeros((), jnp.int32),
        step=lambda count, action, key: Outcome(count + 1, jnp.zeros(()), count < 0),
        frame=lambda count: (
            jnp.tile(10 * jnp.arange(5, dtype=jnp.uint8)[:, None, None], (1, 2, 3)) + count.astype("uint8")
        ),
        num_actions=2,
        shape=(5, 2, 3),
        max_steps=9,
    )


def test_channels_are_permuted_the_same_way_in_every_frame():
    game, plain = permute_channels(planes(), seed=3), planes()
    order = np.asarray(game.frame(jnp.asarray(0)))[:, 0, 0] // 10
    assert sorted(order) == [0, 1, 2, 3, 4] != list(order)
    for count in (0, 1, 7):
        frame = np.asarray(game.frame(jnp.asarray(count)))
        back = np.empty_like(frame)
        back[order] = frame
        np.testing.assert_array_equal(back, plain.frame(jnp.asarray(count)))
    orders = {tuple(np.asarray(permute_channels(plain, seed).frame(jnp.asarray(0)))[:, 0, 0]) for seed in range(8)}
    assert len(orders) > 4 and tuple(10 * order) in orders
    assert game._replace(frame=None) == plain._replace(reset=game.reset, step=game.step, frame=None)


def test_frames_without_planes_are_refused():
    with pytest.raises(ValueError, match=r"frames of shape \(10, 10\) have no planes to permute"):
        permute_channels(bricks(), seed=0)


def test_actions_are_permuted():
    """From the middle of the board each action leads to a cell of its own."""
    middle = MovingGoalsState(jnp.asarray(5, jnp.int32), jnp.asarray(5, jnp.int32))

    def cells(game: Game) -> list[tuple[int, int]]:
        reached = [game.step(middle, jnp.asarray(action), KEY).state for action in range(5)]
        return [(int(state.row), int(state.column)) for state in reached]

    plain = cells(moving_goals(0))
    permuted = {seed: cells(permute_actions(moving_goals(0), seed)) for seed in range(8)}
    assert len({*plain}) == 5 and all(sorted(each) == sorted(plain) for each in permuted.values())
    assert len({tuple(each) for each in permuted.values()}) > 4
    assert permuted[3] == cells(permute_actions(moving_goals(0), 3))


def test_environments_stack_frames_of_several_planes():
    envs = GameEnvs(planes(), num_envs=2, seed=0, stack=3)
    assert envs.observation_shape == (3, 5, 2, 3)
    observation = envs.reset().observation
    assert observation.shape == (2, 3, 5, 2, 3) and not observation[:, :2].any()
    for _ in range(2):
        envs.send([0, 1])
        observation = envs.recv().observation
    np.testing.assert_array_equal(
        observation[1, :, :, 0, 0], [[10 * plane + t for plane in range(5)] for t in range(3)]
    )
