"""Recycling of units: which entries change, and when; numbers worked by hand."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from nap import paths
from nap.interventions.adam import adam
from nap.interventions.continual_backprop import continual_backprop
from nap.interventions.redo import redo
from nap.interventions.self_normalized_resets import self_normalized_resets
from nap.interventions.units import as_step, by_unit, count_units, outgoing, recycle, reset_entries

# Networks in plain JAX: nothing here may depend on how nap.networks lays its networks out.


def normal_init(shapes: dict[str, tuple[int, ...]]) -> Callable[[jax.Array], Any]:
    """Kernels and biases that depend on the key, scales and offsets 1 and 0, as a nested dictionary.

    A sine at places that the key shifts: one draw of a random number instead of one a leaf keeps compilation short.
    """

    def init(key):
        tree: dict[str, Any] = {}
        shift = 100 * jax.random.uniform(key)
        for i, (path, shape) in enumerate(shapes.items()):
            *folders, name = path.split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            drawn = 2 * jnp.sin(shift + 10 * i + 1.7 * jnp.arange(math.prod(shape))).reshape(shape)
            node[name] = {"scale": jnp.ones(shape), "offset": jnp.zeros(shape)}.get(name, drawn)
        return tree

    return init


def layer_norm(z):
    z = z - z.mean(-1, keepdims=True)
    return z / jnp.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def crelu(z):
    return jnp.concatenate([jax.nn.relu(z), jax.nn.relu(-z)], -1)


def dense_apply(p, x):
    for layer in ("a", "b"):
        x = jax.nn.relu(x @ p[layer]["kernel"] + p[layer]["bias"])
    return x @ p["output"]["kernel"] + p["output"]["bias"]


def normalized_apply(p, x):
    for layer in ("a", "b"):
        x = jax.nn.relu(layer_norm(x @ p[layer]["kernel"]) * p[layer]["norm"]["scale"] + p[layer]["norm"]["offset"])
    return x @ p["output"]["kernel"]


def conv_apply(p, x):
    for layer in ("a", "b"):
        x = jax.nn.relu(convolve(x, p[layer]["kernel"]) + p[layer]["bias"])
    return x.reshape(len(x), -1) @ p["output"]["kernel"]


def crelu_apply(p, x):
    x = crelu(convolve(x, p["a"]["kernel"]))
    x = crelu(x.reshape(len(x), -1) @ p["b"]["kernel"])
    return x @ p["output"]["kernel"]


def dueling_apply(p, x):
    x = jax.nn.relu(x @ p["a"]["kernel"])
    return x @ p["value"]["kernel"] + x @ p["advantage"]["kernel"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and for a recycled unit of each layer the entries that must change, written out by hand."""

    shapes: dict[str, tuple[int, ...]]
    apply: Callable[[Any, jax.Array], jax.Array]
    inputs: tuple[int, ...]
    readers: dict[str, tuple[str, ...]]
    masks: dict[str, list[int]]
    incoming: dict[str, Any]  # path -> index of the entries drawn anew
    zeroed: dict[str, Any]  # path -> index of the entries set to zero


ALL = slice(None)
TWO_IN_A_ROW = {"a": ("b",), "b": ("output",)}
CASES = {
    "dense": Case(
        {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (4, 5), "b/bias": (5,), "output/kernel": (5, 2),
         "output/bias": (2,)},
        dense_apply, (3,), TWO_IN_A_ROW, {"a": [1], "b": [0, 4]},
        {"a/kernel": (ALL, [1]), "a/bias": [1], "b/kernel": (ALL, [0, 4]), "b/bias": [0, 4]},
        {"b/kernel": [1], "output/kernel": [0, 4]},
    ),
    "normalized": Case(
        {"a/kernel": (3, 4), "a/norm/scale": (4,), "a/norm/offset": (4,), "b/kernel": (4, 5), "b/norm/scale": (5,),
         "b/norm/offset": (5,), "output/kernel": (5, 2)},
        normalized_apply, (3,), TWO_IN_A_ROW, {"a": [], "b": [2]},
        {"b/kernel": (ALL, [2]), "b/norm/scale": [2], "b/norm/offset": [2]},
        {"output/kernel": [2]},
    ),
    "convolutions, then a flatten": Case(  # 5x5 -> 4x4 with 3 channels -> 3x3 with 2 channels -> 18 inputs
        {"a/kernel": (2, 2, 1, 3), "a/bias": (3,), "b/kernel": (2, 2, 3, 2), "b/bias": (2,), "output/kernel": (18, 4)},
        conv_apply, (5, 5, 1), TWO_IN_A_ROW, {"a": [2], "b": [1]},
        {"a/kernel": (..., [2]), "a/bias": [2], "b/kernel": (..., [1]), "b/bias": [1]},
        {"b/kernel": (ALL, ALL, [2]), "output/kernel": [1, 3, 5, 7, 9, 11, 13, 15, 17]},
    ),
    "two features a unit": Case(  # 3x3 -> 2x2 with 3 units, 6 channels -> 24 inputs; 4 units -> 8 features
        {"a/kernel": (2, 2, 1, 3), "b/kernel": (24, 4), "output/kernel": (8, 2)},
        crelu_apply, (3, 3, 1), TWO_IN_A_ROW, {"a": [1], "b": [0]},
        {"a/kernel": (..., [1]), "b/kernel": (ALL, [0])},
        {"b/kernel": [1, 4, 7, 10, 13, 16, 19, 22], "output/kernel": [0, 4]},
    ),
    "two readers": Case(
        {"a/kernel": (3, 4), "value/kernel": (4, 1), "advantage/kernel": (4, 2)},
        dueling_apply, (3,), {"a": ("value", "advantage")}, {"a": [0, 3]},
        {"a/kernel": (ALL, [0, 3])},
        {"value/kernel": [0, 3], "advantage/kernel": [0, 3]},
    ),
}  # fmt: skip
EVERY_CASE = pytest.mark.parametrize("case_name", CASES)
OPTIMIZERS = {
    "adam with a count an entry": lambda: adam(0.1),
    "optax.adam": lambda: optax.adam(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "clipping, rmsprop, a schedule": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.rmsprop(0.1, centered=True),
        optax.scale_by_schedule(optax.constant_schedule(1.0)),
    ),
    "two optimizers, each for a part": lambda: optax.partition(
        {"kernel": optax.adam(0.1), "other": optax.sgd(0.1, momentum=0.9)},
        lambda params: paths.map_leaves(lambda path, _: "kernel" if path.endswith("kernel") else "other", params),
    ),
}


