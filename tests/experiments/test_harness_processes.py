"""Several processes that make one run: they decide alike, the first alone writes, and it is the run of a single one."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import folder_in, rows
from two_processes import run_two

from envs.loaders import WHOLE
from experiments import atari, harness, images, language
from experiments.harness import mesh, processes, training
from experiments.harness.run import Run

ATARI = """atari --game catch --agent dqn --frames 256 --iteration-frames 128 --num-envs 2
    --min-replay-frames 64 --batch-size 8 --replay-capacity 100 --log-every 1 --evaluation-episodes 2"""
IMAGES = """images --method nap+shrink-and-perturb --perturb 1e-2 --updates 8 --batch-size 4 --evaluations 2
    --log-every 1 --lr 0.05 --ema 0.9 --accumulate 2 --augmentation crop-and-flip"""


def dispatched(command: str, out: Path, *arguments: str) -> int:
    return harness.dispatch([*command.split(), *arguments, "--out", str(out)])


@contextlib.contextmanager
def small_networks():
    """A ResNet that compiles at once; and --shard divides it, though it is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "NETWORKS", {"resnet-8": {"blocks": (1,), "width": 4}})
        patch.setattr(mesh, "_SMALL", 8)
        yield


def assert_same_run(found: Path, expected: Path) -> None:
    """The same records and summary, but for rounding."""
    of_one, of_other = (
        [*rows(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))]
        for folder in (expected, found)
    )
    assert [row.keys() for row in of_one] == [row.keys() for row in of_other]
    for one, other in zip(of_one, of_other, strict=True):
        for name, value in one.items():
            close = pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value
            assert other[name] == close, (name, one)


# --- What processes tell each other -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    """Of a made-up run."""

    seed: int = 0


def state_on(devices: jax.sharding.Mesh | None, filled: bool) -> dict[str, Any]:
    """All kinds of leaves, with numbers in them or zeros; over several devices the kernel is divided."""
    kernel, key = jnp.arange(24.0).reshape(6, 4) * filled, jax.random.key(3 * filled)
    others = {"key": key, "keys": jax.random.split(key), "weak": jnp.asarray(1.5 * filled), "count": jnp.int32(filled)}
    others["short"] = jnp.asarray([1.5 * filled, 2], jnp.bfloat16)
    if devices is not None:
        kernel = jax.device_put(kernel, mesh.divided(devices))
        others = mesh.on_every_device(lambda: others, devices)()
    of_numpy = {"place": np.asarray(7 * filled, np.int64), "scalar": np.float32(filled), "none": np.zeros((0, 3))}
    return {"kernel": kernel, **others, **of_numpy}


def assert_filled(found: tuple[int, dict[str, Any]], devices: jax.sharding.Mesh | None) -> None:
    """What `restore` gave is the state that was saved after iteration 1."""
    assert found[0] == 1
    for name, expected in state_on(devices, filled=True).items():
        leaf = found[1][name]
        assert (type(leaf), leaf.dtype) == (type(expected), expected.dtype), name
        if isinstance(expected, jax.Array):
            assert (leaf.sharding, leaf.aval) == (expected.sharding, expected.aval), name  # weak types too
            leaf, expected = leaf.addressable_data(0), expected.addressable_data(0)
            if name.startswith("key"):
                leaf, expected = jax.random.key_data(leaf), jax.random.key_data(expected)
        np.testing.assert_array_equal(leaf, expected, err_msg=name)


