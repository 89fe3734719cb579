"""The cores and signals of runs on a cluster, and who is told that the tests of one are skipped."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import small_sweeps

from experiments.harness.cores import LIMIT, cores_here
from experiments.harness.jobs import Job
from experiments.harness.launchers import ray, slurm


def test_a_process_takes_no_more_cores_than_it_was_given(monkeypatch):
    monkeypatch.delenv(LIMIT, raising=False)
    every = cores_here()
    monkeypatch.setenv(LIMIT, "1")
    assert cores_here() == every[:1]
    monkeypatch.setenv(LIMIT, "1000")
    assert cores_here() == every


# The devices that JAX makes of cores, and the threads that XLA has for them.
COUNTS = """
from experiments.harness.seeds import use_all_cores
import os, jax
use_all_cores()
print(jax.device_count(), sum(open(f"/proc/self/task/{task}/comm").read().startswith("tf_XLAEigen")
                              for task in os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_jax_and_xla_keep_to_them():
    environment = {**small_sweeps.ENVIRONMENT, "JAX_PLATFORMS": "cpu", LIMIT: "1"}
    counted = subprocess.check_output(
        [sys.executable, "-c", COUNTS], cwd=small_sweeps.ROOT, env=environment, encoding="utf-8"
    )
    assert counted.split() == ["1", "1"]


@pytest.mark.parametrize(
    ("launcher", "perform"), [(ray, lambda job: ray._perform(job, 3)), (slurm, lambda job: slurm.Task(3)(job))]
)
def test_a_cluster_tells_a_run_how_many_cores_it_has(launcher, perform, tmp_path, monkeypatch):
    given = []

    def start(job, environment=None):
        given.append(environment)
        (job.folders[0] / "DONE").touch()

    monkeypatch.setattr(launcher, "start", start)
    monkeypatch.setattr(launcher, "settle", lambda started: 0)
    perform(Job((), (tmp_path,)))
    assert given == [{LIMIT: "3"}]


def ignored(status: str) -> int:
    return int(status.partition("SigIgn:")[2].split()[0], 16)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_a_run_lives_through_slurms_warning():
    """SIGUSR2 reaches all processes of a job; its own is then told to stop by the one that started it."""
    command = [sys.executable, "-m", "experiments.harness.launchers.tied", "atari", "--help"]
    with subprocess.Popen(command, cwd=small_sweeps.ROOT, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        small_sweeps.wait_until(
            lambda: ignored(status.read_text(encoding="utf-8")) >> (signal.SIGUSR2 - 1) & 1, process
        )
        os.kill(process.pid, signal.SIGUSR2)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("missing", "selected", "reason"),
    [
        (
            ["slurmd", "munged"],
            "not soak",
            "SLURM can't be started here, not installed: slurmd, munged; see `make cluster`",
        ),
        ([], "not soak", "SLURM is here, and `make cluster` starts it"),
        ([], "cluster", None),
    ],
)
def test_whoever_runs_the_suite_is_told_of_the_clusters_it_skips(missing, selected, reason, pytestconfig):
    assert not any("cluster" in word for word in pytestconfig.getini("addopts")), "left out without a word"
    asked = types.SimpleNamespace(getoption={"markexpr": selected}.get)
    try:
        small_sweeps.skip_without("SLURM", missing, asked)
    except pytest.skip.Exception as skipped:
        assert str(skipped) == reason
    else:
        assert reason is None
