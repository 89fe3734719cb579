"""What holds of every stream: purity, one result however it is compiled, fixed shapes, no copies; and the protocols."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.datasets import Dataset, load
from envs.streams import STREAMS, Protocol, make_stream

CLASSES, EACH, SEEDS = 12, 20, 3
TINY = {"examples": 120, "batch_size": 16, "steps": None, "epochs": 2, "tasks": 6, "easy_examples": 20}


@pytest.fixture(scope="module")
def dataset():
    """12 classes of 20 images, and of 2 or 3 test images."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES, dtype=np.int32), EACH))
    test_labels = rng.permutation(np.arange(30, dtype=np.int32) % CLASSES).astype(np.int32)
    images = rng.integers(0, 256, (len(labels), 4, 3, 2), dtype=np.uint8)
    return Dataset("made-up", images, labels, rng.integers(0, 256, (30, 4, 3, 2), dtype=np.uint8), test_labels, CLASSES)


# Compiling is what these tests spend their time on.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def small(name, dataset):
    numbers = TINY | {"class-split": {"examples": 40}, "five-plus-one": {"examples": 100}}.get(name, {})
    return make_stream(name, dataclasses.replace(STREAMS[name].published["quick"].protocol, **numbers), dataset)


@pytest.fixture(scope="module")
def tiny(dataset):
    """Small streams by name, their functions compiled once for all tests."""

    @functools.cache
    def make(name):
        stream = small(name, dataset)
        return stream._replace(
            begin=jit(stream.begin),
            order=jit(stream.order),
            batch=jit(stream.batch),
            test=stream.test and jit(stream.test),
        )

    return make


def first(items):
    return jax.tree.map(lambda leaf: leaf[0], items)


def differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", STREAMS)
def test_a_task_is_a_pure_function_of_key_and_index(name, tiny):
    stream = tiny(name)
    key, other = jax.random.split(jax.random.key(7))
    task = stream.begin(stream.data, key, 2)
    stream.begin(stream.data, other, 5)
    jax.tree.map(np.testing.assert_array_equal, task, stream.begin(stream.data, key, 2))
    assert differ(task, stream.begin(stream.data, key, 3))
    assert differ(task, stream.begin(stream.data, other, 2))


@pytest.mark.parametrize("name", STREAMS)
def test_vmap_and_scan_give_what_single_calls_give_in_the_shapes_declared(name, dataset, tiny):
    stream, plain = tiny(name), small(name, dataset)

    def run(data, key, index):
        task = plain.begin(data, key, index)
        items = plain.order(data, task, jax.random.fold_in(key, 1))

        def step(carry, item):
            return carry, plain.batch(data, task, item)

        return jax.lax.scan(step, None, items)[1], plain.test(data, task) if plain.test else None

    keys = jax.random.split(jax.random.key(3), 2)
    (xs, ys), held_out = jit(jax.vmap(run, (None, 0, 0)))(stream.data, keys, jnp.arange(2))
    assert xs.shape == (2, stream.steps, stream.batch_size, *stream.input_shape)
    assert xs.dtype == jnp.float32
    classifies = stream.loss == "cross-entropy"
    assert ys.shape[1:] == (stream.steps, stream.batch_size, *(() if classifies else (stream.outputs,)))
    assert ys.dtype == (jnp.int32 if classifies else jnp.float32)
    if classifies:
        assert ys.min() >= 0 and ys.max() < stream.outputs

    task = stream.begin(stream.data, keys[1], 1)
    items = stream.order(stream.data, task, jax.random.fold_in(keys[1], 1))
    x, y = stream.batch(stream.data, task, jax.tree.map(lambda leaf: leaf[-1], items))
    np.testing.assert_allclose(x, xs[1, -1], rtol=1e-6)
    np.testing.assert_allclose(y, ys[1, -1], rtol=1e-4, atol=1e-5)
    if stream.test:
        alone = stream.test(stream.data, task)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=1e-6), alone, held_out)
        x, y, weight = alone
        assert x.shape[1:] == stream.input_shape and x.dtype == jnp.float32
        assert y.shape == weight.shape == x.shape[:1] and y.dtype == jnp.int32
        assert set(np.unique(weight)) <= {0, 1} and weight.sum() > 0