def unit_masks(case: Case, params) -> dict[str, jax.Array]:
    numbers = count_units(params, case.readers)
    return {layer: jnp.array(np.isin(np.arange(numbers[layer]), units)) for layer, units in case.masks.items()}


def changed_entries(case: Case) -> dict[str, np.ndarray]:
    """Where something changes, by the case's own list."""
    marks = {path: np.zeros(shape, bool) for path, shape in case.shapes.items()}
    for part in (case.incoming, case.zeroed):
        for path, index in part.items():
            marks[path][index] = True
    return marks


KEY = jax.random.key(7)


@functools.cache
def before_and_after(case_name: str, optimizer_name: str):
    """Parameters and optimizer state, twice: after two steps (nothing is zero by chance), and then recycled."""
    case, optimizer = CASES[case_name], OPTIMIZERS[optimizer_name]()
    init = normal_init(case.shapes)

    @jax.jit
    def run(key):
        params = init(jax.random.key(1))
        state = optimizer.init(params)
        for i in (1, 2):
            gradients = jax.tree.map(lambda p, i=i: jnp.cos(i * p), params)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        masks = unit_masks(case, params)
        after = recycle(optimizer, params, state, masks, readers=case.readers, init=init, key=key)
        return (params, state), after

    return jax.tree.map(np.asarray, run(KEY))


@EVERY_CASE
def test_exactly_the_right_weights_change(case_name):
    case = CASES[case_name]
    before, after = (paths.leaves(params) for params, _ in before_and_after(case_name, "momentum"))
    fresh = paths.leaves(jax.tree.map(np.asarray, jax.jit(normal_init(case.shapes))(KEY)))
    for path in case.shapes:
        expected = before[path].copy()
        if path in case.incoming:
            expected[case.incoming[path]] = fresh[path][case.incoming[path]]
        if path in case.zeroed:
            expected[case.zeroed[path]] = 0
        np.testing.assert_allclose(after[path], expected, rtol=1e-4, err_msg=path)  # two compilations of a sine
        kept = ~changed_entries(case)[path]
        np.testing.assert_array_equal(after[path][kept], before[path][kept], err_msg=path)


def test_scale_and_offset_begin_anew():
    (before, _), (after, _) = before_and_after("normalized", "momentum")
    assert before["b"]["norm"]["scale"][2] != 1
    assert before["b"]["norm"]["offset"][2] != 0
    assert (after["b"]["norm"]["scale"][2], after["b"]["norm"]["offset"][2]) == (1, 0)


@EVERY_CASE
def test_the_output_does_not_depend_on_a_recycled_unit(case_name):
    """By an actual forward pass: with other incoming weights a recycled unit gives the same outputs.

    In a normalized layer this goes for its scale and offset only: its pre-activation is part of the others' statistics.
    """
    case = CASES[case_name]
    (before, _), (after, _) = before_and_after(case_name, "momentum")
    x, apply = np.sin(np.arange(6 * math.prod(case.inputs))).reshape(6, *case.inputs), jax.jit(case.apply)

    def moved_by_other_incoming_weights(params):
        other = {path: leaf.copy() for path, leaf in paths.leaves(params).items()}
        for path, index in case.incoming.items():
            if case_name != "normalized" or not path.endswith("kernel"):
                other[path][index] += 1.0
            if path in case.zeroed:  # what it reads from another recycled unit is zero
                other[path][case.zeroed[path]] = paths.leaves(params)[path][case.zeroed[path]]
        return np.max(np.abs(apply(paths.replace(params, other), x) - apply(params, x)))

    assert moved_by_other_incoming_weights(before) > 0.1
    np.testing.assert_allclose(moved_by_other_incoming_weights(after), 0, atol=1e-5)


