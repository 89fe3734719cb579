"""Recycling of units: which entries of weights and optimizer state change, and what all that recycle refuse."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recycled_networks import CASES, Case, normal_init

from nap import paths
from nap.interventions.adam import adam
from nap.interventions.continual_backprop import continual_backprop
from nap.interventions.redo import redo
from nap.interventions.self_normalized_resets import self_normalized_resets
from nap.interventions.units import as_step, by_unit, count_units, outgoing, recycle, reset_entries

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


@EVERY_WRAPPER
def test_units_that_can_not_be_found_are_told_of_in_one_line(wrap):
    of_pytorch = {"a": {"weight": jnp.ones((4, 3))}, "output": {"weight": jnp.ones((2, 4))}}
    with pytest.raises(ValueError, match=r"no a/kernel \(no parameter is called kernel, as Flax's weights are\)$"):
        wrapped(wrap, {"a": ("output",)}).init(of_pytorch)
    heads = {name: {"kernel": jnp.ones((4, 2, 3))} for name in "qkv"}
    attention = {"a": {**heads, "o": {"kernel": jnp.ones((2, 3, 4))}}, "output": {"kernel": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"readers name the layer 'a/v', which is a part of attention: units of .*$"):
        wrapped(wrap, {"a/v": ("a/o",)}).init(attention)


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
        (redo, {"tau": float("nan")}, "tau must be a number, got nan"),
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
