"""Networks written to files and made again from them, bit for bit, by nothing but `nap`."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nap
from nap import networks, paths
from nap.networks import Recipe

KEY = jax.random.key(0)
FRAMES = jax.random.randint(KEY, (3, 4, 10, 10), 0, 256).astype(jnp.uint8)
PLAIN = {
    "q-network": (
        Recipe(
            "QNetwork",
            {
                "actions": 3, "atoms": 5, "dueling": True, "noisy": True, "torso": "minatar",
                "observation": (4, 10, 10), "hidden": 8, "dtype": "bfloat16",
            },
        ),
        FRAMES,
    ),
    "quantiles": (
        Recipe(
            "QNetwork",
            {"actions": 3, "quantile_samples": 4, "torso": "flat", "observation": (4, 10, 10), "hidden": 8},
        ),
        FRAMES,
    ),
    "mlp": (
        Recipe("MLP", {"inputs": 6, "hidden": (8, 7), "outputs": 2, "norm": "rms", "activation": "prelu"}),
        jax.random.normal(KEY, (3, 6)),
    ),
    "injected": (
        Recipe("MLP", {"inputs": 6, "hidden": (8, 7), "outputs": 2}, injected=("hidden/1/*", "output/*")),
        jax.random.normal(KEY, (3, 6)),
    ),
    "cnn": (
        Recipe("CNN", {"shape": (8, 8, 1), "outputs": 2, "channels": (4,), "hidden": (6,)}),
        jax.random.normal(KEY, (3, 8, 8, 1)),
    ),
    "transformer": (
        Recipe(
            "Transformer",
            {"vocabulary": 11, "context": 6, "layers": 2, "heads": 2, "width": 8, "scan_layers": True},
        ),
        jax.random.randint(KEY, (3, 6), 0, 11),
    ),
}  # fmt: skip
BATCH_NORM = Recipe("ResNet", {"outputs": 3, "blocks": (1, 1), "width": 4, "channels": 1, "norm": "batch"})
IMAGES = jax.random.normal(KEY, (4, 8, 8, 1))


def moved(tree):
    """Other numbers than those that `init` makes: what comes back must have been read."""
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), tree)


def bits(tree) -> dict[str, tuple]:
    return {path: (leaf.dtype, np.asarray(leaf).tobytes()) for path, leaf in paths.leaves(tree).items()}


@pytest.mark.parametrize("name", PLAIN)
def test_a_network_comes_back_bit_for_bit(name, tmp_path):
    recipe, x = PLAIN[name]
    network = recipe.functions()
    params = moved(jax.jit(network.init)(KEY))
    networks.save(tmp_path, recipe, params)
    loaded = networks.load(tmp_path)
    assert loaded.recipe == recipe and loaded.rest == ()
    assert bits(loaded.params) == bits(params)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    assert nap.roles(loaded.params) == nap.roles(params)
    assert bits(jax.jit(loaded.network.apply)(loaded.params, x)) == bits(jax.jit(network.apply)(params, x))


def test_the_statistics_of_batch_norm_come_back(tmp_path):
    network = BATCH_NORM.stateful_functions()
    params, rest = jax.jit(network.init)(KEY)
    params, rest = moved(params), jax.jit(network.train)(params, rest, IMAGES)[1]
    networks.save(tmp_path, BATCH_NORM, params, rest)
    loaded = networks.load(tmp_path)
    assert (bits(loaded.params), bits(loaded.rest)) == (bits(params), bits(rest))
    outputs = jax.jit(loaded.network.evaluate)(loaded.params, loaded.rest, IMAGES)
    assert bits(outputs) == bits(jax.jit(network.evaluate)(params, rest, IMAGES))


def test_what_is_no_network_is_refused_in_a_line(tmp_path):
    recipe, _ = PLAIN["mlp"]
    other = Recipe("MLP", {**recipe.arguments, "hidden": (8, 9)})
    with pytest.raises(ValueError, match=r"params/hidden/1/\S+ is \(9,\) .* and \(7,\) in the parameters"):
        networks.save(tmp_path, other, recipe.functions().init(KEY))
    assert not list(tmp_path.iterdir())
    function = Recipe("MLP", {**recipe.arguments, "activation": jax.nn.tanh})
    with pytest.raises(ValueError, match="plain values"):
        networks.save(tmp_path, function, function.functions().init(KEY))
    with pytest.raises(ValueError, match="'Mlp' is no network"):
        Recipe("Mlp", {})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "network.json").unlink(), "no network.json"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "no weights.safetensors"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"12345678"), "weights.safetensors is damaged"),
        (lambda folder: (folder / "network.json").write_text("[]", encoding="utf-8"), "format"),
        (lambda folder: rewritten(folder, network="Net"), "'Net' is no network"),
        (lambda folder: rewritten(folder, arguments={"inputs": 6, "hidden": [8], "outputs": 2, "size": 3}), "size"),
        (lambda folder: rewritten(folder, arguments={"inputs": 6, "hidden": [8], "outputs": 2}), "params/hidden/"),
        (lambda folder: rewritten(folder, format=2), "format"),
    ],
)  # fmt: skip
def test_a_damaged_one_is_told_in_a_line(damage, words, tmp_path):
    recipe, _ = PLAIN["mlp"]
    networks.save(tmp_path, recipe, recipe.functions().init(KEY))
    damage(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        networks.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def rewritten(folder: Path, **changes) -> None:
    path = folder / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_without_safetensors_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    recipe, _ = PLAIN["mlp"]
    with pytest.raises(ImportError, match="pip install safetensors"):
        networks.save(tmp_path, recipe, recipe.functions().init(KEY))
