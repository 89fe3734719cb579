"""Large arrays in checkpoints: written without a copy, read back bit by bit, damage noticed."""

import tracemalloc
import types
import warnings
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments.harness import large_arrays, mesh
from experiments.harness.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(large_arrays, "LARGE_BYTES", 1000)
    monkeypatch.setattr(large_arrays, "_BLOCK_BYTES", 300)  # not a divisor of the sizes


def state():
    random = np.random.default_rng(0)
    return {
        "frames": jnp.asarray(random.integers(0, 256, (7, 11, 13), np.uint8)),
        "half": jnp.asarray(random.normal(size=(600,)), jnp.bfloat16),
        "host": random.normal(size=(20, 10)),
        "flags": jnp.asarray(random.random(1001) < 0.5),
        "little": jnp.arange(5.0),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 200),  # typed keys stay orbax's, however many
    }


LARGE = ("frames", "half", "host", "flags")


def bits(tree) -> dict[str, bytes]:
    leaves = {name: jax.random.key_data(leaf) if name.startswith("key") else leaf for name, leaf in tree.items()}
    return {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}


def test_they_come_back_bit_by_bit_with_their_types(tmp_path):
    checkpoints, saved = Checkpoints(tmp_path / "checkpoints", {}), state()
    size = checkpoints.save(1, saved, {})
    by_orbax, ours = (
        [path.stat().st_size for path in (tmp_path / "checkpoints" / name).rglob("*") if path.is_file()]
        for name in ("1", "1.arrays")
    )
    assert sorted(ours) == sorted(np.asarray(saved[name]).nbytes for name in LARGE)
    assert size == sum(by_orbax) + sum(ours)
    wanted, template = bits(saved), state()
    restored = checkpoints.restore(template, lambda marks: None)
    assert (restored.iteration, restored.passed_over) == (1, [])
    assert bits(restored.state) == wanted
    for name, leaf in restored.state.items():
        assert type(leaf) is type(saved[name]) and (leaf.dtype, leaf.shape) == (saved[name].dtype, saved[name].shape)
    assert restored.state["half"].dtype == ml_dtypes.bfloat16
    assert template["frames"].is_deleted() and not template["little"].is_deleted()  # its memory was given up


def test_shapes_will_do_to_restore_into(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {})
    checkpoints.save(1, {"frames": state()["frames"]}, {})
    shape = {"frames": jax.ShapeDtypeStruct((7, 11, 13), jnp.uint8)}
    restored = checkpoints.restore(shape, lambda marks: None).state["frames"]
    np.testing.assert_array_equal(restored, state()["frames"])


def test_what_comes_back_can_be_donated(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {})
    checkpoints.save(1, state(), {})
    frames = checkpoints.restore(state(), lambda marks: None).state["frames"]
    with warnings.catch_warnings(action="error"):  # "some donated buffers were not usable"
        after = jax.jit(lambda x: x + 1, donate_argnums=0)(frames)
    assert frames.is_deleted()
    np.testing.assert_array_equal(after, np.asarray(state()["frames"]) + np.uint8(1))


@pytest.mark.parametrize("harm", ["flip", "cut", "extend", "remove"])
def test_damage_is_noticed_and_the_older_one_serves(tmp_path, harm):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {})
    older = {"frames": state()["frames"] + jnp.uint8(1)}
    checkpoints.save(1, older, {})
    checkpoints.save(2, {"frames": state()["frames"]}, {})
    (file,) = (tmp_path / "checkpoints" / "2.arrays").iterdir()
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    harmed = {"flip": bytes(content), "cut": file.read_bytes()[:-1], "extend": file.read_bytes() + b"x"}
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(harmed[harm])
    restored = checkpoints.restore({"frames": state()["frames"]}, lambda marks: None)
    assert restored.iteration == 1
    (sentence,) = restored.passed_over
    assert sentence.startswith("checkpoint 2 cannot be used: its array 0 ")
    np.testing.assert_array_equal(restored.state["frames"], older["frames"])


