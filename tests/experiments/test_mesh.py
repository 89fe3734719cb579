"""One run over eight devices of this process, and over two processes: the same as on one device, to rounding."""

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from atari_command import command_line
from jax.sharding import Mesh, PartitionSpec
from two_processes import run_two

import nap
from agents.replay import ReplayState, Step
from agents.sum_tree import set_leaves
from experiments import atari, harness
from experiments.atari.config import Config, resolve
from experiments.harness import large_arrays, mesh, processes
from experiments.harness.checkpoint import Checkpoints
from nap.networks import MLP, as_functions

ENVS, CAPACITY, BATCH, UPDATES = 2, 40, 16, 3


# --- A learner of the DQN family --------------------------------------------------------------------------------------


class Learner(NamedTuple):
    """Rainbow with NaP: what it is after some updates, and the compiled update."""

    state: Any
    update: jax.stages.Compiled

    def after(self, updates: int, state: Any = None) -> Any:
        agent, replay = jax.tree.map(jnp.copy, self.state if state is None else state)  # an update donates both
        for _ in range(updates):
            agent, replay, _ = self.update(agent, replay, jax.random.key(1))
        return agent, replay


def learner(devices: Mesh | None) -> Learner:
    """With a replay of made-up steps; nothing is learned yet."""
    config = resolve(Config(game="catch", agent="rainbow", batch_size=BATCH, num_envs=ENVS, replay_capacity=CAPACITY))
    functions = atari.build(config, 3, (4, 10, 5), mesh=devices)
    agent, replay, _ = functions.init(jax.random.key(0))
    draws = np.random.default_rng(0)
    for _ in range(40):
        step = Step(
            draws.integers(0, 256, (ENVS, 10, 5), np.uint8),
            draws.integers(0, 3, ENVS).astype(np.int32),
            draws.normal(size=ENVS).astype(np.float32),
            (draws.random(ENVS) > 0.1).astype(np.float32),
            draws.random(ENVS) < 0.1,
        )
        replay = functions.add(replay, step)
    factors = draws.uniform(0.1, 10, CAPACITY).astype(np.float32)

    @jax.jit
    def unequal(tree: jax.Array) -> jax.Array:  # else each part of a batch would have the same largest weight
        return set_leaves(tree, jnp.arange(CAPACITY), factors * tree[tree.size // 2 :][:CAPACITY])

    replay = replay._replace(tree=unequal(replay.tree))
    return Learner((agent, replay), functions.learn.lower(agent, replay, jax.random.key(1)).compile())


@functools.cache
def on(devices: int) -> Learner:
    """On so many devices of this process; as on a machine with a single one where it is 1."""
    return learner(None if devices == 1 else mesh.make_mesh(devices))


def weights(state: tuple[Any, ReplayState]) -> dict[str, np.ndarray]:
    """All of a state's numbers, the priorities too."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal_to_rounding(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_eight_devices_give_the_weights_of_one():
    one, eight = (on(devices).after(UPDATES) for devices in (1, 8))
    assert_equal_to_rounding(weights(eight), weights(one))
    before = weights(on(1).state)
    changed = [name for name, value in weights(one).items() if not np.array_equal(value, before[name])]
    assert any("params" in name for name in changed) and any("tree" in name for name in changed)
    for leaf in jax.tree.leaves(eight):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8 and all(np.array_equal(copy, copies[0]) for copy in copies)


def test_the_batch_is_divided_and_only_gradients_and_priorities_travel():
    program = on(8).update.as_text()
    forward = re.findall(r"f32\[(\d+),200\]", program)  # the layers' inputs: 200 pixels of each transition
    assert str(BATCH // 8) in forward and str(BATCH) not in forward
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program)
    assert set(gathered) == {str(BATCH)}  # numbers of transitions, never their frames
    for kind in ("all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {kind}(" not in program


@pytest.mark.parametrize("large", [large_arrays.LARGE_BYTES, 1000])  # bytes: all by orbax, or most in our own files
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_a_run_goes_on_with_another_number_of_devices(before, after, large, tmp_path, monkeypatch):
    monkeypatch.setattr(large_arrays, "LARGE_BYTES", large)
    checkpoints = Checkpoints(tmp_path, {"experiment": "atari", "config": {}})
    saved = on(before).after(UPDATES)
    checkpoints.save(1, saved, {})
    like = on(after).after(0)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    restored = checkpoints.restore(like, lambda marks: None).state
    for name, value in weights(saved).items():
        np.testing.assert_array_equal(weights(restored)[name], value, err_msg=name)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == shardings
    assert_equal_to_rounding(weights(on(after).after(1, restored)), weights(on(before).after(UPDATES + 1)))


# --- A supervised learner, divided ------------------------------------------------------------------------------------


def trained(devices: Mesh, share: tuple[np.ndarray, np.ndarray], divide: bool) -> dict[str, jax.Array]:
    """The weights of an MLP with NaP after three updates, with weights and optimizer divided or not."""
    network = as_functions(lambda rngs: MLP(40, (256, 256), 3, rngs=rngs))
    # A larger epsilon than usual: where a gradient is 0 but for rounding, Adam makes a whole step of it.
    optimizer = nap.normalize_and_project(optax.adam(1e-2, eps=1e-3))

    def init(key: jax.Array) -> tuple[Any, Any]:
        params = network.init(key)
        return params, optimizer.init(params)

    def update(state: tuple[Any, Any], batch: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = state

        def loss_of(params: Any) -> jax.Array:
            return jnp.mean((network.apply(params, batch[0]) - batch[1]) ** 2)

        loss, gradients = jax.value_and_grad(loss_of)(params)
        steps, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, steps), opt_state), loss

    key = jax.random.key(0)
    where = mesh.fully_sharded(jax.eval_shape(init, key), devices) if divide else mesh.replicated(devices)
    state = jax.jit(init, out_shardings=where)(key)
    step = jax.jit(mesh.data_parallel(update, devices, where), donate_argnums=0)
    batch = mesh.batch_of(share, devices)
    for _ in range(3):
        state, _ = step(state, batch)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def examples(rows: slice) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    return draws.normal(size=(16, 40)).astype(np.float32)[rows], draws.normal(size=(16, 3)).astype(np.float32)[rows]


@functools.cache
def trained_on_one() -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in trained(mesh.make_mesh(1), examples(slice(16)), False).items()}


@pytest.mark.parametrize("divide", [False, True])
def test_training_with_a_divided_batch_or_divided_weights_is_that_on_one_device(divide):
    found = trained(mesh.make_mesh(8), examples(slice(16)), divide)
    assert_equal_to_rounding({name: np.asarray(leaf) for name, leaf in found.items()}, trained_on_one())
    on_one = {name: leaf.addressable_shards[0].data.size for name, leaf in found.items()}
    parts = {leaf.size // on_one[name] for name, leaf in found.items()}
    assert parts == ({1, 8} if divide else {1})
    if divide:  # the 256 x 256 kernel and its two moments
        assert [leaf.shape for name, leaf in found.items() if leaf.size == 8 * on_one[name]] == 3 * [(256, 256)]


@pytest.mark.parametrize("divide", [False, True])
def test_the_state_stays_where_it_was_whatever_the_update_makes_of_it(divide):
    devices = mesh.make_mesh(8)
    kept = mesh.divided(devices) if divide else mesh.replicated(devices)
    update = mesh.data_parallel(lambda state, batch: (state + batch.sum(1), batch.max(1)), devices, kept)
    batch = np.arange(48.0, dtype=np.float32).reshape(16, 3)
    state, told = jax.jit(update)(jax.device_put(jnp.zeros(16), kept), mesh.batch_of(batch, devices))
    assert (state.sharding, told.sharding) == (kept, mesh.replicated(devices))
    np.testing.assert_array_equal(state, batch.sum(1))
    np.testing.assert_array_equal(told, batch[:, 2])


def test_where_the_leaves_of_a_fully_sharded_state_lie():
    shapes = {
        "longest": (256, 1024, 8),
        "first of equals": (512, 512),
        "longest is not divisible": (1023, 512),
        "none is divisible": (1023, 513),
        "small": (8, 64),
        "number": (),
        "empty": (0, 8),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    found = {name: place.spec for name, place in mesh.fully_sharded(tree, mesh.make_mesh(8)).items()}
    whole = PartitionSpec()
    assert found == {
        "longest": PartitionSpec(None, "data"),
        "first of equals": PartitionSpec("data"),
        "longest is not divisible": PartitionSpec(None, "data"),
        "none is divisible": whole,
        "small": whole,
        "number": whole,
        "empty": whole,
    }


def test_activations_are_kept_divided_where_the_devices_can_share_them():
    devices = mesh.make_mesh(8)
    keep = jax.jit(mesh.kept_divided(devices))
    for rows, place in ((16, mesh.divided(devices)), (9, mesh.replicated(devices))):
        x = np.arange(3.0 * rows, dtype=np.float32).reshape(rows, 3)
        kept = keep(jax.device_put(x, mesh.replicated(devices)))
        assert kept.sharding.is_equivalent_to(place, x.ndim)
        np.testing.assert_array_equal(kept, x)


@pytest.mark.parametrize("large", [large_arrays.LARGE_BYTES, 1000])
def test_a_fully_sharded_state_is_saved_and_restored_onto_other_devices(large, tmp_path, monkeypatch):
    monkeypatch.setattr(large_arrays, "LARGE_BYTES", large)
    numbers = {"kernel": jax.random.normal(jax.random.key(0), (512, 256)), "offset": jnp.arange(5.0)}
    checkpoints = Checkpoints(tmp_path, {"experiment": "images", "config": {}})
    for iteration, (before, after) in enumerate([(8, 1), (1, 8), (8, 2)], start=1):
        places = [mesh.fully_sharded(numbers, mesh.make_mesh(devices)) for devices in (before, after)]
        checkpoints.save(iteration, jax.device_put(numbers, places[0]), {})
        like = jax.device_put(jax.tree.map(jnp.zeros_like, numbers), places[1])
        restored = checkpoints.restore(like, lambda marks: None).state
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == places[1]
        jax.tree.map(np.testing.assert_array_equal, restored, numbers)


# --- Two processes ----------------------------------------------------------------------------------------------------


def be_process(process: int, port: int, out: Path) -> None:
    """What each of the two processes does; process 1 is told by SLURM who it is."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        del os.environ[name]  # the tests' own job, if they run in one
    with pytest.raises(harness.UserError, match=r"^--coordinator auto: neither SLURM .* started this process"):
        processes.join(processes.AUTO)
    if process == 0:
        processes.join(f"127.0.0.1:{port}", processes=2, process=0)
    else:
        slurm = {"JOB_ID": 1, "STEP_NODELIST": "127.0.0.1", "NTASKS": 2, "PROCID": 1, "LOCALID": 0}
        os.environ |= {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        os.environ["JAX_COORDINATOR_PORT"] = str(port)
        processes.join(processes.AUTO)
    devices = mesh.make_mesh()
    assert (devices.size, processes.writes()) == (2, process == 0)
    for wanted in (1, 3):
        with pytest.raises(harness.UserError, match=f"--devices {wanted}: "):
            mesh.make_mesh(wanted)
    np.savez(out / f"rainbow{process}.npz", **weights(learner(devices).after(UPDATES)))
    mine = examples(slice(8) if process == 0 else slice(8, 16))
    divided = trained(devices, mine, divide=True)
    assert not all(leaf.is_fully_addressable and leaf.is_fully_replicated for leaf in divided.values())
    whole = jax.jit(lambda leaves: leaves, out_shardings=mesh.replicated(devices))(divided)
    np.savez(out / f"supervised{process}.npz", **{name: np.asarray(leaf) for name, leaf in whole.items()})


def test_two_processes_give_the_weights_of_one(tmp_path):
    for code, errors in run_two(Path(__file__), str(tmp_path)):
        assert code == 0, errors
    for name, expected in (("rainbow", weights(on(1).after(UPDATES))), ("supervised", trained_on_one())):
        first, second = (np.load(tmp_path / f"{name}{process}.npz") for process in (0, 1))
        assert_equal_to_rounding(dict(first), expected)
        for leaf in expected:
            np.testing.assert_array_equal(first[leaf], second[leaf])


# --- The command ------------------------------------------------------------------------------------------------------


def command(out: Path, *flags: str) -> list[str]:
    """A short run of a small learner, in two iterations."""
    options = {
        "game": "catch", "agent": "dqn", "frames": 256, "iteration_frames": 128, "min_replay_frames": 64, "num_envs": 2,
        "batch_size": 8, "replay_capacity": 100, "log_every": 1, "evaluation_episodes": 2,
    }  # fmt: skip
    return command_line(options, out, *flags)


def test_an_atari_run_on_several_devices_is_the_same_run(tmp_path, monkeypatch):
    """Its folder has the same name, so that it can go on with another number of devices."""
    assert harness.dispatch(command(tmp_path / "1")) == 0
    monkeypatch.setattr(harness.Run, "finish", lambda *_: (_ for _ in ()).throw(harness.RunStopped("as if killed")))
    assert harness.dispatch(command(tmp_path / "8", "--devices", "8")) == 1
    monkeypatch.undo()
    assert harness.dispatch(command(tmp_path / "8")) == 0
    (one,), (eight,) = (list((tmp_path / devices / "atari").iterdir()) for devices in ("1", "8"))
    assert one.name == eight.name
    assert (one / "summary.json").read_text(encoding="utf-8") == (eight / "summary.json").read_text(encoding="utf-8")
    of_one, of_eight = ((folder / "metrics.jsonl").read_text(encoding="utf-8") for folder in (one, eight))
    assert of_one.count("\n") == of_eight.count("\n") > 8


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--devices", "0"), "--devices 0: it must lie in 1 to 8, the number of cpu devices"),
        (
            ("--devices", "9"),
            "--devices 9: it must lie in 1 to 8, the number of cpu devices; "
            "XLA_FLAGS=--xla_force_host_platform_device_count=9 makes as many of a CPU",
        ),
        (
            ("--devices", "3", "--batch-size", "32"),
            "--batch-size 32: it must be a multiple of the number of devices, 3; the nearest: 30 and 33",
        ),
        (
            ("--devices", "8", "--batch-size", "5"),
            "--batch-size 5: it must be a multiple of the number of devices, 8; the nearest: 8",
        ),
    ],
)
def test_devices_that_cannot_be_used_are_refused_in_a_line(flags, line, tmp_path, capsys):
    assert harness.dispatch(command(tmp_path, *flags)) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    be_process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
