"""The loop that joins an agent, a replay and a vector of environments.

Environments are stepped from Python (ALE runs on the host), everything else is jitted. Between sending the actions and
receiving the observations the learner's updates are dispatched, so that the two run at the same time; what is logged is
fetched one step late, so that the device is never waited for.

The loop is deterministic: randomness comes from one key folded with the counts of steps and updates, so that a restored
state goes on exactly as the uninterrupted run. Within a call of `train` the environments, which can't be saved, are
played again to where they were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from agents.dqn import Agent, AgentState, Learned
from agents.prioritized import importance_weights
from agents.replay import Replay, ReplayState, Step, Transition


@runtime_checkable  # for the tests, which check types at run time
class Environments(Protocol):
    """What the loop needs of a vector of environments (`envs.atari.AtariEnvs` is one)."""

    @property
    def num_envs(self) -> int:
        """How many environments are stepped together."""
        ...

    def reset(self, seed: int) -> Any:
        """The first time step of fresh episodes, determined by the seed."""
        ...

    def send(self, actions: np.ndarray) -> None:
        """Begin a step."""
        ...

    def recv(self) -> Any:
        """Finish it: observation, reward, discount, first, and the episodes that ended."""
        ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When what happens, in agent steps (over all environments) and updates.

    Attributes:
      update_period: agent steps for each update.
      learning_starts: agent steps before the first update.
      log_every: updates between log entries, see `logged`.
      epsilon: exploration at an agent step, counted from the beginning of the run.
      begun_steps: agent steps that had been taken when the present task began, from which the others count.
      begun_updates: updates that had been made then.
    """

    update_period: int
    learning_starts: int
    log_every: int
    epsilon: Callable[[int], float]
    begun_steps: int = 0
    begun_updates: int = 0

    def updates_by(self, taken: int) -> int:
        """Updates of the whole run that are due before the step that follows `taken` ones."""
        return self.begun_updates + max(0, taken - self.begun_steps - self.learning_starts) // self.update_period

    def logged(self, updates: int) -> bool:
        """Whether this update is told of: a task's first, from which its norms start, and every n-th."""
        of_task = updates - self.begun_updates
        return of_task == 1 or of_task % self.log_every == 0


class LoopState(NamedTuple):
    """All that a checkpoint has to hold: with it and the seed, an iteration repeats bit for bit on one device.

    Attributes:
      agent: the learner.
      replay: the experience.
      agent_steps: steps taken so far over all environments, int64, shape [].
    """

    agent: AgentState
    replay: ReplayState
    agent_steps: np.ndarray


class Stretch(NamedTuple):
    """How far a call of `train` has come: what a checkpoint has to hold beside the `LoopState` in the middle of one.

    Attributes:
      steps: how often the environments have been stepped, int64, shape [].
      actions: what they were sent, uint8, [steps of the whole call, environments]; 0 from `steps` on.
      losses: sum and count of the losses that no log has told of, float64, shape [2].
    """

    steps: np.ndarray
    actions: np.ndarray
    losses: np.ndarray


