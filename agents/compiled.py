"""The loop of `agents.loops` as compiled functions, for environments that are written in JAX.

Acting, stepping, replay and learning run on the device, a stretch of some hundred updates a call, and only what is
logged comes back. Agents and replays are the same, and so is the order of events: one seed makes the updates that
`agents.loops.train` makes. Many seeds are trained side by side; a mapping that the caller chooses spreads them over
the devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from agents.dqn import AgentState
from agents.loops import Functions, Log, LoopState, Schedule, mean_of
from agents.replay import ReplayState, Step
from agents.rounds import Round
from nap.paths import PyTree

Playing = Any
"""An environment in the middle of an episode: a pytree."""


class Environment(NamedTuple):
    """One environment as pure functions; `envs.games` has them.

    Attributes:
      start: `start(key)`, at the beginning of an episode.
      advance: `advance(playing, action)`, what it is after a step, and the step: `reward`, `discount`, `first` (whether
        the next observation is the first of an episode) and then the `episode_return` of the one that ended.
      observe: `observe(playing)`, the observation, the newest frame last.
    """

    start: Callable[[Key[Array, ""]], Playing]
    advance: Callable[[Playing, Int[Array, ""]], tuple[Playing, Any]]
    observe: Callable[[Playing], UInt8[Array, "stack *frame"]]


def side_by_side(environment: Environment) -> Environment:
    """Many of an environment: what its functions take and return has a leading axis of them."""
    return Environment(jax.vmap(environment.start), jax.vmap(environment.advance), jax.vmap(environment.observe))


Spread = Callable[..., Callable[..., Any]]
"""`spread(function, donate=False)` makes a function of one seed that of all, jitted; see `vmapped`. Of
`function(shared, own, *others)`, `own` and the result then have a leading axis of seeds; with `donate` the result may
take the memory of `own`."""


def vmapped(function: Callable[..., PyTree], *, donate: bool = False) -> Callable[..., Any]:
    """All seeds side by side on one device."""

    def all_of_them(shared: PyTree, own: PyTree, *others: Any) -> PyTree:
        return jax.vmap(lambda one: function(shared, one, *others))(own)

    return jax.jit(all_of_them, donate_argnums=1 if donate else ())


class Hooks(NamedTuple):
    """What the caller wants to be told; each may raise to stop the loop.

    Attributes:
      on_step: `on_step(agent_steps)`, after every stretch.
      on_log: `on_log(seed, log)`, for each seed by its place, at the end of the round that makes an update that
        `Schedule.logged` names; and at the end, if there is more to tell.
      on_state: `on_state(now)`, after every stretch but the last, before `on_step`. `now()` gives the state and the
        `PartialCall` from which another call goes on; `on_log` has then heard of all until there.
    """

    on_step: Callable[[int], None]
    on_log: Callable[[int, Log], None]
    on_state: Callable[[Callable[[], tuple[LoopState, PartialCall]]], None] = lambda now: None


class PartialCall(NamedTuple):
    """How far a call of `train` has come: what a checkpoint holds beside the `LoopState` in the middle of one.

    Attributes:
      steps: agent steps that each seed has taken in it, int64, shape [].
      playing: the environments; what `Running` has.
      first: whether the present observations are the first of an episode.
      losses: sum and count of each seed's losses that no log has told of.
      returns: the episodes' returns that none has told of, NaN behind them; no call has more episodes than steps.
    """

    steps: Int[np.ndarray, ""]
    playing: Playing
    first: Bool[Array, "seeds num_envs"]
    losses: Float[np.ndarray, "seeds 2"]
    returns: Float[np.ndarray, "seeds steps"]


class Running(NamedTuple):
    """What a seed's loop holds between two steps; `key` never changes, `first` is of the present observations."""

    key: Key[Array, ""]
    agent: AgentState
    replay: ReplayState
    playing: Playing
    first: Bool[Array, " num_envs"]


