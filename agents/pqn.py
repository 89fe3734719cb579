"""PQN: Q-learning from many environments at once, with neither replay nor target network (Gallici et al., 2024).

All environments are stepped for a while, epsilon-greedily; the lambda return of each step is its target; a few epochs
of minibatches are learnt from these steps, and then they are thrown away. What keeps this stable is that the network is
normalized. Environments are those of `agents.compiled`, written in JAX: some rollouts with all their updates are one
call, and seeds are trained side by side.

How the ends of episodes are told apart, for the step from o_{t-1} to o_t, as in `agents.replay`:

    discount 0              terminated: nothing follows
    discount 1 and `first`  truncated: it could have gone on, but o_t is the next episode's, and the old one's successor
                            was never seen. Its return is taken to be the largest action value in o_{t-1}, which is what
                            the step before bootstraps from; the step itself is not learnt from

Paper: arXiv:2407.04811, algorithm 1 and section 4; the authors' code is PureJaxQL.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from agents.compiled import Environment, Playing, Spread, returns_of_episodes, side_by_side, vmapped
from agents.dqn import epsilon_greedy, measures
from nap.networks import Network
from nap.paths import PyTree


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a rollout is, and how it is learnt from; the defaults are PureJaxQL's for MinAtar."""

    num_envs: int = 128
    """Environments stepped together."""
    steps: int = 32
    """Steps of each environment in a rollout."""
    epochs: int = 2
    """How often a rollout is gone through."""
    minibatches: int = 32
    """Updates in an epoch; they divide the steps of a rollout over all environments."""
    gamma: float = 0.99
    """Discount of one step."""
    q_lambda: float = 0.65
    """How far returns are looked ahead: 0, one step; 1, to the end of the episode or of the rollout."""

    @property
    def agent_steps(self) -> int:
        """Steps of a rollout over all environments."""
        return self.num_envs * self.steps

    @property
    def updates(self) -> int:
        """Updates after each rollout."""
        return self.epochs * self.minibatches


class Running(NamedTuple):
    """All that a seed's training goes on from: with it, what follows repeats bit for bit on one device.

    Attributes:
      key: for all that is random; it never changes.
      params: the Q-network's parameters.
      opt_state: the optimizer's state, the projection's radii included.
      playing: the environments.
      rollouts: how many have been made, with their updates.
    """

    key: Key[Array, ""]
    params: PyTree
    opt_state: optax.OptState
    playing: Playing
    rollouts: Int[Array, ""]


class Told(NamedTuple):
    """What some rollouts found.

    Attributes:
      loss: mean over their updates.
      episodes: episodes that ended.
      mean_return: of these episodes; NaN where there are none.
      measured: `agents.dqn.measures` of the last rollout's first update.
    """

    loss: Float[Array, ""]
    episodes: Int[Array, ""]
    mean_return: Float[Array, ""]
    measured: dict[str, Float[Array, ""]]


class Pqn(NamedTuple):
    """The compiled functions for one environment; for all seeds, which are the leading axis of `own` and the results.

    Attributes:
      begin: `begin((), keys)`, a `Running` at the start of training.
      learn: `learn((), running, count)`, the `Running` after `count` rollouts, at least one, and a `Told`; `running` is
        donated.
      evaluate: `evaluate((), running, epsilon)`, the returns of an episode in each evaluation environment.
    """

    begin: Callable[..., Running]
    learn: Callable[..., tuple[Running, Told]]
    evaluate: Callable[..., Array]


class Experience(NamedTuple):
    """Steps to learn from; `target_tm1` is a step's lambda return, `weight` is 0 where it has none, else 1."""

    s_tm1: UInt8[Array, "*n stack *frame"]
    a_tm1: Int[Array, "*n"]
    target_tm1: Float[Array, "*n"]
    weight: Float[Array, "*n"]


