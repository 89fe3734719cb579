"""DQN's update against finite differences and hand-worked numbers, its actions by their frequencies."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import nap
from agents.dqn import Agent, AgentState, make_agent
from agents.replay import Transition
from agents.values import implicit_quantile
from nap import paths
from nap.networks import MLP, Network, Quantiles, as_functions

INPUTS, ACTIONS = 4, 3
HIDDEN = ("hidden/0/kernel", "hidden/1/kernel")
KEY = jax.random.key(11)  # of an update; networks that draw nothing ignore it


@functools.cache
def mlp(norm: str = "layer") -> Network:
    return as_functions(lambda rngs: MLP(INPUTS, [6, 5], ACTIONS, norm=norm, rngs=rngs))


def table() -> Network:
    """Action values as a table: observation i has the values in row i."""

    def apply(params, observations):
        return params["kernel"][observations[:, 0].astype(jnp.int32)]

    return Network(lambda key: {"kernel": jnp.zeros((3, 2))}, apply, lambda params, s: (apply(params, s), {}))


def with_params(state: AgentState, params, target_params) -> AgentState:
    return state._replace(params=params, target_params=target_params)


def batches(count: int, size: int = 8, seed: int = 0) -> Transition:
    """Made-up batches, [count, size, ...], some samples without weight and some terminal."""
    random = np.random.default_rng(seed)
    draw = functools.partial(random.normal, size=(count, size, INPUTS))
    return Transition(
        s_tm1=jnp.asarray(draw(), jnp.float32),
        a_tm1=jnp.asarray(random.integers(ACTIONS, size=(count, size)), jnp.int32),
        r_t=jnp.asarray(random.normal(size=(count, size)), jnp.float32),
        discount_t=jnp.asarray(0.9 * (random.random((count, size)) < 0.8), jnp.float32),
        s_t=jnp.asarray(draw(), jnp.float32),
        weight=jnp.asarray(random.random((count, size)) < 0.8, jnp.float32),
    )


def batch_at(stacked: Transition, index: int) -> Transition:
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def bytes_of(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


class Forward(NamedTuple):
    values: np.ndarray
    activations: list[np.ndarray]


def forward(params: dict[str, np.ndarray], x: np.ndarray) -> Forward:
    """The MLP with LayerNorm once more, in numpy and float64."""
    x, activations = np.asarray(x, np.float64), []
    for layer in ("hidden/0", "hidden/1"):
        z = x @ params[f"{layer}/kernel"]
        z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-6)
        x = np.maximum(z * params[f"{layer}/norm/scale"] + params[f"{layer}/norm/offset"], 0)
        activations.append(x)
    return Forward(x @ params["output/kernel"] + params["output/bias"], activations)


@functools.cache
def nap_agent() -> Agent:
    return make_agent(mlp(), nap.normalize_and_project(optax.adam(0.03)), target_period=5)


@functools.cache
def jitted() -> Agent:
    """The same agent's functions, compiled once for all tests."""
    return Agent(*map(jax.jit, nap_agent()))


def double(params) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf, np.float64) for path, leaf in paths.leaves(params).items()}


def perturbed(params, seed: int, size: float = 0.3):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + size * jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), params)


def test_one_update_is_the_sgd_step_that_finite_differences_give():
    rate = 0.1
    agent = make_agent(mlp(), optax.sgd(rate), double=True, target_period=100)
    state = jax.jit(agent.init)(jax.random.key(0))
    state = with_params(state, perturbed(state.params, 1), perturbed(state.params, 2))
    batch = batch_at(batches(1, size=5), 0)._replace(
        r_t=jnp.array([0.1, 3.0, -5.0, 0.2, 1e4]),  # errors inside and outside of Huber's bend
        discount_t=jnp.array([0.9, 0.9, 0.0, 0.0, 0.9]),
        weight=jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]),
    )
    # Of no account: what follows a terminal step, and a sample without weight.
    batch = batch._replace(s_t=batch.s_t.at[2].mul(1e3), s_tm1=batch.s_tm1.at[4].mul(1e3))
    start, target_params = double(state.params), double(state.target_params)

    valid = [0, 1, 2, 3]
    chosen = forward(start, batch.s_t).values.argmax(1)
    target = forward(target_params, batch.s_t).values[np.arange(5), chosen]
    target = np.asarray(batch.r_t, np.float64) + np.array([0.9, 0.9, 0, 0, 0.9]) * target

    def loss_of(params: dict[str, np.ndarray]) -> float:
        error = target - forward(params, batch.s_tm1).values[np.arange(5), np.asarray(batch.a_tm1)]
        size = np.abs(error)
        return float(np.where(size <= 1, size**2 / 2, size - 0.5)[valid].mean())

    new, learned = jax.jit(agent.learn)(state, batch, KEY)
    np.testing.assert_allclose(learned.loss, loss_of(start), rtol=1e-5)
    error = target - forward(start, batch.s_tm1).values[np.arange(5), np.asarray(batch.a_tm1)]
    np.testing.assert_allclose(learned.priorities, [*np.abs(error[valid]), 0], rtol=1e-5)
    moved = double(new.params)
    for path, weight in start.items():
        gradient = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            nudged = [{**start, path: weight.copy()} for _ in range(2)]
            nudged[0][path][index] += 1e-6
            nudged[1][path][index] -= 1e-6
            gradient[index] = (loss_of(nudged[0]) - loss_of(nudged[1])) / 2e-6
        np.testing.assert_allclose(moved[path] - weight, -rate * gradient, rtol=1e-3, atol=1e-6, err_msg=path)
    assert int(new.updates) == 1


