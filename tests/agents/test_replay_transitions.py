"""Transitions by hand, by a list-of-episodes oracle in numpy, and by ALE's own frame stacks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from small_replays import GAMMA, KINDS, MAKERS, SHAPE, at, batched

from agents.replay import Step, Transition, make_replay


class Episode(NamedTuple):
    """The truth that the oracle works on. Frame i belongs to the observation in which step i was taken."""

    frames: list[int]
    rewards: list[float]
    alive: list[bool]  # False at a lost life and at a termination
    truncated: bool  # whether the last step was cut off; else, if the episode is over, it has terminated


def frame_of(number: int) -> np.ndarray:
    return np.array([[number // 256, number % 256]], np.uint8)


def steps_of(episodes: list[Episode]) -> Step:
    """One environment's stored steps, [time, ...]."""
    return Step(
        frame=np.stack([frame_of(number) for episode in episodes for number in episode.frames]),
        action=np.array([number % 18 for episode in episodes for number in episode.frames], np.int32),
        reward=np.array([reward for episode in episodes for reward in episode.rewards], np.float32),
        discount=np.array([alive for episode in episodes for alive in episode.alive], np.float32),
        first=np.array([i == 0 for episode in episodes for i in range(len(episode.frames))]),
    )


def oracle(episode: Episode, start: int, stack: int, n_step: int, clip_reward: bool) -> Transition:
    """The transition of an episode's step `start`, without a flag or an index of the ring."""

    def observation(step: int) -> np.ndarray:
        padded = [np.zeros(SHAPE, np.uint8)] * (stack - 1) + [frame_of(number) for number in episode.frames]
        return np.stack(padded[step : step + stack])

    total, discount, step = 0.0, 1.0, start
    while step < start + n_step:
        if episode.truncated and step == len(episode.frames) - 1:
            break
        reward = episode.rewards[step]
        total += discount * (min(max(reward, -1.0), 1.0) if clip_reward else reward)
        discount *= GAMMA
        if not episode.alive[step]:
            discount = 0.0
            break
        step += 1
    return Transition(
        s_tm1=observation(start),
        a_tm1=np.int32(episode.frames[start] % 18),
        r_t=np.float32(total),
        discount_t=np.float32(discount),
        s_t=observation(step),
        weight=np.float32(step > start or discount == 0.0),
    )


def assert_same(ours: Transition, wanted: Transition) -> None:
    for name in ("s_tm1", "a_tm1", "weight"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(wanted, name), err_msg=name)
    if wanted.weight:
        np.testing.assert_allclose(ours.r_t, wanted.r_t, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.discount_t, wanted.discount_t, rtol=1e-6)
    if wanted.weight and wanted.discount_t:
        np.testing.assert_array_equal(ours.s_t, wanted.s_t)
    assert [(leaf.shape, leaf.dtype) for leaf in ours] == [(leaf.shape, leaf.dtype) for leaf in wanted]


def windows(steps: Step, length: int) -> Step:
    """All runs of `length` steps, [runs, length, ...]."""
    count = len(steps.first) - length + 1
    return jax.tree.map(lambda leaf: np.stack([leaf[i : i + length] for i in range(count)]), steps)


# --- By hand ---------------------------------------------------------------------------------------------------------


def by_hand(first: str, discount: str, *, n_step: int, stack: int = 4, clip_reward: bool = False) -> Transition:
    """The transition of a window with frames 1, 2, ... and rewards 1, 2, ...; flags are strings of 0 and 1.

    The transition's own step is at index `stack - 1`: with a stack of 4 it is number 4.
    """
    length = stack + n_step
    assert len(first) == len(discount) == length
    numbers = np.arange(1, length + 1)
    sequence = Step(
        frame=np.stack([frame_of(number) for number in numbers]),
        action=numbers.astype(np.int32),
        reward=numbers.astype(np.float32),
        discount=np.array([flag == "1" for flag in discount], np.float32),
        first=np.array([flag == "1" for flag in first]),
    )
    return at(batched(stack, n_step, clip_reward)(jax.tree.map(lambda leaf: leaf[None], sequence)), 0)


