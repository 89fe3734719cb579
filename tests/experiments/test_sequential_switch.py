"""What happens at a switch from one game to the next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_sequences import TINY, UPDATES, assert_heads_differ, rows_of, run_one, tiny

import experiments
from agents.replay import Step
from experiments.atari import agent
from experiments.harness.methods import OptimizerConfig
from experiments.sequential_atari import references, span_of
from experiments.sequential_atari.config import PRESETS, of_visit, resolve
from experiments.sequential_atari.players import InJax
from nap import paths


def player(**changes) -> InJax:
    config = tiny(**changes)
    return InJax(config, span_of(config))


def marked(playing: InJax):
    """A state whose target network, moments and replay can be told from fresh ones."""
    state = playing.init()
    agent, replay, _ = state.loop
    old = jax.tree.map(lambda leaf: leaf + 1, agent.target_params)
    moments = jax.tree.map(lambda leaf: leaf + 3 if leaf.dtype == jnp.float32 else leaf, agent.opt_state)
    ring = replay.replace(experience=replay.experience._replace(reward=replay.experience.reward + 7))
    return state._replace(
        loop=state.loop._replace(agent=agent._replace(target_params=old, opt_state=moments), replay=ring)
    )


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_kept_at_a_switch(kept):
    playing = player(replay="keep" if kept else "clear", target="keep" if kept else "copy")
    before = marked(playing)
    copy = jax.tree.map(jnp.copy, before)  # the switch takes the memory of its argument
    after = playing.switch(before, 0, 1)
    agent, was = after.loop.agent, copy.loop.agent
    assert isinstance(after.loop.replay.experience, Step)
    np.testing.assert_array_equal(after.loop.replay.experience.reward, 7 * kept)
    for leaf, online, target in zip(
        *map(jax.tree.leaves, (agent.target_params, was.params, was.target_params)), strict=True
    ):
        np.testing.assert_array_equal(leaf, target if kept else online)
    for leaf, expected in zip(
        *map(jax.tree.leaves, ((agent.params, agent.opt_state), (was.params, was.opt_state))), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)


def test_heads_of_their_own_are_put_in_and_come_back():
    playing = player(head="own")
    start = marked(playing)
    copy = jax.tree.map(jnp.copy, start)
    second = playing.switch(start, 0, 1)
    second_params = jax.tree.map(jnp.copy, second.loop.agent.params)
    moments = paths.leaves(jax.tree.map(jnp.copy, second.loop.agent.opt_state))
    back = playing.switch(second, 1, 0)
    first, other, again = (
        paths.leaves(params) for params in (copy.loop.agent.params, second_params, back.loop.agent.params)
    )
    head = [path for path in first if path.startswith("output/")]
    assert sorted(head) == sorted(copy.heads) == ["output/bias", "output/kernel"]
    for path in first:
        np.testing.assert_array_equal(again[path], first[path])
        same = np.array_equal(other[path], first[path])
        assert same == (path != "output/kernel")  # biases start at 0 in all
    # What the optimizer remembers of gradients is forgotten for the head, and for the head alone.
    of_gradients = {path: leaf for path, leaf in moments.items() if "/mu/" in path or "/nu/" in path}
    assert of_gradients
    for path, leaf in of_gradients.items():
        np.testing.assert_array_equal(leaf, 0 if "output/" in path else 3)


def test_a_task_that_is_listed_twice_is_one_task(tmp_path):
    config = tiny(tasks="moving-goals-0,switching-dim,moving-goals-0", passes=1, head="own", seeds=1)
    assert [visit.place for visit in config.sequence.visits] == [0, 1, 0]
    folder = run_one(config, tmp_path)
    assert [row["played"] for row in rows_of(folder, "all")] == 3 * ["moving-goals-0", "switching-dim"]
    last, other = experiments.load(folder), experiments.load(folder, task="switching-dim")
    assert (last.stage.task.name, other.stage.task.name) == ("moving-goals-0", "switching-dim")
    assert_heads_differ(last, other, last.saved.read("0/0/2"), place=(0, 1))


CHOICES = [
    ("nap", "keep", "restart"),
    ("nap", "reset", "restart"),
    ("nap", "keep", "go-on"),
    ("nap", "reset", "go-on"),
    ("none+reset-optimizer", "keep", "go-on"),
    ("none+reset-network", "keep", "go-on"),
    ("none+upgd+reset-optimizer", "keep", "go-on"),
    ("none+reset-head", "reset", "restart"),
]


@pytest.mark.parametrize(("method", "moments", "rate"), CHOICES)
def test_the_rate_that_is_recorded_is_the_one_that_is_used(method, moments, rate):
    """Through four visits of plain SGD, by the last bias, which no projection and no reset of weights but one moves."""
    optimizer = OptimizerConfig("sgd", lr=1.0, schedule="linear", clip=0.0)
    config = tiny(method=method, moments=moments, rate=rate, optimizer=optimizer)
    config = dataclasses.replace(
        config, rivals=dataclasses.replace(config.rivals, upgd_sigma=0.0, upgd_weight_decay=0.0)
    )
    span, of_task = span_of(config), of_visit(config, "moving-goals-0", config.frames)
    network = agent.network_of(of_task, 5, (4, 10, 10))
    made = agent.optimizer_of(of_task, network, span=span)

    def step(state, _):
        params, state = state
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), params)
        updates, state = made.update(gradients, state, params)
        after = optax.apply_updates(params, updates)
        return (after, state), after["output"]["bias"][0] - params["output"]["bias"][0]

    params = network.init(jax.random.key(0))
    _, moved = jax.lax.scan(step, (params, made.init(params)), length=span.updates)
    wanted = np.asarray([span.rate(update) for update in range(span.updates)])
    used = -1e3 * np.asarray(moved)
    tolerance = 2e-3
    if "upgd" in method:  # a weight moves by what its utility leaves of the rate, about half
        used, tolerance = used / used[0], 0.05
    resets = np.arange(1, span.updates + 1) % UPDATES == 0
    skipped = resets if "reset-network" in method or "reset-head" in method else np.zeros_like(resets)
    np.testing.assert_allclose(used[~skipped], wanted[~skipped], rtol=tolerance, atol=tolerance)
    if rate == "go-on":
        assert wanted[UPDATES] == pytest.approx(0.75 + 0.25 * 0.01, rel=1e-3)


def test_moments_are_forgotten_at_the_switches_and_only_there():
    """With tasks of different length, and an --every that is another intervention's."""
    config = tiny(
        tasks="moving-goals-0,switching-dim:frames=480",
        moments="reset",
        method="none+reset-head",
        rivals=dataclasses.replace(TINY.rivals, every=7),
    )
    longer = (120 - 2 - 16) // 2
    assert span_of(config).forget_at == (UPDATES, UPDATES + longer, 2 * UPDATES + longer)
    of_task = of_visit(config, "moving-goals-0", config.frames)
    network = agent.network_of(of_task, 5, (4, 10, 10))
    made = agent.optimizer_of(of_task, network, span=span_of(config))
    params = network.init(jax.random.key(0))

    def step(state, _):
        _, state = made.update(jax.tree.map(jnp.ones_like, params), state, params)
        return state, optax.tree.get(state, "mu")["hidden"]["kernel"][0, 0]

    _, moments = jax.lax.scan(step, made.init(params), length=span_of(config).updates)
    forgotten = np.flatnonzero(np.asarray(moments) == 0) + 1
    assert tuple(forgotten) == span_of(config).forget_at