# Every network with one optimizer, and every optimizer with one network.
@pytest.mark.parametrize(
    ("case_name", "name"),
    [
        *((case, "momentum") for case in CASES),
        *(("two features a unit", name) for name in OPTIMIZERS if name != "momentum"),
    ],
)
def test_exactly_their_optimizer_state_is_reset(case_name, name):
    case = CASES[case_name]
    (_, state), (_, after) = before_and_after(case_name, name)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    marks, seen = changed_entries(case), 0
    pairs = zip(paths.leaves(state).items(), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        owner = [name for name in marks if path.endswith(f"/{name}")]
        if owner:  # moments and counts of an entry: all start at zero
            seen += 1
            np.testing.assert_array_equal(new, np.where(marks[owner[0]], 0, old), err_msg=path)
            assert np.all(old != 0)
        else:  # a single count, a schedule's step
            assert old.ndim == 0
            assert new == old
    copies = {"adam with a count an entry": 3, "optax.adam": 2, "momentum": 1, "clipping, rmsprop, a schedule": 2}
    kernels = sum(path.endswith("kernel") for path in marks)
    assert seen == (copies[name] * len(marks) if name in copies else 2 * kernels + len(marks) - kernels)


def test_an_entry_is_reset_to_what_init_makes_of_it():
    """Not to zero: what keeps the initial weights keeps the new ones."""
    anchored = optax.GradientTransformation(lambda params: {"start": params}, lambda u, s, p=None: (u, s))
    old, new = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])}
    state = reset_entries(anchored, anchored.init(old), new, {"w": jnp.array([False, True])})
    np.testing.assert_array_equal(state["start"]["w"], [1, 4])


def test_a_wrapped_intervention_is_reset_too():
    """One intervention around another, each with a state of its own around the moments."""
    case = CASES["dense"]
    init = normal_init(case.shapes)
    optimizer = redo(adam(0.1), readers=case.readers, init=init, key=jax.random.key(0), every=2, batches=2)

    @jax.jit
    def run():
        params = init(jax.random.key(1))
        hidden = {"a": jnp.ones((2, 4)), "b": jnp.ones((2, 5))}
        _, state = optimizer.update(params, optimizer.init(params), params, activations=hidden)
        masks = jax.tree.map(jnp.asarray, changed_entries(case))
        return reset_entries(optimizer, state, params, paths.replace(params, masks))

    after, marks = run(), changed_entries(case)
    for path, leaf in paths.leaves(after.inner[0].mu).items():
        np.testing.assert_array_equal(leaf == 0, marks[path])
    assert after.count == 1
    np.testing.assert_array_equal(after.activity["a"], 1)


def test_an_activation_functions_parameters_are_nobodys():
    shapes = {"a/kernel": (3, 4), "a/activation/slope": (4,), "output/kernel": (4, 2)}
    params = normal_init(shapes)(jax.random.key(0))
    after, _ = recycle(
        optax.sgd(0.1), params, optax.sgd(0.1).init(params), {"a": jnp.ones(4, bool)},
        readers={"a": ("output",)}, init=normal_init(shapes), key=jax.random.key(1),
    )  # fmt: skip
    np.testing.assert_array_equal(after["a"]["activation"]["slope"], params["a"]["activation"]["slope"])
    assert jnp.all(after["a"]["kernel"] != params["a"]["kernel"])


def test_features_by_unit():
    """Two units with two features: [first of both | second of both]; a flatten puts places first."""
    values = by_unit({"a": jnp.array([[[1.0, 2.0, -1.0, -2.0]], [[3.0, 4.0, -3.0, -4.0]]])}, "a", 2)
    np.testing.assert_array_equal(values, [[[1, 2], [-1, -2]], [[3, 4], [-3, -4]]])
    kernel = jnp.arange(8.0)[:, None]  # two places
    np.testing.assert_array_equal(outgoing(kernel, 2, 2)[..., 0], [[[0, 1], [2, 3]], [[4, 5], [6, 7]]])


def test_a_step_lands_on_the_new_weights_and_leaves_the_others_to_the_last_bit():
    params, steps = {"w": jnp.array([0.1, 0.7, 1e-9])}, {"w": jnp.array([1e-6, -0.3, 0.2])}
    new = optax.apply_updates(params, steps)["w"].at[1].set(0.0)
    step = as_step(params, steps, {"w": new})["w"]
    np.testing.assert_array_equal(step[jnp.array([0, 2])], steps["w"][jnp.array([0, 2])])
    assert params["w"][1] + step[1] == 0
    low = {"w": params["w"].astype(jnp.bfloat16)}
    assert as_step(low, steps, low)["w"].dtype == jnp.float32  # the steps' own


WRAPPERS = {
    "redo": redo,
    "continual_backprop": continual_backprop,
    "self_normalized_resets": self_normalized_resets,
}
EVERY_WRAPPER = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
DENSE = CASES["dense"]


