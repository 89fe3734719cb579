"""Two toys of a loss with a river and hills: a valley in two dimensions, and a table of bigrams (arXiv 2410.05192)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import entr
from scipy.stats import spearmanr

from experiments.harness.trace import Trace
from nap import schedules
from nap.schedules import profiles

END = 0.1
"""Where every decay ends, as a share of the peak."""


BIGRAM_TRACES = ("excess_before", "excess_after", "curvature")


class Valley(NamedTuple):
    """The loss -slope x + steepness / 2 (y - sin x)^2 under noise: the river is y = sin x.

    Attributes:
        slope: the fall of the loss along the river's direction.
        steepness: of the hills.
        noise: standard deviation of each entry of the gradient.
        rates: the learning rates whose heights and progress are compared.
        updates: at each rate; then as many again, half of them at the highest rate and half of a decay.
        particles: runs of one seed, which are averaged.
    """

    slope: float = 0.05
    steepness: float = 10.0
    noise: float = 1.0
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
    updates: int = 4000
    particles: int = 256


class Bigrams(NamedTuple):
    """A table of next-token logits, [tokens, tokens], learned from one bigram an update.

    The next token of row i is a certain one with probability 1 - e_i and else any other, e_i from 0 to `uncertain`.

    Attributes:
        tokens: the vocabulary.
        uncertain: the last row's e.
        rate: the learning rate before the decay.
        updates: in all; the last tenth decays.
        tables: of one seed, which are averaged.
    """

    tokens: int = 64
    uncertain: float = 0.9
    rate: float = 0.5
    updates: int = 200_000
    tables: int = 32

    @property
    def uncertainties(self) -> Float[np.ndarray, " tokens"]:
        """e of each row."""
        return np.linspace(0, self.uncertain, self.tokens)

    @property
    def entropies(self) -> Float[np.ndarray, " tokens"]:
        """Of the next token after each one, in nats: they grow with e, as long as it is below 1 - 1 / tokens."""
        return np.sum(entr(next_tokens(self)), axis=1)


def walk_in_valley(valley: Valley, key: jax.Array, rates: Float[Array, " updates"]) -> tuple[jax.Array, jax.Array]:
    """A seed's particles from the origin: (height above the river, progress along it), means [updates] after each.

    Without noise x grows by rate * slope / (1 + cos(x)^2) an update, all along the river. Progress is the integral of
    1 + cos(x)^2 up to x, which grows by rate * slope.
    """

    def update(place: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        rate, number = given
        x, y = place
        noise = valley.noise * jax.random.normal(jax.random.fold_in(key, number), place.shape)
        above_river = valley.steepness * (y - jnp.sin(x))
        x, y = place - rate * (jnp.stack([-valley.slope - above_river * jnp.cos(x), above_river]) + noise)
        height = valley.steepness / 2 * jnp.mean(jnp.square(y - jnp.sin(x)))
        return jnp.stack([x, y]), (height, jnp.mean(1.5 * x + jnp.sin(2 * x) / 4))

    start = jnp.zeros([2, valley.particles])
    return jax.lax.scan(update, start, (rates, jnp.arange(len(rates))))[1]


def measure_valley(valley: Valley, keys: jax.Array) -> Trace:
    """What the particles of each seed did.

    Returns:
        [seeds, rates]: `height`, over the last quarter of a run at one rate, and `progress`, at its end. [seeds], of a
        run whose first half is at the highest rate and whose second half decays to END: `before_decay`, the height in
        the second quarter, and `after_decay`, at the end.
    """
    updates, peak = valley.updates, max(valley.rates)
    constant = jnp.asarray(valley.rates)[:, None] * jnp.ones(updates)
    halves = [(profiles.constant(), updates // 2), (profiles.reciprocal(END), updates - updates // 2)]
    decaying = schedules.phases(peak, halves)(jnp.arange(updates))
    walk = jax.jit(jax.vmap(lambda key, rates: walk_in_valley(valley, key, rates), (0, None)))
    heights, progress = zip(*(walk(keys, rates) for rates in constant), strict=True)
    height, _ = walk(keys, decaying)
    measured = {
        "height": jnp.stack([of_rate[:, -(updates // 4) :].mean(axis=1) for of_rate in heights], axis=1),
        "progress": jnp.stack([of_rate[:, -1] for of_rate in progress], axis=1),
        "before_decay": height[:, updates // 4 : updates // 2].mean(axis=1),
        "after_decay": height[:, -(updates // 50) :].mean(axis=1),
    }
    return {name: np.asarray(values) for name, values in measured.items()}


def next_tokens(bigrams: Bigrams) -> Float[np.ndarray, "tokens tokens"]:
    """The probabilities of the next token, a row each: 1 - e_i for the token after i, the rest for the others alike."""
    e = bigrams.uncertainties
    rows = np.repeat(e[:, None] / (bigrams.tokens - 1), bigrams.tokens, axis=1)
    rows[np.arange(bigrams.tokens), (np.arange(bigrams.tokens) + 1) % bigrams.tokens] = 1 - e
    return rows


def hessian_diagonal(logits: Float[Array, "rows tokens"]) -> Float[Array, "rows tokens"]:
    """Of each row's cross-entropy, by its logits: q (1 - q), q the softmax, whatever the next tokens are."""
    q = jax.nn.softmax(logits)
    return q * (1 - q)