def lambda_returns(
    r_t: Float[Array, " steps"],
    discount_t: Float[Array, " steps"],
    truncated_t: Bool[Array, " steps"],
    v: Float[Array, " steps+1"],
    q_lambda: float,
) -> Float[Array, " steps"]:
    """The lambda return of each step of one environment: from the last one backwards,

        G_{t-1} = r_t + discount_t ((1 - lambda) v_t + lambda G_t),    and G = v after the last step.

    With v the largest action values this is Peng's Q(lambda): what was explored is not corrected for. At a truncated
    step G_{t-1} = v_{t-1}, for the steps before it; it is no target of its own, since v_{t-1} says nothing new.

    Args:
      r_t: the rewards.
      discount_t: gamma, or 0 after a termination.
      truncated_t: whether v_t is of another episode, though discount_t is not 0.
      v: values of the observations, from before the first step to after the last one.
      q_lambda: lambda.

    Source: Gallici et al. (2024), section 4; Peng and Williams (1994).
    """

    def back(return_t: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        r_t, discount_t, truncated_t, v_tm1, v_t = step
        return_tm1 = r_t + discount_t * ((1 - q_lambda) * v_t + q_lambda * return_t)
        return_tm1 = jnp.where(truncated_t, v_tm1, return_tm1)
        return return_tm1, return_tm1

    return jax.lax.scan(back, v[-1], (r_t, discount_t, truncated_t, v[:-1], v[1:]), reverse=True)[1]


def shuffled(key: Key[Array, ""], size: int, epochs: int, minibatches: int) -> Int[Array, "updates batch"]:
    """Which of `size` steps each update learns from: in every epoch each of them once, in a new order."""
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, epochs))
    return order.reshape(epochs * minibatches, size // minibatches)


def make_pqn(
    network: Network,
    make_optimizer: Callable[[Key[Array, ""]], optax.GradientTransformation],
    environment: Environment,
    settings: Settings,
    *,
    epsilon: optax.Schedule,
    evaluation_envs: int,
    spread: Spread = vmapped,
) -> Pqn:
    """The compiled functions of training in one environment.

    Args:
      network: maps observations to action values.
      make_optimizer: the complete optimizer from a random key, which only its `init` uses. Its update is also told the
        network's activations, by layer, as `activations=...`, for interventions such as ReDo.
      environment: the environment.
      settings: what is learnt from.
      epsilon: the probability of a random action in a rollout, by how many there were before.
      evaluation_envs: how many environments an evaluation plays in, an episode in each.
      spread: how seeds share the devices.

    Raises:
      ValueError: the minibatches do not divide a rollout.
    """
    if settings.agent_steps % settings.minibatches:
        raise ValueError(
            f"PQN: {settings.minibatches} minibatches do not divide the {settings.agent_steps} steps of a rollout"
        )
    optimizer = optax.with_extra_args_support(make_optimizer(jax.random.key(0)))
    environments = side_by_side(environment)

    def begin(_: PyTree, key: Array) -> Running:
        network_key, optimizer_key, environment_key, key = jax.random.split(key, 4)
        params = network.init(network_key)
        playing = environments.start(jax.random.split(environment_key, settings.num_envs))
        return Running(key, params, make_optimizer(optimizer_key).init(params), playing, jnp.zeros([], jnp.int32))

    def keys_of(running: Running) -> Key[Array, " 3"]:
        """For the next rollout: to act, to shuffle; and for an evaluation before it."""
        return jax.random.split(jax.random.fold_in(running.key, running.rollouts), 3)

    def rollout(running: Running, key: Array) -> tuple[Playing, Experience, Any]:
        """The environments after it, what is learnt from, and what each step answered."""
        now = jnp.asarray(epsilon(running.rollouts))

        def step(playing: Playing, key: Array) -> tuple[Playing, tuple[Any, ...]]:
            s_tm1 = environments.observe(playing)
            q_tm1 = network.apply(running.params, s_tm1)
            a_tm1 = epsilon_greedy(q_tm1, now, key)
            playing, made = environments.advance(playing, a_tm1)
            return playing, (s_tm1, a_tm1, jnp.max(q_tm1, axis=1), made)

        playing, (s_tm1, a_tm1, v_tm1, made) = jax.lax.scan(
            step, running.playing, jax.random.split(key, settings.steps)
        )
        v_last = jnp.max(network.apply(running.params, environments.observe(playing)), axis=1)
        truncated = made.first & (made.discount > 0)
        targets = jax.vmap(functools.partial(lambda_returns, q_lambda=settings.q_lambda), in_axes=1, out_axes=1)(
            made.reward, settings.gamma * made.discount, truncated, jnp.concatenate([v_tm1, v_last[None]])
        )
        return playing, Experience(s_tm1, a_tm1, targets, 1.0 - truncated), made

    def loss_of(params: PyTree, batch: Experience) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        q_tm1, activations = network.activations(params, batch.s_tm1)
        chosen = jnp.take_along_axis(q_tm1, batch.a_tm1[:, None], axis=1)[:, 0]
        losses = optax.losses.l2_loss(chosen, batch.target_tm1)
        loss = jnp.sum(batch.weight * losses) / jnp.maximum(jnp.sum(batch.weight), 1)
        return loss, (q_tm1, activations)

    def update(params: PyTree, opt_state: Any, batch: Experience) -> tuple[PyTree, Any, Array, dict[str, Array]]:
        (loss, (q_tm1, activations)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, batch)
        steps, opt_state = optimizer.update(gradients, opt_state, params, activations=activations)
        measured = measures(params, steps, q_tm1, activations)  # where nobody looks at it, XLA leaves it out
        return optax.apply_updates(params, steps), opt_state, loss, measured

    def iterate(running: Running) -> tuple[Running, Told]:
        """A rollout and its updates; of the episodes the sum of their returns, for a mean."""
        act_key, shuffle_key, _ = keys_of(running)
        playing, experience, made = rollout(running, act_key)
        steps = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), experience)
        order = shuffled(shuffle_key, settings.agent_steps, settings.epochs, settings.minibatches)

        def learn_from(carry: tuple[PyTree, Any], places: Array) -> tuple[tuple[PyTree, Any], Array]:
            params, opt_state, loss, _ = update(*carry, jax.tree.map(lambda leaf: leaf[places], steps))
            return (params, opt_state), loss

        first = jax.tree.map(lambda leaf: leaf[order[0]], steps)
        params, opt_state, loss, measured = update(running.params, running.opt_state, first)
        (params, opt_state), losses = jax.lax.scan(learn_from, (params, opt_state), order[1:])
        mean_loss = (loss + jnp.sum(losses)) / settings.updates
        returns = jnp.sum(jnp.where(made.first, made.episode_return, 0))
        return (
            Running(running.key, params, opt_state, playing, running.rollouts + 1),
            Told(mean_loss, jnp.sum(made.first), returns, measured),
        )

    def learn(_: PyTree, running: Running, count: Array) -> tuple[Running, Told]:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(iterate, running)[1])

        def again(_: Array, carry: tuple[Running, Told]) -> tuple[Running, Told]:
            running, sums = carry
            running, told = iterate(running)
            added = jax.tree.map(jnp.add, sums._replace(measured={}), told._replace(measured={}))
            return running, added._replace(measured=told.measured)

        # The count is traced, so that stretches of all lengths are one compiled function.
        running, sums = jax.lax.fori_loop(0, count, again, (running, nothing))
        return running, sums._replace(loss=sums.loss / count, mean_return=sums.mean_return / sums.episodes)

    def evaluate(_: PyTree, running: Running, epsilon: Array) -> Float[Array, " evaluation_envs"]:
        environment_key, key = jax.random.split(keys_of(running)[2])

        def choose(observations: Array, step: Array) -> Array:
            q = network.apply(running.params, observations)
            return epsilon_greedy(q, epsilon, jax.random.fold_in(key, step))

        return returns_of_episodes(environment, choose, jax.random.split(environment_key, evaluation_envs))

    return Pqn(spread(begin), spread(learn, donate=True), spread(evaluate))