def test_a_batch_without_a_valid_sample_moves_nothing():
    state = jitted().init(jax.random.key(0))
    batch = batch_at(batches(1), 0)
    new, learned = jitted().learn(state, batch._replace(weight=jnp.zeros_like(batch.weight)), KEY)
    assert float(learned.loss) == 0.0 and not learned.priorities.any()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), new.params, state.params)


@pytest.mark.parametrize(("is_double", "loss"), [(False, 8.0), (True, 3.5)])
def test_double_and_plain_targets_by_hand(is_double, loss):
    agent = make_agent(table(), optax.sgd(0.1), double=is_double, target_period=100)
    online = {"kernel": jnp.array([[1.0, 7.0], [1.0, 2.0], [0.0, 0.0]])}  # prefers action 1 in observation 1
    target = {"kernel": jnp.array([[9.0, 9.0], [10.0, 5.0], [9.0, 9.0]])}  # says 5 of it, and 10 of the other
    one = jnp.ones(1)
    batch = Transition(
        jnp.zeros((1, 1), jnp.uint8), jnp.zeros(1, jnp.int32), 0.5 * one, 0.9 * one, jnp.ones((1, 1), jnp.uint8), one
    )
    # plain: 0.5 + 0.9 * 10 - 1 = 8.5; double: 0.5 + 0.9 * 5 - 1 = 4; Huber takes half off, and its slope is 1.
    new, found = jax.jit(agent.learn)(with_params(agent.init(jax.random.key(0)), online, target), batch, KEY)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(found.priorities, [loss + 0.5], rtol=1e-6)
    np.testing.assert_allclose(new.params["kernel"], [[1.1, 7.0], [1.0, 2.0], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(("double", "least"), [(False, 0.5), (True, 0.75)])
def test_by_implicit_quantiles_an_action_is_chosen_by_other_draws_than_it_is_valued_by(double, least):
    """One quantile at a time: action 0 has 2 tau by the target network and half less by the online one, action 1 has 1.
    So action 0 is chosen where the second key's tau is above 1/2, or 3/4; and it is then worth twice the third's."""

    def apply(params, observations, key):
        taus = jax.random.uniform(key, (len(observations), 1))
        return Quantiles(jnp.stack([2 * taus + params["more"], jnp.ones_like(taus)], axis=1), taus)

    network = Network(lambda key: {"more": jnp.zeros([])}, apply, lambda *given: (apply(*given), {}), draws=True)
    agent = make_agent(network, optax.sgd(0.1), read=implicit_quantile(), double=double, target_period=100)
    state = with_params(agent.init(KEY), {"more": jnp.float32(-0.5)}, {"more": jnp.float32(0)})
    size = 200
    frames, ones = jnp.zeros((size, 1), jnp.uint8), jnp.ones(size)
    batch = Transition(frames, jnp.ones(size, jnp.int32), 0 * ones, ones, frames, ones)
    _, learned = jax.jit(agent.learn)(state, batch, KEY)
    taus = [np.asarray(jax.random.uniform(key, (size,)), np.float64) for key in jax.random.split(KEY, 3)]
    error = np.where(taus[1] > least, 2 * taus[2] - 1, 0)  # 1 is predicted
    assert (error < 0).sum() > 10, "never, if it were valued by what it is chosen by"
    np.testing.assert_allclose(learned.priorities, np.abs(taus[0] - (error < 0)) * error**2 / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("phase", "copied"), [(0, (5, 10)), (3, (2, 7, 12)), (15, (5, 10))])
def test_the_target_is_a_copy_after_every_period_and_never_before(phase, copied):
    agent = make_agent(mlp(), nap.normalize_and_project(optax.adam(0.03)), target_period=5, target_phase=phase)
    learn, state = jax.jit(agent.learn), jitted().init(jax.random.key(0))
    assert bytes_of(state.target_params) == bytes_of(state.params)
    held = bytes_of(state.params)
    for update in range(1, 13):
        state, _ = learn(state, batch_at(batches(12), update - 1), KEY)
        if update in copied:
            held = bytes_of(state.params)
        else:
            assert bytes_of(state.params) != held
        assert bytes_of(state.target_params) == held, f"after update {update}"
        assert int(state.updates) == update


def greedy_on(action: int, observations: int) -> tuple[Agent, dict, jax.Array]:
    """An agent on a table whose first row prefers `action`, and that observation many times over."""
    network = table()
    agent = make_agent(network, optax.sgd(0.1), target_period=1)
    return agent, {"kernel": jnp.zeros((3, 5)).at[0, action].set(1.0)}, jnp.zeros((observations, 1), jnp.uint8)


def test_epsilon_0_is_greedy():
    agent = make_agent(table(), optax.sgd(0.1), target_period=1)
    params = {"kernel": jnp.array([[0.0, 1.0, -1.0], [2.0, 1.0, 1.5], [-3.0, -2.0, -1.0]])}
    observations = jnp.array([[0], [1], [2], [0]], jnp.uint8)
    for seed in range(20):
        actions = agent.act(params, observations, jnp.float32(0), jax.random.key(seed))
        assert actions.tolist() == [1, 0, 2, 1]


def test_epsilon_1_is_uniform_and_each_environment_draws_for_itself():
    agent, params, observations = greedy_on(2, observations=4000)
    act = jax.jit(agent.act)
    actions = np.asarray(act(params, observations, jnp.float32(1), jax.random.key(0)))
    assert scipy.stats.chisquare(np.bincount(actions, minlength=5)).pvalue > 1e-4  # within a single batch
    again = np.asarray(act(params, observations, jnp.float32(1), jax.random.key(1)))
    neighbours = scipy.stats.contingency.crosstab(actions[0::2], actions[1::2]).count
    calls = scipy.stats.contingency.crosstab(actions, again).count
    for pairs in (neighbours, calls):
        assert pairs.shape == (5, 5) and scipy.stats.chi2_contingency(pairs).pvalue > 1e-4


def test_epsilon_in_between_explores_that_often_with_every_action():
    agent, params, observations = greedy_on(2, observations=20_000)
    actions = np.asarray(agent.act(params, observations, jnp.float32(0.25), jax.random.key(0)))
    counts = np.bincount(actions, minlength=5)
    # Exploring takes the greedy action too: 0.75 + 0.25 / 5.
    assert scipy.stats.chisquare(counts, 20_000 * np.array([0.05, 0.05, 0.8, 0.05, 0.05])).pvalue > 1e-4


def test_measure_makes_the_same_state_as_learn_bit_for_bit():
    learned = measured = jitted().init(jax.random.key(0))
    for update in range(6):
        batch = batch_at(batches(6), update)
        learned, found = jitted().learn(learned, batch, KEY)
        measured, again, _ = jitted().measure(measured, batch, KEY)
        assert bytes_of(learned) == bytes_of(measured)
        assert bytes_of(found) == bytes_of(again)


def test_what_measure_tells_equals_numpy_on_the_parameters_before_and_after():
    agent = make_agent(mlp(), optax.sgd(0.5), target_period=5)
    state = jax.jit(agent.init)(jax.random.key(0))
    params = perturbed(state.params, 3)
    # Two of the five units of the second layer are dead, one is nearly so.
    offset = jnp.array([-1e3, -1e3, 0.001, 0.0, 0.0])
    layer = {"hidden/1/norm/offset": offset, "hidden/1/norm/scale": jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])}
    state = with_params(state, paths.replace(params, layer), state.target_params)
    batch = batch_at(batches(1, size=16), 0)
    new, _, measured = jax.jit(agent.measure)(state, batch, KEY)
    before, after = double(state.params), double(new.params)
    found = forward(before, batch.s_tm1)
    wanted = {"mean_action_value": found.values.mean()}
    for layer in ("hidden/0", "hidden/1", "output"):
        old, step = before[f"{layer}/kernel"], after[f"{layer}/kernel"] - before[f"{layer}/kernel"]
        wanted[f"weight_norm/{layer}"] = np.sqrt((old**2).sum())
        wanted[f"update_norm/{layer}"] = np.sqrt((step**2).sum())
        wanted[f"elr/{layer}"] = np.sqrt((step**2).sum() / (old**2).sum())
        cosine = (old * (old + step)).sum() / np.sqrt((old**2).sum() * ((old + step) ** 2).sum())
        wanted[f"angle/{layer}"] = np.arccos(cosine)
    for layer, activation in zip(("hidden/0", "hidden/1"), found.activations, strict=True):
        score = np.abs(activation).mean(0) / np.abs(activation).mean()
        for tau, name in ((0, "0"), (0.025, "0.025"), (0.1, "0.1")):
            wanted[f"dormant_fraction_{name}/{layer}"] = (score <= tau).mean()
    assert [wanted[f"dormant_fraction_{tau}/hidden/1"] for tau in ("0", "0.025")] == [0.4, 0.6]
    assert measured.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-3, err_msg=name)
    for name in measured:
        if name.startswith("weight_norm"):
            np.testing.assert_allclose(measured[name], wanted[name], rtol=1e-6)