def measure_bigrams(bigrams: Bigrams, keys: jax.Array) -> Trace:
    """Of each seed's rows, [seeds, tokens]: the loss above the entropy, before and after the decay; and after it the
    mean of the Hessian's diagonal, `curvature`.
    """
    probabilities = jnp.asarray(next_tokens(bigrams), jnp.float32)
    entropies = jnp.asarray(bigrams.entropies, jnp.float32)
    cumulative = jnp.cumsum(probabilities, axis=1)
    stable = bigrams.updates - bigrams.updates // 10
    phases = [(profiles.constant(), stable), (profiles.reciprocal(END), bigrams.updates - stable)]
    rates = jnp.asarray(schedules.phases(bigrams.rate, phases)(jnp.arange(bigrams.updates)))

    def update(logits: jax.Array, given: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rate, row, uniform = given
        token = jnp.minimum(jnp.searchsorted(cumulative[row], uniform), bigrams.tokens - 1)
        gradient = jax.nn.softmax(logits[row]) - jax.nn.one_hot(token, bigrams.tokens)
        return logits.at[row].add(-rate * gradient), None

    def excess(logits: jax.Array) -> jax.Array:
        return -jnp.sum(probabilities * jax.nn.log_softmax(logits), axis=1) - entropies

    def learn(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        row_key, token_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (bigrams.updates,), 0, bigrams.tokens)
        uniforms = jax.random.uniform(token_key, (bigrams.updates,))

        def go_on(logits: jax.Array, part: slice) -> jax.Array:
            return jax.lax.scan(update, logits, (rates[part], rows[part], uniforms[part]))[0]

        logits = go_on(jnp.zeros([bigrams.tokens, bigrams.tokens]), slice(stable))
        decayed = go_on(logits, slice(stable, None))
        return excess(logits), excess(decayed), hessian_diagonal(decayed).mean(axis=1)

    table_keys = jax.vmap(lambda key: jax.random.split(key, bigrams.tables))(keys)
    measured = jax.jit(jax.vmap(jax.vmap(learn)))(table_keys)
    return {name: np.asarray(of.mean(axis=1)) for name, of in zip(BIGRAM_TRACES, measured, strict=True)}


def results(valley: Valley, toys: Trace) -> dict[str, Float[np.ndarray, " seeds"]]:
    """Each seed's: the slope of log height over log rate, progress over what the rates add up to, the height that is
    left after the decay; and how the loss that it takes from a bigram's row, and the curvature there, go with the row's
    uncertainty and so with its entropy (Spearman).
    """

    def spearman(rows: np.ndarray) -> np.ndarray:
        return np.array([spearmanr(np.arange(of_seed.size), of_seed)[0] for of_seed in rows])

    travelled = valley.slope * valley.updates * np.array(valley.rates)
    return {
        "slope": np.polyfit(np.log(valley.rates), np.log(toys["height"]).T, 1)[0],
        "progress": (toys["progress"] / travelled).mean(axis=1),
        "height_left": toys["after_decay"] / toys["before_decay"],
        "fallen_spearman": spearman(toys["excess_before"] - toys["excess_after"]),
        "curvature_spearman": spearman(toys["curvature"]),
    }