@pytest.mark.parametrize(("importance", "second"), [("restart", 0.4), ("go-on", 0.55)])
def test_the_importance_exponent_rises_in_every_visit_or_once(importance, second):
    config = tiny(agent="rainbow", importance=importance)
    span = span_of(config)
    np.testing.assert_allclose(span.importance(0), 0.4)
    np.testing.assert_allclose(span.importance(UPDATES), second, rtol=1e-6)
    np.testing.assert_allclose(span.importance(4 * UPDATES - 1), 1.0, atol=0.03)


@pytest.mark.parametrize("choice", ["restart", "go-on"])
def test_a_fresh_agent_is_trained_as_the_first_visit_is(choice):
    """Learning rate and importance exponent; the published presets have both prioritized replay and schedules."""
    config = resolve(dataclasses.replace(PRESETS["nap"], rate=choice, importance=choice))
    alone = span_of(references(config)[0])
    whole = span_of(config)
    updates = config.updates_of(config.frames)
    for update in (0, 10, updates // 2, updates - 1):
        np.testing.assert_allclose(whole.importance(update), alone.importance(update), rtol=1e-6)
        np.testing.assert_allclose(whole.rate(update), alone.rate(update), rtol=1e-6)
    # At its end the schedule is through where it starts over, and has just begun where it goes on.
    assert (alone.rate(updates - 1) < 1e-5) == (choice == "restart")
    np.testing.assert_allclose(whole.importance(updates), 0.4 if choice == "restart" else 0.43, rtol=1e-6)


@pytest.mark.parametrize(("reward", "learned"), [("clipped", 1.0), ("raw", 3.0)])
def test_rewards_are_learned_from_clipped_or_as_they_are(reward, learned, monkeypatch):
    made = []
    monkeypatch.setattr(agent, "make_functions", lambda learner, replay, one, exponent: made.append(one))
    config = tiny(reward=reward)
    agent.build(of_visit(config, "bricks", config.frames), 5, (4, 10, 10))
    length = 4 + config.ingredients.n_step
    steps = Step(
        frame=jnp.zeros((length, 10, 10), jnp.uint8),
        action=jnp.zeros(length, jnp.int32),
        reward=jnp.zeros(length).at[3].set(3.0),
        discount=jnp.ones(length),
        first=jnp.zeros(length, bool),
    )
    assert float(made[0](steps).r_t) == pytest.approx(learned)