def wrapped(wrap, readers=None, **options):
    options = {"readers": DENSE.readers if readers is None else readers, **options}
    return wrap(optax.sgd(0.1), init=normal_init(DENSE.shapes), key=jax.random.key(0), **options)


@EVERY_WRAPPER
@pytest.mark.parametrize(
    ("readers", "message"),
    [
        ({}, "readers are empty.*pass network.readers"),
        ({"c": ("output",)}, r"readers name the layer 'c', but there is no c/kernel \(layers: a, b, output\)"),
        ({"a": ("head",)}, "readers name the layer 'head', but there is no head/kernel"),
        ({"a": ("output",)}, "output takes 5 inputs, no multiple of the 4 units of a"),
    ],
)  # fmt: skip
def test_a_mistake_in_readers_gives_one_clear_line(wrap, readers, message):
    with pytest.raises(ValueError, match=message) as error:
        wrapped(wrap, readers).init(normal_init(DENSE.shapes)(jax.random.key(0)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        (redo, {"tau": 0.0, "every": 1}),
        (continual_backprop, {"rate": 0.3, "maturity": 0}),
        (self_normalized_resets, {"threshold": 1, "shortest": 1}),
    ],
)
def test_half_precision_weights_and_their_moments_keep_their_dtype(wrap, options):
    """Also where the initializer draws in float32."""
    init = normal_init(DENSE.shapes)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), init(jax.random.key(1)))
    optimizer = wrap(adam(0.1), readers=DENSE.readers, init=init, key=jax.random.key(0), **options)
    hidden = {"a": jnp.array([[0, 1, 2, 3], [0, 2, 1, 9]], jnp.bfloat16), "b": jnp.eye(5, dtype=jnp.bfloat16)}

    @jax.jit
    def run():
        before = optimizer.init(params)
        updates, state = optimizer.update(params, before, params, activations=hidden)
        return before, optax.apply_updates(params, updates), state

    before, after, state = run()
    np.testing.assert_array_equal(after["b"]["kernel"][0], 0)  # unit 0 of layer a is the silent one
    for old, new in zip(jax.tree.leaves((params, before)), jax.tree.leaves((after, state)), strict=True):
        assert old.dtype == new.dtype


@EVERY_WRAPPER
def test_what_update_needs_is_asked_for(wrap):
    optimizer, params = wrapped(wrap), normal_init(DENSE.shapes)(jax.random.key(0))
    state, hidden = optimizer.init(params), {"a": jnp.ones((2, 4)), "b": jnp.ones((2, 5))}
    with pytest.raises(ValueError, match=r"call update\(gradients, state, params, activations="):
        optimizer.update(params, state, params)
    with pytest.raises(ValueError, match=r"call update\(gradients, state, params, activations="):
        optimizer.update(params, state, activations=hidden)
    with pytest.raises(ValueError, match=r"lack the layer 'b' \(they have a\)"):
        optimizer.update(params, state, params, activations={"a": hidden["a"]})
    with pytest.raises(ValueError, match="the activations of a have 5 features, no multiple of its 4 units"):
        optimizer.update(params, state, params, activations={"a": hidden["b"], "b": hidden["b"]})


@pytest.mark.parametrize(
    ("wrap", "options", "message"),
    [
        (redo, {"every": 0}, "every must be at least 1 update, got 0"),
        (redo, {"every": 5, "batches": 6}, "batches must lie in 1 to every=5, got 6"),
        (continual_backprop, {"rate": 1.5}, "rate is a share of the units, 0 to 1, got 1.5"),
        (continual_backprop, {"decay": 1.0}, "decay must lie in 0 to 1, below 1, got 1.0"),
        (continual_backprop, {"maturity": -1}, "maturity must be at least 0 updates, got -1"),
        (self_normalized_resets, {"percentile": 0.0}, "percentile is a share"),
        (self_normalized_resets, {"every": 0}, "every must be at least 1 update, got 0"),
        (self_normalized_resets, {"expansion": 0.5}, "expansion must be at least 1, got 0.5"),
        (self_normalized_resets, {"shortest": 2000}, "1 <= shortest <= threshold <= longest, got 2000, 1000, 20000"),
    ],
)
def test_a_mistake_in_an_option(wrap, options, message):
    with pytest.raises(ValueError, match=message):
        wrapped(wrap, **options)


# One hidden layer, activations made up: what a unit does to the network is tested above, here it is which unit, when.


def one_layer(units: int, **more: tuple[int, ...]):
    shapes = {"a/kernel": (3, units), "a/bias": (units,), "output/kernel": (units, 2), "output/bias": (2,), **more}
    init = normal_init(shapes)
    return init, jax.jit(init)(jax.random.key(3))


STILL = optax.sgd(0.0)
READERS = {"a": ("output",)}