class Told(NamedTuple):
    """What a stretch found; only the rows of the rounds that were made count.

    Attributes:
      losses: of each update.
      measured: of the last one.
      first: whether a step ended an episode.
      returns: that episode's return.
    """

    losses: Float[Array, "rounds updates"]
    measured: dict[str, Float[Array, ""]]
    first: Bool[Array, "rounds steps num_envs"]
    returns: Float[Array, "rounds steps num_envs"]


class Loop(NamedTuple):
    """The compiled functions for one environment; for all seeds, which are the leading axis of `own` and the results.

    Attributes:
      begin: `begin((), (key, agent, replay, environment key))`, a `Running` at the start of episodes.
      play: `play((), running, taken, epsilons, rounds)`, steps without updates; the `Running` after, and a `Told`.
      learn: the same with updates, of which the last is measured.
      evaluate: `evaluate((), (params, key, environment key), epsilon)`, the returns of an episode in each environment.
      round: how steps and updates alternate.
      num_envs: environments of each seed.
      rounds: the most that a stretch has.
    """

    begin: Callable[..., Running]
    play: Callable[..., tuple[Running, Told]]
    learn: Callable[..., tuple[Running, Told]]
    evaluate: Callable[..., Array]
    round: Round
    num_envs: int
    rounds: int


def returns_of_episodes(
    environment: Environment, choose: Callable[[Array, Array], Array], keys: Key[Array, " num_envs"]
) -> Float[Array, " num_envs"]:
    """The return of an episode in each of some environments; pure, for use inside `jit`.

    To take whichever episodes end first would favour short ones, which in most games are bad ones.

    Args:
      environment: the environment.
      choose: `choose(observations, step)`, the actions at a step.
      keys: what each environment starts from.
    """
    environments = side_by_side(environment)

    def play(carry: tuple[Array, Playing, Array, Array]) -> tuple[Array, Playing, Array, Array]:
        step, playing, over, returns = carry
        playing, made = environments.advance(playing, choose(environments.observe(playing), step))
        returns = jnp.where(made.first & ~over, made.episode_return, returns)
        return step + 1, playing, over | made.first, returns

    begun = jnp.zeros([], jnp.int32), environments.start(keys), jnp.zeros(len(keys), bool), jnp.zeros(len(keys))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), play, begun)[3]


