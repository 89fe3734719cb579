"""The family: what each agent is made of, that noise is for acting alone, and that every agent learns to catch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import nap
from agents.dqn import Agent, AgentState
from agents.evaluation import evaluate
from agents.family import FAMILY, READ, Ingredients, assemble, make_network, make_replay_for
from agents.loops import Functions, make_functions
from agents.replay import Replay, Step, Transition, transitions
from envs.games import GameEnvs, catch
from envs.games.vector import advance, start
from nap import paths
from nap.networks import Network, Quantiles

GAME, ENVS, ACTIONS, KEY = catch(), 16, 3, jax.random.key(0)
AGENTS = pytest.mark.parametrize("name", FAMILY)
OPTIONS = {"torso": "flat", "observation": (4, *GAME.shape), "hidden": 64}


def network_for(ingredients: Ingredients) -> Network:
    return make_network(ingredients, ACTIONS, **OPTIONS)


def agent_for(ingredients: Ingredients, optimizer=None, target_period: int = 25) -> Agent:
    optimizer = nap.normalize_and_project(optax.adam(1e-2)) if optimizer is None else optimizer
    return assemble(ingredients, network_for(ingredients), optimizer, target_period)


def replay_for(ingredients: Ingredients) -> Replay:
    return make_replay_for(ingredients, 4000, ENVS, 16, GAME.shape, priority_exponent=0.5, uniform_probability=1e-3)


def observations(count: int = 8, seed: int = 0) -> jax.Array:
    bytes_ = np.random.default_rng(seed).integers(0, 256, (count, *OPTIONS["observation"]))
    return jnp.asarray(bytes_, jnp.uint8)


def batch(size: int = 8) -> Transition:
    rng = np.random.default_rng(1)
    return Transition(
        observations(size, 2),
        jnp.asarray(rng.integers(ACTIONS, size=size), jnp.int32),
        jnp.asarray(rng.normal(size=size), jnp.float32),
        jnp.full(size, 0.9),
        observations(size, 3),
        jnp.ones(size),
    )


def bytes_of(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# --- Ingredients -----------------------------------------------------------------------------------------------------


def test_the_ingredients_are_the_published_ones():
    made = {name: set(of_name(ingredients)) for name, ingredients in FAMILY.items()}
    assert made == {
        "dqn": set(),
        "double-dqn": {"double", "shared_bias"},
        "c51": {"categorical"},
        "qr-dqn": {"quantile"},
        "iqn": {"implicit-quantile"},
        "rainbow": {"categorical", "double", "dueling", "noisy", "prioritized", "n_step 3"},
    }


def of_name(ingredients: Ingredients) -> list[str]:
    """What an agent has beyond DQN, in words."""
    flags = ("double", "dueling", "noisy", "shared_bias", "prioritized")
    words = [name for name in flags if getattr(ingredients, name)]
    words += [ingredients.distribution] if ingredients.distribution != "none" else []
    return words + ([f"n_step {ingredients.n_step}"] if ingredients.n_step != 1 else [])


@AGENTS
def test_the_outputs_are_what_the_agent_reads(name):
    network = network_for(FAMILY[name])
    outputs = jax.eval_shape(network.apply, jax.eval_shape(network.init, KEY), observations())
    shape = jax.tree.map(lambda leaf: leaf.shape, outputs)
    wanted = {"c51": (8, 3, 51), "rainbow": (8, 3, 51), "qr-dqn": (8, 3, 201), "iqn": Quantiles((8, 3, 64), (8, 64))}
    assert shape == wanted.get(name, (8, 3))


RAINBOW = FAMILY["rainbow"]
TAKEN_OUT = {"distribution": "none", "double": False, "dueling": False, "noisy": False, "prioritized": False}


@pytest.mark.parametrize("ingredient", [*TAKEN_OUT, "n_step"])
def test_each_ingredient_of_rainbow_can_be_taken_out_alone(ingredient):
    without = dataclasses.replace(RAINBOW, **{ingredient: TAKEN_OUT.get(ingredient, 1)})
    network, replay = network_for(without), replay_for(without)
    paths_of = paths.leaves(jax.eval_shape(network.init, KEY))
    assert any(path.startswith("value_") for path in paths_of) == without.dueling
    assert any(path.endswith("noise") for path in paths_of) == network.draws == without.noisy
    assert hasattr(jax.eval_shape(replay.init), "tree") == without.prioritized
    sample = jax.eval_shape(replay.sample, jax.eval_shape(replay.init), KEY)
    assert sample.steps.first.shape == (16, 4 + without.n_step)
    agent = agent_for(without)
    new, learned = jax.eval_shape(agent.learn, jax.eval_shape(agent.init, KEY), batch(), KEY)
    assert learned.priorities.shape == (8,) and int(new.updates.size) == 1


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("distribution", ["none", "categorical", "quantile"])
def test_double_or_not_decides_whose_action_is_judged(double, distribution):
    """Worked out from the networks' outputs: the loss of a transition, by the loss itself on the chosen action."""
    ingredients = Ingredients(distribution, double=double)
    agent, network = agent_for(ingredients, optax.sgd(0.1)), network_for(ingredients)
    online, target = (jax.jit(agent.init)(jax.random.key(seed)).params for seed in (1, 2))
    # Larger outputs, so that the two networks disagree.
    online, target = (jax.tree.map(lambda leaf: 3 * leaf, params) for params in (online, target))
    state = AgentState(online, target, optax.sgd(0.1).init(online), jnp.zeros([], jnp.int32))
    _, learned = jax.jit(agent.learn)(state, batch(), KEY)

    read = READ[ingredients.distribution]()
    selector = jax.vmap(read.action_values)(network.apply(online if double else target, batch().s_t))
    other = jax.vmap(read.action_values)(network.apply(target if double else online, batch().s_t))
    assert (selector.argmax(1) != other.argmax(1)).any()
    found = jax.vmap(read.loss)(
        network.apply(online, batch().s_tm1), batch().a_tm1, batch().r_t, batch().discount_t,
        network.apply(target, batch().s_t), selector,
    )  # fmt: skip
    np.testing.assert_allclose(learned.priorities, found.priority, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(learned.loss, found.loss.mean(), rtol=1e-4)


@AGENTS
def test_the_audit_of_every_agents_network_is_clean_with_and_without_a_key(name):
    network = make_network(FAMILY[name], ACTIONS, observation=(4, 36, 36), hidden=32, norm="layer")
    params = jax.jit(network.init)(KEY)
    frames = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 4, 36, 36)), jnp.uint8)
    for key in [(), (KEY,)] if network.draws else [()]:
        audit = nap.audit(lambda params, *x: jax.tree.leaves(network.apply(params, *x))[0], params, frames, *key)
        assert audit.clean, str(audit)
        assert all(row.change < 3e-3 for row in audit if row.projected)