def drive(optimizer, params, batches, gradients=None):
    """Updates with made-up activations of layer a: the units that each recycled, and the weights and state after it."""
    zero = jax.tree.map(jnp.zeros_like, params) if gradients is None else gradients

    @jax.jit
    def step(state, params, hidden):
        updates, state = optimizer.update(zero, state, params, activations={"a": hidden})
        return optax.apply_updates(params, updates), state

    state, gone, weights, states = optimizer.init(params), [], [], []
    for hidden in np.asarray(batches, np.float32):
        before = params
        params, state = step(state, params, hidden)
        changed = np.any(np.asarray(params["a"]["kernel"]) != np.asarray(before["a"]["kernel"]), axis=0)
        np.testing.assert_array_equal(np.asarray(params["output"]["kernel"])[changed], 0)
        gone.append(np.flatnonzero(changed).tolist())
        weights.append(params)
        states.append(state)
    return gone, weights, states


# ReDo. Mean absolute activations of the four units: 0, 0.02, 0.08, 3.9; their mean is 1, so these are the scores.
SCORED = [[0.0, 0.04, -0.06, 3.8], [0.0, 0.0, 0.1, -4.0]]


@pytest.mark.parametrize(("tau", "expected"), [(0.0, [0]), (0.025, [0, 1]), (0.1, [0, 1, 2])])
def test_redo_by_known_scores_every_every_updates_and_at_no_other(tau, expected):
    init, params = one_layer(4)
    optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), tau=tau, every=3)
    gone, weights, states = drive(optimizer, params, [SCORED] * 7)
    assert gone == [[], [], expected, [], [], expected, []]
    assert states[-1].count == 7
    first, second = weights[2]["a"]["kernel"], weights[5]["a"]["kernel"]
    assert np.all(first[:, expected] != second[:, expected])  # each time other weights
    np.testing.assert_array_equal(second[:, 3], params["a"]["kernel"][:, 3])


def test_redo_scores_channels_over_batch_and_space_and_both_features_of_a_unit():
    """Unit 1's only activation is at one place of one example, in its second feature."""
    shapes = {"a/kernel": (1, 1, 1, 3), "output/kernel": (12, 2)}
    init = normal_init(shapes)
    hidden = jnp.zeros((2, 1, 2, 6)).at[1, 0, 1, 3 + 1].set(8.0).at[..., 2].set(0.5)
    optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), tau=0.0, every=10)
    params = init(jax.random.key(0))
    state = optimizer.init(params)._replace(count=jnp.array(8))
    zero = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zero, state, params, activations={"a": hidden})
    np.testing.assert_array_equal(state.activity["a"], [0, 0, 0])  # not the batch before the recycling
    updates, state = optimizer.update(zero, state, params, activations={"a": hidden})
    np.testing.assert_array_equal(jnp.any(updates["a"]["kernel"] != 0, axis=(0, 1, 2)), [True, False, False])
    wide = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), every=10, batches=10)
    _, state = wide.update(zero, wide.init(params), params, activations={"a": hidden})
    np.testing.assert_allclose(state.activity["a"], [0, 8 / 8, 0.5 / 2])


def test_redo_scores_the_last_batches_before_a_recycling():
    """Unit 1 is loud until the window of two batches begins, unit 2 loud once inside of it."""
    loud, window_1, window_2 = [[1.0, 9.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 1.0]], [[1.0, 0.0, 9.0, 1.0]]
    init, params = one_layer(4)

    def recycled_with(batches):
        optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), every=4, batches=batches)
        gone, _, (*_, state) = drive(optimizer, params, [loud, loud, window_2, window_1] * 2)
        np.testing.assert_array_equal(state.activity["a"], 0)
        assert gone[:3] == gone[4:7] == [[], [], []]
        assert gone[3] == gone[7]
        return gone[3]

    assert recycled_with(1) == [1, 2]
    assert recycled_with(2) == [1]


def test_redo_recycles_all_of_an_all_silent_layer():
    init, params = one_layer(4)
    optimizer = redo(STILL, readers=READERS, init=init, key=jax.random.key(0), tau=0.0, every=1)
    gone, (params,), _ = drive(optimizer, params, [np.zeros((2, 4))])
    assert gone == [[0, 1, 2, 3]]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_projection_around_redo_keeps_the_target_norms():
    case = CASES["normalized"]
    init = normal_init(case.shapes)
    params = start = init(jax.random.key(2))
    optimizer = nap.normalize_and_project(
        redo(adam(0.05), readers=case.readers, init=init, key=jax.random.key(0), tau=0.5, every=2)
    )
    state = optimizer.init(params)
    targets, hidden = state[-1].target_norms, {"a": jnp.ones((1, 4)), "b": jnp.array([[0.0, 1, 1, 1, 1]])}

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.cos, params), state, params, activations=hidden)
        return optax.apply_updates(params, updates), state

    for count in range(1, 5):
        params, state = step(params, state)
        assert np.all(np.asarray(params["output"]["kernel"])[0] == 0) == (count % 2 == 0)
    for path, target in state[-1].target_norms.items():
        assert target == targets[path]
    for path, norm in nap.weight_norms(params).items():
        np.testing.assert_allclose(norm, np.linalg.norm(paths.leaves(start)[path]), rtol=1e-5)


