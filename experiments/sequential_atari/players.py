"""Who plays a sequence: in JAX, all seeds compiled together; or on the host, one seed and ale-py's games."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents import compiled, loops
from agents.dqn import AgentState
from agents.evaluation import evaluate
from agents.loops import Functions, Log, LoopState, Schedule, Stretch, new_stretch
from agents.replay import ReplayState
from envs.atari import AtariEnvs
from envs.sequence import Task, Visit
from experiments import atari, harness
from experiments.atari.agent import Span, build, network_of, optimizer_of
from experiments.atari.config import FRAME_SKIP, STACK
from experiments.harness.memory import bytes_of
from experiments.harness.rivals import output_layers
from experiments.harness.seeds import Seeds
from experiments.sequential_atari.config import Config, of_visit
from nap import paths
from nap.interventions.units import reset_entries
from nap.networks import Network

Heads = dict[str, jax.Array]
"""The output layers of all tasks, with a leading axis of tasks, by path; empty where they share one."""


class State(NamedTuple):
    """All that a sequence's run has to remember.

    Attributes:
        loop: of training; in JAX with a leading axis of seeds.
        heads: likewise.
        begun: how far a signal let an iteration come; in JAX None: what it did is lost there.
    """

    loop: LoopState
    heads: Heads
    begun: Stretch | None = None


class Told(Protocol):
    """Whom training tells; see `experiments.sequential_atari`."""

    def on_step(self, agent_steps: int) -> None:
        """After a step, or a stretch of them."""
        ...

    def on_log(self, seed: int, log: Log) -> None:
        """What is logged of a seed, by its place."""
        ...

    def on_evaluation(self, agent_steps: int) -> None:
        """After a step of an evaluation; may raise to stop."""
        ...

    def on_state(self, now: Callable[[], State] | None) -> None:
        """Before `on_step`; may save what `now()` gives, if there is that, and raise to stop."""
        ...


def make_switch(
    config: Config,
    network: Network,
    optimizer: optax.GradientTransformation,
    empty: Callable[[], ReplayState],
) -> Callable[..., tuple[AgentState, ReplayState, Heads]]:
    """What happens to one seed at a switch, as `config` says.

    Returns:
        `switch(agent, replay, heads, leaving, entering)`, with the places of the two tasks.
    """

    def switch(
        agent: AgentState, replay: ReplayState, heads: Heads, leaving: jax.Array, entering: jax.Array
    ) -> tuple[AgentState, ReplayState, Heads]:
        params, opt_state = agent.params, agent.opt_state
        if heads:
            now = paths.leaves(params)
            heads = {path: bank.at[leaving].set(now[path]) for path, bank in heads.items()}
            params = with_head(params, heads, entering)
            masks = paths.map_leaves(lambda path, leaf: jnp.asarray(path in heads), params)
            opt_state = reset_entries(optimizer, opt_state, params, masks)
        target = params if config.target == "copy" else with_head(agent.target_params, heads, entering)
        target = jax.tree.map(jnp.copy, target)
        replay = empty() if config.replay == "clear" else replay
        return AgentState(params, target, opt_state, agent.updates), replay, heads

    return switch


def with_head(params: Any, heads: Heads, place: jax.Array | int) -> Any:
    """The parameters with the output layer of a task."""
    return paths.map_leaves(lambda path, leaf: heads[path][place] if path in heads else leaf, params)


def fresh_heads(config: Config, network: Network, key: jax.Array) -> Heads:
    """An output layer for each task, or none where they share one."""
    if config.head == "shared":
        return {}
    layers = tuple(f"{layer}/" for layer in output_layers(network))
    drawn = jax.vmap(network.init)(jax.random.split(key, len(config.sequence.tasks)))
    return {path: leaf for path, leaf in paths.leaves(drawn).items() if path.startswith(layers)}


class _Made(NamedTuple):
    """What both kinds of players are made of."""

    functions: Functions
    network: Network
    switch: Callable[..., tuple[AgentState, ReplayState, Heads]]


def _make(config: Config, span: Span, num_actions: int, observation: tuple[int, ...]) -> _Made:
    task = config.sequence.tasks[0]
    of_task = of_visit(config, task.game, task.frames)
    network = network_of(of_task, num_actions, observation)
    functions = build(of_task, num_actions, observation, span=span)
    optimizer = optimizer_of(of_task, network, span=span)
    some = jax.random.key(0)
    return _Made(functions, network, make_switch(config, network, optimizer, lambda: functions.init(some).replay))


def shape_in_jax(config: Config) -> tuple[int, tuple[int, ...]]:
    """The number of actions of a sequence's games in JAX, and the shape of an observation."""
    game = config.sequence.tasks[0].make()
    return game.num_actions, (STACK, *game.shape)