def new_stretch(steps: int, num_envs: int) -> Stretch:
    """That of a call for so many agent steps, at its beginning."""
    return Stretch(np.zeros([], np.int64), np.zeros((steps // num_envs, num_envs), np.uint8), np.zeros(2))


class Functions(NamedTuple):
    """The jitted functions of a loop, made once and used by every iteration.

    Attributes:
      init: `init(key)`, the state at the beginning.
      act, play: `Agent`'s, with the run's key and the count of steps for a key.
      add: the replay's.
      learn: `learn(agent, replay_state, key)`, both states after an update, and its loss; the states are donated.
      measure: the same, and what is logged of it.
    """

    init: Callable[[jax.Array], LoopState]
    act: Callable[..., Array]
    play: Callable[..., Array]
    add: Callable[[ReplayState, Step], ReplayState]
    learn: jax.stages.Wrapped
    measure: jax.stages.Wrapped


class Log(NamedTuple):
    """What the loop tells about a stretch of training.

    Attributes:
      agent_steps: steps taken when the last update was dispatched; or at the end.
      updates: updates made.
      epsilon: exploration.
      loss: mean loss of the updates since the last log; None where there was none.
      measured: what the agent measured at the last update; empty in what is left to tell at the end.
      returns: raw returns of the training episodes that ended since the last log.
    """

    agent_steps: int
    updates: int
    epsilon: float
    loss: float | None
    measured: Mapping[str, float]
    returns: Sequence[float]


class Hooks(NamedTuple):
    """What the caller wants to be told, and when; each may raise to stop the loop.

    Attributes:
      on_step: `on_step(agent_steps)`, after every step of the environments.
      on_loss: `on_loss(updates, loss)`, for every update, a step late.
      on_log: `on_log(log)`, at the updates that `Schedule.logged` names; and at the end, if there is more to tell.
      on_state: `on_state(now)`, after every step, before `on_step`; `now()` is what a checkpoint has to hold. It waits
        for the updates, and tells of them.
    """

    on_step: Callable[[int], None]
    on_loss: Callable[[int, float], None]
    on_log: Callable[[Log], None]
    on_state: Callable[[Callable[[], tuple[LoopState, Stretch]]], None] = lambda now: None


def make_functions(
    agent: Agent,
    replay: Replay,
    make_transition: Callable[[Step], Transition],
    importance_exponent: optax.Schedule = lambda updates: 1.0,
) -> Functions:
    """Jit what the loop calls; sampling, transitions, the update and new priorities are one compiled function.

    Args:
      agent: the learner.
      replay: the experience.
      make_transition: one sampled sequence to one transition; `agents.replay.transitions` with its settings bound.
      importance_exponent: how far drawing by priority is corrected for (0 to 1), at a count of updates. Without
        priorities it makes no difference.
    """
    init_agent = jax.jit(agent.init)

    def init(key: jax.Array) -> LoopState:
        return LoopState(init_agent(key), replay.init(), np.zeros([], np.int64))

    def at_step(choose: Callable[..., Array]) -> Callable[..., Array]:
        return jax.jit(
            lambda params, observations, epsilon, key, step: choose(
                params, observations, epsilon, jax.random.fold_in(key, step)
            )
        )

    def updating(update: Callable[..., tuple[Any, ...]]) -> jax.stages.Wrapped:
        """(agent, replay state, key) -> (agent, replay state, loss, and what else the update gives)."""

        def function(state: AgentState, replay_state: ReplayState, key: jax.Array) -> tuple[Any, ...]:
            sample_key, update_key = jax.random.split(jax.random.fold_in(key, state.updates))
            sample = replay.sample(replay_state, sample_key)
            batch = jax.vmap(make_transition)(sample.steps)
            rarity = jnp.where(batch.weight > 0, sample.rarity, 0)
            weight = batch.weight * importance_weights(rarity, importance_exponent(state.updates))
            learned: Learned
            state, learned, *rest = update(state, batch._replace(weight=weight), update_key)
            return state, replay.update(replay_state, sample.index, learned.priorities), learned.loss, *rest

        return jax.jit(function, donate_argnums=(0, 1))

    return Functions(
        init, at_step(agent.act), at_step(agent.play), replay.add, updating(agent.learn), updating(agent.measure)
    )


def train(
    functions: Functions,
    schedule: Schedule,
    state: LoopState,
    environments: Environments,
    *,
    key: jax.Array,
    seed: int,
    steps: int,
    hooks: Hooks,
    begun: Stretch | None = None,
) -> LoopState:
    """Train for a number of agent steps, from fresh episodes in every environment.

    Where a call is gone on with, its first steps are taken again by the environments alone, with the actions of then.

    Args:
      functions: from `make_functions`.
      schedule: when what happens.
      state: where training stands; its arrays are donated, so it must not be used again.
      environments: the environments; they are reset first.
      key: the run's key, the same in every call.
      seed: what the environments are reset with, another one in every call.
      steps: agent steps over all environments, rounded down to a multiple of their number.
      hooks: whom to tell.
      begun: how far an earlier call with the same arguments had come when `state` was saved; None for a new one.

    Returns:
      The state after the last step, all its updates made.
    """
    num_envs = environments.num_envs
    begun = begun or new_stretch(steps, num_envs)
    played, sent, losses = int(begun.steps), np.array(begun.actions), np.array(begun.losses)
    agent, replay_state, saved = state.agent, state.replay, int(state.agent_steps)
    step, taken = 0, saved - played * num_envs
    act_key, learn_key = jax.random.split(key)
    next_update = int(agent.updates) + 1
    updates = schedule.updates_by(taken - num_envs) if played else int(agent.updates)
    waiting: list[tuple[int, Array | None]] = []  # losses on the device that nobody has looked at yet; None: an old one
    logging: dict[int, tuple[int, float, dict[str, Array]]] = {}  # what was measured at some of these updates
    returns: list[float] = []

    def fetch() -> None:
        for update, loss in waiting:
            if loss is not None:
                losses[:] += float(loss), 1
                hooks.on_loss(update, float(loss))
            if update in logging:
                at_step, epsilon, measured = logging.pop(update)
                values = {name: float(value) for name, value in jax.device_get(measured).items()}
                hooks.on_log(Log(at_step, update, epsilon, mean_of(losses), values, tuple(returns)))
                losses[:] = 0
            if schedule.logged(update):
                returns.clear()
        waiting.clear()

    def now() -> tuple[LoopState, Stretch]:
        fetch()
        steps_done = np.asarray(max(step, played), np.int64)
        return LoopState(agent, replay_state, np.asarray(max(taken, saved), np.int64)), Stretch(
            steps_done, sent.copy(), losses.copy()
        )

    # The emulators take a second to start and need no Python for it: the learner is compiled meanwhile.
    with ThreadPoolExecutor(1) as background:
        starting = background.submit(environments.reset, seed)
        first = functions.measure if schedule.logged(next_update) else functions.learn
        first.lower(agent, replay_state, learn_key).compile()
        time_step = starting.result()
    while step < steps // num_envs:
        again = step < played
        epsilon = schedule.epsilon(taken)
        if again:
            actions = sent[step].astype(np.int32)
        else:
            chosen = functions.act(agent.params, time_step.observation, np.float32(epsilon), act_key, np.int64(taken))
            actions = sent[step] = np.asarray(chosen)  # waits for the updates of the last step
        environments.send(actions)
        fetch()
        while updates < schedule.updates_by(taken):
            updates += 1
            loss = None
            if not again and schedule.logged(updates):
                agent, replay_state, loss, measured = functions.measure(agent, replay_state, learn_key)
                logging[updates] = (taken, epsilon, measured)
            elif not again:
                agent, replay_state, loss = functions.learn(agent, replay_state, learn_key)
            waiting.append((updates, loss))
        before, time_step = time_step, environments.recv()
        if not again:
            added = cast(Array, actions)
            replay_state = functions.add(
                replay_state,
                Step(before.observation[:, -1], added, time_step.reward, time_step.discount, before.first),
            )
        step, taken = step + 1, taken + num_envs
        returns.extend(episode.episode_return for episode in time_step.episodes)
        hooks.on_state(now)
        hooks.on_step(taken)
    fetch()
    if losses[1] or returns:
        hooks.on_log(Log(taken, updates, schedule.epsilon(taken), mean_of(losses), {}, tuple(returns)))
    return LoopState(agent, replay_state, np.asarray(taken, np.int64))


def mean_of(losses: np.ndarray) -> float | None:
    """The mean of losses by their sum and count; None without any."""
    return float(losses[0] / losses[1]) if losses[1] else None
