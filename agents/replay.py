"""Experience replay: a ring of single frames on the device, and the n-step transitions made from it.

A stored step holds only the newest frame of its observation: 7 kB, where two stacks take 56. flashbax keeps the ring
and draws sequences of steps, uniformly (`agents.prioritized` draws by priority); `transitions` turns one sequence into
what a Q-learner wants:

    replay = make_replay(100_000, num_envs=8, batch_size=32, n_step=3)
    state = replay.init()
    state = replay.add(state, step)  # `step` has a leading axis of num_envs; the old `state` is donated
    make = functools.partial(transitions, stack=4, n_step=3, gamma=0.99, clip_reward=True)
    batch = jax.vmap(make)(replay.sample(state, key).steps)

How the ends of episodes are told apart, for step t of one environment:

    discount_t == 0                   terminated, or a life was lost: nothing to bootstrap from
    discount_t == 1 and first_{t+1}   truncated: the episode could have gone on, but its next observation is not stored
    first_{t+1}                       frames up to t never show in a stack from t+1 on

An environment that is made anew in the middle of an episode looks like a truncation, which it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flashbax
import jax
import jax.numpy as jnp
from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

Ring = TrajectoryBufferState
"""The steps, as `Step` of [num_envs, capacity / num_envs, ...], where the next one goes, and whether it is full."""

ReplayState = Any
"""All that a replay holds, a pytree: a `Ring`, or what has one."""


class Step(NamedTuple):
    """One agent step: o_t and what followed. Leading axes: environments when added, batch and time when sampled."""

    frame: UInt8[Array, "..."]
    """The newest frame of the observation o_t, [*batch, *frame_shape]."""
    action: Int[Array, "*batch"]
    """a_t, int32, taken in o_t."""
    reward: Float[Array, "*batch"]
    """The reward that a_t earned, float32, as the game gave it (not clipped)."""
    discount: Float[Array, "*batch"]
    """float32: 0 if a_t ended the episode or cost a life, else 1. 1 at a truncation."""
    first: Bool[Array, "*batch"]
    """Whether o_t is the first observation of an episode."""


class Transition(NamedTuple):
    """What a Q-learner takes from replay.

    A stack has the layout of ALE's own observations: frames on the leading axis, the oldest first. To move them to the
    last axis here costs two thirds of the sampling again; a network does it for nothing as it makes floats of them.
    """

    s_tm1: UInt8[Array, "..."]
    """The observation, [*batch, stack, *frame_shape]."""
    a_tm1: Int[Array, "*batch"]
    r_t: Float[Array, "*batch"]
    """Sum of up to n discounted rewards."""
    discount_t: Float[Array, "*batch"]
    """gamma^k after k steps, 0 after a termination or a lost life."""
    s_t: UInt8[Array, "..."]
    """The observation k steps on. Arbitrary where `discount_t` is 0."""
    weight: Float[Array, "*batch"]
    """1, or 0 for a sample that must not count: its own step was truncated and has no successor."""


class Sample(NamedTuple):
    """Sequences of steps drawn from replay."""

    steps: Step
    """[batch_size, stack + n_step, ...]: consecutive steps of one environment."""
    index: Int[Array, " batch"]
    """What the drawn transitions are called in `Replay.update`."""
    rarity: Float[Array, " batch"]
    """The probability of a uniform draw / the probability that each was drawn with: 1 in a uniform replay."""


class Replay(NamedTuple):
    """Pure functions over a `ReplayState`, all jitted; usable from Python and inside `jit` or `lax.scan`.

    The state is a pytree of arrays, and is saved and restored as such.
    """

    init: Callable[[], ReplayState]
    """() -> an empty ring, all zeros."""
    add: Callable[[ReplayState, Step], ReplayState]
    """(state, Step of [num_envs, ...]) -> state. Donates its state: without that, each call copies the whole ring."""
    sample: Callable[[ReplayState, Key[Array, ""]], Sample]
    """(state, key) -> a `Sample`, drawn with replacement from all runs of stack + n_step consecutive steps of one
    environment. Meaningless before `can_sample`."""
    update: Callable[[ReplayState, Int[Array, " batch"], Float[Array, " batch"]], ReplayState]
    """(state, index, priority) -> state in which the drawn transitions have these priorities (0 or more). A uniform
    replay has none, and returns its state."""
    can_sample: Callable[[ReplayState], Bool[Array, ""]]
    """state -> whether each environment has stored stack + n_step steps."""
    size: Callable[[ReplayState], Int[Array, ""]]
    """state -> steps stored, over all environments."""
    capacity: int
    """Steps that fit, over all environments: what was asked for, rounded down to a multiple of num_envs."""
    bytes_per_step: int
    """Device memory that one of them takes."""


def _empty_step(frame_shape: tuple[int, ...]) -> Step:
    """A step of zeros, which has the shapes and types that a stored one must have."""
    return Step(
        frame=jnp.zeros(frame_shape, jnp.uint8),
        action=jnp.zeros((), jnp.int32),
        reward=jnp.zeros((), jnp.float32),
        discount=jnp.zeros((), jnp.float32),
        first=jnp.zeros((), jnp.bool_),
    )


def replay_bytes(capacity: int, frame_shape: tuple[int, ...] = (84, 84)) -> int:
    """Device memory in bytes for a replay of `capacity` steps: 7,069 a step for Atari, 7.07 GB for a million."""
    step = jax.eval_shape(lambda: _empty_step(frame_shape))
    return capacity * sum(leaf.size * leaf.dtype.itemsize for leaf in step)


def make_replay(
    capacity: int,
    num_envs: int,
    batch_size: int,
    stack: int = 4,
    n_step: int = 1,
    frame_shape: tuple[int, ...] = (84, 84),
) -> Replay:
    """Makes a uniform replay of single frames, one ring for each environment, all of them written in step.

    A sampled sequence never runs over the point where new steps are written. So the oldest `stack - 1` and the newest
    `n_step` steps of each ring are only context: no transition starts there.

    Args:
        capacity: steps to hold over all environments (agent steps, not frames of the emulator).
        num_envs: environments that are added together.
        batch_size: sequences that one `sample` draws.
        stack: frames in an observation.
        n_step: rewards in a return.
        frame_shape: of a frame: height and width, after the number of planes if it has several.

    Returns:
        A `Replay`.

    Raises:
        ValueError: an argument is below 1, or `capacity` holds less than one sequence for each environment. `add`
            raises it for a step of other shapes or types than the replay's.
    """
    ring = make_ring(capacity, num_envs, batch_size, stack, n_step, frame_shape)

    def sample(state: Ring, key: Key[Array, ""]) -> Sample:
        # Uniform draws need no names: nobody gives them priorities.
        return Sample(ring.draw(state, key), jnp.zeros(batch_size, jnp.int32), jnp.ones(batch_size))

    return Replay(
        init=jax.jit(ring.init),
        add=jax.jit(ring.add, donate_argnums=0),
        sample=jax.jit(sample),
        update=lambda state, index, priority: state,
        can_sample=jax.jit(ring.can_sample),
        size=jax.jit(ring.size),
        capacity=ring.length * num_envs,
        bytes_per_step=replay_bytes(1, frame_shape),
    )


class RingFunctions(NamedTuple):
    """What a replay is made from: pure functions over a `Ring`, none of them jitted.

    Attributes:
        init: an empty ring, all zeros.
        add: (ring, Step of [num_envs, ...]) -> ring; ValueError for a step of other shapes or types.
        draw: (ring, key) -> Step of [batch_size, stack + n_step, ...], drawn uniformly.
        can_sample: whether each environment has stored stack + n_step steps.
        size: steps stored, over all environments.
        length: steps that fit, of each environment.
    """

    init: Callable[[], Ring]
    add: Callable[[Ring, Step], Ring]
    draw: Callable[[Ring, Key[Array, ""]], Step]
    can_sample: Callable[[Ring], Bool[Array, ""]]
    size: Callable[[Ring], Int[Array, ""]]
    length: int


def make_ring(
    capacity: int, num_envs: int, batch_size: int, stack: int, n_step: int, frame_shape: tuple[int, ...]
) -> RingFunctions:
    """The ring of a replay; the arguments and errors are those of `make_replay`."""
    for name, value in (("num_envs", num_envs), ("batch_size", batch_size), ("stack", stack), ("n_step", n_step)):
        if value < 1:
            raise ValueError(f"replay: {name} is {value}, must be at least 1")
    # The frames of the first stack, then n more: s_tm1 ends at index stack - 1, and s_t at index stack - 1 + n_step.
    sequence_length = stack + n_step
    time_length = capacity // num_envs
    if time_length < sequence_length:
        raise ValueError(
            f"replay: capacity is {capacity}, must be at least {num_envs * sequence_length}: "
            f"num_envs ({num_envs}) x (stack ({stack}) + n_step ({n_step}))"
        )
    buffer = flashbax.make_trajectory_buffer(
        add_batch_size=num_envs,
        sample_batch_size=batch_size,
        sample_sequence_length=sequence_length,
        period=1,
        min_length_time_axis=sequence_length,
        max_length_time_axis=time_length,
    )
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((num_envs, *leaf.shape), leaf.dtype),
        jax.eval_shape(lambda: _empty_step(frame_shape)),
    )

    def init() -> Ring:
        # flashbax leaves the rows uninitialised, and its index weakly typed: a restored state would compile anew. With
        # zeros and plain types, equal runs have equal states, on disk too.
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), buffer.init(_empty_step(frame_shape)))

    def add(state: Ring, step: Step) -> Ring:
        for name, leaf, want in zip(Step._fields, step, wanted, strict=True):
            # Else a frame of another shape could be broadcast into the ring without a word.
            if (leaf.shape, leaf.dtype) != (want.shape, want.dtype):
                raise ValueError(
                    f"replay: {name} is {leaf.dtype} {list(leaf.shape)}, must be {want.dtype} {list(want.shape)}"
                )
        return buffer.add(state, jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 1), step))

    def draw(state: Ring, key: Key[Array, ""]) -> Step:
        return buffer.sample(state, key).experience

    def size(state: Ring) -> Int[Array, ""]:
        return num_envs * jnp.where(state.is_full, time_length, state.current_index)

    return RingFunctions(init, add, draw, buffer.can_sample, size, time_length)


def transitions(sequence: Step, *, stack: int, n_step: int, gamma: float, clip_reward: bool) -> Transition:
    """The n-step transition from one sampled sequence. A pure function of one sample: `jax.vmap` it over a batch.

    With k = n_step, or fewer where the episode is truncated before that: `r_t` is the sum over i < k of gamma^i times
    the i-th reward, `discount_t` is gamma^k, and `s_t` the observation k steps on: at a truncation the last one stored
    of that episode. After a step with discount 0 nothing more is added, and `discount_t` is 0. Frames from before an
    episode's start are zeros in a stack, as ALE pads them; a stack goes on through a lost life.

    Args:
        sequence: `stack + n_step` consecutive steps of one environment; the transition starts at index `stack - 1`.
        stack: frames in an observation.
        n_step: rewards in a return, at most.
        gamma: the discount of one step.
        clip_reward: whether each reward is clipped to [-1, 1] before it is summed (Mnih et al. 2015).

    Returns:
        A `Transition` without batch axes.

    Raises:
        ValueError: the sequence has another length than `stack + n_step`.

    Source: Sutton and Barto, second edition, section 7.1; gamma^n, not gamma, weights the bootstrap value.
    """
    length = stack + n_step
    if sequence.frame.shape[0] != length:
        raise ValueError(
            f"transitions: the sequence has {sequence.frame.shape[0]} steps, must have {length}: "
            f"stack ({stack}) + n_step ({n_step})"
        )
    now = stack - 1
    reward = sequence.reward[now : now + n_step]
    if clip_reward:
        reward = jnp.clip(reward, -1.0, 1.0)
    alive = sequence.discount[now : now + n_step]
    truncated = sequence.first[now + 1 :] & (alive > 0)
    # A truncated step has a reward but no stored successor, so the return ends before it.
    used = jnp.cumprod(~truncated)
    steps = used.sum()
    discount = jnp.where(used, gamma * alive, 1.0)
    discount_before = jnp.concatenate([jnp.ones(1), jnp.cumprod(discount[:-1])])

    index = jnp.arange(length)

    def stack_at(end: Int[Array, ""] | int) -> UInt8[Array, "stack *frame"]:
        """The frames up to index `end`; `take` fills in zeros for those that an index out of range stands for."""
        episode_start = jnp.where(sequence.first & (index <= end), index, 0).max()
        window = end - now + jnp.arange(stack)
        window = jnp.where(window >= episode_start, window, length)
        return jnp.take(sequence.frame, window, axis=0, mode="fill", fill_value=0)

    return Transition(
        s_tm1=stack_at(now),
        a_tm1=sequence.action[now],
        r_t=(used * discount_before * reward).sum(),
        discount_t=discount.prod(),
        s_t=stack_at(now + steps),
        weight=(steps > 0).astype(jnp.float32),
    )