def memory_needed(span: Span, num_actions: int, observation: tuple[int, ...], config: Config) -> dict[str, int]:
    """What replay, networks and a batch take of a device's memory at least.

    Games in JAX have those of all seeds that share the device; on a CPU twice, as XLA's loop over the seeds does not
    work in place. And they are evaluated in as many environments as there are episodes.
    """
    made = _make(config, span, num_actions, observation)

    def begin(key: jax.Array) -> tuple[AgentState, ReplayState, Heads]:
        state = made.functions.init(key)
        return state.agent, state.replay, fresh_heads(config, made.network, key)

    agent, replay, heads = jax.eval_shape(begin, jax.random.key(0))
    copies, evaluations = 1, 0
    if config.in_jax:
        seeds, task = Seeds(config.seeds), config.sequence.tasks[0]
        copies = seeds.in_memory * (2 if jax.default_backend() == "cpu" else 1)
        playing = jax.eval_shape(atari.environment_of(task.make()).start, jax.random.key(0))
        evaluations = seeds.at_once * config.evaluation_episodes * bytes_of(playing)
    sequence = (STACK + config.ingredients.n_step) * math.prod(observation[1:])  # one byte a pixel
    return {
        "replay": copies * bytes_of(replay),
        "networks and optimizers": copies * bytes_of((agent, heads)),
        "a batch": config.batch_size * sequence,
        **({"evaluations": evaluations} if config.in_jax else {}),
    }


class InJax:
    """Plays games in JAX with all seeds of a run side by side.

    Attributes:
        functions: the agent's and its replay's, of one seed.
    """

    def __init__(self, config: Config, span: Span) -> None:
        self._config, self._seeds = config, Seeds(config.seeds)
        self._made = _make(config, span, *shape_in_jax(config))
        self.functions = self._made.functions
        self._spread = functools.partial(self._seeds.map, at_once=self._seeds.per_device)
        split = jax.vmap(lambda key: jax.random.split(key, 3))(self._seeds.keys(config.seed))
        self._init_keys, self._train_keys, self._evaluation_keys = split[:, 0], split[:, 1], split[:, 2]
        self._switch = self._spread(lambda _, own, *places: self._made.switch(*own, *places), donate=True)
        self._loops: dict[str, compiled.Loop] = {}

    def params(self, state: State) -> Any:
        """The weights, with a leading axis of seeds."""
        return self._seeds.drop_padding(state.loop.agent.params)

    def init(self) -> State:
        """The state at the beginning, of all seeds."""

        def begin(_: Any, key: jax.Array) -> tuple[AgentState, ReplayState, Heads]:
            state = self._made.functions.init(key)
            return state.agent, state.replay, fresh_heads(self._config, self._made.network, jax.random.fold_in(key, 1))

        agent, replay, heads = self._spread(begin)((), self._init_keys)
        return State(LoopState(agent, replay, np.zeros([], np.int64)), heads)

    def saved(self, state: State) -> Any:
        """What a checkpoint holds: the seeds that were asked for."""
        return self._seeds.drop_padding((*state.loop[:2], state.heads)), state.loop.agent_steps

    def loaded(self, saved: Any, begun: State) -> State:
        """The state that was saved; `begun` is one of `init`."""
        own, steps = saved
        agent, replay, heads = self._seeds.pad(own, (*begun.loop[:2], begun.heads))
        return State(LoopState(agent, replay, steps), heads)

    def switch(self, state: State, leaving: int, entering: int) -> State:
        """The state when the next task begins."""
        own = (*state.loop[:2], state.heads)
        agent, replay, heads = self._switch((), own, np.int32(leaving), np.int32(entering))
        return State(LoopState(agent, replay, state.loop.agent_steps), heads)

    def train(self, state: State, visit: Visit, schedule: Schedule, iteration: int, told: Told) -> State:
        """One iteration."""

        def on_step(agent_steps: int) -> None:
            told.on_state(None)
            told.on_step(agent_steps)

        loop = compiled.train(
            self._loop(visit.task),
            schedule,
            state.loop,
            keys=self._train_keys,
            environment_keys=self._environment_keys(iteration, 0),
            seeds=self._config.seeds,
            steps=self._config.iteration_frames // FRAME_SKIP,
            hooks=compiled.Hooks(on_step, told.on_log),
        )
        return State(loop, state.heads)

    def evaluate(self, state: State, visit: Visit, place: int, iteration: int, told: Told) -> list[list[float]]:
        """The returns in the task at a place, of each seed, when an iteration of a visit is over.

        It is compiled as a whole, so nobody is told of its steps.
        """
        params = state.loop.agent.params
        if state.heads and place != visit.place:
            params = self._spread(lambda _, own, place: with_head(own[0], own[1], place))(
                (), (params, state.heads), np.int32(place)
            )
        keys = jax.vmap(lambda key: jax.random.fold_in(key, iteration))(self._evaluation_keys)
        own = params, keys, self._environment_keys(iteration, 1 + place)
        found = self._loop(self._config.sequence.tasks[place]).evaluate(
            (), own, np.float32(self._config.evaluation_epsilon)
        )
        return np.asarray(found)[: self._config.seeds].tolist()

    def _environment_keys(self, iteration: int, stream: int) -> jax.Array:
        """Stream 0 is training's, and 1 + place that of an evaluation on the task at a place."""
        seeds = range(self._config.seed, self._config.seed + self._seeds.padded)
        return self._seeds.divided(
            jnp.stack([jax.random.key(atari.environment_seed(seed, iteration, stream)) for seed in seeds])
        )

    def _loop(self, task: Task) -> compiled.Loop:
        """The compiled functions of a task; those of training do not depend on the visit."""
        if task.name not in self._loops:
            config = self._config
            self._loops[task.name] = compiled.make_loop(
                self._made.functions,
                atari.environment_of(task.make()),
                num_envs=config.num_envs,
                update_period=config.update_period,
                log_every=config.log_every,
                evaluation_envs=config.evaluation_episodes,
                spread=self._spread,
            )
        return self._loops[task.name]


