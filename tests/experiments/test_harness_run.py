"""A run's folder over several processes: killed, interrupted, damaged, full, and still the same run."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import counter
import jax
import numpy as np
import pytest

from experiments import harness
from experiments.harness.checkpoint import Checkpoints
from experiments.harness.identity import plain
from experiments.harness.read import load_runs
from experiments.harness.records import JsonLines
from experiments.harness.report.page import software

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
COMMAND = [sys.executable, str(Path(counter.__file__))]


def run_in_process(out: Path, **changes) -> Path:
    """The counter from start to end (or to its exception) in this process; the folder of its run."""
    config = counter.Config(**changes)
    counter.study(config, harness.RunOptions(out=out))
    return folder_of(out)


def folder_of(out: Path) -> Path:
    (folder,) = (out / "counter").iterdir()
    return folder


def final_state(folder: Path, config: counter.Config) -> list:
    identity = {"experiment": "counter", "config": plain(config)}
    restored = Checkpoints(folder / "checkpoints", identity).restore(counter.initial_state(config), lambda _: None)
    assert restored.iteration == config.iterations
    state = restored.state | {"key": jax.random.key_data(restored.state["key"])}
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_same_run(folder: Path, other: Path, config: counter.Config) -> None:
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (folder / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    assert final_state(folder, config) == final_state(other, config)
    assert (folder / "DONE").exists()


def test_killed_at_random_moments_and_resumed_it_equals_the_uninterrupted_run(tmp_path):
    config = counter.Config(iterations=9)
    whole = run_in_process(tmp_path / "whole", iterations=9)
    arguments = [*COMMAND, "--iterations", "9", "--out", str(tmp_path / "killed")]
    metrics = tmp_path / "killed" / "counter" / whole.name / "metrics.jsonl"
    seed = time.time_ns()
    print("seed of the kills:", seed)  # shown when the test fails
    moments = random.Random(seed)
    for _ in range(3):
        process = subprocess.Popen(arguments, env={**ENVIRONMENT, "COUNTER_PAUSE": "0.02"}, stderr=subprocess.PIPE)
        before = 0
        while process.poll() is None and before == 0:  # until it has resumed (which cuts the file) and goes on
            line = process.stderr.readline()
            before = lines(metrics) if b"frames" in line or b"resuming" in line else 0
        target = before + moments.randint(1, 9)
        while process.poll() is None and lines(metrics) < target:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.15)
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
        process.communicate()
        assert not (metrics.parent / "DONE").exists()
    assert subprocess.run(arguments, env=ENVIRONMENT, check=False).returncode == 0
    assert_same_run(metrics.parent, whole, config)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_what_is_saved_and_the_same_command_goes_on(tmp_path, number, exit_code):
    arguments = [*COMMAND, "--preset", "long", "--out", str(tmp_path)]
    process = subprocess.Popen(
        arguments, env={**ENVIRONMENT, "COUNTER_PAUSE": "0.02"}, stderr=subprocess.PIPE, text=True
    )
    process.stderr.readline()  # the first progress line: it is training
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    announced, last = (line for line in errors.splitlines() if not line.startswith("seed0: "))
    assert announced.startswith(f"{number.name}: stopping")
    folder = folder_of(tmp_path)
    saved = max(int(path.stem) for path in (folder / "checkpoints").glob("*.json"))
    assert last == (
        f"error: stopped by {number.name}; the last good checkpoint is {folder}/checkpoints/{saved} "
        f"(iteration {saved}); the same command goes on"
    )
    assert lines(folder / "metrics.jsonl") == saved * counter.Config().rows


def test_a_finished_run_returns_at_once_and_fresh_runs_it_again(tmp_path, capsys):
    folder = run_in_process(tmp_path)
    first = (folder / "metrics.jsonl").read_bytes()
    config = counter.Config()
    with harness.open_run("counter", config, harness.RunOptions(out=tmp_path), label="seed0") as run:
        assert run.done and run.summary == json.loads((folder / "summary.json").read_text())
    assert "is finished" in capsys.readouterr().err
    (folder / "notes.txt").write_text("mine")
    with harness.open_run("counter", config, harness.RunOptions(out=tmp_path, fresh=True), label="seed0") as run:
        assert not run.done
        assert run.restore({"value": 1}) == (0, {"value": 1})
        assert sorted(path.name for path in folder.iterdir()) == [
            "checkpoints", "config.json", "lock", "metrics.jsonl", "notes.txt", "timings.jsonl",
        ]  # fmt: skip
    counter.study(config, harness.RunOptions(out=tmp_path, fresh=True))
    assert (folder / "metrics.jsonl").read_bytes() == first


def test_a_line_cut_short_and_records_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    whole = run_in_process(tmp_path / "whole")
    folder = run_in_process_until(tmp_path / "cut", iterations=3)
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"phase":"train","iteration":3,"updates":16,"loss":1.0}\n{"phase":"tra')
    with open(folder / "timings.jsonl", "ab") as file:
        file.write(b'{"unix_sec')
    assert run_in_process(tmp_path / "cut") == folder
    assert_same_run(folder, whole, counter.Config())
    assert all(json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines())


def run_in_process_until(out: Path, iterations: int) -> Path:
    """The counter stopped after some iterations, as if it had been killed right after a checkpoint."""
    config = counter.Config()
    with harness.open_run("counter", config, harness.RunOptions(out=out), label="seed0") as run:
        _, state = run.restore(counter.initial_state(config))
        for iteration in range(iterations):
            for _ in range(config.rows):
                state["key"], key = jax.random.split(state["key"])
                state["value"] = counter.step(state["value"], key)
                state["count"] += 1
                state["replay"][state["count"] % 100] = state["count"] % 256
                loss = state["value"].mean()
                run.record({"phase": "train", "iteration": iteration, "updates": state["count"], "loss": loss})
            run.save(iteration + 1, state)
    return folder_of(out)


def test_a_metrics_file_shorter_than_the_checkpoint_says_goes_back_further(tmp_path, capsys):
    whole = run_in_process(tmp_path / "whole")
    folder = run_in_process_until(tmp_path / "cut", iterations=3)
    text = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(text[:-10])
    run_in_process(tmp_path / "cut")
    assert "checkpoint 3 cannot be used: metrics.jsonl has" in capsys.readouterr().err
    assert_same_run(folder, whole, counter.Config())


def test_two_processes_do_not_share_a_folder(tmp_path):
    config = counter.Config()
    with harness.open_run("counter", config, harness.RunOptions(out=tmp_path)) as run:
        with (
            pytest.raises(harness.UserError, match=f"is being written by process {os.getpid()} on "),
            harness.open_run("counter", config, harness.RunOptions(out=tmp_path, fresh=True)),
        ):
            pass
        assert (run.folder / "config.json").exists(), "the second one must not clear the folder"
    with harness.open_run("counter", config, harness.RunOptions(out=tmp_path)):
        pass


def test_a_folder_of_another_configuration_is_refused_even_by_fresh(tmp_path):
    folder = run_in_process(tmp_path)
    other = dataclasses.replace(counter.Config(), inner=counter.Inner(rate=0.25))
    target = folder.with_name(f"seed0-{harness.config_hash('counter', other)}")
    shutil.copytree(folder, target)
    for fresh in (False, True):
        with (
            pytest.raises(harness.UserError, match=r"config\.inner\.rate is 0\.5 there and 0\.25 here"),
            harness.open_run("counter", other, harness.RunOptions(out=tmp_path, fresh=fresh), label="seed0"),
        ):
            pass
    assert (target / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("text", ['{"experiment": "coun', "[]", "null"])
def test_a_damaged_config_file_is_met_in_words(tmp_path, text):
    folder = run_in_process(tmp_path)
    (folder / "config.json").write_text(text)
    with (
        pytest.raises(harness.UserError, match=r"config\.json is damaged"),
        harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path), label="seed0"),
    ):
        pass
    counter.study(counter.Config(), harness.RunOptions(out=tmp_path, fresh=True))
    assert json.loads((folder / "config.json").read_text())["config"]["rows"] == 5


def test_other_software_is_told_of(tmp_path, capsys):
    folder = run_in_process_until(tmp_path, iterations=1)
    about = json.loads((folder / "config.json").read_text())
    about["versions"]["jax"] = "0.0.1"
    (folder / "config.json").write_text(json.dumps(about))
    about["git_commit"] = "0ld"
    (folder / "config.json").write_text(json.dumps(about))
    run_in_process(tmp_path)
    assert "git_commit is '0ld' there" in capsys.readouterr().err
    (resumed,) = json.loads((folder / "config.json").read_text())["resumed"]
    assert resumed["versions"] == about["versions"] | {"jax": jax.__version__} and resumed["git_commit"] != "0ld"
    (run,) = load_runs([folder])
    assert "1 run went on with other software or code." in software([run])
    run_in_process(tmp_path)
    assert len(json.loads((folder / "config.json").read_text())["resumed"]) == 1, "finished: nothing went on"


def test_a_loss_that_is_not_finite_stops_keeps_the_checkpoint_and_is_not_done(tmp_path):
    with pytest.raises(harness.NonFinite) as caught:
        run_in_process(tmp_path, fail_at=13)
    folder = folder_of(tmp_path)
    assert str(caught.value) == (
        f"the loss is nan at update 13 in {folder}; the last good checkpoint is {folder}/checkpoints/2 (iteration 2)"
    )
    assert not (folder / "DONE").exists()
    assert (folder / "checkpoints" / "2.json").exists()
    assert json.loads((folder / "DIVERGED").read_text()) == {"updates": 13}


def test_a_run_that_is_begun_again_is_not_diverged_until_it_is(tmp_path):
    with pytest.raises(harness.NonFinite):
        run_in_process(tmp_path, fail_at=13)
    folder = folder_of(tmp_path)
    config = counter.Config(fail_at=13)
    with harness.open_run("counter", config, harness.RunOptions(out=tmp_path), label="seed0") as run:
        run.restore(counter.initial_state(config))
        assert (folder / "config.json").exists() and not (folder / "DIVERGED").exists()


def test_a_full_disk_at_a_record_stops_and_nothing_is_lost(tmp_path, monkeypatch):
    whole = run_in_process(tmp_path / "whole")
    written = []
    original = JsonLines.append

    def append(self, row):
        written.append(row)
        if len(written) == 13:
            self._file.write(b'{"phase":"tr')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, row)

    monkeypatch.setattr(JsonLines, "append", append)
    with pytest.raises(harness.DiskFull, match=r"is full; the last good checkpoint is .*/checkpoints/\d \(iteration"):
        run_in_process(tmp_path / "full")
    run_in_process(tmp_path / "full")
    assert_same_run(folder_of(tmp_path / "full"), whole, counter.Config())


def can_mount() -> bool:
    probe = ["unshare", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small file system")
def test_a_really_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(tmp_path):
    whole = run_in_process(tmp_path / "whole", iterations=9, rows=150)
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    command = f"mount -t tmpfs -o size=220k tmpfs {small} && {{ '{sys.executable}' '{counter.__file__}' --out {small}"
    command += f" --iterations 9 --rows 150; code=$?; cp -r {small} {large}; exit $code; }}"
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if not line.startswith("seed0: ")]
    assert len(errors) == 1 and errors[0].startswith("error: the disk of "), ended.stderr
    assert "is full; the last good checkpoint is " in errors[0]
    assert subprocess.run(
        [*COMMAND, "--out", str(large), "--iterations", "9", "--rows", "150"], env=ENVIRONMENT, check=False
    ).returncode == 0  # fmt: skip
    assert_same_run(folder_of(large), whole, counter.Config(iterations=9, rows=150))


def test_the_order_of_calls_is_checked(tmp_path):
    with harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path)) as run:
        with pytest.raises(RuntimeError, match="restore"):
            run.record({"loss": 1.0})
        with pytest.raises(RuntimeError, match="restore"):
            run.save(1, {})


def test_how_long_saving_takes_is_told_when_it_is_over_a_second_and_when_it_has_doubled(tmp_path, monkeypatch, capsys):
    now, durations = 100.0, [0.9, 1.2, 2.3, 2.6, 4.0, 14.2, 1.0, 3.0]
    original = Checkpoints.save

    def save(self, iteration, state, marks):
        nonlocal now
        now += durations[iteration - 1]
        original(self, iteration, state, marks)
        return 7_071_000_000

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(harness.run, "time", types.SimpleNamespace(monotonic=lambda: now, time=time.time))
    with harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path), label="seed0") as run:
        run.restore({"count": 0})
        for iteration in range(1, len(durations) + 1):
            run.record({"iteration": iteration})
            run.save(iteration, {"count": iteration})
    assert capsys.readouterr().err.splitlines() == [
        f"seed0: saving took {seconds} s (checkpoints/{iteration}, 7.07 GB)"
        for seconds, iteration in [(1, 2), (3, 4), (14, 6)]
    ]
    assert (run.folder / "metrics.jsonl").read_text() == "".join(
        f'{{"iteration":{i}}}\n' for i in range(1, len(durations) + 1)
    )


def test_a_signal_at_the_very_end_keeps_the_next_run_from_starting(tmp_path):
    """Whatever comes while the last checkpoint is written."""
    with (
        pytest.raises(harness.Interrupted, match=r"stopped by SIGTERM; .* is finished") as caught,
        harness.open_run("counter", counter.Config(), harness.RunOptions(out=tmp_path)) as run,
    ):
        run.restore({"count": 0})
        run.save(1, {"count": 1})
        os.kill(os.getpid(), signal.SIGTERM)
        run.finish({})
    assert caught.value.exit_code == 143 and (run.folder / "DONE").exists()
