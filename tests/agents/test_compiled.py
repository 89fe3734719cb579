"""The compiled loop against the one stepped from Python: the same updates, on the same experience."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

import nap
from agents import compiled
from agents.compiled import Environment, Loop, Round, make_loop
from agents.evaluation import evaluate
from agents.family import FAMILY, assemble, make_network, make_replay_for
from agents.loops import Functions, Hooks, Log, LoopState, Schedule, make_functions, train
from agents.replay import transitions
from envs.games import GameEnvs, catch
from envs.games.vector import advance, start

STACK, FRAME = 2, (5, 4)


@functools.cache
def functions(agent: str, num_envs: int) -> Functions:
    ingredients = FAMILY[agent]
    network = make_network(
        ingredients, 3, observation=(STACK, *FRAME), torso="flat", hidden=8, norm="layer", activation="relu"
    )
    learner = assemble(ingredients, network, nap.normalize_and_project(optax.adam(1e-3)), target_period=5)
    replay = make_replay_for(ingredients, 400, num_envs, 8, FRAME, priority_exponent=0.5, uniform_probability=1e-3)
    # The replay's own stack is of four frames; a network of two sees the newest.
    one = functools.partial(transitions, stack=4, n_step=ingredients.n_step, gamma=0.9, clip_reward=True)

    def two_frames(sequence):
        made = one(sequence)
        return made._replace(s_tm1=made.s_tm1[-STACK:], s_t=made.s_t[-STACK:])

    return make_functions(learner, replay, two_frames)


def environment() -> Environment:
    game = catch(*FRAME)
    return Environment(functools.partial(start, game, STACK), functools.partial(advance, game), lambda at: at.stack)


def schedule(period: int, **changes) -> Schedule:
    return Schedule(period, 48, 4, lambda taken: max(0.1, 1 - taken / 200), **changes)


@functools.cache
def loop(agent: str, num_envs: int, period: int) -> Loop:
    return make_loop(
        functions(agent, num_envs),
        environment(),
        num_envs=num_envs,
        update_period=period,
        log_every=4,
        evaluation_envs=3,
    )


def keys_of(seeds) -> jax.Array:
    return jax.numpy.stack([jax.random.key(seed) for seed in seeds])


def stacked(states: list[LoopState]) -> LoopState:
    agent, replay = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *[state[:2] for state in states])
    return LoopState(agent, replay, states[0].agent_steps)


def compiled_run(agent, num_envs, period, seeds, parts, **changes):
    logs: dict[int, list[Log]] = {seed: [] for seed in range(len(seeds))}
    hooks = compiled.Hooks(lambda taken: None, lambda seed, log: logs[seed].append(log))
    state = stacked([functions(agent, num_envs).init(jax.random.key(seed)) for seed in seeds])
    for number, steps in enumerate(parts):
        state = compiled.train(
            loop(agent, num_envs, period),
            schedule(period, **changes),
            state,
            keys=keys_of([100 + seed for seed in seeds]),
            environment_keys=keys_of([1000 * number + seed for seed in seeds]),
            seeds=len(seeds),
            steps=steps,
            hooks=hooks,
        )
    return state, logs


def stepped_run(agent, num_envs, period, seed, parts, **changes):
    logs: list[Log] = []
    state = functions(agent, num_envs).init(jax.random.key(seed))
    for number, steps in enumerate(parts):
        state = train(
            functions(agent, num_envs),
            schedule(period, **changes),
            state,
            GameEnvs(catch(*FRAME), num_envs=num_envs, seed=0, stack=STACK),
            key=jax.random.key(100 + seed),
            seed=1000 * number + seed,
            steps=steps,
            hooks=Hooks(lambda taken: None, lambda updates, loss: None, logs.append),
        )
    return state, logs


@pytest.mark.parametrize(
    ("agent", "num_envs", "period"), [("double-dqn", 4, 4), ("double-dqn", 2, 8), ("rainbow", 4, 8), ("dqn", 8, 4)]
)
def test_makes_the_updates_of_the_loop_that_is_stepped_from_python(agent, num_envs, period):
    parts = (96, 72)
    state, logs = compiled_run(agent, num_envs, period, [3], parts)
    expected, expected_logs = stepped_run(agent, num_envs, period, 3, parts)
    assert int(state.agent_steps) == int(expected.agent_steps) == sum(parts)
    assert int(state.agent.updates[0]) == int(expected.agent.updates) > 8
    # What was experienced: the same to the bit, so the same actions were chosen at every step.
    for ours, theirs in zip(jax.tree.leaves(state.replay), jax.tree.leaves(expected.replay), strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(state.agent.params), jax.tree.leaves(expected.agent.params), strict=True):
        np.testing.assert_allclose(ours[0], theirs, atol=2e-5)
    if num_envs <= period:  # else a round has several updates, and the last of them is the one that is told of
        assert [log.updates for log in logs[0]] == [log.updates for log in expected_logs]
        for ours, theirs in zip(logs[0], expected_logs, strict=True):
            assert (ours.agent_steps, ours.epsilon) == (theirs.agent_steps, theirs.epsilon)
            np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-3)
            assert ours.measured.keys() == theirs.measured.keys()
            for name, value in ours.measured.items():
                np.testing.assert_allclose(value, theirs.measured[name], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("agent", "num_envs", "period"), [("double-dqn", 4, 4), ("dqn", 8, 4)])
def test_no_step_copies_the_replay(agent, num_envs, period):
    state = stacked([functions(agent, num_envs).init(jax.random.key(0))])
    made = loop(agent, num_envs, period)
    running = made.begin((), (keys_of([0]), state.agent, state.replay, keys_of([0])))
    epsilons = np.zeros((made.rounds, made.round.steps), np.float32)
    text = made.learn.lower((), running, np.int32(0), epsilons, np.int32(3)).compile().as_text()
    of_steps = text[: text.index("\nENTRY ")]  # without what happens once a call
    copied = set(re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", of_steps))
    frames = state.replay.experience.frame.shape
    assert not {",".join(map(str, shape)) for shape in (frames, frames[1:])} & copied
    assert copied, "else the pattern finds nothing in XLA's text"


def test_every_episode_that_ended_is_told_of_once():
    _, logs = compiled_run("double-dqn", 4, 4, [3], (96, 72))
    # Episodes of catch on five rows take four steps. The first part ends with update 11 and step 24 of each
    # environment, the second, which begins anew, with update 29 and step 18.
    assert [(log.updates, bool(log.measured)) for log in logs[0]] == [
        *((updates, True) for updates in (1, 4, 8)), (11, False),
        *((updates, True) for updates in (12, 16, 20, 24, 28)), (29, False),
    ]  # fmt: skip
    assert sum(len(log.returns) for log in logs[0]) == 4 * (24 // 4 + 18 // 4)
    assert {value for log in logs[0] for value in log.returns} <= {-1.0, 1.0}


def test_seeds_side_by_side_are_the_seeds_alone():
    together, _ = compiled_run("rainbow", 4, 8, [3, 4], (96,))
    for place, seed in enumerate((3, 4)):
        alone, _ = compiled_run("rainbow", 4, 8, [seed], (96,))
        for ours, theirs in zip(jax.tree.leaves(together.agent), jax.tree.leaves(alone.agent), strict=True):
            np.testing.assert_allclose(ours[place], theirs[0], atol=2e-5)


def test_a_later_task_waits_for_its_own_experience_and_counts_its_own_updates():
    begun = {"begun_steps": 96, "begun_updates": 11}
    state, logs = compiled_run("double-dqn", 4, 4, [3], (96,))
    assert int(state.agent.updates[0]) == 11  # (96 - 4 - 48) / 4
    hooks = compiled.Hooks(lambda taken: None, lambda seed, log: logs[seed].append(log))
    logs[0].clear()
    state = compiled.train(
        loop("double-dqn", 4, 4),
        schedule(4, **begun),
        state,
        keys=keys_of([103]),
        environment_keys=keys_of([9]),
        seeds=1,
        steps=72,
        hooks=hooks,
    )
    assert int(state.agent.updates[0]) == 11 + (72 - 4 - 48) // 4
    assert [log.updates for log in logs[0]] == [12, 15, 16]
    assert logs[0][0].agent_steps == 96 + 48 + 4


def test_evaluation_plays_as_the_stepped_one_does():
    params = jax.jit(functions("double-dqn", 4).init)(jax.random.key(5)).agent.params
    key = jax.random.key(8)
    own = jax.tree.map(lambda leaf: leaf[None], (params, key, jax.random.key(21)))
    found = loop("double-dqn", 4, 4).evaluate((), own, np.float32(0.3))
    expected = evaluate(
        functions("double-dqn", 4),
        params,
        GameEnvs(catch(*FRAME), num_envs=3, seed=0, stack=STACK),
        epsilon=0.3,
        key=key,
        seed=21,
        episodes=3,
    )
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize(
    ("num_envs", "period", "steps", "updates"), [(8, 4, 1, 2), (4, 4, 1, 1), (8, 16, 2, 1), (1, 4, 4, 1)]
)
def test_rounds(num_envs, period, steps, updates):
    assert Round.of(num_envs, period) == (steps, updates)


def test_what_does_not_fit_into_rounds_is_refused():
    with pytest.raises(ValueError, match="the nearest is an update every 8"):
        Round.of(4, 7)
    with pytest.raises(ValueError, match="steps is 90, must be a multiple of 4"):
        compiled_run("double-dqn", 4, 4, [3], (90,))