def test_they_go_with_their_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {})
    for iteration in (1, 2, 3):
        checkpoints.save(iteration, state(), {})
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {f"{iteration}{end}" for iteration in (2, 3) for end in ("", ".arrays", ".json")}


ARRAYS = pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((7, 11, 13), "uint8"),  # 2 rows of 143 bytes, the last one alone
        ((2, 3, 400), "uint8"),  # a row is more than a block
        ((3, 40, 2, 5), "float32"),  # 7 rows of 40 bytes in each of three
        ((4, 1, 300), "uint8"),
        ((1001,), "bool"),
        ((600,), "bfloat16"),
        ((), "int32"),
    ],
)


@ARRAYS
@pytest.mark.parametrize("devices", [1, 2])
def test_an_accelerators_array_comes_over_in_blocks(shape, dtype, devices, tmp_path, monkeypatch):
    """The accelerator is made up. It holds a block beside the array, and what is written is the array's bytes."""
    array = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape).astype(dtype))
    array = jax.device_put(array, mesh.replicated(mesh.make_mesh(devices)))
    own = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
    before, most = {id(other) for other in jax.live_arrays()}, []

    def watched(block, checksum):
        others = (other for other in jax.live_arrays() if id(other) not in before)
        most.append(sum(other.nbytes for other in others if other.unsafe_buffer_pointer() not in own))
        return zlib.crc32(block, checksum)

    monkeypatch.setattr(large_arrays, "_comes_whole", lambda _: False)
    monkeypatch.setattr(large_arrays, "zlib", types.SimpleNamespace(crc32=watched))
    wanted = np.asarray(array).tobytes()
    assert large_arrays.write(tmp_path / "array", array) == [len(wanted), zlib.crc32(wanted)]
    assert (tmp_path / "array").read_bytes() == wanted
    assert len(most) >= len(wanted) / 300 and max(most) <= 300


@ARRAYS
@pytest.mark.parametrize("devices", [1, 2])
def test_it_goes_back_in_blocks(shape, dtype, devices, tmp_path, monkeypatch):
    """To the devices of the array that it replaces, whose memory it takes; beside it there is a block at most."""
    array = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape).astype(dtype))
    array = jax.device_put(array, mesh.replicated(mesh.make_mesh(devices)))
    written, wanted = large_arrays.write(tmp_path / "array", array), np.asarray(array).tobytes()
    like = array + array
    before, most = {id(other) for other in jax.live_arrays()}, []

    def watched(block, checksum):
        most.append(sum(other.nbytes for other in jax.live_arrays() if id(other) not in before))
        return zlib.crc32(block, checksum)

    monkeypatch.setattr(large_arrays, "zlib", types.SimpleNamespace(crc32=watched))
    read = large_arrays.read(tmp_path / "array", like, written)
    assert np.asarray(read).tobytes() == wanted
    assert (read.shape, read.dtype, read.sharding) == (array.shape, array.dtype, array.sharding)
    assert len(most) >= len(wanted) / 300 and max(most) <= len(wanted) + 300


def test_an_array_is_read_without_another_one_in_the_hosts_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(large_arrays, "_BLOCK_BYTES", 30_000)
    array = jnp.asarray(np.random.default_rng(0).integers(0, 256, (100, 30, 1000), np.uint8))
    written = large_arrays.write(tmp_path / "array", array)
    tracemalloc.start()
    try:
        read = large_arrays.read(tmp_path / "array", array + jnp.uint8(1), written)
        assert tracemalloc.get_traced_memory()[1] < 500_000  # of 3 MB; the device's memory is not traced
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read, array)


def test_which_arrays_come_whole():
    def comes_whole(nbytes=301, replicated=True, platform="tpu"):
        devices = [types.SimpleNamespace(platform=platform)]
        return large_arrays._comes_whole(
            types.SimpleNamespace(nbytes=nbytes, is_fully_replicated=replicated, devices=lambda: devices)
        )

    assert (
        not comes_whole() and comes_whole(nbytes=300) and comes_whole(replicated=False) and comes_whole(platform="cpu")
    )
    assert large_arrays._comes_whole(np.zeros(400)) and large_arrays._comes_whole(jnp.zeros(400))