@pytest.mark.parametrize("name", ["random-labels", "permuted-inputs"])
def test_jit_gives_what_plain_calls_give(name, dataset, tiny):
    compiled, plain, key = tiny(name), small(name, dataset), jax.random.key(5)
    task = plain.begin(plain.data, key, 1)
    jax.tree.map(np.testing.assert_array_equal, task, compiled.begin(plain.data, key, 1))
    items = plain.order(plain.data, task, key)
    jax.tree.map(np.testing.assert_array_equal, items, compiled.order(plain.data, task, key))
    x, y = plain.batch(plain.data, task, first(items))
    for a, b in zip((x, y), compiled.batch(plain.data, task, first(items)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def whole_pool(name):
    """Whether every task uses all of its pool: then an epoch is without replacement."""
    return name not in ("five-plus-one", "class-incremental", "warm-start", "slowly-changing-regression")


@pytest.mark.parametrize("name", [name for name in STREAMS if whole_pool(name)])
def test_an_epoch_is_without_replacement_and_the_next_has_another_order(name, tiny):
    stream = tiny(name)
    task = stream.begin(stream.data, jax.random.key(0), 1)
    order, again = (stream.order(stream.data, task, jax.random.key(seed)) for seed in (1, 2))
    used = stream.steps * stream.batch_size
    examples = 40 if name == "class-split" else 120
    assert order.shape == (stream.steps, stream.batch_size) and stream.steps == examples // 16
    assert len(np.unique(order)) == used and order.min() >= 0 and order.max() < examples
    assert differ(order, again)


def jaxprs(jaxpr):
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from jaxprs(inner)


@pytest.mark.parametrize("name", [name for name, kind in STREAMS.items() if kind.needs_data])
def test_a_vmap_over_seeds_does_not_copy_the_images_nor_a_jit_swallow_them(name, dataset):
    stream = small(name, dataset)

    def run(data, key):
        task = stream.begin(data, key, 1)
        return stream.batch(data, task, first(stream.order(data, task, key)))

    keys = jax.random.split(jax.random.key(0), SEEDS)
    closed = jax.make_jaxpr(jax.vmap(run, (None, 0)))(stream.data, keys)
    seen = 0
    for jaxpr in jaxprs(closed.jaxpr):
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                shape = getattr(variable.aval, "shape", ())
                seen += 1
                assert not (shape[:2] == (SEEDS, len(dataset.images)) and len(shape) > 2), equation
    assert seen > 20
    assert all(
        np.size(constant) < 100 for constant in closed.consts if not jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
    )
    images = [leaf for leaf in jax.tree.leaves(stream.data) if leaf.ndim == 4]
    assert [leaf.dtype for leaf in images] == [jnp.uint8] * 2


# Updates in a task, and tasks: the table of published protocols.
PUBLISHED = {
    ("random-labels", "nap"): (100_000, 200),
    ("random-labels", "nap-dead-units"): (1000, 50),
    ("random-labels", "l2-init"): (30_000, 50),
    ("random-labels", "l2-init-cifar"): (30_000, 50),
    ("permuted-inputs", "l2-init"): (625, 500),
    ("permuted-inputs", "dohare"): (60_000, 800),
    ("permuted-inputs", "upgd"): (5000, 200),
    ("label-permutation", "upgd"): (2500, 400),
    ("class-split", "dohare"): (3000, 2000),
    ("class-split", "l2-init"): (120, 500),
    ("five-plus-one", "l2-init"): (780, 30),
    ("class-incremental", "dohare"): (100_000, 20),
    ("warm-start", "halves"): (40_000, 2),
    ("warm-start", "dash"): (3900, 50),
    ("slowly-changing-regression", "dohare"): (10_000, 100),
    ("slowly-changing-regression", "dohare-resample"): (10_000, 100),
}
ALL = [(name, protocol) for name, kind in STREAMS.items() for protocol in kind.published]


@pytest.fixture(scope="module")
def large():
    """100 classes of 600 tiny images."""
    labels = np.tile(np.arange(100, dtype=np.int32), 600)
    blank = np.zeros((len(labels), 2, 2, 1), np.uint8)
    return Dataset("large", blank, labels, blank[:1000], labels[:1000], 100)


@pytest.mark.parametrize(("name", "protocol"), ALL)
def test_every_protocol_builds_with_the_published_numbers(name, protocol, large):
    stream = make_stream(name, protocol, large)
    published = STREAMS[name].published[protocol]
    updates = stream.epochs * stream.steps
    assert updates == published.protocol.updates_per_task
    if protocol == "quick":
        assert updates <= 1000 and stream.tasks <= 30
    else:
        assert (updates, stream.tasks) == PUBLISHED[name, protocol]
    assert stream.name == name
    assert published.source


def test_the_table_has_no_protocol_that_is_not_there():
    assert set(PUBLISHED) == {pair for pair in ALL if pair[1] != "quick"}


@pytest.mark.parametrize("name", STREAMS)
def test_quick_works_with_digits(name):
    stream = make_stream(name, "quick", load("digits"))

    def run(data, key):
        task = stream.begin(data, key, stream.tasks - 1)
        return stream.batch(data, task, first(stream.order(data, task, key)))

    x, _ = jax.eval_shape(run, stream.data, jax.random.key(0))
    assert x.shape == (stream.batch_size, *stream.input_shape)
    assert stream.input_shape == ((8, 8, 1) if STREAMS[name].needs_data else (20,))


def own(**numbers):
    return dataclasses.replace(STREAMS["random-labels"].published["quick"].protocol, **numbers)


@pytest.mark.parametrize(
    ("name", "protocol", "message"),
    [
        ("random-label", "quick", "unknown stream 'random-label': .*; nearest: random-labels"),
        ("random-labels", "l2init", "no protocol 'l2init': .*; nearest: l2-init"),
        ("random-labels", own(examples=241), "asks for 241 examples, made-up has 240 for training; nearest: 240"),
        ("class-split", own(examples=42), "class-split on made-up needs 21 training .* nearest: 20 a class"),
        ("class-split", own(examples=41), "examples is 41, must be even.* nearest: 42"),
        ("five-plus-one", own(examples=42), "multiple of 5 .* nearest: 45"),
        (
            "class-incremental",
            own(examples=120, tasks=13),
            "13 tasks of 1 classes need 13, made-up has 12; nearest: 12",
        ),
        ("class-incremental", own(examples=121, tasks=2), "multiple of the 12 classes; nearest: 120"),
        ("warm-start", own(examples=40, tasks=41), "41 tasks, but 40 examples; nearest: 40"),
        ("slowly-changing-regression", own(slow_bits=21), "slow_bits is 21, must be 1 to inputs = 20; nearest: 20"),
    ],
)
def test_what_can_not_be_is_told_in_a_line(name, protocol, message, dataset):
    with pytest.raises(ValueError, match=message) as caught:
        make_stream(name, protocol, dataset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"tasks": 0}, "tasks is 0, must be at least 1"),
        ({"batch_size": 401}, "batch_size is 401, must be at most examples; nearest: 400"),
        ({"steps": 11}, "400 examples make 10 batches of 40; nearest: 10"),
    ],
)
def test_a_protocol_refuses_what_no_stream_could_run_on(numbers, message):
    with pytest.raises(ValueError, match=message):
        own(**numbers)


def test_steps_cut_an_epoch_short(dataset):
    stream = make_stream("random-labels", own(examples=120, batch_size=16, steps=3), dataset)
    task = stream.begin(stream.data, jax.random.key(0), 0)
    orders = [stream.order(stream.data, task, jax.random.key(seed)) for seed in range(30)]
    assert stream.steps == 3 and orders[0].shape == (3, 16)
    assert len(np.unique(orders[0])) == 48
    assert len(np.unique(orders)) == 120  # not always the same 48


def test_five_plus_one_scores_its_hard_tasks_only(tiny):
    assert [tiny("five-plus-one").scored(index) for index in range(4)] == [True, False, True, False]
    assert [tiny("random-labels").scored(index) for index in range(4)] == [True] * 4


def test_a_protocol_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STREAMS["random-labels"].published["quick"].protocol.tasks = 3
    assert isinstance(STREAMS["random-labels"].published["quick"].protocol, Protocol)
