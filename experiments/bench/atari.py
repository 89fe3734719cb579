"""What DQN and Rainbow on Atari cost: the update, its logging, the loop, the replay, and the start.

Everything is the product's own code at the default configuration of `atari`, or at its preset `rainbow`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agents.dqn import Agent, AgentState
from agents.loops import Hooks, LoopState, Schedule, train
from agents.replay import ReplayState, Step, Transition, make_replay, transitions
from envs.atari import PROTOCOLS, AtariEnvs, TimeStep
from experiments import harness
from experiments.atari import Config
from experiments.atari.agent import build, make_learner
from experiments.atari.config import PRESETS
from experiments.harness.methods import NapConfig, OptimizerConfig
from experiments.harness.timing import Goal, MatrixProduct, Row, interleaved, rates, scaled
from nap.linear_maps import convolve, multiply
from nap.networks import Network, as_functions

ACTIONS = 6  # Pong's
UPDATES = 10  # in a row, in each repeat
REPLAY_CALLS = 50  # likewise
LOGS = 3  # likewise
VECTOR_STEPS = 48  # of the whole loop, in each repeat
START_UP_SECONDS = 3.0


def flops(repeats: int) -> Iterator[Row]:
    """How fast updates without normalization compute, by XLA's count of their FLOP, against a product of matrices."""
    batch, product = random_batch(Config().batch_size), MatrixProduct()
    rainbow_goal = Goal(0.60, at_least=True)
    for name, config, goal in (("DQN", Config(method="none"), None), ("Rainbow", PRESETS["rainbow"], rainbow_goal)):
        agent = learner(config)
        state = jax.eval_shape(agent.init, jax.random.key(0))
        counted = jax.jit(agent.learn).lower(state, batch, jax.random.key(1)).compile().cost_analysis() or {}
        size = counted.get("flops", math.nan)
        times = interleaved({"update": updates_of(agent, batch), "product": product}, repeats=repeats, calls=UPDATES)
        yield Row(
            f"{name} update, {size / 1e9:.2f} GFLOP, vs the matmul peak",
            "GFLOP/s",
            rates(times["update"], size / 1e9),
            rates(times["product"], product.flops / 1e9),
            goal,
        )


def projection(repeats: int) -> Iterator[Row]:
    """An update with projection against the same without."""
    sides = {method: learner(Config(method=method)) for method in ("layernorm", "nap")}
    times = _updates(sides, repeats)
    yield Row("update: projection, vs without", "ms", times["nap"], times["layernorm"], Goal(1.03))


def normalization(repeats: int) -> Iterator[Row]:
    """An update with each of the normalizations, none projected, against the plain network's.

    Without gradient clipping: on XLA's CPU backend that costs the plain network 10 ms in 64 and the normalized one
    nothing, which would flatter the normalization.
    """
    plain = Config(method="none", optimizer=OptimizerConfig(clip=0))
    layer = dataclasses.replace(plain, method="layernorm")
    sides = {
        "plain": learner(plain),
        "LayerNorm": learner(layer),
        "RMSNorm": learner(dataclasses.replace(layer, nap=NapConfig(norm="rms"))),
        "LayerNorm, --norm-axes all": learner(dataclasses.replace(layer, norm_axes="all")),
        "Flax's own LayerNorm": learner(layer, as_functions(_FlaxNatureCNN)),
    }
    times = _updates(sides, repeats)
    for name in list(sides)[1:]:
        goal = Goal(1.06) if name == "LayerNorm" else None
        yield Row(f"update: {name}, vs no norm", "ms", times[name], times["plain"], goal)


def rainbow(repeats: int) -> Iterator[Row]:
    """An update of Rainbow with normalization and projection, and without one of its parts, against the plain one's."""
    plain = PRESETS["rainbow"]
    changes: dict[str, dict[str, Any]] = {
        "with LayerNorm and projection": {"method": "nap"},
        "with LayerNorm alone": {"method": "layernorm"},
        "without noise": {"no_noisy": True},
        "without clipping": {"optimizer": dataclasses.replace(plain.optimizer, clip=0)},
        "in bfloat16": {"dtype": "bfloat16"},
        "with the IMPALA torso": {"torso": "impala"},
    }
    sides = {"plain": learner(plain)}
    sides |= {name: learner(dataclasses.replace(plain, **change)) for name, change in changes.items()}
    times = _updates(sides, repeats)
    for name in changes:
        goal = Goal(1.10) if name == "with LayerNorm and projection" else None
        yield Row(f"Rainbow update: {name}, vs plain", "ms", times[name], times["plain"], goal)