def talk(out: Path) -> None:
    """What both processes do, joined already; each checks what it sees."""
    first, own = processes.writes(), jax.process_index()
    assert processes.several()
    assert processes.in_first(lambda: f"of {own}") == "of 0"
    assert processes.in_first(lambda: "long" * 100_000) == "long" * 100_000

    def fail() -> None:
        raise harness.Interrupted(f"in {own}", signal.SIGTERM)

    for act, where in ((processes.in_first, 0), (processes.together, 0), (processes.together, 1)):
        with pytest.raises(harness.Interrupted, match=f"^in {where}$") as caught:
            act(fail if where == own else lambda: None)
        assert caught.value.exit_code == 143
    assert processes.together(lambda: own) == own
    for act, where in ((processes.in_first, 0), (processes.together, 1)):  # a fault of one is no riddle to the other
        here = (ZeroDivisionError, "") if where == own else (harness.RunStopped, f"^in process {where}: ZeroDivision")
        with pytest.raises(here[0], match=here[1]):
            act(lambda of=where: 1 // abs(own - of))
    with pytest.raises(harness.UserError, match=r"do not run the same: b\.c is 0 there and 1 here$"):
        processes.in_first(lambda: None, same={"a": 1, "b": {"c": own}})
    asked = processes.Asked()
    assert [asked.most(*given) for given in ((0, 3 * own), (2 - own, 0), (0, 0))] == [(0, 0), (0, 3), (2, 0)]

    devices = mesh.make_mesh()
    with harness.open_run("made-up", Config(), harness.RunOptions(out=out)) as run:
        iteration, state = run.restore(state_on(devices, filled=True))
        assert (iteration, run.done) == (0, False)
        run.record({"updates": 1, "loss": state["kernel"].sum()})
        run.save(1, state)
        with pytest.raises(
            harness.UserError, match=r"process 0 \(there\) and process 1 \(here\) .*: loss is 0\.0 there"
        ):
            run.record({"updates": 2, "loss": own / 2})
        with pytest.raises(TypeError, match="holds arrays only, and this one a str: 'text'"):
            run.save(2, {"text": "text"})
    with harness.open_run("made-up", Config(), harness.RunOptions(out=out)) as run:
        assert_filled(run.restore(state_on(devices, filled=False)), devices)
    other = pytest.raises(harness.UserError, match=r"data\.--text is 'of 0' there and 'of 1' here$")
    data = {"--text": f"of {own}"}
    with other, harness.open_run("made-up", Config(), harness.RunOptions(out=out), data=data):
        pass
    assert out.exists() == first


def read(out: Path, data: Path) -> None:
    """Of each batch both processes read their own half; a tokenizer is learned by the first one, for both."""
    size = training.TrainingConfig(batch_size=4)
    of_images = images.resolve(images.Config(data=str(data), training=size))
    of_text = language.resolve(language.Config(text=str(Path(__file__)), sequence=8, vocabulary=300, training=size))
    options = training.TrainingOptions(out=out)
    halves = [images.load_images(of_images, images.Options()).data, language.load(of_text, options).data]
    with pytest.MonkeyPatch.context() as patch:
        for experiment in (images, language):
            patch.setattr(experiment, "share", lambda: WHOLE)
        wholes = [images.load_images(of_images, images.Options()).data, language.load(of_text, options).data]
    rows_here = slice(0, 2) if processes.writes() else slice(2, 4)
    for half, whole in zip(halves, wholes, strict=True):
        for found, expected in ((half.train, whole.train), (half.held_out, whole.held_out)):
            batches = [next(loader.batches(loader.start))[0] for loader in (found, expected)]
            jax.tree.map(lambda few, all_rows: np.testing.assert_array_equal(few, all_rows[rows_here]), *batches)
    assert out.exists() == processes.writes()


# --- Runs -------------------------------------------------------------------------------------------------------------


def be_process(process: int, port: int, out: Path, data: str) -> None:
    """Two runs. A SIGTERM comes to process 1 as it makes its 8th record, or the 2nd since the run was resumed."""
    joined = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(process))
    record, left = Run.record, 0

    def interrupted(run: Run, row: dict[str, Any]) -> None:
        nonlocal left
        left -= 1
        if left == 0 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        record(run, row)

    with small_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record", interrupted)
        for command, records in ((ATARI, 8), (f"{IMAGES} --shard --data {data}", 2)):
            left = records
            assert dispatched(command, out / str(process), *joined) == 143
    talk(out / str(process))
    read(out / str(process), Path(data))


def test_runs_of_two_processes_are_stopped_at_one_and_ended_by_a_single_one(tmp_path, monkeypatch):
    """The ResNet is begun by a single one too, and is divided while it is over two."""
    data, random = tmp_path / "stripes.npz", np.random.default_rng(0)
    pictures = [random.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8) for size in (20, 6)]
    np.savez(data, x_train=pictures[0], y_train=np.arange(20) % 3, x_test=pictures[1], y_test=np.arange(6) % 3)
    commands = {"atari": ATARI, "images": f"{IMAGES} --data {data}"}
    save = Run.save

    def save_and_die(run: Run, done: int, state: Any) -> None:
        save(run, done, state)
        if done == 2:
            raise KeyboardInterrupt

    with small_networks():
        with monkeypatch.context() as patch:
            patch.setattr(training, "SAVE_SECONDS", 0.0)
            patch.setattr(Run, "save", save_and_die)
            with pytest.raises(KeyboardInterrupt):
                dispatched(commands["images"], tmp_path / "0")
        for process, (code, errors) in enumerate(run_two(Path(__file__), str(tmp_path), str(data))):
            assert code == 0, errors
            assert errors.count("waiting until all processes are there") <= 1  # not where all come within a second
            assert ("frames" in errors, "resuming" in errors) == (process == 0, process == 0)
            assert re.findall(r"error: stopped by SIGTERM; .* is \S+ \(iteration (\d)\)", errors) == ["2", "5"]
        assert not (tmp_path / "1").exists()
        for experiment, command in commands.items():
            stopped, whole = tmp_path / "0" / experiment, tmp_path / "whole" / experiment
            assert not (folder_in(stopped) / "DONE").exists() and len(rows(folder_in(stopped))) >= 6
            for out in (stopped, whole):
                assert dispatched(command, out.parent) == 0
            assert_same_run(folder_in(stopped), folder_in(whole))
    with harness.open_run("made-up", Config(), harness.RunOptions(out=tmp_path / "0")) as run:
        assert_filled(run.restore(state_on(None, filled=False)), None)


