"""Trained networks as files: weights as safetensors, and how the network is made as JSON.

    nap.networks.save("agent", recipe, params)
    loaded = nap.networks.load("agent")
    outputs = loaded.network.apply(loaded.params, x)

Nothing but this package is needed to load them, and no code is in them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nap import paths
from nap.networks.functions import Network, StatefulNetwork
from nap.networks.recipe import Recipe
from nap.paths import PyTree

RECIPE, WEIGHTS = "network.json", "weights.safetensors"
"""The two files."""
_FORMAT = 1
_PARAMS, _REST = "params/", "rest/"


class Loaded(NamedTuple):
    """A network from files.

    Attributes:
      network: its functions: a `StatefulNetwork` where something was saved beside the parameters.
      params: the parameters.
      rest: what else it keeps, such as BatchNorm's running statistics; () for a `Network`.
      recipe: how it is made.
    """

    network: Network | StatefulNetwork
    params: PyTree
    rest: PyTree
    recipe: Recipe


def save(folder: str | os.PathLike[str], recipe: Recipe, params: PyTree, rest: PyTree = ()) -> None:
    """Write a network into a folder, which is made if it is not there; what it holds of another network is replaced.

    Args:
      folder: where to.
      recipe: how the network is made.
      params: its parameters.
      rest: what else it keeps.

    Raises:
      ValueError: parameters of another network, or arguments that JSON has no words for.
      ImportError: safetensors is not installed.
    """
    _fill(_template(recipe, stateful=bool(jax.tree.leaves(rest))), _named(params, rest), "the parameters")
    try:
        text = json.dumps({"format": _FORMAT, **dataclasses.asdict(recipe)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe's arguments must be plain values: {error}") from None
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _named(params, rest).items()}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    _write(path / WEIGHTS, _safetensors().save(tensors))
    _write(path / RECIPE, text.encode() + b"\n")


def load(folder: str | os.PathLike[str]) -> Loaded:
    """A network that `save` or `python -m experiments export` wrote.

    Raises:
      ValueError: there is none in the folder, or it is damaged, or of another version.
      ImportError: safetensors is not installed.
    """
    path = Path(folder)
    try:
        told = json.loads((path / RECIPE).read_bytes())
        if not isinstance(told, dict) or told.get("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        arguments = {name: _tuples(value) for name, value in told["arguments"].items()}
        recipe = Recipe(told["network"], arguments, tuple(told["injected"]))
        named = {name: jnp.asarray(array) for name, array in _read_tensors(path / WEIGHTS).items()}
        template = _template(recipe, stateful=any(name.startswith(_REST) for name in named))
        params, rest = _fill(template, named, WEIGHTS)
    except FileNotFoundError as error:
        raise ValueError(f"there is no network in {path}: no {Path(str(error.filename)).name}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the network in {path} cannot be read: {error}") from None
    stateful = bool(jax.tree.leaves(rest))
    return Loaded(recipe.stateful_functions() if stateful else recipe.functions(), params, rest, recipe)


def _template(recipe: Recipe, stateful: bool) -> tuple[PyTree, PyTree]:
    """Parameters and the rest, without numbers."""
    if stateful:
        return jax.eval_shape(recipe.stateful_functions().init, jax.random.key(0))
    return jax.eval_shape(recipe.functions().init, jax.random.key(0)), ()


def _named(params: PyTree, rest: PyTree) -> dict[str, Any]:
    return {
        f"{part}{path}": leaf
        for part, tree in ((_PARAMS, params), (_REST, rest))
        for path, leaf in paths.leaves(tree).items()
    }


def _fill(template: tuple[PyTree, PyTree], named: Mapping[str, Any], what: str) -> tuple[PyTree, PyTree]:
    """The template with numbers. Raises ValueError where these are of something else."""
    wanted = {name: leaf.shape for name, leaf in _named(*template).items()}
    given = {name: leaf.shape for name, leaf in named.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            there, here = (f"{of[name]}" if name in of else "missing" for of in (wanted, given))
            raise ValueError(f"{name} is {there} in the network that is described, and {here} in {what}")
    params, rest = (
        paths.replace(tree, {path: named[f"{part}{path}"] for path in paths.leaves(tree)})
        for part, tree in zip((_PARAMS, _REST), template, strict=True)
    )
    return params, rest


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    data, safetensors = path.read_bytes(), _safetensors()
    try:
        return safetensors.load(data)
    except Exception as error:  # its own kind, of which nothing is promised
        raise ValueError(f"{path.name} is damaged: {error}") from None


def _write(path: Path, data: bytes) -> None:
    """Writes a file so that a reader finds the old content or the new, never a part."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _safetensors() -> ModuleType:
    """safetensors, which only this file needs."""
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ImportError("weights are files of safetensors: pip install safetensors") from None
    return safetensors.numpy