def products(repeats: int) -> Iterator[Row]:
    """The products of `nap.linear_maps` at a Q-network's sizes, and their gradients, against XLA's own."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (32, 3136)), jax.random.normal(keys[1], (3136, 512))
    features, weights = x.reshape(32, 7, 7, 64), jax.random.normal(keys[1], (3, 3, 64, 64))
    pairs: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], jax.Array, jax.Array]] = {
        "32 rows, a kernel of 3136 x 512": (multiply, jnp.matmul, x, kernel),
        "a 3 x 3 convolution of 32 x 7 x 7 x 64": (convolve, _convolution_of_xla, features, weights),
    }
    for what, (ours, theirs, *operands) in pairs.items():
        sides = {}
        for name, function in (("ours", ours), ("XLA's", theirs)):
            sides[name] = functools.partial(jax.jit(function), *operands)
            gradients = jax.grad(lambda *at, function=function: jnp.sum(function(*at) ** 2), (0, 1))
            sides[f"{name}, gradients"] = functools.partial(jax.jit(gradients), *operands)
        times = {name: scaled(t, 1e3) for name, t in interleaved(sides, repeats=repeats, calls=UPDATES).items()}
        yield Row(f"product: {what}, vs XLA's own", "ms", times["ours"], times["XLA's"])
        yield Row("  and its gradients", "ms", times["ours, gradients"], times["XLA's, gradients"])


def logging(repeats: int) -> Iterator[Row]:
    """Updates of which one in `log_every` is measured, fetched and recorded, against updates of which none is.

    Computed: what a logged update takes beyond a plain one, spread over `log_every` updates.
    """
    config = Config()
    agent, batch = learner(config), random_batch(config.batch_size)
    measure, key = jax.jit(agent.measure, donate_argnums=0), jax.random.key(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        harness.open_run("bench", config, harness.RunOptions(out=Path(folder))) as opened,
    ):
        _, state = opened.restore(jax.jit(agent.init)(jax.random.key(0)))

        def measure_and_record() -> None:
            nonlocal state
            state, _, measured = measure(state, batch, key)
            opened.record({"phase": "train", "updates": int(state.updates), **jax.device_get(measured)})

        sides = {"plain": updates_of(agent, batch), "logged": measure_and_record}
        times = interleaved(sides, repeats=repeats, calls=LOGS)
    plain, logged = (scaled(times[name], 1e3) for name in ("plain", "logged"))
    spread = tuple(p + (m - p) / config.log_every for p, m in zip(plain, logged, strict=True))
    yield Row(f"update: logging one in {config.log_every}, vs none", "ms", spread, plain, Goal(1.02))
    yield Row("  one logged update, vs a plain one", "ms", logged, plain)


def loop(repeats: int) -> Iterator[Row]:
    """The whole loop on ALE against its bare updates, which are all that has to take time."""
    environments = AtariEnvs("pong", protocol=PROTOCOLS["machado"], num_envs=Config().num_envs, seed=0)
    steps = VECTOR_STEPS * environments.num_envs
    try:
        rainbow = dataclasses.replace(PRESETS["rainbow"], method="nap", num_envs=environments.num_envs)
        for name, config in (("DQN", Config()), ("DQN", Config(method="none")), ("Rainbow", rainbow)):
            config = dataclasses.replace(config, replay_capacity=20_000)
            agent, batch = learner(config), random_batch(config.batch_size)
            sides = {
                "loop": training_of(config, environments, steps),
                "bare": repeated(updates_of(agent, batch), steps // config.update_period),
            }
            times = interleaved(sides, repeats=repeats)
            ours, limit = rates(times["loop"], steps), rates(times["bare"], steps)
            what = f"{name} loop, {config.method}, vs its updates alone"
            yield Row(what, "agent steps/s", ours, limit, Goal(0.85 if name == "Rainbow" else 0.80, at_least=True))
        times = interleaved({"step": functools.partial(_act_at_random, environments)}, repeats=repeats)
        yield Row("  the environments alone", "agent steps/s", rates(times["step"], steps))
    finally:
        environments.close()


def replay(repeats: int) -> Iterator[Row]:
    """Our replay against the bare flashbax buffer in it, 100,000 steps, stack 4, 3-step returns."""
    num_envs, stack, n_step, batch_size, capacity = 8, 4, 3, 32, 100_000
    ours = make_replay(capacity, num_envs, batch_size, stack, n_step)
    bare = flashbax.make_trajectory_buffer(
        add_batch_size=num_envs,
        sample_batch_size=batch_size,
        sample_sequence_length=stack + n_step,
        period=1,
        min_length_time_axis=stack + n_step,
        max_length_time_axis=capacity // num_envs,
    )
    one = functools.partial(transitions, stack=stack, n_step=n_step, gamma=0.99, clip_reward=True)
    bare_add = jax.jit(bare.add, donate_argnums=0)
    bare_sample = jax.jit(lambda state, key: bare.sample(state, key).experience)
    sample_transitions = jax.jit(lambda state, key: jax.vmap(one)(ours.sample(state, key).steps))
    step: Step = jax.tree.map(
        np.asarray,  # on the host, as environments give it
        Step(
            frame=jax.random.bits(jax.random.key(0), (num_envs, 84, 84), jnp.uint8),
            action=jnp.zeros(num_envs, jnp.int32),
            reward=jnp.ones(num_envs),
            discount=jnp.ones(num_envs),
            first=jnp.zeros(num_envs, bool),
        ),
    )
    bare_step = jax.tree.map(lambda leaf: leaf[:, None], step)
    key = jax.random.key(0)
    rings = {name: dataclasses.replace(ours.init(), is_full=jnp.array(True)) for name in ("ours", "bare")}

    def add(name: str, function: Callable[[ReplayState, Step], ReplayState], added: Step) -> ReplayState:
        rings[name] = function(rings[name], added)
        return rings[name]

    sides = {
        "add": lambda: add("ours", ours.add, step),
        "bare add": lambda: add("bare", bare_add, bare_step),
        "sample": lambda: ours.sample(rings["ours"], key),
        "bare sample": lambda: bare_sample(rings["bare"], key),
        "transitions": lambda: sample_transitions(rings["ours"], key),
    }
    times = {name: scaled(t, 1e6) for name, t in interleaved(sides, repeats=repeats, calls=REPLAY_CALLS).items()}
    yield Row("replay: add, vs flashbax", "µs", times["add"], times["bare add"], Goal(1.10))
    yield Row("replay: sample, vs flashbax", "µs", times["sample"], times["bare sample"], Goal(1.10))
    what = "  sample and make transitions, vs its sample"
    yield Row(what, "µs", times["transitions"], times["bare sample"])


def start_up(repeats: int) -> Iterator[Row]:
    """From the command to the record of its first update, with and without compiled programs from an earlier run."""
    with tempfile.TemporaryDirectory() as cache:
        cold = _seconds_to_first_update(cache)
        warm = tuple(_seconds_to_first_update(cache) for _ in range(repeats))
    goal = (START_UP_SECONDS,) * repeats
    yield Row("start-up: to the first update, compiled before", "s", warm, goal, Goal(1.0))
    yield Row("  the same, nothing compiled (once)", "s", (cold,), (statistics.median(warm),))


def learner(config: Config, network: Network | None = None) -> Agent:
    """The agent that `atari` would train, or one of another network."""
    return make_learner(config, ACTIONS, (4, 84, 84), network)


def random_batch(size: int) -> Transition:
    """A batch of noise, resident on the device."""
    old, new, actions, rewards = jax.random.split(jax.random.key(0), 4)
    frames = (size, 4, 84, 84)
    return Transition(
        s_tm1=jax.random.bits(old, frames, jnp.uint8),
        a_tm1=jax.random.randint(actions, (size,), 0, ACTIONS),
        r_t=jax.random.normal(rewards, (size,)),
        discount_t=jnp.full(size, 0.99),
        s_t=jax.random.bits(new, frames, jnp.uint8),
        weight=jnp.ones(size),
    )


def updates_of(agent: Agent, batch: Transition) -> Callable[[], AgentState]:
    """A function that makes one more update of a fresh agent, always on the same batch."""
    learn = jax.jit(agent.learn, donate_argnums=0)
    state, key = jax.jit(agent.init)(jax.random.key(0)), jax.random.key(1)  # random numbers cost the same with any

    def update() -> AgentState:
        nonlocal state
        state, _ = learn(state, batch, key)
        return state

    return update


def repeated(call: Callable[[], AgentState], times: int) -> Callable[[], AgentState]:
    """A function that calls another several times and waits for none of them."""
    return lambda: [call() for _ in range(times)][-1]


def training_of(config: Config, environments: AtariEnvs, steps: int) -> Callable[[], AgentState]:
    """A function that trains for so many agent steps; those before the first update are taken here."""
    functions = build(config, environments.num_actions, environments.observation_shape)
    schedule = Schedule(config.update_period, steps, config.log_every, lambda _: config.epsilon_end)
    hooks = Hooks(on_step=lambda _: None, on_loss=lambda *_: None, on_log=lambda _: None)
    init_key, train_key = jax.random.split(jax.random.key(0))
    running = _Running(environments)

    def go_on(state: LoopState) -> LoopState:
        return train(functions, schedule, state, running, key=train_key, seed=0, steps=steps, hooks=hooks)

    state = go_on(functions.init(init_key))

    def train_on() -> AgentState:
        nonlocal state
        state = go_on(state)
        return state.agent

    return train_on


class _Running:
    """Environments that are reset once: a real run steps them for minutes between two resets, which take a second."""

    def __init__(self, environments: AtariEnvs) -> None:
        self.num_envs, self.send = environments.num_envs, environments.send
        self._environments, self._now = environments, environments.reset()

    def reset(self, seed: int) -> TimeStep:
        return self._now

    def recv(self) -> TimeStep:
        self._now = self._environments.recv()
        return self._now


def _convolution_of_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class _FlaxNatureCNN(nnx.Module):
    """The Nature CNN as one would write it with Flax's own layers, the yardstick of ours."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.Sequential(
            *self._conv(4, 32, 8, 4, rngs),
            *self._conv(32, 64, 4, 2, rngs),
            *self._conv(64, 64, 3, 1, rngs),
            lambda x: x.reshape(x.shape[0], -1),
            nnx.Linear(7 * 7 * 64, 512, use_bias=False, rngs=rngs),
            nnx.LayerNorm(512, rngs=rngs),
            nnx.relu,
            nnx.Linear(512, ACTIONS, rngs=rngs),
        )

    @staticmethod
    def _conv(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> tuple[Callable[..., Any], ...]:
        conv = nnx.Conv(inputs, outputs, (size, size), strides=stride, padding="VALID", use_bias=False, rngs=rngs)
        return conv, nnx.LayerNorm(outputs, rngs=rngs), nnx.relu

    def __call__(self, frames: jax.Array) -> jax.Array:
        return self.layers(jnp.moveaxis(frames, 1, -1).astype(jnp.float32) / 255)

    def with_activations(self, frames: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self(frames), {}


def _updates(agents: dict[str, Agent], repeats: int) -> dict[str, tuple[float, ...]]:
    """Milliseconds of an update of each agent."""
    batch = random_batch(Config().batch_size)
    sides = {name: updates_of(agent, batch) for name, agent in agents.items()}
    times = interleaved(sides, repeats=repeats, calls=UPDATES)
    return {name: scaled(seconds, 1e3) for name, seconds in times.items()}


def _act_at_random(environments: AtariEnvs) -> None:
    rng = np.random.default_rng(0)
    for _ in range(VECTOR_STEPS):
        environments.step(rng.integers(0, environments.num_actions, environments.num_envs))


def _seconds_to_first_update(cache: str) -> float:
    """Runs `atari` with that compilation cache until it has recorded its first update."""
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        sizes = ("--frames", "3200", "--iteration-frames", "3200", "--min-replay-frames", "256")
        command = (sys.executable, "-m", "experiments", "atari", "--preset", "demo", *sizes, "--out", out)
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        root = Path(__file__).resolve().parents[2]
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=said, stderr=said)
        try:
            while not any(path.stat().st_size for path in Path(out).glob("atari/*/metrics.jsonl")):
                if process.poll() is not None:
                    said.seek(0)
                    raise harness.RunStopped(f"{' '.join(command)} ended before its first update: {said.read()[-500:]}")
                time.sleep(0.01)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