# --- Acting and learning ---------------------------------------------------------------------------------------------


@AGENTS
@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_an_update_returns_the_types_it_was_given_so_it_is_compiled_once(name, activation):
    network = make_network(FAMILY[name], ACTIONS, **OPTIONS, activation=activation)
    agent = assemble(FAMILY[name], network, nap.normalize_and_project(optax.adam(1e-2)), 25)
    state = jax.eval_shape(agent.init, KEY)
    after, _ = jax.eval_shape(agent.learn, state, batch(), KEY)
    for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (leaf.shape, leaf.dtype, leaf.weak_type)


@functools.cache
def jitted(name: str) -> Agent:
    return Agent(*map(jax.jit, agent_for(FAMILY[name], target_period=3)))


def decided(params, size: int = 8):
    """Noise weights so large that noise decides what a noisy network does."""
    leaves = paths.leaves(params)
    return paths.replace(params, {path: size * leaf for path, leaf in leaves.items() if path.endswith("noise")})


def test_rainbow_acts_with_noise_and_plays_without():
    agent = jitted("rainbow")
    params = decided(agent.init(KEY).params)
    one = jnp.tile(observations(1), (4000, 1, 1, 1))
    actions = np.asarray(agent.act(params, one, jnp.float32(0), KEY))
    assert len(np.unique(actions)) > 1, "each environment has noise of its own"
    assert (actions != np.asarray(agent.act(params, one, jnp.float32(0), jax.random.key(1)))).any()
    np.testing.assert_array_equal(actions, agent.act(params, one, jnp.float32(0), KEY))
    pairs = scipy.stats.contingency.crosstab(actions[0::2], actions[1::2]).count
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-4
    played = {
        int(agent.play(params, one, jnp.float32(0), jax.random.key(seed))[i]) for seed in range(5) for i in (0, 9)
    }
    q = jax.nn.softmax(network_for(RAINBOW).apply(params, one[:1])) @ jnp.linspace(-10, 10, 51)
    assert played == {int(q[0].argmax())}


@AGENTS
def test_play_is_the_same_for_every_key_and_explores_with_epsilon_alone(name):
    agent = jitted(name)
    params = decided(agent.init(KEY).params)
    seen = observations(500)
    first, second = (np.asarray(agent.play(params, seen, jnp.float32(0), jax.random.key(seed))) for seed in (1, 2))
    np.testing.assert_array_equal(first, second)
    explored = np.asarray(agent.play(params, seen, jnp.float32(1), KEY))
    assert scipy.stats.chisquare(np.bincount(explored, minlength=3)).pvalue > 1e-4