# Continual backprop.


def published_utilities(batches, into, out, decay):
    """Dohare et al.'s "adaptable contribution", one unit and one example at a time."""
    units = len(into[0])
    mean, utility, corrected = np.zeros(units), np.zeros(units), np.zeros(units)
    for age, batch in enumerate(np.asarray(batches, np.float64), start=1):
        for u in range(units):
            mean[u] = decay * mean[u] + (1 - decay) * batch[:, u].mean()
            usual = mean[u] / (1 - decay**age)
            swing = np.mean([abs(h - usual) for h in batch[:, u]])
            now = np.abs(out[u]).mean() * swing / np.abs(into[:, u]).mean()
            utility[u] = decay * utility[u] + (1 - decay) * now
            corrected[u] = utility[u] / (1 - decay**age)
    return mean, utility, corrected


def test_continual_backprop_utility_of_two_updates():
    """First by hand: one unit, weights 2 in and 3 out, decay 0.5, batches (1, 3), then (5, 5).

    Means: 0.5 * 2 = 1, corrected 2; then 0.5 * 1 + 0.5 * 5 = 3, corrected 4. Swings: 1, then 1.
    Utilities: 0.5 * (3 * 1 / 2) = 0.75; then 0.5 * 0.75 + 0.5 * (3 * 1 / 2) = 1.125.
    """
    shapes = {"a/kernel": (1, 1), "output/kernel": (1, 1)}
    options = {"readers": READERS, "key": jax.random.key(0), "rate": 0.0, "decay": 0.5}
    optimizer = continual_backprop(STILL, init=normal_init(shapes), **options)
    params = {"a": {"kernel": jnp.array([[-2.0]])}, "output": {"kernel": jnp.array([[3.0]])}}
    *_, states = drive(optimizer, params, [[[1.0], [3.0]], [[5.0], [5.0]]])
    for state, expected in zip(states, [(1, 1, 0.75), (2, 3, 1.125)], strict=True):
        record = state.units["a"]
        np.testing.assert_allclose([record.ages[0], record.mean_activation[0, 0], record.utility[0]], expected)


def test_continual_backprop_utility_equals_the_published_formula():
    init, params = one_layer(4)
    batches = jax.random.normal(jax.random.key(1), (6, 3, 4))
    optimizer = continual_backprop(STILL, readers=READERS, init=init, key=jax.random.key(0), rate=0.0, maturity=0)
    gone, _, (*_, state) = drive(optimizer, params, batches)
    assert not any(gone)  # at rate 0
    mean, utility, _ = published_utilities(batches, params["a"]["kernel"], params["output"]["kernel"], 0.99)
    np.testing.assert_allclose(state.units["a"].mean_activation[0], mean, rtol=1e-5)
    np.testing.assert_allclose(state.units["a"].utility, utility, rtol=1e-5)


def test_continual_backprop_utility_is_of_the_weights_after_the_step():
    init, params = one_layer(1)
    optimizer = continual_backprop(optax.sgd(1.0), readers=READERS, init=init, key=jax.random.key(0), decay=0.0)
    into, out = (np.abs(params[layer]["kernel"]).mean() for layer in ("a", "output"))
    gradients = jax.tree.map(jnp.zeros_like, params)
    gradients["output"]["kernel"] = -9 * params["output"]["kernel"]  # a step to ten times the outgoing weights
    *_, (*_, state) = drive(optimizer, params, [[[-1.0], [1.0]]], gradients)
    np.testing.assert_allclose(state.units["a"].utility, 10 * out / into, rtol=1e-5)


def varied(updates: int, units: int = 5):
    """Batches whose activations differ, in size too: unit 0 varies least, the last one most."""
    return jax.random.normal(jax.random.key(9), (updates, 64, units)) * 4.0 ** jnp.arange(units)


def even(params):
    """All weights of size 1, so that activations alone decide."""
    return jax.tree.map(lambda p: jnp.where(p < 0, -1.0, 1.0), params)


def test_continual_backprop_accumulates_fractions_and_replaces_the_least_useful_unit():
    """0.1 of 5 units older than 2 updates: from update 3 on half a unit more is due at each, so one at update 4.

    The unit replaced there is mature again 3 updates later; until then there are 4.
    """
    init, params = one_layer(5)
    options = {"readers": READERS, "init": init, "key": jax.random.key(0), "rate": 0.1, "maturity": 2}
    gone, _, states = drive(continual_backprop(STILL, **options), even(params), varied(7))
    assert gone[:4] == [[], [], [], [0]]
    record = states[3].units["a"]
    np.testing.assert_array_equal(record.ages, [0, 4, 4, 4, 4])
    np.testing.assert_allclose(record.due, 0, atol=1e-6)
    assert record.utility[0] == record.mean_activation[0, 0] == 0
    assert np.all(record.utility[1:] > 0)
    # 0.4 at updates 5 and 6, 0.5 at 7: 1.3, and of the mature units 0 is the one without outgoing weights
    assert gone[4:] == [[], [], [0]]
    np.testing.assert_allclose(states[-1].units["a"].due, 0.3, rtol=1e-5)


