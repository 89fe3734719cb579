"""What every intervention has to be: the same under jit, vmap and scan, resumable, repeatable, at peace with NaP."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from experiments.harness.checkpoint import Checkpoints
from nap import interventions, paths
from nap.layers import uniform_fan_in
from nap.networks import MLP, Network, as_functions

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Nearly all the time here goes into compilation."""

UPDATES = 25
RATE = 0.003
PLAIN = as_functions(lambda rngs: MLP(4, [8, 6], 3, kernel_init=uniform_fan_in, rngs=rngs))
NETWORKS = {"plain": PLAIN, "injected": interventions.with_injection(PLAIN, ["hidden/1/*", "output/*"])}


class Entry(NamedTuple):
    """One intervention.

    Attributes:
      make: around or beside an Adam, with a random key, so strong that it acts within a few updates.
      without: the same at strength zero, which must leave the Adam as it is; None where it has no such strength.
      draws: whether it draws random numbers.
      network: what it trains.
    """

    make: Callable[[jax.Array], optax.GradientTransformation]
    without: Callable[[jax.Array], optax.GradientTransformation] | None = None
    draws: bool = False
    network: str = "plain"


def adam() -> optax.GradientTransformation:
    return interventions.adam(RATE)


def before(**strengths: Any) -> Any:
    """A regularizer: on the gradient."""
    ((name, (strong, zero)),) = strengths.items()
    regularizer = getattr(interventions, name)
    return Entry(
        lambda key: optax.chain(regularizer(strong), adam()), lambda key: optax.chain(regularizer(zero), adam())
    )


def after(intervention: Any, strong: dict, zero: dict | None = None, needs: tuple[str, ...] = ()) -> Entry:
    """An intervention on the weights, behind the optimizer."""

    def make(options: dict) -> Callable[[jax.Array], optax.GradientTransformation]:
        return lambda key: optax.chain(adam(), intervention(**_given(needs, key), **options))

    return Entry(make(strong), None if zero is None else make(zero), draws="key" in needs)


def around(intervention: Any, strong: dict, zero: dict, needs: tuple[str, ...] = (), network: str = "plain") -> Entry:
    """An intervention that wraps the optimizer."""

    def make(options: dict) -> Callable[[jax.Array], optax.GradientTransformation]:
        return lambda key: intervention(adam(), **_given(needs, key), **options)

    return Entry(make(strong), make(zero), "key" in needs, network)


def _given(needs: tuple[str, ...], key: jax.Array) -> dict[str, Any]:
    known = {"readers": PLAIN.readers, "init": PLAIN.init, "key": key}
    return {name: known[name] for name in needs}


RECYCLING = ("readers", "init", "key")
ENTRIES = {
    "adam": Entry(lambda key: adam(), lambda key: optax.adam(RATE)),
    "redo": around(interventions.redo, {"tau": 0.3, "every": 3}, {"tau": -1.0, "every": 3}, RECYCLING),
    "continual_backprop": around(
        interventions.continual_backprop, {"rate": 0.1, "maturity": 1}, {"rate": 0.0, "maturity": 1}, RECYCLING
    ),
    "self_normalized_resets": around(
        interventions.self_normalized_resets,
        {"threshold": 2, "shortest": 1, "longest": 8, "every": 4},
        {"threshold": 2, "shortest": 1, "longest": 8, "every": 4, "percentile": 1.0},
        RECYCLING,
    ),
    "l2": before(l2=(0.1, 0.0)),
    "l2_init": before(l2_init=(0.1, 0.0)),
    "w2_init": before(w2_init=(0.1, 0.0)),
    "parseval": before(parseval=(0.1, 0.0)),
    "spectral_regularization": before(spectral_regularization=(0.1, 0.0)),
    "shrink_and_perturb": after(
        interventions.shrink_and_perturb,
        {"shrink": 0.9, "perturb": 0.1},
        {"shrink": 1.0, "perturb": 0.0},
        ("init", "key"),
    ),
    "shrink_and_perturb now and then": after(
        interventions.shrink_and_perturb,
        {"shrink": 0.5, "perturb": 0.5, "every": 3},
        {"shrink": 1.0, "perturb": 0.0, "every": 3},
        ("init", "key"),
    ),
    "clip_weights": after(interventions.clip_weights, {"kappa": 0.5}, {"kappa": 1e6}),
    "noisy_updates": after(interventions.noisy_updates, {"scale": 0.01}, {"scale": 0.0}, ("key",)),
    "spectral_normalization": after(interventions.spectral_normalization, {}),
    "project_units": after(interventions.project_units, {}),
    "hare_and_tortoise": after(
        interventions.hare_and_tortoise, {"momentum": 0.9, "every": 3}, {"momentum": 0.0, "every": 3}
    ),
    "upgd": Entry(lambda key: interventions.upgd(RATE, key=key, sigma=0.1), draws=True),
    "reset_layers": around(
        interventions.reset_layers,
        {"layers": ["hidden/1/*", "output/*"], "every": 3},
        {"layers": ["hidden/1/*", "output/*"], "every": 1000},
        ("init", "key"),
    ),
    "reset_optimizer_state": around(interventions.reset_optimizer_state, {"every": 3}, {"every": 1000}),
    "dash": around(interventions.dash, {"every": 3, "window": 1}, {"every": 1000, "window": 1}),
    "plasticity_injection": around(interventions.plasticity_injection, {"at": 3}, {"at": 1000}, network="injected"),
    "one around another": Entry(
        lambda key: interventions.reset_layers(
            interventions.redo(
                optax.chain(interventions.l2_init(0.1), interventions.upgd(RATE, key=key)),
                **_given(RECYCLING, key),
                tau=0.3,
                every=2,
            ),
            **_given(("init", "key"), key),
            layers=["output/*"],
            every=3,
        ),
        draws=True,
    ),
}
EVERY_ENTRY = pytest.mark.parametrize("name", ENTRIES)
X = jax.random.normal(jax.random.key(100), (8, 4))
Y = jax.random.normal(jax.random.key(101), (8, 3))
SEEDS = [0, 1, 0]  # of the parameters
KEYS = jax.random.split(jax.random.key(7), 2)[jnp.array([0, 0, 1])]  # of the interventions