def make_loop(
    functions: Functions,
    environment: Environment,
    *,
    num_envs: int,
    update_period: int,
    log_every: int,
    evaluation_envs: int,
    spread: Spread = vmapped,
) -> Loop:
    """The compiled functions of training in one environment.

    Args:
      functions: from `agents.loops.make_functions`.
      environment: the environment.
      num_envs: how many of the environment each seed steps together.
      update_period: agent steps for each update.
      log_every: updates between log entries; no stretch is longer.
      evaluation_envs: how many it is evaluated in.
      spread: how seeds share the devices.

    Raises:
      ValueError: see `Round.of`.
    """
    shape = Round.of(num_envs, update_period)
    rounds = max(1, -(-log_every // shape.updates))
    environments = side_by_side(environment)

    def begin(_: PyTree, own: tuple[Array, AgentState, ReplayState, Array]) -> Running:
        key, agent, replay, environment_key = own
        playing = environments.start(jax.random.split(environment_key, num_envs))
        return Running(key, agent, replay, playing, jnp.ones(num_envs, bool))

    def step(running: Running, taken: Array, epsilon: Array, updates: int, measured: bool) -> tuple[Running, tuple]:
        """All environments once, with updates beside it; as in `agents.loops.train` these do not know of the step."""
        act_key, learn_key = jax.random.split(running.key)
        observation = environments.observe(running.playing)
        actions = functions.act(running.agent.params, observation, epsilon, act_key, taken)

        def update(carry: tuple[AgentState, ReplayState], _: None) -> tuple[tuple[AgentState, ReplayState], Array]:
            agent, replay, loss = functions.learn(*carry, learn_key)
            return (agent, replay), loss

        # First actions, then updates: else XLA, which would see no order, copies the weights at every step.
        actions, agent = jax.lax.optimization_barrier((actions, running.agent))
        carry, losses = jax.lax.scan(update, (agent, running.replay), length=updates - measured)
        values = {}
        if measured:
            *carry, loss, values = functions.measure(*carry, learn_key)
            losses = jnp.append(losses, loss)
        agent, replay = carry
        playing, made = environments.advance(running.playing, actions)
        added = Step(observation[:, -1], actions, made.reward, made.discount, running.first)
        # Likewise batches are read before the step is written, or the replay is copied, which is far larger. Older
        # versions of XLA drop a barrier before they decide on copies; that no loss is -inf, no version knows.
        never = jnp.any(losses == -jnp.inf)
        replay = functions.add(replay, jax.tree.map(lambda leaf: jnp.where(never, jnp.zeros_like(leaf), leaf), added))
        after = Running(running.key, agent, replay, playing, made.first)
        return after, (losses, values, made.first, made.episode_return)

    def one_round(
        running: Running, taken: Array, epsilons: Array, updates: int, measured: bool
    ) -> tuple[Running, tuple[Array, dict[str, Array], Array, Array]]:
        running, (losses, values, *ended) = step(running, taken, epsilons[0], updates, measured)

        def rest(running: Running, i: Array) -> tuple[Running, tuple[Array, Array]]:
            running, (_, _, *ended) = step(running, taken + i * num_envs, epsilons[i], 0, False)
            return running, tuple(ended)

        running, others = jax.lax.scan(rest, running, jnp.arange(1, shape.steps))
        first, returns = (jnp.concatenate([one[None], more]) for one, more in zip(ended, others, strict=True))
        return running, (losses, values, first, returns)

    def stretch(updates: int) -> Callable[..., tuple[Running, Told]]:
        def run(_: PyTree, running: Running, taken: Array, epsilons: Array, count: Array) -> tuple[Running, Told]:
            steps = (rounds, shape.steps, num_envs)
            told = Told(jnp.zeros((rounds, updates)), {}, jnp.zeros(steps, bool), jnp.zeros(steps))

            def make_round(i: Array, running: Running, told: Told, measured: bool = False) -> tuple[Running, Told]:
                at = taken + i * (shape.steps * num_envs)
                running, (losses, values, first, returns) = one_round(running, at, epsilons[i], updates, measured)
                return running, Told(
                    told.losses.at[i].set(losses),
                    values,
                    told.first.at[i].set(first),
                    told.returns.at[i].set(returns),
                )

            last = count - 1  # traced, so that stretches of all lengths are one compiled function
            carry = jax.lax.fori_loop(0, last, lambda i, carry: make_round(i, *carry), (running, told))
            return make_round(last, *carry, measured=updates > 0)

        return run

    def evaluate(_: PyTree, own: tuple[PyTree, Array, Array], epsilon: Array) -> Float[Array, " evaluation_envs"]:
        params, key, environment_key = own

        def choose(observations: Array, step: Array) -> Array:
            return functions.play(params, observations, epsilon, key, step)

        return returns_of_episodes(environment, choose, jax.random.split(environment_key, evaluation_envs))

    return Loop(
        spread(begin),
        spread(stretch(0), donate=True),
        spread(stretch(shape.updates), donate=True),
        spread(evaluate),
        shape,
        num_envs,
        rounds,
    )


def train(
    loop: Loop,
    schedule: Schedule,
    state: LoopState,
    *,
    keys: Key[Array, " seeds"],
    environment_keys: Key[Array, " seeds"],
    seeds: int,
    steps: int,
    hooks: Hooks,
    begun: PartialCall | None = None,
) -> LoopState:
    """Train every seed for a number of agent steps, from fresh episodes.

    Args:
      loop: from `make_loop`.
      schedule: when what happens.
      state: where training stands, its agent and replay with a leading axis of seeds; they must not be used again.
      keys: each run's key, the same in every call.
      environment_keys: what the environments are started with, others in every call.
      seeds: how many of the leading axis count; the rest is padding.
      steps: agent steps of each seed, a multiple of a round's.
      hooks: whom to tell.
      begun: how far an earlier call with the same arguments came, whose state `state` is; None for a new one.

    Raises:
      ValueError: `steps`, the steps taken in this task so far or `schedule.learning_starts` are no multiple of a
        round's.
    """
    each = loop.round.steps * loop.num_envs
    taken = int(state.agent_steps)
    for name, value in (
        ("steps", steps),
        ("agent steps of the task so far", taken - schedule.begun_steps),
        ("learning_starts", schedule.learning_starts),
    ):
        if value % each:
            raise ValueError(f"compiled loop: {name} is {value}, must be a multiple of {each}, a round's agent steps")
    if begun is None:
        running = loop.begin((), (keys, state.agent, state.replay, environment_keys))
        start, losses = taken, np.zeros((seeds, 2))  # sum and count
        returns: list[list[float]] = [[] for _ in range(seeds)]
    else:
        running = Running(jnp.copy(keys), state.agent, state.replay, begun.playing, begun.first)  # it is donated
        start, losses = taken - int(begun.steps), np.array(begun.losses)
        returns = [of_seed[~np.isnan(of_seed)].tolist() for of_seed in np.asarray(begun.returns)]
    end = start + steps
    waiting: tuple[int, int, int, int, Told] | None = None

    def tell() -> None:
        nonlocal waiting
        if waiting is None:
            return
        at, updates, made, count, told = waiting
        waiting = None
        found: Told = jax.device_get(told)
        for seed in range(seeds):
            losses[seed] += np.sum(found.losses[seed, :count], dtype=np.float64), found.losses[seed, :count].size
            ended = found.first[seed, :count]
            returns[seed].extend(found.returns[seed, :count][ended].tolist())
            if any(schedule.logged(update) for update in range(updates - made + 1, updates + 1)):
                measured = {name: float(value[seed]) for name, value in found.measured.items()}
                mean = mean_of(losses[seed])
                hooks.on_log(seed, Log(at, updates, schedule.epsilon(at), mean, measured, tuple(returns[seed])))
                losses[seed] = 0
                returns[seed].clear()

    def now() -> tuple[LoopState, PartialCall]:
        tell()
        kept = np.full((seeds, steps), np.nan, np.float32)
        for seed in range(seeds):
            kept[seed, : len(returns[seed])] = returns[seed]
        at = np.asarray(taken, np.int64)
        partial = PartialCall(at - start, running.playing, running.first, losses.copy(), kept)
        return LoopState(running.agent, running.replay, at), partial

    while taken < end:
        left, done = (end - taken) // each, schedule.updates_by(taken - each)
        learning = schedule.updates_by(taken) > done
        if learning:
            of_task = done - schedule.begun_updates
            to_next = schedule.log_every - of_task % schedule.log_every if of_task else 1
            count = min(left, -(-to_next // loop.round.updates))
        else:
            first_update = schedule.begun_steps + schedule.learning_starts + each
            count = min(left, loop.rounds, (first_update - taken) // each)
        epsilons = np.asarray(
            [schedule.epsilon(taken + i * loop.num_envs) for i in range(loop.rounds * loop.round.steps)], np.float32
        ).reshape(loop.rounds, loop.round.steps)
        stretch = loop.learn if learning else loop.play
        running, told = stretch((), running, np.int32(taken), epsilons, np.int32(count))
        tell()  # of the stretch before, while this one runs
        made = count * loop.round.updates if learning else 0
        waiting = (taken + (count - 1) * each, done + made, made, count, told)
        taken += count * each
        if taken < end:
            hooks.on_state(now)
        hooks.on_step(taken)
    tell()
    updates = schedule.updates_by(taken - each)
    for seed in range(seeds):
        if losses[seed, 1] or returns[seed]:
            mean = mean_of(losses[seed])
            hooks.on_log(seed, Log(taken, updates, schedule.epsilon(taken), mean, {}, tuple(returns[seed])))
    return LoopState(running.agent, running.replay, np.asarray(taken, np.int64))
