"""Prioritized experience replay (Schaul et al., 2016), as DQN Zoo's Rainbow has it.

The ring is that of `agents.replay`. Beside it stands a sum tree over its rows: a row's leaf holds priority^exponent of
the transition that starts there, or 0 where none does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from agents.replay import Replay, Ring, Sample, Step, make_ring, replay_bytes
from agents.sum_tree import Tree, draw, leaves_for, make_tree, set_leaves


class PrioritizedState(NamedTuple):
    """What a prioritized replay holds.

    Attributes:
        ring: the steps.
        tree: the sum tree over the rows of all environments, the first environment's rows first.
        largest: the largest priority seen so far, which new transitions get; at least 1.
    """

    ring: Ring
    tree: Tree
    largest: Float[Array, ""]


def make_prioritized_replay(
    capacity: int,
    num_envs: int,
    batch_size: int,
    stack: int = 4,
    n_step: int = 1,
    frame_shape: tuple[int, ...] = (84, 84),
    *,
    exponent: float = 0.5,
    uniform_probability: float = 1e-3,
) -> Replay:
    """Makes a replay of single frames that draws by priority.

    A transition is drawn with probability (1 - u) p^e / sum(p^e) + u / N, where u is `uniform_probability`, e is
    `exponent`, and N counts the transitions in the ring. A new one has the largest priority seen so far. The rows that
    are only context (see `agents.replay.make_replay`) have priority 0, and so has whatever `update` gives it. Where all
    have it, draws are uniform.

    Args:
        capacity: steps to hold over all environments.
        num_envs: environments that are added together.
        batch_size: sequences that one `sample` draws.
        stack: frames in an observation.
        n_step: rewards in a return.
        frame_shape: of a frame: height and width, after the number of planes if it has several.
        exponent: how much priorities count: 0 not at all, 1 fully.
        uniform_probability: share of the draws that is uniform.

    Returns:
        A `Replay`, whose state is a `PrioritizedState`.

    Raises:
        ValueError: as `agents.replay.make_replay`, or an `exponent` or `uniform_probability` out of 0 to 1.
    """
    for name, value in (("exponent", exponent), ("uniform_probability", uniform_probability)):
        if not 0 <= value <= 1:
            raise ValueError(f"replay: {name} is {value}, must lie in 0 to 1")
    ring = make_ring(capacity, num_envs, batch_size, stack, n_step, frame_shape)
    length, environments = ring.length, jnp.arange(num_envs)

    def init() -> PrioritizedState:
        return PrioritizedState(ring.init(), make_tree(length * num_envs), jnp.ones([], jnp.float32))

    def add(state: PrioritizedState, step: Step) -> PrioritizedState:
        row = state.ring.current_index  # where this step goes
        # The transition that ended n steps ago is complete now; the oldest one loses the first frame of its stack.
        complete = (state.ring.is_full | (row >= n_step + stack - 1)) * state.largest**exponent
        new, old = (row - n_step) % length, (row + stack - 1) % length
        index = jnp.concatenate([environments * length + new, environments * length + old])
        values = jnp.concatenate([jnp.full(num_envs, complete), jnp.zeros(num_envs)])
        return PrioritizedState(ring.add(state.ring, step), set_leaves(state.tree, index, values), state.largest)

    def sample(state: PrioritizedState, key: Key[Array, ""]) -> Sample:
        tree_key, uniform_key, coin_key = jax.random.split(key, 3)
        row, full = state.ring.current_index, state.ring.is_full
        starts = jnp.where(full, length, row) - (stack - 1) - n_step  # of each environment
        one = jax.random.randint(uniform_key, (batch_size,), 0, num_envs * starts)
        first = jnp.where(full, row, 0) + stack - 1
        uniform = one // starts * length + (first + one % starts) % length
        coin, total = jax.random.uniform(coin_key, (batch_size,)), state.tree[1]
        # A small ring may hold nothing but truncated steps, and these have priority 0 once they have been drawn.
        index = jnp.where((coin < uniform_probability) | (total == 0), uniform, draw(state.tree, tree_key, batch_size))
        share = state.tree[state.tree.size // 2 + index] / total
        by_chance = 1 / (num_envs * starts)
        probability = (1 - uniform_probability) * share + uniform_probability * by_chance
        probability = jnp.where(total == 0, by_chance, probability)
        environment, now = jnp.divmod(index, length)
        rows = (now[:, None] + jnp.arange(1 - stack, n_step + 1)) % length
        steps = jax.tree.map(lambda leaf: leaf[environment[:, None], rows], state.ring.experience)
        return Sample(steps, index, by_chance / probability)

    def update(
        state: PrioritizedState, index: Int[Array, " batch"], priority: Float[Array, " batch"]
    ) -> PrioritizedState:
        leaves = jnp.where(priority > 0, priority**exponent, 0)  # 0^0 is 1, and what has no priority is not drawn
        largest = jnp.maximum(state.largest, jnp.max(priority))
        return PrioritizedState(state.ring, set_leaves(state.tree, index, leaves), largest)

    return Replay(
        init=jax.jit(init),
        add=jax.jit(add, donate_argnums=0),
        sample=jax.jit(sample),
        update=jax.jit(update, donate_argnums=0),
        can_sample=jax.jit(lambda state: ring.can_sample(state.ring)),
        size=jax.jit(lambda state: ring.size(state.ring)),
        capacity=length * num_envs,
        bytes_per_step=replay_bytes(1, frame_shape) + 8 * leaves_for(length * num_envs) // (length * num_envs),
    )


def importance_weights(rarity: Float[Array, " batch"], exponent: ArrayLike) -> Float[Array, " batch"]:
    """Weights that correct for drawing by priority, rarity^exponent, divided by the largest of the batch.

    Args:
        rarity: from a `Sample`: 1 / (N P); 0 for what is not to count. If all are 0, so are the weights.
        exponent: 0 corrects nothing, 1 fully.

    Source: Schaul et al. (2016), arXiv:1511.05952, section 3.4.
    """
    weights = jnp.where(rarity > 0, rarity**exponent, 0)
    return weights / jnp.maximum(jnp.max(weights), jnp.finfo(weights.dtype).tiny)