@pytest.mark.parametrize("function", ["learn", "measure"])
def test_the_optimizer_is_told_the_online_activations_of_s_tm1(function):
    def keep(updates, state, params=None, *, activations, **extra):
        return updates, activations

    def nothing(params):
        return {layer: jnp.zeros(()) for layer in mlp().readers}

    keeper = optax.GradientTransformationExtraArgs(nothing, keep)
    optimizer = nap.normalize_and_project(optax.chain(optax.clip(1.0), keeper, optax.sgd(0.1)))
    agent = make_agent(mlp(), optimizer, target_period=100)
    state = agent.init(jax.random.key(0))
    state = with_params(state, perturbed(state.params, 1), perturbed(state.params, 2))
    batch = batch_at(batches(1), 0)
    new, *_ = jax.jit(getattr(agent, function))(state, batch, KEY)
    told = new.opt_state[0][1]
    assert told.keys() == {"hidden/0", "hidden/1"}
    expected = forward(double(state.params), batch.s_tm1).activations
    for activation, layer in zip(expected, ("hidden/0", "hidden/1"), strict=True):
        np.testing.assert_allclose(told[layer], activation, rtol=1e-4, atol=1e-5)


def norms(params) -> dict[str, float]:
    return {path: float(np.linalg.norm(leaf)) for path, leaf in double(params).items()}


