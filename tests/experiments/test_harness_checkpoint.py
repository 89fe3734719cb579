"""Checkpoints: what goes in comes out bit for bit, and a damaged one is never loaded."""

import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.harness import UserError
from experiments.harness.checkpoint import Checkpoints

IDENTITY = {"experiment": "counter", "config": {"seed": 0, "optimizer": {"name": "adam"}}}


class Buffer(NamedTuple):
    frames: jax.Array
    cursor: jax.Array


def small_state(fill: float = 0.0) -> dict:
    return {"weights": jnp.full((8,), fill, jnp.float32), "noise": np.arange(5000, dtype=np.uint32) * 2654435761}


def rich_state(seed: int) -> dict:
    """A state with every kind of leaf that an experiment may hold."""
    key = jax.random.key(seed)
    params = nnx.split(nnx.Linear(3, 4, rngs=nnx.Rngs(seed)), nnx.Param, ...)[1]
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "key": key,
        "keys": jax.random.split(key, 3),
        "buffer": Buffer(jax.random.randint(key, (50, 4, 4), 0, 255, jnp.uint8), jnp.array(seed)),
        "bfloat16": jax.random.normal(key, (5,), jnp.bfloat16),
        "host": np.random.default_rng(seed).normal(size=(7,)),
        "numpy_scalar": np.float32(0.1 + seed),
        "empty": np.zeros((0, 3), np.float32),
        "device_empty": jnp.zeros((2, 0)),
        "weak_scalar": jnp.asarray(0.5 + seed),
        "weak_vector": jnp.full((3,), 0.5 + seed),
        "count": 5 + seed,
        "done": bool(seed),
        "generator": "123456789012345678901234567890",
        "nothing": None,
        "odd/name.with dots": [1.5 + seed, (jnp.ones((2,), jnp.int32) * seed,)],
    }


def always(_) -> None:
    return None


def bits(tree) -> list:
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = jax.random.key_data(leaf) if is_key else leaf
        kind = (type(leaf), getattr(leaf, "dtype", None), getattr(leaf, "weak_type", None))
        rows.append((jax.tree_util.keystr(path), kind, np.asarray(data).tobytes()))
    return rows


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", IDENTITY)
    saved = rich_state(1)
    checkpoints.save(3, saved, {"metrics_bytes": 17})
    restored = checkpoints.restore(rich_state(0), always)
    assert (restored.iteration, restored.marks, restored.passed_over) == (3, {"metrics_bytes": 17}, [])
    assert jax.tree.structure(restored.state) == jax.tree.structure(saved)
    assert bits(restored.state) == bits(saved)
    assert bits(saved) != bits(rich_state(0))