class Run(NamedTuple):
    """One intervention under NaP, all members trained at once: a leading axis of members, in `history` updates next.

    Attributes:
      start: parameters and state before the first update.
      end: those after the last one.
      history: those after every update.
    """

    start: tuple[Any, Any]
    end: tuple[Any, Any]
    history: tuple[Any, Any]


@functools.cache
def starts(network: str) -> Any:
    """A draw for each member with one silent unit in the first layer, for what looks for such."""

    def start(seed: jax.Array) -> Any:
        return paths.map_leaves(
            lambda path, leaf: leaf.at[2].set(-5.0) if path.endswith("hidden/0/norm/offset") else leaf,
            NETWORKS[network].init(jax.random.key(seed)),
        )

    return quick_jit(jax.vmap(start))(jnp.array(SEEDS))


def gradients_and_activations(network: Network, params: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Of the squared error."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        outputs, activations = network.activations(params, X)
        return jnp.mean((outputs - Y) ** 2), activations

    return jax.grad(loss, has_aux=True)(params)


def advance(network: Network, optimizer: optax.GradientTransformation, params: Any, state: Any) -> tuple[Any, Any]:
    """One update."""
    gradients, activations = gradients_and_activations(network, params)
    optimizer = optax.with_extra_args_support(optimizer)
    updates, state = optimizer.update(gradients, state, params, activations=activations)
    return optax.apply_updates(params, updates), state


def train(network: Network, optimizer: optax.GradientTransformation, params: Any, updates: int) -> Run:
    start = params, optimizer.init(params)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
        after = advance(network, optimizer, *carry)
        return after, after

    return Run(start, *jax.lax.scan(step, start, None, updates))


@functools.cache
def compiled(name: str) -> Callable[[], Run]:
    entry = ENTRIES[name]

    def member(params: Any, key: jax.Array) -> Run:
        optimizer = nap.normalize_and_project(entry.make(key))  # made with a key that vmap traces
        return train(NETWORKS[entry.network], optimizer, params, UPDATES)

    return functools.partial(quick_jit(jax.vmap(member)), starts(entry.network), KEYS)


@functools.cache
def run(name: str) -> Run:
    found = compiled(name)()
    return found._replace(history=jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), found.history))


@functools.cache
def single_step(name: str) -> Any:
    """One update, jitted. Of the keys only the one in the state may count: this one's own is another."""
    entry = ENTRIES[name]
    optimizer = nap.normalize_and_project(entry.make(jax.random.key(12345)))
    return quick_jit(functools.partial(advance, NETWORKS[entry.network], optimizer))


def member_of(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def assert_close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def numbers(tree: Any) -> list[np.ndarray]:
    """The leaves, random keys by their numbers."""
    return [np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in jax.tree.leaves(tree)]


def differ(a: Any, b: Any) -> bool:
    return any(np.any(np.abs(x - y) > 1e-3) for x, y in zip(numbers(a), numbers(b), strict=True))


def trained_part(params: Any) -> Any:
    return params["first"] if isinstance(params, dict) else params


@functools.cache
def without_any() -> Any:
    """The parameters of the first seed after each update of an Adam under NaP, and of an Adam alone."""
    params = member_of(starts("plain"), 0)
    optimizers = (nap.normalize_and_project(adam()), adam())
    return quick_jit(lambda params: [train(PLAIN, each, params, UPDATES).history[0] for each in optimizers])(params)


def test_every_intervention_is_here():
    made = set(interventions.__all__) - {"Readers", "scale_by_adam", "with_injection"}
    assert made <= {name.split(" now")[0] for name in ENTRIES}


@EVERY_ENTRY
def test_it_acts(name):
    """The other tests would say little of an intervention that has nothing to do."""
    if name not in ("adam", "spectral_normalization"):  # one changes nothing; one only scales: projection undoes that
        assert differ(trained_part(member_of(run(name).history[0], 0)), without_any()[0])


@functools.cache
def gradients_of(network: str) -> Any:
    return quick_jit(functools.partial(gradients_and_activations, NETWORKS[network]))


@EVERY_ENTRY
def test_jit_equals_eager(name):
    """The third update, at which those act that act now and then."""
    optimizer = nap.normalize_and_project(ENTRIES[name].make(KEYS[0]))
    carry = member_of(run(name).start, 0)
    for _ in range(2):
        carry = single_step(name)(*carry)
    params, state = carry
    gradients, activations = gradients_of(ENTRIES[name].network)(params)
    updates, state = optimizer.update(gradients, state, params, activations=activations)
    assert_close((optax.apply_updates(params, updates), state), single_step(name)(*carry))


@EVERY_ENTRY
def test_vmap_over_seeds_and_keys_in_a_scan_equals_one_by_one(name):
    """Update by update: two compilations round differently, and training makes much of that in 25 updates."""
    for i in (0, 1):
        before = member_of(run(name).start, i)
        for update in range(UPDATES):
            after = jax.tree.map(jnp.asarray, member_of(run(name).history, i, update))
            assert_close(single_step(name)(*before), after)
            before = after
        assert_close(before, member_of(run(name).end, i), 0)


@EVERY_ENTRY
def test_what_an_update_returns_compiles_nothing_new(name):
    """The same shapes, dtypes and weak types as what it was given."""
    step = single_step(name)
    step(*step(*member_of(run(name).start, 0)))
    assert step._cache_size() == 1


@EVERY_ENTRY
def test_the_states_structure_shapes_and_dtypes_stay(name):
    start, end = run(name).start, run(name).end
    assert jax.tree.structure(start) == jax.tree.structure(end)
    for x, y in zip(*map(jax.tree.leaves, (start, end)), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


@EVERY_ENTRY
def test_repeatable_and_random_only_by_its_key(name):
    for a, b in zip(numbers(run(name)), numbers(compiled(name)()), strict=True):
        np.testing.assert_array_equal(a, b)
    one, another = (member_of(run(name).history[0], i) for i in (0, 2))
    assert differ(one, another) == ENTRIES[name].draws


@EVERY_ENTRY
def test_optax_maps_over_what_mirrors_the_parameters(name):
    params, state = member_of(run(name).start, 0)
    optimizer = nap.normalize_and_project(ENTRIES[name].make(KEYS[0]))
    same = optax.tree.map_params(optimizer, lambda leaf, of_params: leaf, state, params)
    assert jax.tree.structure(same) == jax.tree.structure(state)


@EVERY_ENTRY
def test_joined_with_projection(name):
    params, state = run(name).end
    start, start_state = run(name).start
    targets = state[-1].target_norms
    assert targets.keys() == start_state[-1].target_norms.keys()
    for path, target in targets.items():
        np.testing.assert_array_equal(target, start_state[-1].target_norms[path])
    hidden = nap.roles(member_of(params, 0)).paths(nap.Role.HIDDEN)
    assert {"hidden/0/kernel", "hidden/1/kernel"} <= {path.removeprefix("first/") for path in hidden}
    before, after = paths.leaves(start), paths.leaves(params)
    for path in hidden:
        norms = [np.linalg.norm(np.asarray(leaves[path], np.float64), axis=(1, 2)) for leaves in (before, after)]
        np.testing.assert_allclose(*norms, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.without])
def test_zero_strength_is_the_optimizer_alone(name):
    entry = ENTRIES[name]

    @quick_jit
    def ten_updates(params: Any) -> Any:
        return train(NETWORKS[entry.network], entry.without(KEYS[0]), params, 10).end[0]

    start = member_of(starts(entry.network), 0)
    if entry.network == "injected":
        start["first"] = member_of(starts("plain"), 0)
    assert_close(trained_part(ten_updates(start)), member_of(without_any()[1], 9), 1e-6)


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """Each intervention's first member, its parameters and state saved and loaded: all in one checkpoint."""
    saved = {name: member_of(run(name).end, 0) for name in ENTRIES}
    checkpoints = Checkpoints(tmp_path_factory.mktemp("checkpoints"), {})
    checkpoints.save(1, saved, {})
    empty = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
    return saved, checkpoints.restore(empty, lambda marks: None).state


@EVERY_ENTRY
def test_a_restored_checkpoint_gives_the_same_next_step(name, restored):
    saved, loaded = (states[name] for states in restored)
    for _ in range(3):
        saved, loaded = single_step(name)(*saved), single_step(name)(*loaded)
    assert jax.tree.structure(saved) == jax.tree.structure(loaded)
    for a, b in zip(numbers(saved), numbers(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
