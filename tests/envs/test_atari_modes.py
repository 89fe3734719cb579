"""Other flavours of games against ALE's own single-game environment, and the default one against its vector's, bit for
bit."""

import dataclasses

import numpy as np
import pytest
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv
from random_play import assert_same, play, rollout

from envs.atari import PROTOCOLS, AtariEnvs, TimeStep
from envs.atari_modes import FlavouredVectorEnv, flavours, shrinker

MACHADO, DQN_ZOO = PROTOCOLS["machado"], PROTOCOLS["dqn-zoo"]
PLAIN = dataclasses.replace(MACHADO, repeat_action_probability=0.0)


@pytest.mark.parametrize(
    ("game", "steps", "changes"),
    [
        # Games that are over, and games that are cut short, within a step and at its end.
        ("breakout", 200, {"life_loss": "zero-discount"}),
        ("seaquest", 60, {"max_frames_per_episode": 102}),
        (
            "space_invaders",
            60,
            {"max_frames_per_episode": 100, "max_pool": False, "stack": 2, "height": 64, "width": 96},
        ),
        ("freeway", 60, {"max_frames_per_episode": 50, "frame_skip": 1, "full_action_space": True}),
        # A screen of 250 lines, and a start that takes ALE some frames.
        ("air_raid", 60, {"max_frames_per_episode": 120, "frame_skip": 3}),
    ],
)
def test_in_the_default_flavour_every_bit_is_that_of_ales_vector_environment(game, steps, changes):
    protocol = dataclasses.replace(MACHADO, **changes)
    envs = AtariEnvs(game, protocol=protocol, num_envs=2, seed=3)
    envs._env.close()
    envs._env = FlavouredVectorEnv(envs.options, *flavours(game).default)
    timesteps = rollout(envs, steps)
    assert_same(timesteps, play(game, steps, protocol=protocol, seed=3))
    assert any(timestep.episodes for timestep in timesteps)
    envs.close()


def averaging(new: int, old: int) -> np.ndarray:
    """[new, old]: each new pixel is the mean of the length that it covers of the old ones."""
    edges = np.arange(new + 1) * old / new
    left, right = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(old) + 1)
    return np.maximum(right - left, 0) * new / old


@pytest.mark.parametrize(
    ("game", "mode", "difficulty", "steps"),
    [("space_invaders", 15, 1, 200), ("breakout", 12, None, 200), ("freeway", None, 1, 40)],
)
def test_other_flavours_are_those_of_ales_single_game(game, mode, difficulty, steps):
    timesteps = play(game, steps, protocol=PLAIN, num_envs=1, mode=mode, difficulty=difficulty)
    truth = AtariEnv(
        game, mode=mode, difficulty=difficulty, obs_type="grayscale", frameskip=1, repeat_action_probability=0.0
    )
    rows, columns = averaging(84, 210), averaging(84, 160).T
    actions = np.random.default_rng(0).integers(truth.action_space.n, size=steps)
    screens, episode_return, frames, episodes = [truth.reset()[0]], 0.0, 0, 0
    for t, timestep in enumerate(timesteps):
        if t > 0:
            screens, reward, over = [], 0.0, False
            while len(screens) < 4 and not over:
                screen, of_frame, over, _, _ = truth.step(actions[t - 1])
                screens.append(screen)
                reward += of_frame
            episode_return, frames = episode_return + reward, frames + len(screens)
            assert timestep.reward[0] == reward, t
            assert timestep.first[0] == over, t
            assert timestep.episodes == (((0, episode_return, frames),) if over else ()), t
            if over:
                screens, episode_return, frames, episodes = [truth.reset()[0]], 0.0, 0, episodes + 1
        if t % 8 == 0 or timestep.first[0]:
            expected = rows @ np.maximum.reduce(screens[-2:]) @ columns
            np.testing.assert_allclose(timestep.observation[0, -1], expected, atol=0.501, err_msg=str(t))
    assert episodes >= (game != "freeway")
    truth.close()


def test_flavours_differ():
    """Space Invaders' modes are made of four bits; see envs.sequence's preset."""
    some = [{}, {"mode": 1}, {"mode": 2}, {"mode": 4}, {"mode": 8}, {"difficulty": 1}]
    seen = [play("space_invaders", 45, protocol=PLAIN, num_envs=1, **flavour) for flavour in some]
    newest = [np.stack([timestep.observation[0, -1] for timestep in timesteps]) for timesteps in seen]
    for i, one in enumerate(newest):
        assert all((one != other).any() for other in newest[:i])
    # In mode 8 the invaders are not seen, and little else is where they are.
    assert (newest[0][-1, 15:50] > 0).mean() > 0.2
    assert (newest[4][-1, 15:50] > 0).mean() < 0.02


@pytest.mark.parametrize(
    ("game", "mode", "difficulty"),
    # The last one's only difficulty to be chosen is 3, and yet it starts in 0.
    [("freeway", 0, 0), ("freeway", None, 0), ("air_raid", 1, None), ("backgammon", None, 0)],
)
def test_the_default_flavour_is_played_by_ales_vector_environment(game, mode, difficulty):
    envs = AtariEnvs(game, protocol=MACHADO, num_envs=1, seed=0, mode=mode, difficulty=difficulty)
    assert envs.flavour == (None, None)
    assert isinstance(envs._env, AtariVectorEnv)
    envs.close()


