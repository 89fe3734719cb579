"""The loop and the evaluation against a scripted environment; and a small task that must be learned."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from agents.dqn import Agent, make_agent
from agents.evaluation import evaluate
from agents.loops import Functions, Hooks, Log, LoopState, Schedule, make_functions, train
from agents.replay import make_replay, transitions
from nap.networks import MLP, Network, as_functions

ENVS, STACK, FRAME, ACTIONS = 2, 2, (1, 2), 3


class Episode(NamedTuple):
    env: int
    episode_return: float


class TimeStep(NamedTuple):
    observation: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    first: np.ndarray
    episodes: tuple[Episode, ...]


class Scripted:
    """Episodes of scripted lengths, one list an environment, repeated for ever; every second one is truncated.

    Each observation's newest frame holds (environment, step) and each reward is 10 environment + step + action / 10, so
    whatever ends up in replay tells where it came from.
    """

    def __init__(self, lengths: list[list[int]], frame: tuple[int, int] = FRAME, stack: int = STACK) -> None:
        self.num_envs, self.lengths = len(lengths), lengths
        self.shape = (self.num_envs, stack, *frame)
        self.actions: list[np.ndarray] = []
        self.calls: list[str] = []
        self.seeds: list[int] = []
        self.ended: list[tuple[int, Episode]] = []  # with the number of the step that ended it, from 1

    def reset(self, seed: int = 0) -> TimeStep:
        self.calls.append("reset")
        self.seeds.append(seed)
        self.t, self.played = 0, np.zeros(self.num_envs, int)
        self.left = np.array([lengths[0] for lengths in self.lengths])
        self.returns = np.zeros(self.num_envs)
        return TimeStep(self._observation(), *np.zeros((2, self.num_envs), np.float32), self._all(True), ())

    def send(self, actions: np.ndarray) -> None:
        self.calls.append("send")
        assert isinstance(actions, np.ndarray) and actions.shape == (self.num_envs,)
        self.actions.append(actions.copy())

    def recv(self) -> TimeStep:
        self.calls.append("recv")
        reward = self.reward(self.actions[-1]).astype(np.float32)
        self.t += 1
        self.left -= 1
        self.returns += reward
        first, discount, episodes = self.left == 0, np.ones(self.num_envs, np.float32), []
        for env in np.flatnonzero(first):
            discount[env] = self.played[env] % 2  # the first one terminates, the second is truncated, ...
            episodes.append(Episode(int(env), float(self.returns[env])))
            self.ended.append((self.t, episodes[-1]))
            self.played[env] += 1
            self.left[env] = self.lengths[env][self.played[env] % len(self.lengths[env])]
            self.returns[env] = 0
        return TimeStep(self._observation(), reward, discount, first, tuple(episodes))

    def reward(self, actions: np.ndarray) -> np.ndarray:
        return 10 * np.arange(self.num_envs) + self.t + actions / 10

    def _all(self, value: bool) -> np.ndarray:
        return np.full(self.num_envs, value)

    def _observation(self) -> np.ndarray:
        observation = np.full(self.shape, 255, np.uint8)
        observation[:, -1, 0, 0] = np.arange(self.num_envs)
        observation[:, -1, 0, 1] = self.t
        return observation


def q_network(inputs: int, actions: int, hidden: tuple[int, ...] = (16,), norm: str = "layer") -> Network:
    """An MLP on frames of bytes."""
    mlp = as_functions(lambda rngs: MLP(inputs, hidden, actions, norm=norm, rngs=rngs))

    def floats(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) / 255

    return Network(mlp.init, lambda p, x: mlp.apply(p, floats(x)), lambda p, x: mlp.activations(p, floats(x)))


def functions_for(agent: Agent, num_envs: int, frame: tuple[int, int], stack: int, batch_size: int) -> Functions:
    one = functools.partial(transitions, stack=stack, n_step=1, gamma=0.9, clip_reward=False)
    experience = make_replay(2000, num_envs, batch_size, stack=stack, n_step=1, frame_shape=frame)
    return make_functions(agent, experience, one)


@functools.cache
def scripted_functions() -> Functions:
    agent = make_agent(q_network(4, ACTIONS), optax.adam(1e-2), target_period=4)
    return functions_for(agent, ENVS, FRAME, STACK, batch_size=4)


@dataclasses.dataclass
class Told:
    """Everything that the hooks were told."""

    steps: list[int] = dataclasses.field(default_factory=list)
    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    logs: list[Log] = dataclasses.field(default_factory=list)

    def hooks(self) -> Hooks:
        return Hooks(self.steps.append, lambda updates, loss: self.losses.append((updates, loss)), self.logs.append)


def schedule(update_period: int = 4, learning_starts: int = 20, log_every: int = 3, **changes) -> Schedule:
    changes = {"epsilon": lambda steps: 1 / (1 + steps), **changes}
    return Schedule(update_period=update_period, learning_starts=learning_starts, log_every=log_every, **changes)


def played(steps: int, when: Schedule, functions: Functions | None = None) -> tuple[LoopState, Told, Scripted]:
    """The scripted environments after so many agent steps from the beginning."""
    functions, told, environments = functions or scripted_functions(), Told(), Scripted([[3, 5], [4, 7, 2]])
    start = functions.init(jax.random.key(0))
    state = train(functions, when, start, environments, key=jax.random.key(1), seed=5, steps=steps, hooks=told.hooks())
    return state, told, environments


# Updates are dispatched while the environments step, so at agent step k the last step's are missing: k - ENVS count.
@pytest.mark.parametrize(
    ("steps", "update_period", "learning_starts", "updates"),
    [
        (20, 4, 20, 0),
        (24, 4, 20, 0),
        (26, 4, 20, 1),
        (61, 4, 20, 9),  # 60: steps come in twos
        (60, 1, 20, 38),  # two updates a step
        (60, 6, 12, 7),
    ],
)
def test_the_number_of_updates(steps, update_period, learning_starts, updates):
    state, told, environments = played(steps, schedule(update_period, learning_starts))
    assert int(state.agent.updates) == updates
    assert int(state.agent_steps) == steps // ENVS * ENVS
    assert state.agent_steps.dtype == np.int64
    assert told.steps == list(range(ENVS, steps + 1, ENVS))
    assert environments.calls == ["reset"] + ["send", "recv"] * (steps // ENVS)
    assert environments.seeds == [5]


def test_replay_holds_what_happened():
    state, _, environments = played(80, schedule(epsilon=lambda steps: 0.5))
    stored, count = state.replay.experience, 40
    assert int(state.replay.current_index) == count
    actions = np.stack(environments.actions)  # [time, env]
    assert len(np.unique(actions)) == ACTIONS
    for env, lengths in enumerate(([3, 5], [4, 7, 2])):
        ends = np.cumsum(np.resize(lengths, 40))
        ends = ends[ends <= count]
        assert stored.frame[env, :count, 0].tolist() == [[env, t] for t in range(count)], "the newest frame of o_t"
        assert stored.action[env, :count].tolist() == actions[:, env].tolist()
        rewards = 10 * env + np.arange(count) + actions[:, env] / 10
        np.testing.assert_allclose(stored.reward[env, :count], rewards, rtol=1e-6)
        terminations = {end - 1 for end in ends[::2]}
        assert stored.discount[env, :count].tolist() == [float(t not in terminations) for t in range(count)]
        assert stored.first[env, :count].tolist() == [t == 0 or t in ends for t in range(count)]


def test_the_learner_works_while_the_environments_step():
    environments, plain = Scripted([[3], [4]]), scripted_functions()

    class Spied:
        def __init__(self, name: str) -> None:
            self.name, self.lower = name, getattr(plain, name).lower

        def __call__(self, *arguments):
            environments.calls.append(self.name)
            return getattr(plain, self.name)(*arguments)

    functions = plain._replace(**{name: Spied(name) for name in ("act", "add", "learn", "measure")})
    start = functions.init(jax.random.key(0))
    when = schedule(update_period=2, learning_starts=20, log_every=10)
    train(functions, when, start, environments, key=jax.random.key(1), seed=0, steps=30, hooks=Told().hooks())
    calls = environments.calls
    assert calls[:5] == ["reset", "act", "send", "recv", "add"]
    assert calls[-5:] == ["act", "send", "learn", "recv", "add"]
    assert (calls.count("measure"), calls.count("learn")) == (1, 3)  # the first update is logged


@pytest.mark.parametrize("update_period", [1, 4])  # two updates a step, and one in two steps
@pytest.mark.parametrize("log_every", [1, 3])
def test_logs_come_at_the_first_and_every_so_many_updates(update_period, log_every):
    state, told, _ = played(80, schedule(update_period, log_every=log_every))
    updates = int(state.agent.updates)
    assert [update for update, _ in told.losses] == list(range(1, updates + 1)), "every update once, and in order"
    wanted = sorted({1, *range(log_every, updates + 1, log_every)})
    assert [log.updates for log in told.logs if log.measured] == wanted
    losses = [loss for _, loss in told.losses]
    logs, rest = told.logs[: len(wanted)], told.logs[len(wanted) :]
    for log in rest:  # what was not told before
        assert not log.measured and (log.agent_steps, log.updates) == (80, updates)
        assert log.loss == (pytest.approx(np.mean(losses[wanted[-1] :])) if updates > wanted[-1] else None)
    assert len(rest) == 1 if updates > wanted[-1] else len(rest) <= 1
    for before, log in zip([0, *wanted], logs, strict=False):
        # The first agent step, a multiple of the environments', by which so many updates are due.
        due = 20 + log.updates * update_period
        assert log.agent_steps == -(-due // ENVS) * ENVS
        assert log.epsilon == pytest.approx(1 / (1 + log.agent_steps))
        assert log.loss == pytest.approx(np.mean(losses[before : log.updates])), "the updates since the last log"
        assert log.measured["weight_norm/hidden/0"] > 0 and "loss" not in log.measured


def test_logs_tell_the_returns_since_the_last_one_each_once():
    _, told, environments = played(160, schedule())
    of_logs = [list(log.returns) for log in told.logs]
    # A log is told when the next actions are sent, so it knows of the episodes that its own step ended.
    reach = [0] + [log.agent_steps // ENVS + 1 for log in told.logs]
    reach[-1] = 160 // ENVS  # the last one is told when no action is sent any more
    for returns, after, until in zip(of_logs, reach[:-1], reach[1:], strict=True):
        assert returns == [episode.episode_return for t, episode in environments.ended if after < t <= until]
    assert sum(map(len, of_logs)) == len(environments.ended) > 10


def test_the_same_key_repeats_everything_and_another_does_not():
    first, second = (played(60, schedule())[0] for _ in range(2))
    bits = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)] for state in (first, second)]
    assert bits[0] == bits[1]
    environments = Scripted([[3, 5], [4, 7, 2]])
    functions = scripted_functions()
    start = functions.init(jax.random.key(0))
    train(functions, schedule(), start, environments, key=jax.random.key(2), seed=0, steps=60, hooks=Told().hooks())
    assert np.stack(environments.actions).tolist() != first.replay.experience.action[:, :30].T.tolist()


def test_a_second_iteration_goes_on_counting():
    functions, told = scripted_functions(), Told()
    state = functions.init(jax.random.key(0))
    for _ in range(3):
        environments = Scripted([[3, 5], [4, 7, 2]])
        state = train(
            functions, schedule(), state, environments, key=jax.random.key(1), seed=0, steps=20, hooks=told.hooks()
        )
        assert environments.calls[0] == "reset"
    assert told.steps == list(range(2, 61, 2))
    assert [update for update, _ in told.losses] == list(range(1, 10))
    assert int(state.replay.current_index) == 30
    starts = np.flatnonzero(state.replay.experience.first[0, :30]).tolist()
    assert starts == [0, 3, 8, 10, 13, 18, 20, 23, 28], "fresh episodes in every iteration"


class Stop(Exception):
    pass


@pytest.mark.parametrize(("hook", "at"), [("on_step", 30), ("on_loss", 2), ("on_log", 1)])
def test_a_hook_that_raises_stops_the_loop_there(hook, at):
    told, environments = Told(), Scripted([[3], [4]])
    calls = []

    def raising(*arguments) -> None:
        calls.append(arguments)
        if len(calls) == (at // ENVS if hook == "on_step" else at):
            raise Stop

    hooks = told.hooks()._replace(**{hook: raising})
    functions = scripted_functions()
    start = functions.init(jax.random.key(0))
    with pytest.raises(Stop):
        train(functions, schedule(), start, environments, key=jax.random.key(1), seed=0, steps=400, hooks=hooks)
    # on_step 30 is that step itself; the losses and logs of step k (update 1: 24, update 2: 28) are told in k + 2.
    assert len(environments.actions) == {"on_step": 15, "on_loss": 28 // 2 + 2, "on_log": 24 // 2 + 2}[hook]


def evaluated(
    episodes: int = 0, epsilon: float = 0.0, steps: int = 0
) -> tuple[list[float], Scripted, list[tuple[int, int]]]:
    environments, told = Scripted([[1], [10], [4]]), []
    environments.reward = lambda actions: np.array([environments.t + 1.0, 10.0, 100.0])
    agent = make_agent(q_network(4, ACTIONS), optax.sgd(0.1), target_period=1)
    functions = functions_for(agent, 3, FRAME, STACK, batch_size=4)
    params = agent.init(jax.random.key(0)).params
    returns = evaluate(
        functions, params, environments, epsilon=epsilon, key=jax.random.key(1), seed=7, episodes=episodes,
        steps=steps, on_step=lambda agent_steps: told.append((agent_steps, len(environments.actions))),
    )  # fmt: skip
    return returns, environments, told


def test_evaluation_for_a_time_plays_every_episode_that_begins_in_it_to_its_end():
    returns, environments, _ = evaluated(steps=3 * 6)  # of lengths 1, 10 and 4: the second is the first of its own
    assert returns == [*(float(t) for t in range(1, 7)), 100.0, 400.0, 400.0]
    assert len(environments.actions) == 10
    assert evaluated(steps=3 * 4)[0] == [1.0, 2.0, 3.0, 4.0, 100.0, 400.0], "the next one has not begun"
    assert evaluated(steps=3 * 10)[0].count(100.0) == 1


def test_evaluation_counts_every_environments_first_episodes_not_the_short_ones():
    returns, environments, steps = evaluated(episodes=6)
    assert returns == [1.0, 2.0, 100.0, 100.0, 400.0, 400.0]
    told = [(3 * step, step) for step in range(1, 21)]
    assert steps == told, "until the longest two are over, and not a step more"
    assert environments.calls[0] == "reset" and environments.seeds == [7]


def test_evaluation_rounds_episodes_up_to_the_same_number_for_each():
    assert evaluated(episodes=1)[0] == [1.0, 100.0, 400.0]
    assert len(evaluated(episodes=4)[0]) == 6


def test_evaluation_explores_as_often_as_told_and_anew_at_every_step():
    greedy = np.stack(evaluated(episodes=6)[1].actions)
    random = np.stack(evaluated(episodes=6, epsilon=1.0)[1].actions)
    assert len({tuple(row) for row in random.tolist()}) > 5
    assert len(np.unique(random)) == ACTIONS
    agent = make_agent(q_network(4, ACTIONS), optax.sgd(0.1), target_period=1)
    params = agent.init(jax.random.key(0)).params
    environments = Scripted([[1], [10], [4]])
    environments.reset(0)
    for actions in greedy:
        values = q_network(4, ACTIONS).apply(params, jnp.asarray(environments._observation()))
        assert actions.tolist() == np.asarray(values).argmax(1).tolist()
        environments.send(actions)
        environments.recv()


class Chain(Scripted):
    """Five states: right leads to 1 at the end of the last one, left pays 0.05 at once and leads back."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([[1]] * num_envs, frame=(1, 5), stack=1)

    def reset(self, seed: int = 0) -> TimeStep:
        self.place = np.zeros(self.num_envs, int)
        self.steps = np.zeros(self.num_envs, int)
        return super().reset(seed)

    def _observation(self) -> np.ndarray:
        return (255 * np.eye(5, dtype=np.uint8)[self.place])[:, None, None]

    def recv(self) -> TimeStep:
        right = self.actions[-1] == 1
        done = right & (self.place == 4)
        reward = np.where(right, done, 0.05).astype(np.float32)
        self.steps += 1
        truncated = ~done & (self.steps >= 20)
        first = done | truncated
        self.place = np.where(first, 0, np.clip(self.place + np.where(right, 1, -1), 0, 4))
        self.steps[first] = 0
        return TimeStep(self._observation(), reward, (~done).astype(np.float32), first, ())


