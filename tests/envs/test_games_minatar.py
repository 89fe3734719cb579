"""MinAtar through its adapter against pgx's own environments, and what is said without pgx."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.games import GAMES, GameEnvs, minatar, permute_channels
from envs.games.minatar import CLASSES

needs_pgx = pytest.mark.skipif(importlib.util.find_spec("pgx") is None, reason="pgx (the extra jaxenvs) is optional")
KEY = jax.random.key(0)
NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
USED = {
    "asterix": (4, [NOOP, LEFT, UP, RIGHT, DOWN]),
    "breakout": (4, [NOOP, LEFT, RIGHT]),
    "freeway": (7, [NOOP, UP, DOWN]),
    "seaquest": (10, [NOOP, LEFT, UP, RIGHT, DOWN, FIRE]),
    "space_invaders": (6, [NOOP, LEFT, RIGHT, FIRE]),
}
"""How many planes a game fills, and which actions do something in it (Young & Tian, 2019)."""


@needs_pgx
@pytest.mark.parametrize("name", CLASSES)
def test_a_game_is_pgxs_own(name):
    """With its smaller set of actions pgx's environment shows, gives and ends the same, step by step."""
    import pgx

    game, own = GAMES[f"minatar-{name}"](), pgx.make(f"minatar-{name}")
    planes, actions = USED[name]
    assert (game.shape, game.num_actions) == ((10, 10, 10), 6)
    assert (own.observation_shape, own.num_actions) == ((10, 10, planes), len(actions))

    def step(states, drawn):
        ours, theirs = states
        choice, key = drawn
        outcome = game.step(ours, jnp.asarray(actions)[choice], key)
        theirs = own.step(theirs, choice, key)
        shown = game.frame(outcome.state), theirs.observation
        return (outcome.state, theirs), (
            *shown,
            outcome.reward,
            theirs.rewards[0],
            outcome.terminated,
            theirs.terminated,
        )

    drawn = jax.random.randint(KEY, (150,), 0, len(actions)), jax.random.split(KEY, 150)
    start = game.reset(KEY), own.init(KEY)
    frames, planes_of, rewards, rewards_of, ends, ends_of = jax.jit(lambda: jax.lax.scan(step, start, drawn)[1])()
    assert frames.dtype == jnp.uint8 and rewards.dtype == jnp.float32 and ends.dtype == bool
    np.testing.assert_array_equal(np.moveaxis(frames, 1, -1)[..., :planes], 255 * np.asarray(planes_of, int))
    assert not frames[:, planes:].any() and frames[:, :planes].any()
    np.testing.assert_array_equal(rewards, rewards_of)
    np.testing.assert_array_equal(ends, ends_of)
    assert ends.any() == (name != "freeway"), "the comparison covers an end"


@needs_pgx
def test_actions_that_do_nothing_are_as_no_op_and_one_in_ten_is_the_last_one():
    game = minatar("breakout")
    start = game.reset(KEY)
    step = jax.jit(jax.vmap(lambda state, action, key: game.step(state, action, key).state, in_axes=(None, None, 0)))
    keys = jax.random.split(KEY, 2000)
    for action in (UP, DOWN, FIRE):
        np.testing.assert_array_equal(step(start, action, keys).observation, step(start, NOOP, keys).observation)
    right = start.replace(_last_action=jnp.asarray(RIGHT, jnp.int32))
    moved = np.asarray(step(right, LEFT, keys)._pos) - int(start._pos)
    assert {*moved.tolist()} == {-1, 1} and np.mean(moved == 1) == pytest.approx(0.1, abs=0.03)


@needs_pgx
def test_freeway_ends_by_itself_before_it_is_truncated():
    game = minatar("freeway")

    def step(state, key):
        outcome = game.step(state, jnp.asarray(UP), key)
        return outcome.state, (outcome.reward, outcome.terminated)

    _, (rewards, ends) = jax.jit(lambda: jax.lax.scan(step, game.reset(KEY), jax.random.split(KEY, 2501)))()
    assert np.flatnonzero(ends).tolist() == [2500] and rewards.sum() > 0
    assert game.max_steps == 5000


@needs_pgx
def test_environments_of_a_game_and_of_its_permutation():
    game = minatar("breakout")
    made = [GameEnvs(each, num_envs=3, seed=0, stack=2) for each in (game, permute_channels(game, seed=1))]
    assert made[0].observation_shape == (2, 10, 10, 10)
    plain, permuted = (envs.reset().observation for envs in made)
    assert plain.shape == permuted.shape == (3, 2, 10, 10, 10) and plain.dtype == np.uint8
    for _ in range(12):
        before = plain
        for envs in made:
            envs.send(np.full(3, RIGHT))
        (plain, *step), (permuted, *permuted_step) = (envs.recv() for envs in made)
        order = np.random.default_rng(1).permutation(10)
        np.testing.assert_array_equal(permuted, plain[:, :, order])
        for ours, theirs in zip(step, permuted_step, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        going_on = ~step[2]
        np.testing.assert_array_equal(plain[going_on, 0], before[going_on, 1])


def test_a_game_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no game is called 'pong'; there are asterix, breakout, freeway"):
        minatar("pong")


def test_without_pgx_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pgx.minatar.breakout", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"^minatar-breakout needs pgx: `pip install pgx`, or the extra jaxenvs$"):
        GAMES["minatar-breakout"]()


@needs_pgx
def test_pgx_is_imported_when_it_is_asked_for_and_in_a_trace_too():
    script = """
import sys, jax, envs.games
assert not any(name.split(".")[0] == "pgx" for name in sys.modules), "imported too soon"
key = jax.random.key(0)
jax.jit(lambda key: envs.games.minatar("freeway").reset(key))(key)  # pgx's own arrays are made as it is traced
game = envs.games.minatar("freeway")
jax.jit(game.step)(game.reset(key), 2, key)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
