"""A sweep on a SLURM cluster of one machine, which takes the machine away from a run: `make cluster`."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_sweeps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""A requeued job may start once its old credential has expired: after cred_expire seconds, 120 by default."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(*words: str | Path) -> str:
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, f"{words}: {ended.stdout} {ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """munged, slurmctld and slurmd, all of our own, with SLURM_CONF set."""
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed; apt install slurmctld slurmd munge")
    if os.getuid() != 0:
        pytest.skip("slurmd runs as root only")
    pytest.importorskip("submitit")
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a short path: a socket lies in it
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    configuration, key = folder / "slurm.conf", folder / "munge.key"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, user="root", **ports))
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    munge = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("SLURM_CONF", str(configuration))
            patched.setitem(small_sweeps.ENVIRONMENT, "SLURM_CONF", str(configuration))
            try:
                command("munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock", *munge)
                command("slurmctld", "-c")
                command("slurmd")
                small_sweeps.wait_until(lambda: "idle" in command("sinfo", "--noheader"), seconds=30)
            except AssertionError as error:
                pytest.skip(f"SLURM does not start here: {error}")
            yield
            command("scancel", "--user=root")
            small_sweeps.wait_until(lambda: not command("squeue", "--noheader"))
    finally:
        for daemon in reversed(DAEMONS):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((folder / f"{daemon}.pid").read_text()), signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    "preempt",
    [
        ["scancel", "--signal=USR2"],  # what `sbatch --signal` sends before a preemption or the end of the time
        ["scontrol", "requeue"],  # SIGTERM, then SIGKILL, then the queue
    ],
)
def test_a_preempted_run_goes_on_and_finishes(cluster, tmp_path, preempt):
    out = tmp_path / "preempted"
    argv = small_sweeps.tiny(out, "--method", "none", "--method", "nap", tasks=3000)
    small_sweeps.finish([*argv, "--launcher", "slurm", "--minutes", "60"])
    assert len(list((out / "slurm").glob("*_submission.sh"))) == 1, "one array for both runs"
    small_sweeps.wait_until(lambda: len(small_sweeps.under_way(out)) == 2)
    first = command("squeue", "--noheader", "--format=%i", "--states=running", "--array").split()[0]
    command(*preempt, first)
    small_sweeps.wait_until(
        lambda: first not in command("squeue", "--noheader", "--format=%i", "--states=running", "--array")
    )
    small_sweeps.wait_until(lambda: not command("squeue", "--noheader"), seconds=300)
    assert "2 runs: 2 done, 0 running, 0 failed, 0 waiting" in small_sweeps.finish([*argv, "--status"])
    assert sorted(map(small_sweeps.times_started, small_sweeps.folders(out))) == [1, 2]
    whole = tmp_path / "whole"
    small_sweeps.finish(small_sweeps.tiny(whole, "--method", "none", "--method", "nap", tasks=3000))
    small_sweeps.assert_same_runs(out, whole)


def test_a_failure_is_slurms_failure_too(cluster, tmp_path):
    argv = small_sweeps.tiny(tmp_path, "--lr", "1e30")
    small_sweeps.finish([*argv, "--launcher", "slurm"])
    small_sweeps.wait_until(lambda: not command("squeue", "--noheader"))
    sweep = small_sweeps.start([*argv, "--status"])
    shown, _ = sweep.communicate()
    assert sweep.returncode == 1 and "the loss of every seed is nan" in shown
    (log,) = (tmp_path / "slurm").glob("*_log.err")
    assert "RuntimeError: the loss of every seed is nan" in log.read_text()