def test_flavours_are_those_of_ales_documentation():
    assert flavours("breakout") == (tuple(range(0, 48, 4)), (0, 1), (0, 0))
    assert flavours("air_raid") == (tuple(range(1, 9)), (0,), (1, 0))
    assert flavours("pong") == ((0, 1), (0, 1, 2, 3), (0, 0))


@pytest.mark.parametrize(
    ("game", "flavour", "told"),
    [
        ("Freeway", {"mode": 9}, "'freeway' has no mode 9; nearest: 7; of all: 0, 1, 2, 3, 4, 5, 6, 7"),
        ("breakout", {"mode": 5}, "'breakout' has no mode 5; nearest: 4; of all: 0, 4, 8,"),
        ("pong", {"mode": 1, "difficulty": -2}, "'pong' has no difficulty -2; nearest: 0; of all: 0, 1, 2, 3"),
        ("video_cube", {"mode": 5010}, "'video_cube' has no mode 5010; nearest: 5002; of all: 0, 1, 2, 100,"),
        ("demon_attack", {"mode": 3}, "ale-py can't play 'demon_attack' in mode 3"),
    ],
)
def test_a_flavour_that_a_game_lacks_is_refused_in_a_line(game, flavour, told):
    with pytest.raises(ValueError) as error:
        AtariEnvs(game, protocol=MACHADO, num_envs=1, seed=0, **flavour)
    assert str(error.value).startswith(told)
    assert len(str(error.value)) < 150
    assert "\n" not in str(error.value)


def test_seeds_and_resets():
    """The same seed gives the same, again after a reset; another seed draws other no-ops and repeats other actions."""
    protocol = dataclasses.replace(DQN_ZOO, repeat_action_probability=0.25, max_frames_per_episode=120)
    envs = AtariEnvs("seaquest", protocol=protocol, num_envs=2, seed=0, difficulty=1)
    first = rollout(envs, 40)
    assert_same(first, rollout(envs, 40))
    assert_same(first, play("seaquest", 40, protocol=protocol, difficulty=1))
    envs.reset(seed=1)
    assert (first[0].observation != envs.step([0, 0]).observation).any()
    assert (first[-1].observation[0] != first[-1].observation[1]).any()
    envs.close()


def test_no_ops():
    """Star Gunner's screens, of which no two are alike, tell how many no-ops there were."""
    truth = AtariEnv("star_gunner", mode=1, obs_type="grayscale", frameskip=1, repeat_action_probability=0.0)
    screens = [truth.reset()[0], *(truth.step(0)[0] for _ in range(6))]
    starts = shrinker((210, 160), (84, 84))(np.stack(screens))
    protocol = dataclasses.replace(PLAIN, noop_min=3, noop_max=5, max_frames_per_episode=4)
    timesteps = play("star_gunner", 40, protocol=protocol, num_envs=1, mode=1)
    counts = [int((starts == timestep.observation[0, -1]).all((1, 2)).argmax()) for timestep in timesteps]
    assert np.bincount(counts, minlength=7).nonzero()[0].tolist() == [3, 4, 5]
    assert all(episode.frames == 4 for timestep in timesteps[1:] for episode in timestep.episodes)
    truth.close()


def test_environments_that_are_not_reset_go_on():
    envs = AtariEnvs("breakout", protocol=PLAIN, num_envs=2, seed=0, mode=4)
    before = rollout(envs, 5)[-1].observation
    after, info = envs._env.reset(options={"reset_mask": np.array([False, True])})
    assert info["episode_frame_number"].tolist() == [20, 0]
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1, :-1], 0)
    envs.close()


def test_earlier_arrays_are_not_overwritten():
    protocol = dataclasses.replace(PLAIN, noop_min=1, noop_max=2, max_frames_per_episode=12)
    envs = AtariEnvs("breakout", protocol=protocol, num_envs=2, seed=0, mode=4)
    timesteps, copies = [], []
    for t in range(30):
        timesteps.append(envs.reset() if t == 0 else envs.step([1, 0]))
        copies.append(timesteps[-1]._replace(**{f: np.copy(getattr(timesteps[-1], f)) for f in TimeStep._fields[:4]}))
    assert_same(timesteps, copies)
    envs.close()


def test_shrinking_by_hand():
    # 3 pixels in 2: each is one and a half of the old ones. 5 lines in 2: two and a half.
    row = np.array([[[0, 10, 20]]], np.uint8)
    np.testing.assert_array_equal(shrinker((1, 3), (1, 2))(row), [[[3, 17]]])
    column = np.array([[[10], [20], [40], [80], [161]]], np.uint8)
    np.testing.assert_array_equal(shrinker((5, 1), (2, 1))(column), [[[20], [104]]])
    screens = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(shrinker((3, 4), (3, 4))(screens), screens)


def test_frames_larger_than_the_screen_are_refused():
    protocol = dataclasses.replace(MACHADO, height=211)
    with pytest.raises(ValueError, match=r"frames of 211 × 84 are larger than the screen; .* can be 210 × 160 at most"):
        AtariEnvs("freeway", protocol=protocol, num_envs=1, seed=0, mode=1)
