"""The environments against ALE's plain single-game interface, driven frame by frame, and against their own words."""

import dataclasses
import inspect
import json

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py.registration import rom_id_to_name
from ale_py.vector_env import AtariVectorEnv
from random_play import assert_same, play, rollout

from envs.atari import PROTOCOLS, AtariEnvs, AtariProtocol, TimeStep, games, resolve_game

MACHADO, DQN_ZOO = PROTOCOLS["machado"], PROTOCOLS["dqn-zoo"]
# Nothing at random: what ALE's single-game interface can be compared with.
PLAIN = dataclasses.replace(MACHADO, repeat_action_probability=0.0)


def observations(timesteps: list[TimeStep]) -> np.ndarray:
    return np.stack([timestep.observation for timestep in timesteps])


def load(game: str) -> ale_py.ALEInterface:
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 1)
    ale.loadROM(ale_py.roms.get_rom_path(game))
    return ale


def averaging(new: int, old: int) -> np.ndarray:
    """[new, old]: each new pixel is the mean of the length that it covers of the old ones."""
    edges = np.arange(new + 1) * old / new
    left, right = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(old) + 1)
    return np.maximum(right - left, 0) * new / old


def shrink(screen: np.ndarray, rows=averaging(84, 210), columns=averaging(84, 160)) -> np.ndarray:  # noqa: B008
    return rows @ screen.astype(np.float64) @ columns.T


# Frogger's lives drop to 0 while the last frog still plays: a loss that ALE's own life_loss_info does not tell.
@pytest.mark.parametrize(
    ("game", "steps", "fewest_lives", "cut_short"), [("breakout", 450, 1, True), ("frogger", 700, 0, False)]
)
def test_steps_are_those_of_ale_driven_by_hand(game, steps, fewest_lives, cut_short):
    protocol = dataclasses.replace(PLAIN, life_loss="zero-discount")
    timesteps = play(game, steps, protocol=protocol, num_envs=1)
    ale = load(game)
    ale.reset_game()
    actions = ale.getMinimalActionSet()
    chosen = np.random.default_rng(0).integers(len(actions), size=(steps, 1))[:, 0]

    episode_return, frames = 0, 0
    lives_seen, losses, lengths = {ale.lives()}, 0, []
    for t, action in enumerate(chosen, start=1):
        got, lives, reward, screens = timesteps[t], ale.lives(), 0, []
        for _ in range(4):
            reward += ale.act(actions[action])
            frames += 1
            if ale.game_over():
                break
            if t % 10 == 0:
                screens.append(ale.getScreenGrayscale())
        lost, over = ale.lives() < lives, ale.game_over()
        episode_return += reward
        assert got.reward[0] == reward, t
        assert got.first[0] == over, t
        assert got.discount[0] == (0 if lost or over else 1), t
        assert got.episodes == (((0, episode_return, frames),) if over else ()), t
        if over:
            lengths.append(frames)
            ale.reset_game()
            episode_return, frames = 0, 0
            screens = [ale.getScreenGrayscale()]
        else:
            losses += lost
            lives_seen.add(ale.lives())
        if screens:
            expected = shrink(np.maximum.reduce(screens[-2:]))
            np.testing.assert_allclose(got.observation[0, -1], expected, atol=1, err_msg=str(t))
    # What was to be compared did happen.
    assert lengths
    assert losses >= 3
    assert min(lives_seen) == fewest_lives
    assert any(length % 4 for length in lengths) == cut_short