@pytest.mark.parametrize(
    "error",
    [
        harness.UserError("no game"),
        harness.NonFinite("the loss is nan"),
        harness.DiskFull("full"),
        harness.Interrupted("stopped", signal.SIGTERM),
    ],
)
def test_an_error_travels_as_plain_values_and_is_the_same_there(error):
    there = processes._of_words(json.loads(json.dumps(processes._in_words(error))))
    assert (type(there), str(there), there.exit_code) == (type(error), str(error), error.exit_code)


def test_what_is_no_error_of_ours_arrives_as_a_stop():
    there = processes._of_words(["Popen", "touch file", 1])
    assert (type(there), str(there), there.exit_code) == (harness.RunStopped, "touch file", 1)


def test_a_port_that_is_taken_and_a_process_0_that_is_not_there_are_told_before_jax_is_asked(monkeypatch):
    monkeypatch.setattr(processes, "_FIND_SECONDS", 0)
    with socket.create_server(("", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(harness.UserError, match=rf"^--coordinator {coordinator}: port \d+ is not free"):
            processes.join(coordinator, processes=2, process=0)
    with pytest.raises(harness.UserError, match=rf"^--coordinator {coordinator}: process 0 is not there"):
        processes.join(coordinator, processes=2, process=1)


def test_a_process_for_which_the_others_do_not_come_ends_in_a_line(monkeypatch, capsys):
    ended = threading.Event()
    codes = []
    monkeypatch.setattr(processes, "_JOIN_SECONDS", 0)
    monkeypatch.setattr(processes.os, "_exit", lambda code: (codes.append(code), ended.set()))
    with processes._waiting_for_all("node1:9876"):  # as JAX does, inside which nothing of ours runs
        assert ended.wait(60)
    assert codes == [2]
    assert capsys.readouterr().err.startswith("error: --coordinator node1:9876: not all processes were there")


def test_a_process_that_is_alone_does_what_it_is_asked():
    assert processes.writes() and not processes.several()
    assert processes.in_first(lambda: 1) == processes.together(lambda: 1) == 1
    assert processes.Asked().most(3, 0) == (3, 0)


# --- Options ----------------------------------------------------------------------------------------------------------

NODE = ("--coordinator", "node1:9876")


@pytest.mark.parametrize(
    ("experiment", "arguments", "line"),
    [
        ("atari", ("--process", "1"), "--process 1: it goes with --coordinator host:port, that of process 0"),
        ("language", ("--processes", "2"), "--processes 2: it goes with --coordinator host:port, that of process 0"),
        ("images", ("--coordinator", "auto", "--process", "0"), "--process 0: it goes with --coordinator host:port"),
        ("images", ("--coordinator", "node1"), "--coordinator node1: it must be auto, or host:port of process 0, as"),
        ("images", ("--coordinator", "node1:80a"), "--coordinator node1:80a: it must be auto, or host:port of"),
        ("images", NODE, "--processes None: with --coordinator node1:9876 it must be at least 1"),
        ("images", (*NODE, "--processes", "0"), "--processes 0: with --coordinator node1:9876 it must be at least 1"),
        ("images", (*NODE, "--processes", "2"), "--process None: it must lie in 0 to 1, for --processes 2"),
        (
            "images",
            (*NODE, "--processes", "2", "--process", "2"),
            "--process 2: it must lie in 0 to 1, for --processes 2",
        ),
    ],
)
def test_processes_that_cannot_find_each_other_are_told_why(experiment, arguments, line, tmp_path, capsys):
    assert dispatched(experiment, tmp_path, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("experiment", [atari, images, language])
def test_a_sweep_starts_no_run_of_several_processes(experiment):
    with pytest.raises(harness.UserError, match=r"^--coordinator auto: a sweep starts one process a run"):
        experiment.plan(["--coordinator", "auto"])


if __name__ == "__main__":
    be_process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
