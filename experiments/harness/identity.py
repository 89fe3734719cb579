"""What a run is: its resolved configuration as canonical JSON, the short hash of it, and what it ran on and read."""

import dataclasses
import enum
import functools
import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.harness.errors import UserError

_HASH_BYTES = 4  # 8 hexadecimal digits; a collision is met by comparing config.json field by field
_PACKAGES = {"nap": "nap-jax", "jax": "jax", "jaxlib": "jaxlib", "flax": "flax", "optax": "optax", "numpy": "numpy"}
# What the environment sets JAX to, and numbers of which kind it computes with: an unfinished run keeps them.
_KINDS_OF_NUMBERS = ("JAX_ENABLE_X64", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE")
_LONGEST_NAME, _LONGEST_CUT = 255, 100
"""Bytes of a folder's name, which file systems allow; and of a label in one that would be longer."""
_REPOSITORY = Path(__file__).resolve().parents[2]


def plain(value: Any) -> Any:
    """A configuration as plain JSON values: dataclasses become dicts, tuples lists, enums their names, paths text.

    Args:
        value: a dataclass instance, mapping, list, tuple, enum, path, string, number, bool or None.

    Returns:
        The same with dicts, lists, strings, numbers, bools and None only.

    Raises:
        TypeError: on any other type: its text might differ from one process to the next, and so would the hash.
        UserError: a number is NaN or infinite: it equals no other, or is no JSON, and so no run of it could be resumed.
    """
    return _plain(value, "a configuration")


def _plain(value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain_field(type(value), field.name, getattr(value, field.name)) for field in fields}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _plain(item, _option(str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} {value}: it must be a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a configuration holds plain values, not {type(value).__name__}: {value!r}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def config_hash(experiment: str, config: Any) -> str:
    """The short name of a run: 8 hexadecimal digits of the experiment's name and its resolved configuration.

    The same in every process and on every machine: it hashes canonical JSON (sorted keys), never Python's `hash`.
    """
    text = json.dumps({"experiment": experiment, "config": plain(config)}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).hexdigest()


def folder_name(label: str, digest: str) -> str:
    """`<label>-<hash>`, or the hash alone; the label keeps letters, digits, `_`, `+` and `.`, the rest becomes `-`.

    Of a label that makes a longer name than there can be, the beginning is kept: the hash tells the runs apart.
    """
    slug = re.sub(r"[^A-Za-z0-9_+.]+", "-", label).strip("-.")
    if len(f"{slug}-{digest}") > _LONGEST_NAME:
        slug = slug[:_LONGEST_CUT].strip("-.")
    return f"{slug}-{digest}" if slug else digest


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first field in which two plain configurations differ, in words; None when they are equal.

    Args:
        there: the configuration that was found.
        here: the configuration that was asked for.

    Returns:
        For example "optimizer.name is 'adam' there and 'sgd' here", or None.
    """
    flat_there, flat_here = dict(flatten(there)), dict(flatten(here))
    for name in sorted(flat_there.keys() | flat_here.keys()):
        old, new = flat_there.get(name, "absent"), flat_here.get(name, "absent")
        if old != new:
            return f"{name} is {old!r} there and {new!r} here"
    return None


def software() -> dict[str, str]:
    """The versions that can change a result: Python, jax, jaxlib, flax, optax, numpy, nap, and the platform."""
    import importlib.metadata  # here, so that listing the experiments does not pay for it

    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name, distribution in _PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def settings() -> dict[str, Any]:
    """What JAX computes on, and what of its settings changes numbers: by the environment's names for them."""
    import jax

    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        **{name: getattr(jax.config, name.lower()) for name in (*_KINDS_OF_NUMBERS, "JAX_DEFAULT_MATMUL_PRECISION")},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def kind_of_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings()` under which the same seed gives another run, or another state."""
    return {name: settings[name] for name in _KINDS_OF_NUMBERS if name in settings}


def other_data(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """Which of the files that a run reads have changed, in words; None where none has.

    Args:
        there: the fingerprints that were found, by name.
        here: those of what was read now. What only one of the two has is not compared.
    """
    for name, fingerprint in here.items():
        if there.get(name, fingerprint) != fingerprint:
            return f"what {name} was read from has changed (fingerprint {there[name]} there and {fingerprint} here)"
    return None


def git_commit() -> str | None:
    """The checkout's commit, with "+changes" when tracked files differ from it; None outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit


def command_line() -> str:
    """The command that this process was started with, as one would type it again from the repository root."""
    program = Path(sys.argv[0])
    words = [word for word in sys.argv[1:] if word != "--wait"]  # a launcher's, for the run it starts
    if program.name == "__main__.py" and program.parent.name == "experiments":
        return shlex.join(["python", "-m", "experiments", *words])
    return shlex.join(["python", program.name, *words])


def _plain_field(config_type: type, name: str, value: Any) -> Any:
    # A default of 1 for a float is the same configuration as `--name 1`, which the command line makes 1.0.
    if isinstance(value, int) and _types_of(config_type)[name] is float:
        return float(value)
    return _plain(value, _option(name))


@functools.cache
def _types_of(config_type: type) -> dict[str, Any]:
    """The types of a dataclass's fields, without what is declared of them."""
    return typing.get_type_hints(config_type)


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(_REPOSITORY), *arguments], capture_output=True, encoding="utf-8", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A nested plain configuration as (dotted name, value) rows, in its own order."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        rows += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows
