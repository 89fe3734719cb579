"""The ring of a replay: what is sampled and what is refused, memory, compilation."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from small_replays import GAMMA, KINDS, MAKERS, SHAPE, at, batched

from agents.replay import Replay, Step, make_replay, replay_bytes, transitions


def counting_step(time: int, num_envs: int) -> Step:
    """Step `time` of environments that never end an episode; the action holds the time, the reward the environment."""
    return Step(
        frame=np.zeros((num_envs, *SHAPE), np.uint8),
        action=np.full(num_envs, time, np.int32),
        reward=np.arange(num_envs, dtype=np.float32),
        discount=np.ones(num_envs, np.float32),
        first=np.zeros(num_envs, bool),
    )


def filled(replay: Replay, num_envs: int, steps: int):
    state = replay.init()
    for time in range(steps):
        state = replay.add(state, counting_step(time, num_envs))
    return state


def ring_of(state):
    return getattr(state, "ring", state)


@KINDS
@pytest.mark.parametrize("steps", [5, 8, 12, 17, 24, 31])  # the least, half full, just full, and three places of a wrap
def test_sampling_is_uniform_over_every_start(steps, kind):
    """By priority too, as long as all transitions are new."""
    num_envs, time_length, length = 2, 12, 5
    replay = MAKERS[kind](num_envs * time_length, num_envs, batch_size=4096, stack=4, n_step=1, frame_shape=SHAPE)
    sequence, _, rarity = replay.sample(filled(replay, num_envs, steps), jax.random.key(steps))
    np.testing.assert_allclose(rarity, 1, rtol=1e-6)
    oldest, starts = max(steps - time_length, 0), min(steps, time_length) - length + 1
    cell = np.asarray(sequence.reward[:, 0], int) * starts + np.asarray(sequence.action[:, 0]) - oldest
    counts = np.bincount(cell, minlength=num_envs * starts)
    assert counts.size == num_envs * starts
    assert scipy.stats.chisquare(counts).pvalue > 1e-4  # a fixed key: this does not flicker


@KINDS
def test_rows_that_were_never_written_are_not_sampled(kind):
    """flashbax does not initialise its rows: here they hold a mark that no sample may show."""
    replay = MAKERS[kind](200, 2, batch_size=512, n_step=1, frame_shape=SHAPE)
    state = replay.init()
    marked = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, True if leaf.dtype == bool else 99), ring_of(state).experience
    )
    ring = ring_of(state).replace(experience=marked)
    state = state._replace(ring=ring) if kind == "prioritized" else ring
    for time in range(7):
        state = replay.add(state, counting_step(time, 2))
        if replay.can_sample(state):
            assert replay.sample(state, jax.random.key(time)).steps.action.max() <= time


@KINDS
def test_the_key_decides_what_is_sampled(kind):
    replay = MAKERS[kind](40, 2, batch_size=8, n_step=1, frame_shape=SHAPE)
    state = filled(replay, 2, 20)
    one, same, other = (replay.sample(state, jax.random.key(seed)).steps.action for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@KINDS
def test_capacity_is_rounded_down_to_whole_rows(kind):
    assert MAKERS[kind](103, 4, 8, frame_shape=SHAPE).capacity == 100


@KINDS
@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"capacity": 55},
            r"replay: capacity is 55, must be at least 56: num_envs \(8\) x \(stack \(4\) \+ n_step \(3\)\)",
        ),
        ({"capacity": -1}, "capacity is -1"),
        ({"num_envs": 0}, "num_envs is 0, must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"stack": 0}, "stack is 0"),
        ({"n_step": 0}, "n_step is 0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(arguments, message, kind):
    with pytest.raises(ValueError, match=message) as error:
        MAKERS[kind](**{"capacity": 1000, "num_envs": 8, "batch_size": 32, "n_step": 3} | arguments)
    assert "\n" not in str(error.value)


@KINDS
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"reward": np.zeros(2, np.int32)}, r"replay: reward is int32 \[2\], must be float32 \[2\]"),
        ({"frame": np.zeros((2, 1, 1), np.uint8)}, r"frame is uint8 \[2, 1, 1\], must be uint8 \[2, 1, 2\]"),
        ({"first": np.zeros(1, bool)}, r"first is bool \[1\], must be bool \[2\]"),
    ],
)
def test_a_step_of_another_shape_or_type_is_refused(wrong, message, kind):
    replay = MAKERS[kind](40, 2, 8, frame_shape=SHAPE)
    with pytest.raises(ValueError, match=message):
        replay.add(replay.init(), counting_step(0, 2)._replace(**wrong))


@pytest.mark.parametrize("frame_shape", [SHAPE, (84, 84), (10, 10, 10)])
def test_bytes_are_those_of_the_state(frame_shape):
    replay = make_replay(100, 4, 8, frame_shape=frame_shape)
    state = jax.eval_shape(replay.init)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in state.experience)
    assert held == replay_bytes(100, frame_shape) == replay.capacity * replay.bytes_per_step
    assert replay_bytes(1_000_000) == 7_069_000_000


@KINDS
def test_frames_of_several_planes_come_out_as_they_went_in(kind):
    """Twelve steps of one environment, with an episode that begins at the fifth; each stack against what was added."""
    shape, rng = (3, 2, 4), np.random.default_rng(0)
    frames = rng.integers(1, 256, (12, 1, *shape)).astype(np.uint8)
    replay = MAKERS[kind](12, 1, 64, stack=2, n_step=1, frame_shape=shape)
    state = replay.init()
    for time, frame in enumerate(frames):
        state = replay.add(state, counting_step(time, 1)._replace(frame=frame, first=np.array([time == 4])))
    steps = replay.sample(state, jax.random.key(0)).steps
    assert steps.frame.shape == (64, 3, *shape)
    made = jax.vmap(functools.partial(transitions, stack=2, n_step=1, gamma=GAMMA, clip_reward=False))(steps)
    assert made.s_tm1.shape == made.s_t.shape == (64, 2, *shape)
    assert {*made.a_tm1.tolist()} == {*range(1, 11)}
    for time, before, after, weight in zip(made.a_tm1.tolist(), made.s_tm1, made.s_t, made.weight, strict=True):
        older = np.zeros(shape) if time == 4 else frames[time - 1, 0]
        np.testing.assert_array_equal(before, [older, frames[time, 0]])
        assert weight == (time != 3)  # the step before the start was truncated
        if weight:
            np.testing.assert_array_equal(after, [frames[time, 0], frames[time + 1, 0]])


@KINDS
def test_add_takes_over_the_memory_of_its_state(kind):
    replay = MAKERS[kind](40, 2, 8, frame_shape=SHAPE)
    before = ring_of(state := replay.init()).experience.frame
    address = before.unsafe_buffer_pointer()
    after = replay.add(state, counting_step(0, 2))
    assert before.is_deleted()
    assert ring_of(after).experience.frame.unsafe_buffer_pointer() == address


@KINDS
def test_one_compilation_serves_new_and_restored_states(kind):
    replay = MAKERS[kind](40, 2, 8, frame_shape=SHAPE)
    state = filled(replay, 2, 7)
    saved = jax.tree.map(np.asarray, state)
    restored = jax.tree.unflatten(jax.tree.structure(state), jax.tree.map(jnp.array, jax.tree.leaves(saved)))
    going_on = [replay.add(each, counting_step(7, 2)) for each in (state, restored)]
    jax.tree.map(np.testing.assert_array_equal, *going_on)
    jax.tree.map(np.testing.assert_array_equal, *[replay.sample(each, jax.random.key(3)) for each in going_on])
    assert replay.add._cache_size() == 1


@KINDS
def test_the_same_inside_scan_as_from_python(kind):
    replay = MAKERS[kind](20, 2, 8, n_step=3, frame_shape=SHAPE)
    steps = jax.tree.map(lambda *leaves: np.stack(leaves), *[counting_step(time, 2) for time in range(30)])
    keys = jax.random.split(jax.random.key(0), 30)

    def body(state, step_and_key):
        step, key = step_and_key
        state = replay.add(state, step)
        sample = replay.sample(state, key)
        return replay.update(state, sample.index, 1 + sample.steps.reward[:, 3]), batched(4, 3)(sample.steps)

    with warnings.catch_warnings(action="error"):  # among them: "some donated buffers were not usable"
        scanned_state, scanned = jax.jit(functools.partial(jax.lax.scan, body), donate_argnums=0)(
            replay.init(), (steps, keys)
        )
    state = replay.init()
    for time in range(30):
        state, made = body(state, (jax.tree.map(lambda leaf, time=time: leaf[time], steps), keys[time]))
        if replay.can_sample(state):
            jax.tree.map(np.testing.assert_array_equal, made, at(scanned, time))
    jax.tree.map(np.testing.assert_array_equal, state, scanned_state)
