"""Prioritized replay: how often what is drawn, its importance weights, and which rows are only context.

Its sequences and transitions are tested with those of the uniform replay, in test_replay.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from agents.dqn import Agent, AgentState, Learned
from agents.loops import make_functions
from agents.prioritized import importance_weights, make_prioritized_replay
from agents.replay import Replay, Step, transitions
from agents.sum_tree import leaves_for

ENVS, LENGTH, STACK, N_STEP, BATCH = 3, 11, 4, 2, 25_000


def replay_for(exponent: float = 0.5, uniform: float = 0.0, batch: int = BATCH) -> Replay:
    return make_prioritized_replay(
        ENVS * LENGTH, ENVS, batch, STACK, N_STEP, (1, 1), exponent=exponent, uniform_probability=uniform
    )


def step_at(time: int) -> Step:
    """The action holds the time, the reward the environment."""
    return Step(
        np.zeros((ENVS, 1, 1), np.uint8), np.full(ENVS, time, np.int32), np.arange(ENVS, dtype=np.float32),
        np.ones(ENVS, np.float32), np.zeros(ENVS, bool),
    )  # fmt: skip


def filled(replay: Replay, steps: int):
    state = replay.init()
    for time in range(steps):
        state = replay.add(state, step_at(time))
    return state


def starts_of(steps: int) -> np.ndarray:
    """The rows that a transition starts at, after so many steps in each environment: worked out from the times."""
    times = np.arange(max(0, steps - LENGTH) + STACK - 1, steps - N_STEP)
    return (np.arange(ENVS)[:, None] * LENGTH + times % LENGTH).ravel()


def priorities_in(replay: Replay, steps: int, seed: int = 0):
    """A replay of so many steps whose transitions have random priorities, a few of them 0; and these, by row."""
    rows = starts_of(steps)
    priorities = np.random.default_rng(seed).exponential(size=rows.size) + 0.05
    priorities[:2] = 0
    state = replay.update(filled(replay, steps), jnp.asarray(rows), jnp.asarray(priorities, jnp.float32))
    return state, dict(zip(rows.tolist(), priorities.tolist(), strict=True))


def probabilities(priorities: dict[int, float], exponent: float, uniform: float) -> dict[int, float]:
    powers = {row: priority**exponent if priority else 0.0 for row, priority in priorities.items()}
    total, count = sum(powers.values()), len(powers)
    return {row: (1 - uniform) * power / total + uniform / count for row, power in powers.items()}


@pytest.mark.parametrize(
    ("steps", "exponent", "uniform"),  # half full, and wrapped
    [(9, 0.5, 0.0), (30, 1.0, 0.0), (30, 0.0, 0.0), (9, 0.5, 0.2), (30, 0.5, 0.2), (30, 0.7, 1.0)],
)
def test_frequencies_are_those_of_the_formula(steps, exponent, uniform):
    replay = replay_for(exponent, uniform)
    state, priorities = priorities_in(replay, steps)
    wanted = probabilities(priorities, exponent, uniform)
    drawn = [replay.sample(state, key) for key in jax.random.split(jax.random.key(steps), 4)]
    index = np.concatenate([sample.index for sample in drawn])
    assert index.size == 100_000 and set(index.tolist()) == {row for row, p in wanted.items() if p}
    rows = [row for row, p in wanted.items() if p]
    counts = [np.sum(index == row) for row in rows]
    assert scipy.stats.chisquare(counts, [1e5 * wanted[row] for row in rows]).pvalue > 1e-4
    rarity = np.concatenate([sample.rarity for sample in drawn])
    np.testing.assert_allclose(rarity, [1 / len(wanted) / wanted[row] for row in index], rtol=1e-4)


def test_importance_weights_by_hand():
    """Drawn with probabilities 1/2, 1/8 and 1/32 of 16: rarities 1/8, 1/2, 2."""
    rarity = jnp.array([1 / 8, 1 / 2, 2.0])
    np.testing.assert_allclose(importance_weights(rarity, 1.0), [1 / 16, 1 / 4, 1], rtol=1e-6)
    np.testing.assert_allclose(importance_weights(rarity, 0.5), [1 / 4, 1 / 2, 1], rtol=1e-6)
    np.testing.assert_allclose(importance_weights(rarity, 0.0), [1, 1, 1])
    for exponent in (0.0, 0.5):
        np.testing.assert_allclose(importance_weights(jnp.array([0.0, 2.0]), exponent), [0, 1])
        np.testing.assert_allclose(importance_weights(jnp.zeros(2), exponent), [0, 0])


def test_importance_weights_have_the_exponent_of_their_update():
    """The agent here tells the smallest weight of its batch: (1 / 100)^(exponent / 2) by priorities 1 and 100."""
    replay = make_prioritized_replay(12, 1, 64, 1, 1, (1, 1), exponent=0.5, uniform_probability=0.0)
    state = replay.init()
    for action in range(12):
        one = np.ones(1, np.float32)
        state = replay.add(state, Step(np.zeros((1, 1, 1), np.uint8), np.full(1, action, np.int32), one, one, one == 0))
    state = replay.update(state, jnp.arange(11), jnp.where(jnp.arange(11) % 2, 100.0, 1.0))

    def learn(agent, batch, key):
        return agent, Learned(jnp.min(batch.weight), jnp.ones(64))

    unused = lambda *given: None  # noqa: E731
    agent = Agent(unused, unused, unused, learn, learn)
    one = functools.partial(transitions, stack=1, n_step=1, gamma=0.9, clip_reward=True)
    functions = make_functions(agent, replay, one, optax.linear_schedule(0.4, 1.0, 10))
    for updates, exponent in ((0, 0.4), (5, 0.7), (10, 1.0), (20, 1.0)):
        before = AgentState({}, {}, (), jnp.asarray(updates))
        loss = functions.learn(before, jax.tree.map(jnp.copy, state), jax.random.key(0))[2]
        np.testing.assert_allclose(loss, 0.01 ** (exponent / 2), rtol=1e-5)


def test_fully_corrected_draws_are_uniform_on_average():
    replay = replay_for(exponent=1.0, uniform=0.1)
    state, priorities = priorities_in(replay, 30)
    sample = replay.sample(state, jax.random.key(0))
    weight = np.bincount(sample.index, importance_weights(sample.rarity, 1.0), minlength=ENVS * LENGTH)
    weight = weight[list(priorities)] / weight.sum()
    np.testing.assert_allclose(weight, 1 / len(priorities), rtol=0.25)  # rows of priority 0 are drawn 167 times


def test_the_steps_are_those_of_the_index():
    replay = replay_for(uniform=0.5, batch=500)
    for steps in (STACK + N_STEP, 9, 11, 12, 17, 30):
        sample = replay.sample(filled(replay, steps), jax.random.key(steps))
        env, row = np.divmod(np.asarray(sample.index), LENGTH)
        assert sample.steps.reward[:, STACK - 1].astype(int).tolist() == env.tolist()
        assert (np.asarray(sample.steps.action[:, STACK - 1]) % LENGTH).tolist() == row.tolist()
        assert set(sample.index.tolist()) == set(starts_of(steps).tolist())


def test_at_any_fill_all_rows_but_the_context_have_a_leaf():
    replay = replay_for(batch=8)
    state = replay.init()
    for time in range(40):
        state = replay.add(state, step_at(time))
        leaves = np.asarray(state.tree)[state.tree.size // 2 :]
        assert np.flatnonzero(leaves).tolist() == sorted(starts_of(time + 1).tolist())


@pytest.mark.parametrize(("stack", "n_step"), [(1, 1), (1, 4), (4, 1), (3, 3)])
def test_context_is_never_drawn_over_several_wraps_however_priorities_change(stack, n_step):
    envs, length, batch = 2, 9, 32
    replay = make_prioritized_replay(envs * length, envs, batch, stack, n_step, (1, 1), uniform_probability=0.1)

    def body(state, time_and_key):
        time, key = time_and_key
        step = Step(
            jnp.zeros((envs, 1, 1), jnp.uint8), jnp.full(envs, time), jnp.arange(envs, dtype=jnp.float32),
            jnp.ones(envs), jnp.zeros(envs, bool),
        )  # fmt: skip
        state = replay.add(state, step)
        sample = replay.sample(state, key)
        sizes = 10 ** jax.random.uniform(key, (batch,), minval=-6, maxval=2)
        changed = replay.update(state, sample.index, sizes * (sizes > 1e-4))
        state = jax.tree.map(lambda new, old: jnp.where(replay.can_sample(state), new, old), changed, state)
        return state, sample.steps

    times = jnp.arange(40, dtype=jnp.int32)
    keys = jax.random.split(jax.random.key(stack), 40)
    _, steps = jax.jit(lambda state: jax.lax.scan(body, state, (times, keys)))(replay.init())
    for now in range(stack + n_step - 1, 40):
        action = np.asarray(steps.action[now])
        assert (np.diff(action, axis=1) == 1).all() and (np.diff(steps.reward[now], axis=1) == 0).all()
        assert action.min() >= max(0, now - length + 1) and action.max() <= now


def test_new_transitions_get_the_largest_priority_seen():
    replay = replay_for(exponent=0.5, batch=8)
    state = filled(replay, 12)
    rows = starts_of(12)
    for largest, priority in ((1.0, 0.25), (64.0, 64.0), (64.0, 9.0)):  # it is never below 1, and never falls
        state = replay.update(state, jnp.asarray(rows[:1]), jnp.array([priority], jnp.float32))
        assert float(state.largest) == largest
    state = replay.add(state, step_at(12))
    new = sorted(set(starts_of(13).tolist()) - set(rows.tolist()))
    assert len(new) == ENVS
    assert np.asarray(state.tree)[state.tree.size // 2 + np.array(new)].tolist() == [8.0] * ENVS


def test_of_a_transition_that_is_drawn_twice_the_larger_priority_counts():
    replay = replay_for(exponent=1.0, batch=8)
    row = int(starts_of(12)[2])
    state = filled(replay, 12)
    for priorities in ([3.0, 7.0, 2.0], [7.0, 2.0, 3.0]):
        state = replay.update(state, jnp.full(3, row), jnp.array(priorities))
        assert float(state.tree[state.tree.size // 2 + row]) == 7.0


def test_what_has_priority_zero_is_never_drawn_even_with_exponent_zero():
    replay = replay_for(exponent=0.0, batch=4000)
    state, priorities = priorities_in(replay, 30)
    zero = [row for row, priority in priorities.items() if not priority]
    assert len(zero) == 2 and not np.isin(zero, replay.sample(state, jax.random.key(0)).index).any()


@pytest.mark.parametrize("uniform", [0.0, 0.2])
def test_where_all_priorities_are_zero_draws_are_uniform(uniform):
    """As in a small ring where all steps that a transition may start at are truncated."""
    replay = replay_for(uniform=uniform, batch=1000)
    rows = jnp.asarray(starts_of(30))
    sample = replay.sample(replay.update(filled(replay, 30), rows, jnp.zeros(rows.size)), jax.random.key(0))
    assert set(sample.index.tolist()) == set(rows.tolist())
    np.testing.assert_allclose(sample.rarity, 1, rtol=1e-6)


def test_a_restored_state_goes_on_bit_for_bit():
    replay = replay_for(uniform=0.1, batch=16)

    def going_on(state, steps: range):
        for time in steps:
            state = replay.add(state, step_at(time))
            sample = replay.sample(state, jax.random.fold_in(jax.random.key(1), time))
            state = replay.update(state, sample.index, jnp.linspace(0.1, 3.0, 16))
        return state

    state = going_on(filled(replay, 8), range(8, 20))
    saved, structure = jax.tree.map(np.array, jax.tree.leaves(state)), jax.tree.structure(state)
    restored = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in saved])
    ends = [going_on(each, range(20, 50)) for each in (state, restored)]
    bits = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(end)] for end in ends]
    assert bits[0] == bits[1]


def test_bytes_are_those_of_the_ring_and_the_tree():
    for capacity, length in ((64, 16), (1000, 250)):
        replay = make_prioritized_replay(capacity, 4, 8, frame_shape=(3, 5))
        state = jax.eval_shape(replay.init)
        ring = sum(leaf.size * leaf.dtype.itemsize for leaf in state.ring.experience)
        assert state.tree.size == 2 * leaves_for(4 * length)
        assert replay.bytes_per_step == (ring + 4 * state.tree.size) // capacity


@pytest.mark.parametrize("name", ["exponent", "uniform_probability"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"replay: {name} is {value}, must lie in 0 to 1"):
        make_prioritized_replay(100, 2, 8, **{name: value})