def numbers_in(stack: np.ndarray) -> list[int]:
    return [int(frame[0, 0]) * 256 + int(frame[0, 1]) for frame in stack]


def test_one_step_inside_an_episode():
    t = by_hand("00000", "11111", n_step=1)
    assert numbers_in(t.s_tm1) == [1, 2, 3, 4]
    assert numbers_in(t.s_t) == [2, 3, 4, 5]
    assert (t.a_tm1, t.r_t, t.discount_t, t.weight) == (4, 4.0, np.float32(GAMMA), 1.0)


def test_three_steps_bootstrap_with_gamma_cubed():
    t = by_hand("0000000", "1111111", n_step=3)
    assert numbers_in(t.s_t) == [4, 5, 6, 7]
    assert t.r_t == pytest.approx(4 + 0.9 * 5 + 0.81 * 6)
    assert t.discount_t == pytest.approx(0.729)


def test_rewards_are_clipped_before_they_are_summed():
    assert by_hand("0000000", "1111111", n_step=3, clip_reward=True).r_t == pytest.approx(1 + 0.9 + 0.81)


def test_termination_ends_the_return_without_a_bootstrap():
    t = by_hand("0000010", "1111011", n_step=3)  # step 5 terminates
    assert (t.r_t, t.discount_t, t.weight) == (pytest.approx(4 + 0.9 * 5), 0.0, 1.0)
    t = by_hand("0000100", "1110111", n_step=3)  # the step itself terminates
    assert (t.r_t, t.discount_t, t.weight) == (4.0, 0.0, 1.0)


def test_truncation_bootstraps_from_the_last_observation_stored():
    t = by_hand("0000001", "1111111", n_step=3)  # step 6 was cut off: its reward has no successor
    assert (t.r_t, t.discount_t, t.weight) == (pytest.approx(4 + 0.9 * 5), pytest.approx(0.81), 1.0)
    assert numbers_in(t.s_t) == [3, 4, 5, 6]
    t = by_hand("0000010", "1111111", n_step=3)
    assert (t.r_t, t.discount_t, t.weight) == (4.0, pytest.approx(0.9), 1.0)
    assert numbers_in(t.s_t) == [2, 3, 4, 5]


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_step_that_is_itself_truncated_does_not_count(n_step):
    t = by_hand("0000100"[: 4 + n_step], "1111111"[: 4 + n_step], n_step=n_step)
    assert t.weight == 0.0
    assert all(np.isfinite(leaf).all() for leaf in t)  # 0 x loss must be 0


def test_a_lost_life_cuts_the_bootstrap_but_not_the_stack():
    t = by_hand("0000000", "1011011", n_step=3)  # lives lost at steps 2 and 5
    assert numbers_in(t.s_tm1) == [1, 2, 3, 4]
    assert (t.r_t, t.discount_t, t.weight) == (pytest.approx(4 + 0.9 * 5), 0.0, 1.0)
    assert numbers_in(by_hand("00000", "11011", n_step=1).s_t) == [2, 3, 4, 5]


def test_a_truncation_after_a_lost_life_changes_nothing():
    assert by_hand("0000010", "1110111", n_step=3)[2:4] == (4.0, 0.0)


def test_stacks_are_zero_before_the_episode():
    assert numbers_in(by_hand("00010", "11111", n_step=1).s_tm1) == [0, 0, 0, 4]
    assert numbers_in(by_hand("00010", "11111", n_step=1).s_t) == [0, 0, 4, 5]
    assert numbers_in(by_hand("01000", "11111", n_step=1).s_tm1) == [0, 2, 3, 4]
    assert numbers_in(by_hand("10000", "11111", n_step=1).s_tm1) == [1, 2, 3, 4]
    # Episodes of one step each: the newest beginning counts.
    assert numbers_in(by_hand("11110", "00011", n_step=1).s_tm1) == [0, 0, 0, 4]


