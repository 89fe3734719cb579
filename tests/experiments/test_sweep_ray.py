"""A sweep on a Ray cluster of two nodes, one of which is killed: `make cluster`."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_sweeps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module", autouse=True)
def wanted(pytestconfig):
    small_sweeps.skip_without("Ray", [] if importlib.util.find_spec("ray") else ["ray"], pytestconfig)


@contextlib.contextmanager
def node(*arguments: str) -> Iterator[subprocess.Popen]:
    """A node of one core, with all its processes in a group of their own."""
    ray = Path(sys.executable).parent / "ray"
    command = [ray, "start", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--block", *arguments]
    process = subprocess.Popen(
        command,
        env={**small_sweeps.ENVIRONMENT, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            break
    else:
        pytest.skip(f"a Ray node does not start here: {''.join(said)}")
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()


def test_a_node_is_killed_and_every_run_is_done_once(tmp_path):
    rates = ["--lr", "0.01", "--lr", "0.003", "--lr", "0.001"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    sessions = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path: sockets lie in it
    try:
        with (
            node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={sessions}"),
            node(f"--address={address}") as worker,
        ):
            out = tmp_path / "killed"
            argv = small_sweeps.tiny(out, *rates, "--launcher", "ray", "--address", address, tasks=2000)
            sweep = small_sweeps.start(argv, **ENVIRONMENT)
            small_sweeps.wait_until(lambda: len(small_sweeps.under_way(out)) == 2, sweep)
            kill(worker)
            shown, errors = sweep.communicate()
            assert sweep.returncode == 0, errors
            assert "3 runs: 3 done, 0 running, 0 failed, 0 waiting" in shown
    finally:
        shutil.rmtree(sessions, ignore_errors=True)
    assert sorted(map(small_sweeps.times_started, small_sweeps.folders(out))) == [1, 1, 2]
    whole = tmp_path / "whole"
    small_sweeps.finish(small_sweeps.tiny(whole, *rates, tasks=2000))
    small_sweeps.assert_same_runs(out, whole)