@pytest.mark.parametrize("frames", [1, 102])
def test_truncation(frames):
    timesteps = play("breakout", 30, protocol=dataclasses.replace(DQN_ZOO, max_frames_per_episode=frames))
    steps = -(-frames // 4)
    for t, timestep in enumerate(timesteps):
        np.testing.assert_array_equal(timestep.first, t % steps == 0)
        if t > 0 and t % steps == 0:
            np.testing.assert_array_equal(timestep.discount, 1)
            assert [(episode.env, episode.frames) for episode in timestep.episodes] == [(0, frames), (1, frames)]
        else:
            assert timestep.episodes == ()


def test_starting_over_with_fewer_lives_is_no_life_loss():
    """A truncated episode may have won extra lives, which the next one begins without."""
    envs = AtariEnvs("breakout", protocol=dataclasses.replace(DQN_ZOO, max_frames_per_episode=4), num_envs=1, seed=0)
    envs.reset()
    envs._lives = envs._lives + 1
    timestep = envs.step([0])
    assert (timestep.first[0], timestep.discount[0]) == (True, 1)
    envs.close()


def test_life_loss_changes_the_discount_and_nothing_else():
    ignored = play("breakout", 300, protocol=MACHADO, num_envs=1)
    zeroed = play("breakout", 300, protocol=dataclasses.replace(MACHADO, life_loss="zero-discount"), num_envs=1)
    for a, b in zip(ignored, zeroed, strict=True):
        np.testing.assert_array_equal(a.discount, ~a.first | (a is ignored[0]))
        assert_same([a._replace(discount=b.discount)], [b])
    mid_episode = sum(int(((b.discount == 0) & ~b.first).sum()) for b in zeroed)
    # Five lives: four losses within an episode.
    assert mid_episode >= 4


@pytest.fixture(scope="module")
def seaquest() -> list[TimeStep]:
    """Two environments past at least one end of an episode each, with rewards of 20."""
    return play("seaquest", 420, protocol=DQN_ZOO)


def test_returns_are_sums_of_unclipped_rewards(seaquest):
    totals, ended, largest = np.zeros(2), [0, 0], 0.0
    for timestep in seaquest:
        totals += timestep.reward
        largest = max(largest, timestep.reward.max())
        assert [episode.env for episode in timestep.episodes] == np.flatnonzero(timestep.first).tolist() or (
            timestep is seaquest[0]
        )
        for env, episode_return, frames in timestep.episodes:
            assert episode_return == totals[env]
            assert 0 < frames < DQN_ZOO.max_frames_per_episode
            totals[env] = 0
            ended[env] += 1
    assert min(ended) >= 1
    assert largest >= 20


def test_stacks_hold_one_episode_only(seaquest):
    before = None
    for timestep in seaquest:
        for env, first in enumerate(timestep.first):
            stack = timestep.observation[env]
            assert stack[-1].any()
            if first:
                assert not stack[:-1].any()
            else:
                np.testing.assert_array_equal(stack[:-1], before.observation[env, 1:])
        before = timestep


def test_types_and_shapes(seaquest):
    for timestep in seaquest[:2]:
        assert (timestep.observation.dtype, timestep.observation.shape) == (np.uint8, (2, 4, 84, 84))
        for array, dtype in ((timestep.reward, np.float32), (timestep.discount, np.float32), (timestep.first, bool)):
            assert (array.dtype, array.shape) == (dtype, (2,))
    reset = seaquest[0]
    assert reset.first.all()
    assert (reset.discount == 1).all()
    assert not reset.reward.any()
    assert reset.episodes == ()


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_seed_gives_the_same_bits_with_any_number_of_threads(protocol):
    # Short episodes, so that what a new episode draws is compared as well.
    protocol = dataclasses.replace(protocol, max_frames_per_episode=120)
    one = play("breakout", 100, protocol=protocol, threads=1)
    assert_same(one, play("breakout", 100, protocol=protocol, threads=2))
    # Nor do the environments repeat each other.
    assert (observations(one)[:, 0] != observations(one)[:, 1]).any()


def test_reset_starts_over():
    # Seaquest, because ALE's own reset_game leaves traces of the game before in it.
    envs = AtariEnvs("seaquest", protocol=MACHADO, num_envs=1, seed=-(10**30))
    assert_same(rollout(envs, 50), rollout(envs, 50))
    envs.close()


def test_earlier_arrays_are_not_overwritten():
    envs = AtariEnvs("breakout", protocol=DQN_ZOO, num_envs=1, seed=0)
    timesteps, copies = [], []
    for t in range(30):
        timesteps.append(envs.reset() if t == 0 else envs.step([1]))
        copies.append(timesteps[-1]._replace(**{f: np.copy(getattr(timesteps[-1], f)) for f in TimeStep._fields[:4]}))
    assert_same(timesteps, copies)
    envs.close()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31 - 2, 2**31, 2**63, -(2**80)])
