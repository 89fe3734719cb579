"""Many seeds over the devices: each must come out as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import large_arrays
from experiments.harness import seeds as seeds_module
from experiments.harness.seeds import Seeds


def walk(shared: jax.Array, key: jax.Array, steps: jax.Array) -> jax.Array:
    """A random walk through a matrix, so that the order of float operations matters."""
    return jax.lax.fori_loop(
        0,
        steps,
        lambda i, x: jnp.tanh(x @ shared) + jax.random.normal(jax.random.fold_in(key, i), x.shape),
        jnp.ones(5),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_seed_has_the_same_result_to_the_last_bit_however_many_there_are(count):
    shared = jax.random.normal(jax.random.key(9), (5, 5))
    seeds = Seeds(count)
    results = seeds.map(walk)(seeds.shared(shared), seeds.keys(7), jnp.asarray(20))
    assert results.shape == (seeds.padded, 5)
    for i in range(count):
        alone = Seeds(1)
        expected = alone.map(walk)(alone.shared(shared), alone.keys(7 + i), jnp.asarray(20))
        np.testing.assert_array_equal(results[i], expected[0])


def test_what_is_saved_has_no_padding_and_comes_back():
    seeds = Seeds(3)
    own = {"key": seeds.keys(0), "x": jnp.arange(seeds.padded * 2.0).reshape(seeds.padded, 2)}
    own = jax.device_put(own, seeds.keys(0).sharding)
    saved = seeds.drop_padding(own)
    assert saved["x"].shape == (3, 2)
    assert len(saved["x"].devices()) == 1
    back = seeds.pad(saved, own)
    np.testing.assert_array_equal(back["x"], own["x"])
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(own["key"]))
    assert back["x"].sharding == own["x"].sharding


def test_what_is_large_is_saved_from_the_host(monkeypatch):
    """All seeds' replays together need not fit on one device."""
    seeds = Seeds(3)
    own = {"replay": jnp.arange(seeds.padded * 4.0).reshape(seeds.padded, 4), "count": jnp.arange(1.0 * seeds.padded)}
    own = jax.device_put(own, seeds.keys(0).sharding)
    monkeypatch.setattr(large_arrays, "LARGE_BYTES", own["replay"].nbytes)
    saved = seeds.drop_padding(own)
    assert isinstance(saved["replay"], np.ndarray) and isinstance(saved["count"], jax.Array)
    back = seeds.pad(saved, own)
    for name, leaf in own.items():
        np.testing.assert_array_equal(back[name], leaf)
        assert back[name].sharding == leaf.sharding


def test_data_has_one_copy_a_device_and_none_a_seed():
    seeds = Seeds(10)
    data = seeds.shared(jnp.zeros((100, 7), jnp.uint8))
    assert [shard.data.nbytes for shard in data.addressable_shards] == [700] * len(data.devices())
    assert len(data.devices()) <= 10


@pytest.mark.parametrize("at_once", [1, 2, 3, None])
def test_on_a_gpu_seeds_are_vmapped_as_many_at_a_time_as_is_said(monkeypatch, at_once):
    shared = jax.random.normal(jax.random.key(9), (5, 5))
    plain = Seeds(5)
    expected = plain.map(walk)(plain.shared(shared), plain.keys(0), jnp.asarray(9))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    seeds = Seeds(5)
    assert seeds.padded == 5
    results = seeds.map(walk, at_once=at_once)(seeds.shared(shared), seeds.keys(0), jnp.asarray(9))
    np.testing.assert_allclose(results, expected[:5], rtol=1e-5)


class FakeDevice:
    """What `Seeds.fit` asks of a device."""

    def __init__(self, memory: dict | None) -> None:
        self.memory = memory

    def memory_stats(self) -> dict | None:
        return self.memory


def test_as_many_seeds_at_once_as_fit_into_the_memory(monkeypatch):
    monkeypatch.setattr(seeds_module, "cores_here", lambda: [0, 1])  # two devices, four seeds on each
    seeds = Seeds(8)
    shared, own = jnp.zeros(1000), jnp.zeros((seeds.padded, 1000))
    assert seeds.fit(lambda shared, own: own + shared, shared, own) is None  # on a CPU: one
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for memory, expected in [({"bytes_limit": 10**9}, seeds.padded), ({"bytes_limit": 1}, 1), (None, 8 // 2)]:
        monkeypatch.setattr(jax, "local_devices", lambda memory=memory: [FakeDevice(memory)])
        assert seeds.fit(lambda shared, own: own + shared, shared, own) == expected
    # 0.8 of the memory, less the data (4 kB) and twice a device's states (4 x 4 kB), by what one seed's result takes.
    monkeypatch.setattr(jax, "local_devices", lambda: [FakeDevice({"bytes_limit": 61_000})])
    assert seeds.fit(lambda shared, own: own + shared, shared, own) == (0.8 * 61_000 - 4_000 - 2 * 16_000) // 4_001