class OnTheHost:
    """Plays ale-py's games with one seed.

    Every game is loaded once beforehand, so that one that can't be ends the run before it has begun.

    Attributes:
        shape: the number of actions, and the shape of an observation.
    """

    def __init__(self, config: Config, span: Span) -> None:
        self._config = config
        shapes = []
        for task in dict.fromkeys(config.sequence.tasks):
            try:
                with contextlib.closing(self._environments(task)) as environments:
                    shapes.append((environments.num_actions, environments.observation_shape))
            except RuntimeError as error:
                raise harness.UserError(f"--tasks: {task.name} can't be loaded: {error}") from None
        self.shape = shapes[0]
        self._made = _make(config, span, *self.shape)
        self._init_key, self._train_key, self._evaluation_key = jax.random.split(jax.random.key(config.seed), 3)
        self._switch = jax.jit(self._made.switch, donate_argnums=(0, 1, 2))

    def init(self) -> State:
        """The state at the beginning."""
        heads = fresh_heads(self._config, self._made.network, jax.random.fold_in(self._init_key, 1))
        return State(self._made.functions.init(self._init_key), heads, self._new_stretch())

    def params(self, state: State) -> Any:
        """The weights, with a leading axis of seeds: of one."""
        return jax.tree.map(lambda leaf: leaf[None], state.loop.agent.params)

    def saved(self, state: State) -> Any:
        """What a checkpoint holds."""
        return state

    def loaded(self, saved: Any, begun: State) -> State:
        """The state that was saved."""
        return saved

    def switch(self, state: State, leaving: int, entering: int) -> State:
        """The state when the next task begins."""
        agent, replay, heads = self._switch(*state.loop[:2], state.heads, leaving, entering)
        return State(LoopState(agent, replay, state.loop.agent_steps), heads, self._new_stretch())

    def train(self, state: State, visit: Visit, schedule: Schedule, iteration: int, told: Told) -> State:
        """One iteration, or what is left of it."""

        def on_state(now: Callable[[], tuple[LoopState, Stretch]]) -> None:
            def all_now() -> State:
                loop, begun = now()
                return State(loop, state.heads, begun)

            told.on_state(all_now)

        with contextlib.closing(self._environments(visit.task)) as environments:
            loop = loops.train(
                self._made.functions,
                schedule,
                state.loop,
                environments,
                key=self._train_key,
                seed=atari.environment_seed(self._config.seed, iteration, 0),
                steps=self._config.iteration_frames // FRAME_SKIP,
                hooks=loops.Hooks(told.on_step, lambda updates, loss: None, lambda log: told.on_log(0, log), on_state),
                begun=state.begun,
            )
        return State(loop, state.heads, self._new_stretch())

    def evaluate(self, state: State, visit: Visit, place: int, iteration: int, told: Told) -> list[list[float]]:
        """The returns in the task at a place when an iteration of a visit is over, as those of the one seed."""
        params = state.loop.agent.params
        if state.heads and place != visit.place:
            params = with_head(params, state.heads, place)
        with contextlib.closing(self._environments(self._config.sequence.tasks[place])) as environments:
            returns = evaluate(
                self._made.functions,
                params,
                environments,
                epsilon=self._config.evaluation_epsilon,
                key=jax.random.fold_in(self._evaluation_key, iteration),
                seed=atari.environment_seed(self._config.seed, iteration, 1 + place),
                episodes=0 if self._config.evaluation_frames else self._config.evaluation_episodes,
                steps=self._config.evaluation_frames // FRAME_SKIP,
                on_step=told.on_evaluation,
            )
        return [returns]

    def _new_stretch(self) -> Stretch:
        return new_stretch(self._config.iteration_frames // FRAME_SKIP, self._config.num_envs)

    def _environments(self, task: Task) -> AtariEnvs:
        config = self._config
        assert config.environment is not None, "resolve(config) fills it in"
        return AtariEnvs(
            task.game,
            protocol=config.environment,
            num_envs=config.num_envs,
            seed=config.seed,
            mode=task.mode,
            difficulty=task.difficulty,
        )