def test_any_integer_is_a_seed(seed):
    envs = AtariEnvs("pong", protocol=MACHADO, num_envs=1, seed=seed)
    envs.reset()
    envs.close()


def test_sticky_actions():
    """The same actions from the same start: only what repeats them can tell two seeds apart."""
    assert MACHADO.repeat_action_probability == 0.25
    sticky = [observations(play("breakout", 40, protocol=MACHADO, num_envs=1, seed=seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(sticky[0][0], sticky[1][0])
    assert (sticky[0] != sticky[1]).any()
    plain = [observations(play("breakout", 40, protocol=PLAIN, num_envs=1, seed=seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(plain[0], plain[1])
    assert DQN_ZOO.repeat_action_probability == 0


def starts(protocol: AtariProtocol, steps: int) -> list[int]:
    """The numbers of no-ops that episodes begin with, read from Star Gunner's screens, of which no two are alike."""
    ale = load("star_gunner")
    ale.reset_game()
    screens = [shrink(ale.getScreenGrayscale())]
    for _ in range(31):
        ale.act(ale_py.Action.NOOP)
        screens.append(shrink(ale.getScreenGrayscale()))
    # Every step is an episode.
    timesteps = play("star_gunner", steps, protocol=dataclasses.replace(protocol, max_frames_per_episode=4))
    frames = observations(timesteps)[:, :, -1].reshape(-1, 84, 84)
    matches = np.array([[np.abs(frame - screen).max() <= 1 for screen in screens] for frame in frames])
    assert (matches.sum(1) == 1).all()
    return matches.argmax(1).tolist()


def test_no_ops_are_uniform_over_both_ends():
    drawn = starts(DQN_ZOO, steps=149)
    counts = np.bincount(drawn, minlength=32)
    assert counts[0] == counts[31] == 0
    # 300 draws over 30 values: chi-square has mean 29 and standard deviation 7.6.
    assert ((counts[1:31] - 10) ** 2 / 10).sum() < 60
    assert set(starts(MACHADO, steps=5)) == {0}
    assert set(starts(dataclasses.replace(PLAIN, noop_min=3, noop_max=5), steps=20)) == {3, 4, 5}
    assert (MACHADO.noop_min, MACHADO.noop_max, DQN_ZOO.noop_min, DQN_ZOO.noop_max) == (0, 0, 1, 30)


def test_every_option_is_set_by_name_and_can_be_recorded():
    envs = AtariEnvs("pong", protocol=MACHADO, num_envs=1, seed=0)
    assert envs.options.keys() == inspect.signature(AtariVectorEnv).parameters.keys()
    assert json.loads(json.dumps(envs.options)) == envs.options
    assert json.loads(json.dumps(dataclasses.asdict(MACHADO))) == dataclasses.asdict(MACHADO)
    envs.close()


def test_action_sets():
    minimal = AtariEnvs("Pong", protocol=DQN_ZOO, num_envs=1, seed=0)
    assert minimal.game == "pong"
    assert minimal.action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    full = AtariEnvs("pong", protocol=dataclasses.replace(MACHADO, full_action_space=True), num_envs=1, seed=0)
    assert full.num_actions == len(full.action_meanings) == 18
    for envs in (minimal, full):
        assert envs.observation_shape == envs.reset().observation.shape[1:] == (4, 84, 84)
        envs.close()


def test_games_are_those_that_gymnasium_registers_for_ale():
    assert [f"ALE/{rom_id_to_name(game)}-v5" for game in games()] == sorted(
        (name for name in gymnasium.registry if name.startswith("ALE/")), key=lambda name: resolve_game(name)
    )
    assert len(games()) >= 104


def test_spellings():
    for game in games():
        camel = rom_id_to_name(game)
        for name in (game, game.upper(), camel, f"ALE/{camel}-v5", f"{camel}NoFrameskip-v4", game.replace("_", "-")):
            assert resolve_game(name) == game


# Odd ones: two actions' worth of Freeway, a card game, one of a late addition, names with digits.
@pytest.mark.parametrize("game", ["freeway", "casino", "tic_tac_toe_3d", "pitfall2", "et"])
def test_games_play(game):
    timesteps = play(game, 5, protocol=DQN_ZOO, num_envs=1)
    assert timesteps[-1].observation.shape == (1, 4, 84, 84)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ponk", "unknown game 'ponk'; did you mean 'pong'"),
        ("ALE/SpaceInvader-v5", "unknown game 'ALE/SpaceInvader-v5'; did you mean 'space_invaders'"),
        ("", "unknown game ''; envs.atari.games() lists"),
        ("chess960xyz", "unknown game 'chess960xyz'"),
        ("Combat", "game 'combat' has no single-player mode"),
    ],
)
def test_unknown_games(name, message):
    for call in (resolve_game, lambda game: AtariEnvs(game, protocol=MACHADO, num_envs=1, seed=0)):
        with pytest.raises(ValueError) as error:
            call(name)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0, must be at least 1"),
        ({"num_envs": 1, "threads": -2}, "threads is -2, must be at least 1, or 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AtariEnvs("pong", protocol=MACHADO, seed=0, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeat_action_probability": 1.5}, "repeat_action_probability is 1.5, must lie in 0 to 1; nearest: 1.0"),
        ({"frame_skip": 0}, "frame_skip is 0, must be at least 1"),
        ({"max_frames_per_episode": -1}, "max_frames_per_episode is -1, must be at least 1"),
        ({"noop_min": -1}, "noop_min is -1, must be at least 0"),
        ({"noop_min": 5}, "noop_max is 0, must be at least noop_min = 5"),
    ],
)
def test_bad_protocols(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MACHADO, **change)


def test_bad_actions_and_calls_out_of_turn():
    """Every one of these would hang in ALE for good."""
    envs = AtariEnvs("pong", protocol=MACHADO, num_envs=2, seed=0)
    with pytest.raises(RuntimeError, match=r"send\(\) on 'pong': call reset\(\) first"):
        envs.send([0, 0])
    envs.reset()
    with pytest.raises(ValueError, match="action of environment 1 is 6, 'pong' has 0 to 5; nearest: 5"):
        envs.send(np.array([0, 6]))
    with pytest.raises(ValueError, match="action of environment 0 is -1, 'pong' has 0 to 5; nearest: 0"):
        envs.step([-1, 0])
    with pytest.raises(ValueError, match=r"float64 of shape \(2,\), must be integers of shape \(2,\)"):
        envs.send(np.zeros(2))
    with pytest.raises(ValueError, match=r"of shape \(3,\), must be integers of shape \(2,\)"):
        envs.send(np.zeros(3, int))
    with pytest.raises(RuntimeError, match=r"recv\(\) on 'pong': no actions were sent"):
        envs.recv()
    envs.send(np.array([0, 5], np.uint8))
    for method in (lambda: envs.send([0, 0]), envs.reset):
        with pytest.raises(RuntimeError, match=r"call recv\(\) first"):
            method()
    assert not envs.recv().first.any()
    envs.send([0, 0])
    envs.close()
    envs.close()
    with pytest.raises(RuntimeError, match="it is closed"):
        envs.recv()
