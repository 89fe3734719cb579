"""PQN: lambda returns by hand and by brute force, one update worked out, and small games that must be learned."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from agents.compiled import Environment
from agents.pqn import Pqn, Settings, lambda_returns, make_pqn, shuffled
from envs.games import catch
from envs.games.game import Game, Outcome
from envs.games.vector import advance, start
from nap.networks import Network, QNetwork, as_functions


def returns(r_t, discount_t, truncated_t, v, q_lambda):
    arrays = jnp.float32(r_t), jnp.float32(discount_t), jnp.asarray(truncated_t, bool), jnp.float32(v)
    return np.asarray(lambda_returns(*arrays, q_lambda))


def test_lambda_returns_worked_by_hand():
    # G_2 = 3 + 0.5 * 8;  G_1 = 2 + 0.5 (0.5 * 2 + 0.5 * 7);  G_0 = 1 + 0.5 (0.5 * 4 + 0.5 * 4.25)
    found = returns([1, 2, 3], [0.5] * 3, [0, 0, 0], [10, 4, 2, 8], 0.5)
    np.testing.assert_allclose(found, [3.0625, 4.25, 7])


def test_nothing_is_earned_after_a_termination():
    # G_1 = 2;  G_0 = 1 + 0.5 (0.5 * 4 + 0.5 * 2); the last step is of another episode
    found = returns([1, 2, 3], [0.5, 0, 0.5], [0, 0, 0], [10, 4, 2, 8], 0.5)
    np.testing.assert_allclose(found, [2.5, 2, 7])


def test_a_truncated_episode_bootstraps_from_the_last_observation_that_there_is():
    # Of the second step nothing but v_1 = 4 is known, so that G_0 = 1 + 0.5 * 4, as if the rollout had ended there.
    found = returns([1, 99, 3], [0.5, 0.5, 0.5], [0, 1, 0], [10, 4, 2, 8], 0.5)
    np.testing.assert_allclose(found, [3, 4, 7])
    np.testing.assert_allclose(found[:1], returns([1], [0.5], [0], [10, 4], 0.5))


@pytest.mark.parametrize("q_lambda", [0.0, 0.65, 1.0])
def test_lambda_returns_are_the_mixture_of_all_n_step_returns(q_lambda):
    steps, gamma = 60, 0.9
    rng = np.random.default_rng(0)
    r_t, v = rng.normal(size=steps), rng.normal(size=steps + 1)
    ended = rng.random(steps) < 0.2
    truncated = ended & (rng.random(steps) < 0.5)
    discount_t = gamma * ~(ended & ~truncated)

    def mixture(at: int) -> float:
        end = next((i for i in range(at, steps) if ended[i]), steps - 1)
        # At a truncation the state before its step is the last one; a termination's is worth nothing.
        most = end - at + (not truncated[end])
        if most == 0:
            return v[at]
        n_step = [
            sum(gamma**k * r_t[at + k] for k in range(n)) + np.prod(discount_t[at : at + n]) * v[at + n]
            for n in range(1, most + 1)
        ]
        weights = [(1 - q_lambda) * q_lambda ** (n - 1) for n in range(1, most)] + [q_lambda ** (most - 1)]
        return float(np.dot(weights, n_step))

    assert ended.any() and truncated.any() and not truncated.all()
    found = returns(r_t, discount_t, truncated, v, q_lambda)
    np.testing.assert_allclose(found, [mixture(at) for at in range(steps)], rtol=1e-4, atol=1e-5)


def test_every_epoch_has_each_step_once_in_an_order_of_its_own():
    places = np.asarray(shuffled(jax.random.key(0), 24, 3, 4))
    assert places.shape == (12, 6)
    epochs = places.reshape(3, 24)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(24), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(24))}) == 4


class Walk(NamedTuple):
    place: jax.Array


def walk(*, truncated: bool) -> Game:
    """Two places, one after the other, with rewards 1 and 2; then the episode ends one way or the other."""

    def step(state: Walk, action: jax.Array, key: jax.Array) -> Outcome:
        after = state.place + 1
        return Outcome(Walk(after), jnp.float32(after), (after == 2) & (not truncated))

    return Game(
        lambda key: Walk(jnp.zeros((), jnp.int32)),
        step,
        lambda state: state.place.astype(jnp.uint8)[None, None],
        num_actions=2,
        shape=(1, 1),
        max_steps=2,
    )


def environment_of(game: Game) -> Environment:
    return Environment(
        functools.partial(start, game, 1), functools.partial(advance, game), lambda playing: playing.stack
    )


def table(values: list[list[float]]) -> Network:
    """A table of action values, a row for each place."""

    def apply(params, x):
        return params["table"][x[:, 0, 0, 0]]

    return Network(lambda key: {"table": jnp.float32(values)}, apply, lambda params, x: (apply(params, x), {}))


def on_the_walk(truncated: bool, values, optimizer, steps: int, epochs: int = 1) -> Pqn:
    return make_pqn(
        table(values),
        lambda key: optimizer,
        environment_of(walk(truncated=truncated)),
        Settings(num_envs=1, steps=steps, epochs=epochs, minibatches=1, gamma=0.5, q_lambda=0.5),
        epsilon=optax.constant_schedule(0.0),
        evaluation_envs=3,
    )


@pytest.mark.parametrize(
    ("truncated", "targets"),
    [
        # Greedy: the second action in the first place, the first one in the second. Of the last step, v = 8 follows.
        # G_2 = 1 + 0.5 * 8 = 5;  G_1 = 2;  G_0 = 1 + 0.5 (0.5 * 8 + 0.5 * 2)
        (False, [3.5, 2, 5]),
        # G_1 = 8, and no target;  G_0 = 1 + 0.5 * 8
        (True, [5, None, 5]),
    ],
)
def test_updates_go_towards_the_lambda_returns(truncated, targets):
    epochs = 3
    pqn = on_the_walk(truncated, [[1.0, 4.0], [8.0, 3.0]], optax.sgd(0.1), 3, epochs)
    running = pqn.begin((), jax.random.key(0)[None])
    running, told = pqn.learn((), running, np.int32(1))
    expected, losses = np.array([[1.0, 4.0], [8.0, 3.0]]), []
    for _ in range(epochs):  # of one minibatch; the targets stay
        chosen = [(0, 1), (1, 0), (0, 1)]
        errors = [(at, target - expected[at]) for at, target in zip(chosen, targets, strict=True) if target is not None]
        losses.append(np.mean([error**2 / 2 for _, error in errors]))
        for at, error in errors:
            expected[at] += 0.1 * error / len(errors)
    np.testing.assert_allclose(running.params["table"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(told.loss, [np.mean(losses)], rtol=1e-6)
    assert (int(told.episodes[0]), float(told.mean_return[0])) == (1, 3.0)
    np.testing.assert_array_equal(pqn.evaluate((), running, np.float32(0)), [[3.0, 3.0, 3.0]])


def test_a_time_limit_is_not_an_end():
    """The second place of the walk is the last one; its value can be learned only where the episode really ends."""
    learned = {}
    for truncated in (False, True):
        pqn = on_the_walk(truncated, [[0.0, 0.0], [0.0, 0.0]], optax.sgd(0.5), 8)
        running = pqn.begin((), jax.random.key(0)[None])
        running, _ = pqn.learn((), running, np.int32(60))
        learned[truncated] = np.asarray(running.params["table"][0]).max(axis=1)
    np.testing.assert_allclose(learned[False], [2.0, 2.0], atol=1e-3)  # 1 + 0.5 * 2, and 2
    np.testing.assert_allclose(learned[True], [1.0, 0.0], atol=1e-3)  # 1 + 0.5 * v, v as it was: there is no target


@functools.cache
def on_catch() -> Pqn:
    network = as_functions(
        lambda rngs: QNetwork(3, torso="flat", observation=(1, 6, 5), hidden=32, norm="layer", rngs=rngs)
    )
    adam = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(2e-3))
    return make_pqn(
        network,
        lambda key: nap.normalize_and_project(adam),
        environment_of(catch(6, 5)),
        Settings(num_envs=16, steps=8, minibatches=4),
        epsilon=optax.linear_schedule(1.0, 0.05, 40),
        evaluation_envs=50,
    )


def keys_of(*seeds: int) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def test_catch_is_learned_under_projection():
    pqn = on_catch()
    running = pqn.begin((), keys_of(3))
    before = nap.weight_norms(jax.tree.map(lambda leaf: leaf[0], running.params))["hidden/kernel"]
    chance = np.asarray(pqn.evaluate((), running, np.float32(1)))
    running, first = pqn.learn((), running, np.int32(1))
    assert (chance != pqn.evaluate((), running, np.float32(1))).any()  # what is random differs from rollout to rollout
    running, last = pqn.learn((), running, np.int32(150))
    assert np.mean(chance) < 0
    assert np.mean(pqn.evaluate((), running, np.float32(0))) >= 0.9
    for told in (first, last):
        np.testing.assert_allclose(told.measured["weight_norm/hidden"], [before], rtol=1e-5)
    assert last.measured["weight_norm/output"][0] > 2 * first.measured["weight_norm/output"][0]  # it is never projected


def test_seeds_side_by_side_are_the_seeds_alone():
    pqn = on_catch()
    together, told = pqn.learn((), pqn.begin((), keys_of(3, 4)), np.int32(3))
    for place, seed in enumerate((3, 4)):
        alone, told_alone = pqn.learn((), pqn.begin((), keys_of(seed)), np.int32(3))
        for ours, theirs in zip(jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(ours[place], theirs[0], atol=1e-5)
        np.testing.assert_allclose(told.loss[place], told_alone.loss[0], rtol=1e-4)


def test_one_call_is_as_good_as_several():
    pqn = on_catch()
    at_once, told = pqn.learn((), pqn.begin((), keys_of(3)), np.int32(4))
    running, parts = pqn.begin((), keys_of(3)), []
    for count in (1, 3):
        running, part = pqn.learn((), running, np.int32(count))
        parts.append((count, part))
    assert int(running.rollouts[0]) == 4
    for ours, theirs in zip(jax.tree.leaves(at_once), jax.tree.leaves(running), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(told.loss, sum(count * part.loss for count, part in parts) / 4, rtol=1e-6)
    assert int(told.episodes[0]) == sum(int(part.episodes[0]) for _, part in parts) == 16 * (4 * 8 // 5)
    everything = sum(part.mean_return * part.episodes for _, part in parts if part.episodes[0])
    np.testing.assert_allclose(told.mean_return * told.episodes, everything, rtol=1e-5)
    np.testing.assert_array_equal(told.measured["elr/hidden"], parts[-1][1].measured["elr/hidden"])


def test_minibatches_divide_a_rollout():
    with pytest.raises(ValueError, match="5 minibatches do not divide the 16 steps"):
        make_pqn(
            table([[0.0]]),
            lambda key: optax.sgd(0.1),
            environment_of(walk(truncated=False)),
            Settings(num_envs=4, steps=4, minibatches=5),
            epsilon=optax.constant_schedule(0.0),
            evaluation_envs=1,
        )