def test_continual_backprop_leaves_young_units_alone():
    init, params = one_layer(5)
    options = {"readers": READERS, "init": init, "key": jax.random.key(0), "rate": 1.0}
    gone, *_ = drive(continual_backprop(STILL, maturity=3, **options), params, varied(4))
    assert gone == [[], [], [], [0, 1, 2, 3, 4]]


def test_continual_backprop_hands_the_mean_over_to_the_bias():
    """For the mean input the next layer's pre-activations stay as they were."""
    init, params = one_layer(5)
    options = {"readers": READERS, "init": init, "key": jax.random.key(0), "rate": 0.2, "maturity": 2}
    batches = varied(3) + 2.0
    gone, (*_, after), _ = drive(continual_backprop(STILL, **options), params, batches)
    assert [len(units) for units in gone] == [0, 0, 1]
    weights = 0.99 ** np.arange(2, -1, -1) * 0.01  # the running mean's weights of the three batches, bias corrected
    mean = np.einsum("t,tbu->u", weights / weights.sum(), np.asarray(batches)) / 64
    before_after = [mean @ p["output"]["kernel"] + p["output"]["bias"] for p in (params, after)]
    np.testing.assert_allclose(*before_after, rtol=1e-4, atol=1e-4)
    assert jnp.all(jnp.abs(after["output"]["bias"] - params["output"]["bias"]) > 1e-3)


def test_continual_backprop_with_two_features_through_a_flatten():
    """2 units x 2 features at 3 places. Unit 1's features never move, so it goes; its means are 5 and 7."""
    shapes = {"a/kernel": (1, 1, 1, 2), "output/kernel": (12, 2), "output/bias": (2,)}
    init = normal_init(shapes)
    optimizer = continual_backprop(
        STILL, readers=READERS, init=init, key=jax.random.key(0), rate=0.5, maturity=0, features=2
    )
    params = init(jax.random.key(4))
    moving = jax.random.normal(jax.random.key(5), (4, 1, 3, 2))
    hidden = jnp.stack([moving[..., 0], jnp.full((4, 1, 3), 5.0), moving[..., 1], jnp.full((4, 1, 3), 7.0)], -1)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zero, optimizer.init(params), params, activations={"a": hidden})
    after = optax.apply_updates(params, updates)
    kernel = params["output"]["kernel"].reshape(3, 2, 2, 2)  # place, feature, unit, output
    np.testing.assert_array_equal(after["output"]["kernel"], kernel.at[:, :, 1].set(0).reshape(12, 2))
    given = 5 * kernel[:, 0, 1].sum(0) + 7 * kernel[:, 1, 1].sum(0)
    np.testing.assert_allclose(after["output"]["bias"], params["output"]["bias"] + given, rtol=1e-5)
    swings = jnp.abs(moving - moving.mean((0, 1, 2))).mean((0, 1, 2))
    out = jnp.abs(kernel).mean((0, 3))[:, 0]
    utility = 0.01 * (out * swings).sum() / jnp.abs(params["a"]["kernel"][0, 0, 0, 0])
    np.testing.assert_allclose(state.units["a"].utility, [utility, 0], rtol=1e-5)
    np.testing.assert_array_equal(state.units["a"].ages, [1, 0])


def test_continual_backprop_says_how_many_features_a_unit_has():
    init, params = one_layer(4)
    optimizer = continual_backprop(STILL, readers=READERS, init=init, key=jax.random.key(0))
    with pytest.raises(ValueError, match="a unit of a has 2 features, but features=1"):
        drive(optimizer, params, [np.ones((2, 8))])
    wrong = continual_backprop(STILL, readers=READERS, init=init, key=jax.random.key(0), features=3)
    with pytest.raises(ValueError, match="output takes 4 inputs, no multiple of the 4 units of a with 3 features each"):
        wrong.init(params)


# Self-normalized resets.


def firing(updates: int, *periods: int | None):
    """One example an update; a unit fires at the multiples of its period, or never."""
    return [[[1.0 if period and t % period == 0 else -1.0 for period in periods]] for t in range(1, updates + 1)]


def resets(init, **options):
    options = {"percentile": 0.9, "threshold": 64, "every": 40, "shortest": 1, "longest": 100, **options}
    return self_normalized_resets(STILL, readers=READERS, init=init, key=jax.random.key(0), **options)


def test_a_threshold_is_the_upper_edge_of_the_bin_of_the_usual_silence():
    """Silences 1, 2, 3, 4 or 5, 6 or 7, 8 to 11 share a bin; each lasts below the next one's first number."""
    init, params = one_layer(7)
    *_, (*_, state) = drive(resets(init), params, firing(40, 1, 2, 3, 4, 5, 6, 8))
    np.testing.assert_array_equal(state.units["a"].threshold, [2, 3, 4, 6, 6, 8, 12])
    np.testing.assert_array_equal(state.units["a"].histogram, 0)
    np.testing.assert_array_equal(state.units["a"].silence, [0, 0, 1, 0, 0, 4, 0])