@pytest.mark.parametrize("name", sorted(FAMILY.keys() - {"rainbow"}))  # which has nothing of its own here
def test_the_target_is_a_copy_after_every_third_update(name):
    agent = jitted(name)
    state = agent.init(KEY)
    held = bytes_of(state.params)
    for update in range(1, 8):
        state, learned = agent.learn(state, batch(), jax.random.key(update))
        assert np.isfinite(learned.loss) and (learned.priorities > 0).all()
        held = bytes_of(state.params) if update in (3, 6) else held
        assert bytes_of(state.target_params) == held, f"after update {update}"
        assert bytes_of(state.params) != held or update in (3, 6)


@pytest.mark.parametrize("name", ["c51", "iqn", "rainbow"])
def test_the_key_of_an_update_counts_where_the_network_draws(name):
    agent = jitted(name)
    state = agent.init(KEY)
    losses = [float(agent.learn(state, batch(), jax.random.key(seed))[1].loss) for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == network_for(FAMILY[name]).draws


def test_weights_scale_each_loss_and_samples_without_weight_count_for_nothing():
    agent = jitted("c51")
    state = agent.init(KEY)
    alone = [
        float(agent.learn(state, batch()._replace(weight=jnp.zeros(8).at[i].set(1.0)), KEY)[1].loss) for i in range(8)
    ]
    weight = jnp.array([1.0, 0.5, 0.25, 0.0, 0.0, 1.0, 0.75, 0.125])
    _, learned = agent.learn(state, batch()._replace(weight=weight), KEY)
    np.testing.assert_allclose(learned.loss, np.dot(weight, alone) / 6, rtol=1e-5)
    np.testing.assert_allclose(learned.priorities, np.where(weight > 0, alone, 0), rtol=1e-5)


def test_priorities_are_clipped_at_100():
    agent = jitted("dqn")
    far = batch()._replace(r_t=jnp.array([1e3, -1e3, 99.0, 0, 0, 0, 0, 0]), discount_t=jnp.zeros(8))
    priorities = agent.learn(agent.init(KEY), far, KEY)[1].priorities
    assert priorities[:2].tolist() == [100, 100] and float(priorities[2]) == pytest.approx(99, abs=1)


# --- Learning to catch -----------------------------------------------------------------------------------------------

STEPS, BEFORE = 1000, 25  # of all environments; before the first update
UPDATES = dict.fromkeys(FAMILY, 2) | {"iqn": 4}  # in each step from then on; at these all learn it with three seeds


def functions_for(name: str) -> tuple[Agent, Functions, Replay]:
    ingredients, total = FAMILY[name], (STEPS - BEFORE) * UPDATES[name]
    optimizer = nap.normalize_and_project(optax.adam(optax.linear_schedule(5e-3, 2.5e-4, total)))
    agent, replay = agent_for(ingredients, optimizer), replay_for(ingredients)
    one = functools.partial(transitions, stack=4, n_step=ingredients.n_step, gamma=0.9, clip_reward=True)
    return agent, make_functions(agent, replay, one, optax.linear_schedule(0.4, 1.0, total)), replay


def trained(name: str, agent: Agent, functions: Functions, replay: Replay):
    """The parameters after a training that is one compiled loop: the game is a pure function as well."""
    explores = 0.0 if FAMILY[name].noisy else 1.0

    def body(carry, step):
        state, replay_state, playing, first = carry
        key = jax.random.fold_in(KEY, step)
        epsilon = explores * jnp.maximum(0.1, 1 - 2 * step / STEPS)
        actions = agent.act(state.params, playing.stack, epsilon, key)
        frame = playing.stack[:, -1]
        playing, answer = jax.vmap(functools.partial(advance, GAME))(playing, actions)
        replay_state = replay.add(replay_state, Step(frame, actions, answer.reward, answer.discount, first))

        def update(_, both):
            return functions.learn(*both, key)[:2]

        updates = jnp.where(step < BEFORE, 0, UPDATES[name])
        state, replay_state = jax.lax.fori_loop(0, updates, update, (state, replay_state))
        return (state, replay_state, playing, answer.first), None

    def train(key):
        playing = jax.vmap(functools.partial(start, GAME, 4))(jax.random.split(key, ENVS))
        carry = (agent.init(key), replay.init(), playing, jnp.ones(ENVS, bool))
        return jax.lax.scan(body, carry, jnp.arange(STEPS))[0][0].params

    # The suite compiles without optimization, which would make this ten times slower.
    compiled = jax.jit(train).lower(KEY).compile(compiler_options={"xla_backend_optimization_level": 1})
    return compiled(KEY)


@AGENTS
def test_every_agent_learns_to_catch(name):
    agent, functions, replay = functions_for(name)
    params = trained(name, agent, functions, replay)
    environments = GameEnvs(GAME, num_envs=100, seed=0)
    greedy = functools.partial(evaluate, functions, params, environments, epsilon=0.0, seed=1, episodes=200)
    returns = greedy(key=jax.random.key(1))
    assert len(returns) == 200 and np.mean(returns) >= 0.9
    assert returns == greedy(key=jax.random.key(2)), "without noise and exploration the key makes no difference"