def test_nap_holds_hidden_norms_over_50_updates_while_the_output_moves():
    def after_50(init, learn) -> tuple[dict[str, float], dict[str, float]]:
        start = state = init(jax.random.key(0))
        for update in range(50):
            state, _ = learn(state, batch_at(stacked, update), KEY)
        return norms(start.params), norms(state.params)

    stacked = batches(50)
    start, end = after_50(jitted().init, jitted().learn)
    for path in HIDDEN:
        np.testing.assert_allclose(end[path], start[path], rtol=1e-6, err_msg=path)
    scale, offset = end["hidden/0/norm/scale"], end["hidden/0/norm/offset"]
    np.testing.assert_allclose(np.hypot(scale, offset), np.sqrt(6), rtol=1e-6)
    assert offset > 0.01
    assert abs(end["output/kernel"] / start["output/kernel"] - 1) > 0.01
    free = make_agent(mlp(), optax.adam(0.03), target_period=5)
    start, end = after_50(jax.jit(free.init), jax.jit(free.learn))
    for path in HIDDEN:  # or the above would show nothing
        assert abs(end[path] / start[path] - 1) > 0.01, path


def test_in_a_scan_and_with_seeds_side_by_side_it_does_what_it_does_alone():
    stacked, keys = batches(6), jax.random.split(jax.random.key(7), 3)
    agent = nap_agent()
    train = jax.vmap(lambda key: jax.lax.scan(lambda s, batch: agent.learn(s, batch, KEY), agent.init(key), stacked))
    states, found = jax.jit(train)(keys)
    radii = []
    for seed in range(3):
        state = jitted().init(keys[seed])
        radii.append(norms(state.params)[HIDDEN[0]])
        for update in range(6):
            state, learned = jitted().learn(state, batch_at(stacked, update), KEY)
            np.testing.assert_allclose(found.loss[seed, update], learned.loss, rtol=1e-4)
            np.testing.assert_allclose(found.priorities[seed, update], learned.priorities, rtol=1e-3, atol=1e-5)
        ours = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), ours, state)
        np.testing.assert_allclose(norms(ours.params)[HIDDEN[0]], radii[seed], rtol=1e-6)
    assert np.ptp(radii) > 0.01, "each seed has a radius of its own"
