"""What a run needs of memory at least, and the largest options with which it fits."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments import language
from experiments.harness.memory import bytes_of
from experiments.harness.sizes import Sized, extrapolated, kept_bytes, largest, what_fits
from experiments.harness.supervised import Task, learner_of
from experiments.harness.transformer import memory_needed


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 1000


@dataclasses.dataclass(frozen=True)
class Config:
    """What is sized: 7 bytes a row, and a square of the width."""

    rows: int = 10**12
    heads: int = 4
    widths: tuple[int, ...] = (5, 10**9)
    inner: Inner = Inner()


def needs(config: Config) -> dict[str, int]:
    return {"rows": 7 * config.rows, "square": config.inner.width**2, "widths": sum(config.widths)}


@pytest.mark.parametrize(
    ("option", "config", "available", "found"),
    [
        (Sized("rows"), Config(widths=()), 1_000_700, 100),
        (Sized("rows"), Config(widths=()), 1_000_000 + 7 * 10**9 + 6, 10**9),  # a line is followed exactly
        (Sized("rows", step=8), Config(widths=()), 1_000_700, 96),
        (Sized("rows", least=101), Config(widths=()), 1_000_700, None),
        (Sized("rows"), Config(widths=()), 999_999, None),
        (Sized("widths"), Config(rows=0), 1_000_000 + 5 + 77, 77),
        (Sized("widths"), Config(rows=0), 1_000_000 + 6, 3),
        (Sized("inner.width", step=4), Config(rows=0, widths=()), 8_400, 88),
        (Sized("rows", now=500), Config(rows=0, widths=()), 1_000_000 + 21, 3),  # 0 stands for 500
    ],
)
def test_the_largest_value_that_fits(option, config, available, found):
    assert largest(config, needs, option, available) == found


def test_it_is_found_to_a_hundredth_in_a_few_steps_however_large():
    calls = []

    def cubed(config: Config) -> dict[str, int]:
        calls.append(config.rows)
        return {"rows": config.rows**3}

    found = largest(Config(), cubed, Sized("rows"), 10**21)
    assert found is not None and 0.99e7 <= found <= 1e7
    assert len(calls) < 40


def test_what_is_said_names_each_option_that_is_enough_alone():
    said = what_fits(Config(widths=()), needs, [Sized("rows"), Sized("inner.width")])
    assert said(1_000_700) == "take a smaller --rows (100 fits)"
    assert said(10) == "no smaller --rows or --width alone is enough"


def test_layers_are_extrapolated():
    assert extrapolated(lambda layers: {"a": 5 + 3 * layers, "b": 2}, 1000) == {"a": 3005, "b": 2}
    assert extrapolated(lambda layers: {"a": 5 + 3 * layers}, 1) == {"a": 8}


def test_what_is_kept_is_what_products_read_each_once():
    w = {"a": jnp.zeros((3, 4)), "b": jnp.zeros((4, 5))}
    x = jnp.zeros((7, 3), jnp.float16)

    def forward(params, x):
        x = x.astype(jnp.float32)  # counts as it is smaller
        hidden = jax.nn.relu(x @ params["a"])
        return hidden @ params["b"] + jnp.ones((7, 4)) @ params["b"], hidden.T @ hidden

    assert kept_bytes(forward, w, x) == 7 * 3 * 2 + 7 * 4 * 4
    again = jax.checkpoint(forward)
    assert kept_bytes(again, w, x) == 7 * 3 * 2, "what is computed again is not kept"


def test_what_is_kept_in_a_loop_is_kept_each_time():
    def forward(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]

    params, x = jnp.zeros((6, 3, 3)), jnp.zeros((5, 3))
    assert kept_bytes(forward, params, x) == 6 * 5 * 3 * 4


def test_the_estimate_of_a_transformer_is_exact_in_its_state_and_below_what_xla_takes():
    quick = language.PRESETS["quick"]
    sizes = dataclasses.replace(quick.network, layers=3, width=16)
    config = language.resolve(dataclasses.replace(quick, network=sizes, sequence=32))

    def task_of(config) -> Task:
        return Task(language.network_of(config, 257), lambda batch: batch.inputs, language.judge)

    needed = memory_needed(task_of, None, config)
    learner = learner_of(task_of(config), config)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    assert needed["weights and optimizer"] == bytes_of(state)
    shape = (config.training.batch_size, config.sequence)
    batch = language.TextBatch(*(jax.ShapeDtypeStruct(shape, of) for of in (jnp.int32, jnp.int32, jnp.float32)))
    taken = jax.jit(learner.update).lower(state, batch).compile().memory_analysis()
    assert 0.1 * taken.temp_size_in_bytes < needed["a batch"] < taken.temp_size_in_bytes
