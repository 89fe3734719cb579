"""The regressions: which bits flip, the target network against loops and by hand, the growing mean."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.streams import STREAMS, make_stream
from envs.streams.regression import Target, make_target, target_outputs

KEY = jax.random.key(4)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make(name, **numbers):
    return make_stream(name, dataclasses.replace(STREAMS[name].published["quick"].protocol, **numbers))


def slow_bits(stream):
    return np.asarray(jit(jax.vmap(stream.begin, (None, None, 0)))((), KEY, jnp.arange(stream.tasks)).bits)


def test_one_slow_bit_flips_from_task_to_task():
    bits = slow_bits(make("slowly-changing-regression", tasks=200))
    assert bits.shape == (200, 15) and set(np.unique(bits)) == {0.0, 1.0}
    flips = np.abs(np.diff(bits, axis=0))
    np.testing.assert_array_equal(flips.sum(axis=1), 1)
    # 199 flips over 15 bits: each has its turn (13.3 expected, deviation 3.5).
    assert flips.sum(axis=0).min() >= 1 and flips.sum(axis=0).max() < 32


def test_a_task_does_not_depend_on_how_many_there_are():
    short, long = (slow_bits(make("slowly-changing-regression", tasks=tasks)) for tasks in (20, 50))
    np.testing.assert_array_equal(short, long[:20])


def test_all_slow_bits_are_drawn_anew_where_asked_for():
    bits = slow_bits(make("slowly-changing-regression", tasks=200, change="resample"))
    changed = np.abs(np.diff(bits, axis=0)).mean()
    assert abs(changed - 0.5) < 0.04  # 199 x 15 fair coins, not quite independent: deviation below 0.01
    assert abs(bits.mean() - 0.5) < 0.04


def test_the_bits_of_an_example():
    stream = make("slowly-changing-regression", examples=400, batch_size=2)
    begin = jit(stream.begin)
    task = begin((), KEY, 3)
    items = jit(stream.order)((), task, jax.random.key(0))
    x, y = jit(jax.vmap(stream.batch, (None, None, 0)))((), task, items)
    assert x.shape == (200, 2, 20) and y.shape == (200, 2, 1)
    np.testing.assert_array_equal(x[..., :15], np.broadcast_to(task.bits, (200, 2, 15)))
    assert set(np.unique(x[..., 15:])) == {0.0, 1.0}
    assert abs(float(x[..., 15:].mean()) - 0.5) < 0.05  # 2,000 fair coins: deviation 0.011
    np.testing.assert_array_equal(y[5], target_outputs(task.target, x[5]))
    assert jax.tree.all(jax.tree.map(np.array_equal, task.target, begin((), KEY, 0).target))
    assert not np.array_equal(task.target.weights, begin((), jax.random.key(5), 3).target.weights)


def test_the_target_network_against_loops():
    inputs, features, beta = 20, 100, 0.7
    target = jax.tree.map(np.asarray, make_target(KEY, inputs, features, beta))
    for part in (target.weights, target.biases, target.output_weights, target.output_bias):
        assert set(np.unique(part)) <= {-1.0, 1.0}
    assert target.weights.shape == (20, 100) and abs(target.weights.mean()) < 0.1
    x = np.random.default_rng(0).integers(0, 2, (50, inputs)).astype(np.float32)
    expected, fired = [], 0
    for example in x:
        output = float(target.output_bias)
        for unit in range(features):
            total = sum(float(w) for w in target.weights[:, unit])
            negative = (inputs - total + float(target.biases[unit])) / 2
            threshold = beta * (inputs + 1) - negative
            drive = float(target.biases[unit])
            for i in range(inputs):
                drive += float(target.weights[i, unit]) * float(example[i])
            if drive > threshold:
                output += float(target.output_weights[unit])
                fired += 1
        expected.append([output])
    np.testing.assert_array_equal(target_outputs(jax.tree.map(jnp.asarray, target), jnp.asarray(x)), expected)
    assert 0 < fired < 50 * features  # the test has seen units that fire and units that don't


def test_the_target_network_by_hand():
    # One unit, weights 1 and -1, bias 1: S = (2 - 0 + 1) / 2 = 1.5, threshold 0.7 x 3 - 1.5 = 0.6.
    unit = Target(jnp.array([[1.0], [-1.0]]), jnp.array([1.0]), jnp.array([0.6]), jnp.array([-1.0]), jnp.array(1.0))
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    # Sums 2, 0, 1, 1: it fires for all but the second, and then takes the output from 1 to 0.
    np.testing.assert_array_equal(target_outputs(unit, x), [[0.0], [1.0], [0.0], [0.0]])


@pytest.mark.parametrize("growth", [1.0, 2.5])
def test_growing_offset(growth):
    stream = make("growing-offset", growth=growth)
    tasks = [stream.begin((), KEY, index) for index in (0, 1, 20)]
    for task, index in zip(tasks, (0, 1, 20), strict=True):
        np.testing.assert_allclose(np.mean(task.y, dtype=float), growth * index, atol=1e-4)
        np.testing.assert_allclose(np.std(task.y, dtype=float), 1, rtol=1e-4)
        np.testing.assert_array_equal(task.x, tasks[0].x)
    shapes = [np.ravel(task.y - np.mean(task.y)) for task in tasks]
    assert abs(np.corrcoef(shapes)[0, 1]) < 0.2  # new targets: 500 examples, deviation 0.045
    # A sine, standardized: nowhere beyond its amplitude, which is about sqrt(2).
    assert np.abs(shapes[0]).max() < 1.7
    x, y = stream.batch((), tasks[1], jnp.array([3, 499]))
    np.testing.assert_array_equal(x, tasks[1].x[np.array([3, 499])])
    np.testing.assert_array_equal(y, tasks[1].y[np.array([3, 499])])
    assert stream.test is None