def test_silences_are_counted_in_their_bins():
    init, params = one_layer(3)
    *_, (*_, state) = drive(resets(init, every=1000), params, firing(12, 1, 2, 5))
    counts = state.units["a"].histogram
    np.testing.assert_array_equal(counts.sum(1), [12, 6, 2])
    np.testing.assert_array_equal(jnp.argmax(counts, axis=1), [0, 2, 4])


def test_every_silence_is_in_the_bin_that_ends_above_it():
    """Also where sqrt(2)'s powers pass close to a whole number: 11585.2 and 11585."""
    init, params = one_layer(1)
    optimizer = resets(init, threshold=20_000, longest=20_000, every=1)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)

    def threshold_after(silence):
        waited = state.units["a"]._replace(silence=jnp.array([silence - 1]))
        _, new = optimizer.update(
            zero, state._replace(units={"a": waited}), params, activations={"a": jnp.ones((1, 1))}
        )
        return new.units["a"].threshold[0]

    silences = np.array([1, 2, 3, 4, 5, 6, 181, 182, 255, 256, 5792, 5793, 8191, 8192, 11585, 11586, 14142])
    found = jax.vmap(threshold_after)(jnp.array(silences))
    bins = [int(np.floor(2 * np.log2(float(silence)))) for silence in silences]
    np.testing.assert_array_equal(found, np.ceil(2.0 ** ((np.array(bins) + 1) / 2)))
    assert np.all(found > silences)


def test_a_unit_that_falls_silent_is_recycled_after_its_threshold():
    """It fires every 4 updates until 40, which gives a threshold of 6, and then no more: recycled at 46, and at 52."""
    init, params = one_layer(2)
    batches = firing(40, 4, 1) + firing(13, None, 1)
    gone, _, (*_, state) = drive(resets(init, every=40), params, batches)
    assert [t for t, units in enumerate(gone, start=1) if units] == [46, 52]
    assert gone[45] == gone[51] == [0]
    assert state.units["a"].silence[0] == 1
    assert state.units["a"].histogram[0].sum() == 2


def test_a_threshold_that_no_silence_reaches_stays():
    """A steady unit's threshold must not swing between its silence and twice that."""
    init, params = one_layer(2)
    gone, _, states = drive(resets(init, every=20), params, firing(60, 4, 5))
    assert not any(gone)
    for window in (1, 2, 3):
        np.testing.assert_array_equal(states[20 * window - 1].units["a"].threshold, [6, 6])


def test_a_threshold_that_too_many_silences_reach_grows():
    """Threshold 6; the first unit then fires every 9 updates only, the second one no more; the third never did.

    The first unit's silences are cut at 6, 3 updates before it fires again: half are 6, half 3. At the percentile 0.9
    that makes 12, which silences of 9 no longer reach; at 0.5 it makes 4, the edge above 3. The third unit keeps its
    threshold of 64 while no silence has ended, then it reaches 64.
    """
    init, params = one_layer(3)
    batches = firing(36, 4, 4, None) + firing(72, 9, None, None)
    gone, _, states = drive(resets(init, every=36), params, batches)
    assert [t for t, units in enumerate(gone, start=1) if 0 in units] == [36 + t for t in (6, 15, 24, 33)]
    assert [t for t, units in enumerate(gone, start=1) if 2 in units] == [64]
    thresholds = [states[36 * window - 1].units["a"].threshold.tolist() for window in (1, 2, 3)]
    assert thresholds == [[6, 6, 64], [12, 12, 100], [12, 24, 100]]  # no more than `longest`, 100
    *_, states = drive(resets(init, every=36, percentile=0.5, expansion=3.0), params, batches[:72])
    assert states[-1].units["a"].threshold.tolist() == [4, 18, 100]


def test_no_threshold_is_below_shortest():
    init, params = one_layer(2)
    *_, (*_, state) = drive(resets(init, shortest=16), params, firing(40, 1, 20))
    np.testing.assert_array_equal(state.units["a"].threshold, [16, 23])


def test_percentile_one_recycles_nothing():
    init, params = one_layer(2)
    gone, _, (*_, state) = drive(resets(init, percentile=1.0, threshold=5), params, firing(30, None, 1))
    assert not any(gone)
    assert state.units["a"].silence[0] == 30


def test_a_unit_fires_if_any_feature_does_at_any_place_of_any_example():
    shapes = {"a/kernel": (1, 1, 1, 2), "output/kernel": (8, 2)}
    init = normal_init(shapes)
    params = init(jax.random.key(0))
    optimizer = resets(init)
    zero, silent = jax.tree.map(jnp.zeros_like, params), jnp.zeros((3, 1, 2, 4))
    state = optimizer.init(params)
    _, state = optimizer.update(zero, state, params, activations={"a": silent})
    _, state = optimizer.update(zero, state, params, activations={"a": silent.at[2, 0, 1, 2].set(0.1)})
    np.testing.assert_array_equal(state.units["a"].silence, [0, 2])