def learned_on_the_chain(method: str, steps: int) -> np.ndarray:
    """The action values, [state, action], after so many agent steps."""
    optimizer = optax.adam(optax.linear_schedule(1e-2, 1e-4, steps // 4))
    network = q_network(5, 2, (32,), norm="layer" if method == "nap" else "none")
    if method == "nap":
        optimizer = nap.normalize_and_project(optimizer)
    agent = make_agent(network, optimizer, target_period=25)
    functions = functions_for(agent, 4, (1, 5), 1, batch_size=32)
    when = schedule(update_period=4, learning_starts=100, log_every=10**6, epsilon=lambda steps: 0.5)
    start = functions.init(jax.random.key(0))
    state = train(functions, when, start, Chain(4), key=jax.random.key(1), seed=0, steps=steps, hooks=Told().hooks())
    states = 255 * np.eye(5, dtype=np.uint8)[:, None, None]
    return np.asarray(network.apply(state.agent.params, jnp.asarray(states)))


@pytest.mark.parametrize("method", ["none", "nap"])
def test_it_learns_a_chain_that_needs_the_bootstrap(method):
    values = learned_on_the_chain(method, steps=2400)
    truth = np.zeros((5, 2))  # by value iteration; truncation is no end, so it does not come in
    for _ in range(200):
        best = truth.max(1)
        truth = np.stack([0.05 + 0.9 * best[[0, 0, 1, 2, 3]], np.r_[0.9 * best[1:], 1.0]], axis=1)
    assert truth.argmax(1).tolist() == [1, 1, 1, 1, 1]
    assert values.argmax(1).tolist() == [1, 1, 1, 1, 1]
    np.testing.assert_allclose(values, truth, atol=0.1)