def test_restores_into_abstract_arrays(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(1, small_state(2.0), {})
    abstract = jax.eval_shape(lambda: {"weights": jnp.zeros((8,), jnp.float32)}) | {"noise": small_state()["noise"]}
    np.testing.assert_array_equal(checkpoints.restore(abstract, always).state["weights"], np.full(8, 2.0, np.float32))


def test_the_state_may_be_donated_or_changed_right_after_save(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    state = {"device": jnp.arange(1 << 20, dtype=jnp.float32), "host": np.arange(1 << 20)}
    checkpoints.save(1, state, {})
    jax.block_until_ready(jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(state["device"]))
    assert state["device"].is_deleted()
    state["host"][:] = -1
    fresh = {"device": jnp.zeros(1 << 20, jnp.float32), "host": np.zeros(1 << 20, np.int64)}
    restored = checkpoints.restore(fresh, always).state
    np.testing.assert_array_equal(restored["device"], np.arange(1 << 20, dtype=np.float32))
    np.testing.assert_array_equal(restored["host"], np.arange(1 << 20))


def test_the_newest_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    for iteration in (1, 2, 3, 10):
        checkpoints.save(iteration, small_state(iteration), {})
    (tmp_path / "².json").touch()  # a digit, but no number
    assert checkpoints.iterations() == [3, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "10.json", "3", "3.json", "².json"]


def files_that_matter(folder) -> list[str]:
    """All files of a checkpoint, by path; orbax's random names are known from the first save only."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "one bit"])
def test_a_damaged_checkpoint_is_passed_over_whichever_file_it_is_in(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path / "checkpoints", IDENTITY)
    checkpoints.save(1, small_state(1.0), {})
    checkpoints.save(2, small_state(2.0), {})
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "checkpoints", whole)
    targets = [f"2/{name}" for name in files_that_matter(whole / "2")] + ["2.json"]
    assert len(targets) > 5
    for name in targets:
        content = (whole / name).read_bytes()
        if damage in ("half", "one bit") and not content:
            continue
        shutil.rmtree(tmp_path / "checkpoints")
        shutil.copytree(whole, tmp_path / "checkpoints")
        target = tmp_path / "checkpoints" / name
        if damage == "missing":
            target.unlink()
        elif damage == "empty" and content:
            target.write_bytes(b"")
        elif damage == "half":
            target.write_bytes(content[: len(content) // 2])
        elif damage == "one bit":
            middle = len(content) // 2
            target.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        else:
            continue
        restored = checkpoints.restore(small_state(), always)
        assert restored.iteration == 1, (name, restored.passed_over)
        assert float(restored.state["weights"][0]) == 1.0
        assert len(restored.passed_over) == 1 and restored.passed_over[0].startswith("checkpoint 2 ")


def test_a_save_that_was_cut_short_is_passed_over_and_cleared_away_by_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(1, small_state(1.0), {})
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)  # killed while orbax was writing
    shutil.copytree(tmp_path / "1", tmp_path / "3")  # killed after orbax, before our last file
    restored = checkpoints.restore(small_state(), always)
    assert restored.iteration == 1
    assert [sentence.split(" (")[0] for sentence in restored.passed_over] == [
        "checkpoint 3 is half-written",
        "checkpoint 2 is half-written",
    ]
    checkpoints.save(2, small_state(2.0), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json", "2", "2.json"]


def test_a_first_save_that_was_cut_short_means_starting_over(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    (tmp_path / "1.orbax-checkpoint-tmp").mkdir()
    restored = checkpoints.restore(small_state(7.0), always)
    assert (restored.iteration, float(restored.state["weights"][0])) == (0, 7.0)
    assert len(restored.passed_over) == 1


def test_when_none_is_whole_it_says_so_and_deletes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(1, small_state(), {})
    next((tmp_path / "1").rglob("manifest.ocdbt")).unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .*manifest\.ocdbt is missing.*--fresh"):
        checkpoints.restore(small_state(), always)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_configuration_names_the_field(tmp_path):
    Checkpoints(tmp_path, IDENTITY).save(1, small_state(), {})
    other = {"experiment": "counter", "config": {"seed": 0, "optimizer": {"name": "sgd"}}}
    with pytest.raises(UserError, match=r"config\.optimizer\.name is 'adam' there and 'sgd' here"):
        Checkpoints(tmp_path, other).restore(small_state(), always)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": jnp.zeros((9,), jnp.float32)}, r"\['weights'\] is 'float32\[8\]' there and 'float32\[9\]' here"),
        ({"extra": 1}, r"\['extra'\] is 'absent' there and 'int' here"),
    ],
)
def test_a_checkpoint_of_other_code_names_the_leaf(tmp_path, change, words):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(1, small_state(), {})
    with pytest.raises(UserError, match=words):
        checkpoints.restore(small_state() | change, always)


def test_marks_that_cannot_be_met_pass_a_checkpoint_over(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(1, small_state(1.0), {"metrics_bytes": 10})
    checkpoints.save(2, small_state(2.0), {"metrics_bytes": 20})
    restored = checkpoints.restore(small_state(), lambda marks: "too long" if marks["metrics_bytes"] > 15 else None)
    assert (restored.iteration, restored.passed_over) == (1, ["checkpoint 2 cannot be used: too long"])