def test_an_episode_shorter_than_the_stack_and_than_n():
    first = "001001000"  # steps 3, 4 and 5 are an episode
    t = by_hand(first, "111101111", n_step=5)  # that terminates
    assert numbers_in(t.s_tm1) == [0, 0, 3, 4]
    assert (t.r_t, t.discount_t, t.weight) == (pytest.approx(4 + 0.9 * 5), 0.0, 1.0)
    t = by_hand(first, "111111111", n_step=5)  # that is truncated
    assert numbers_in(t.s_t) == [0, 3, 4, 5]
    assert (t.r_t, t.discount_t, t.weight) == (4.0, pytest.approx(0.9), 1.0)


def test_environments_made_anew_look_like_a_truncation():
    """At an iteration's boundary a new episode begins after a step that did not end the old one."""
    old = Episode([1, 2, 3, 4, 5], [1.0] * 5, [True] * 5, truncated=True)
    new = Episode([6, 7, 8, 9, 10], [1.0] * 5, [True] * 5, truncated=False)
    made = batched(2, 2)(windows(steps_of([old, new]), 4))  # starts at frames 2 to 8
    assert numbers_in(made.s_tm1[:, 1]) == [2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_array_equal(made.weight, [1, 1, 1, 0, 1, 1, 1])
    np.testing.assert_allclose(made.discount_t[:3], [0.81, 0.81, 0.9], rtol=1e-6)
    assert [numbers_in(s_t) for s_t in made.s_t[:3]] == [[3, 4], [4, 5], [4, 5]]
    assert [numbers_in(s_tm1) for s_tm1 in made.s_tm1[4:6]] == [[0, 6], [6, 7]]


def test_a_sequence_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"has 5 steps, must have 7: stack \(4\) \+ n_step \(3\)"):
        batched(4, 3)(windows(steps_of([Episode([1] * 5, [0.0] * 5, [True] * 5, False)]), 5))


# --- The oracle ------------------------------------------------------------------------------------------------------


def random_history(rng: np.random.Generator, steps: int, number: int) -> list[Episode]:
    """Episodes of 1 to 7 steps, one after another; the last one is still going on."""
    episodes, end = [], number + steps
    while number < end:
        length = min(int(rng.integers(1, 8)), end - number)
        truncated = bool(rng.integers(2))
        alive = [bool(flag) for flag in rng.random(length) > 0.15]
        alive[-1] = truncated
        rewards = rng.choice([0.0, 1.0, -3.0], length).tolist()
        episodes.append(Episode(list(range(number, number + length)), rewards, alive, truncated))
        number += length
    last = episodes[-1]
    return [*episodes[:-1], last._replace(alive=[*last.alive[:-1], True], truncated=False)]


def locate(episodes: list[Episode], number: int) -> tuple[Episode, int]:
    """The episode that frame `number` belongs to, and where in it."""
    return next((episode, episode.frames.index(number)) for episode in episodes if number in episode.frames)


@pytest.mark.parametrize("stack, n_step, clip_reward", [(4, 1, True), (4, 3, False), (1, 1, False), (2, 5, True)])
def test_equals_the_oracle(stack, n_step, clip_reward):
    episodes = random_history(np.random.default_rng(0), 3000, 1)
    made = batched(stack, n_step, clip_reward)(windows(steps_of(episodes), stack + n_step))
    made = jax.tree.map(np.asarray, made)
    for i in range(len(made.weight)):
        assert_same(at(made, i), oracle(*locate(episodes, i + stack), stack, n_step, clip_reward))


@KINDS
@pytest.mark.parametrize("stack, n_step", [(4, 3), (4, 1), (2, 2), (1, 1)])
def test_through_the_ring_over_several_wraps(stack, n_step, kind):
    """Whatever is sampled, at any fill and over four wraps, is a whole transition of steps that are still stored."""
    num_envs, time_length, total, batch_size = 3, 13, 60, 64
    rng = np.random.default_rng(stack)
    history = [random_history(rng, total, 1 + env * total) for env in range(num_envs)]
    streams = jax.tree.map(lambda *leaves: np.stack(leaves), *[steps_of(episodes) for episodes in history])
    replay = MAKERS[kind](num_envs * time_length, num_envs, batch_size, stack, n_step, SHAPE)
    state, key = replay.init(), jax.random.key(0)
    for time in range(total):
        state = replay.add(state, jax.tree.map(lambda leaf, time=time: leaf[:, time], streams))
        stored = min(time + 1, time_length)
        assert replay.size(state) == num_envs * stored
        assert replay.can_sample(state) == (stored >= stack + n_step)
        if not replay.can_sample(state):
            continue
        key, sample_key = jax.random.split(key)
        sample = replay.sample(state, sample_key)
        sequence = sample.steps
        numbers = np.array([numbers_in(frames) for frames in np.asarray(sequence.frame)])
        env, when = np.divmod(numbers - 1, total)
        assert (env == env[:, :1]).all()
        assert (np.diff(when) == 1).all()  # consecutive, so not across the point where the next step is written
        assert (when > time - stored).all()
        assert (when <= time).all()
        made = batched(stack, n_step)(sequence)
        for i in range(batch_size):
            number = numbers[i, stack - 1]
            assert_same(at(made, i), oracle(*locate(history[env[i, 0]], number), stack, n_step, False))
        priorities = rng.choice([0.0, 1e-6, 1.0, 50.0], batch_size)
        state = replay.update(state, sample.index, jnp.asarray(priorities, jnp.float32))


# --- ALE -------------------------------------------------------------------------------------------------------------


def test_stacks_equal_those_of_ale():
    """Single frames, stored and stacked again, are the very observations that the agent acted on."""
    from ale_py.vector_env import AtariVectorEnv

    num_envs, total = 2, 120
    env = AtariVectorEnv(
        "breakout",
        num_envs=num_envs,
        max_num_frames_per_episode=140,
        noop_max=20,
        use_fire_reset=False,
        reward_clipping=False,
        life_loss_info=True,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    replay = make_replay(num_envs * 40, num_envs, batch_size=256, n_step=3)
    state = replay.init()
    observation, _ = env.reset(seed=0)
    first, observations = np.ones(num_envs, bool), []
    rng = np.random.default_rng(0)
    for time in range(total):
        observations.append(observation)
        # The action holds the time and the environment, so that a sample can be looked up.
        label = (time * num_envs + np.arange(num_envs)).astype(np.int32)
        frame = observation[:, -1]
        observation, reward, terminated, _, _ = env.step(rng.integers(4, size=num_envs))
        discount = 1 - terminated.astype(np.float32)
        state = replay.add(state, Step(frame, label, reward.astype(np.float32), discount, first))
        first = ~observation[:, :-1].any(axis=(1, 2, 3))  # only a reset leaves a single frame
    env.close()
    made = batched(4, 3)(replay.sample(state, jax.random.key(0)).steps)
    when, which = np.divmod(np.asarray(made.a_tm1), num_envs)
    observations = np.stack(observations)
    np.testing.assert_array_equal(made.s_tm1, observations[when, which])
    ahead = np.asarray(made.discount_t == np.float32(GAMMA) ** 3)
    assert 0 < ahead.sum() < len(ahead)
    np.testing.assert_array_equal(made.s_t[ahead], observations[when[ahead] + 3, which[ahead]])
    assert (np.asarray(made.s_tm1).any(axis=(2, 3)).sum(axis=1) < 4).any()  # zero-padded stacks were among them
