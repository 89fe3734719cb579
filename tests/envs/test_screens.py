"""What is to be seen of games: filmed ones are the very games that are played, and screens have their colours."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.atari import PROTOCOLS, AtariEnvs
from envs.games import GAMES, GameEnvs
from envs.games.vector import advance, frame_after, start
from envs.screens import paint

SHORT = dataclasses.replace(PROTOCOLS["machado"], max_frames_per_episode=120)


def test_a_filmed_game_shows_the_agent_what_the_one_of_training_does():
    """Sticky actions, pooled frames and episodes that are cut short included; and in colours what it sees in grey."""
    rng, endings = np.random.default_rng(0), 0
    with (
        contextlib.closing(AtariEnvs("breakout", protocol=SHORT, num_envs=2, seed=3)) as plain,
        contextlib.closing(AtariEnvs("breakout", protocol=SHORT, num_envs=2, seed=3, filmed=True)) as filmed,
    ):
        expected, found = plain.reset(), filmed.reset()
        for _ in range(70):
            for name in ("observation", "reward", "discount", "first"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
            assert found.episodes == expected.episodes
            for env in range(2):
                view = filmed.view(env)
                assert view.now.shape == (210, 160, 3) and view.now.dtype == np.uint8
                assert (view.ended is not None) == any(episode.env == env for episode in found.episodes)
                endings += view.ended is not None
            actions = rng.integers(plain.num_actions, size=2)
            expected, found = plain.step(actions), filmed.step(actions)
        assert endings >= 4
        # Half of the colours' lightness, coarsely: the agent's frame is a shrunken grey one of the same picture.
        light = filmed.view(0).now.mean(axis=-1).reshape(42, 5, 32, 5).mean(axis=(1, 3))
        grey = found.observation[0, -1].reshape(42, 2, 84).mean(axis=1)[:, np.linspace(0, 83, 32).astype(int)]
        assert np.corrcoef(light.ravel(), grey.ravel())[0, 1] > 0.8
        with pytest.raises(RuntimeError, match="filmed=True"):
            plain.view(0)


def test_the_last_screen_outlives_the_no_ops_that_the_next_episode_begins_with():
    protocol = dataclasses.replace(PROTOCOLS["dqn-zoo"], max_frames_per_episode=40, noop_min=25)
    with contextlib.closing(AtariEnvs("pong", protocol=protocol, num_envs=1, seed=0, filmed=True)) as envs:
        envs.reset()
        ended = [envs.step([0]).first[0] and envs.view(0).ended is not None for _ in range(31)]
    assert sum(ended) == 3


@pytest.mark.parametrize("name", ["catch", "bricks"])
def test_a_game_in_jax_shows_where_its_episodes_end(name):
    game = GAMES[name]()
    envs, rng, endings = GameEnvs(game, num_envs=2, seed=0), np.random.default_rng(0), 0
    with pytest.raises(RuntimeError, match="reset"):
        envs.view(0)
    time_step = envs.reset()
    for _ in range(30):
        for env in range(2):
            view = envs.view(env)
            np.testing.assert_array_equal(view.now, paint(time_step.observation[env, -1]))
            assert (view.ended is not None) == (time_step.first[env] and bool(time_step.episodes))
            if view.ended is not None:
                endings += 1
                last = view.ended[:: view.ended.shape[0] // game.shape[0], :: view.ended.shape[1] // game.shape[1]]
                assert (last[-1] != last[0, 0]).any()  # a ball or the paddle in the last row
                assert not np.array_equal(view.ended, view.now)
        envs.send(rng.integers(game.num_actions, size=2))
        time_step = envs.recv()
    assert endings >= 2


def test_the_frame_after_a_step_is_that_of_the_state_it_leads_to():
    game, stay = GAMES["catch"](), jnp.asarray(1)
    playing = start(game, 4, jax.random.key(0))
    for _ in range(8):
        frame = frame_after(game, playing, stay)
        playing, step = advance(game, playing, stay)
        assert not step.first
        np.testing.assert_array_equal(frame, playing.stack[-1])
    assert frame_after(game, playing, stay)[-1].any()  # the ball has come down, and `advance` begins anew
    assert advance(game, playing, stay)[1].first


def test_levels_and_planes_have_colours_of_their_own():
    frame = np.zeros((10, 5), np.uint8)
    frame[0, 0], frame[1, 1] = 128, 255
    screen = paint(frame)
    assert screen.shape == (200, 100, 3) and screen.dtype == np.uint8
    assert len({tuple(screen[row, column]) for row, column in ((0, 0), (20, 20), (199, 99))}) == 3
    planes = np.zeros((3, 10, 10), np.uint8)
    planes[0, 0, 0] = planes[1, 0, 1] = planes[:2, 0, 2] = 255
    colours = paint(planes)[0, ::20]
    assert tuple(colours[1]) == tuple(colours[2]) != tuple(colours[0])  # the later plane over the earlier
