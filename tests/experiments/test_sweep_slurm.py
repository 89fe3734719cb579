"""A sweep on a SLURM cluster of one machine, which takes it away from runs for others: `make cluster`."""

import contextlib
import importlib.util
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

from experiments.harness import folder as files

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
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
"""A requeued job may start once its old credential has expired: after cred_expire seconds, 120 by default."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(*words: str | Path) -> str:
    ended = subprocess.run(list(map(str, words)), capture_output=True, encoding="utf-8", check=False, timeout=60)
    assert ended.returncode == 0, f"{words}: {ended.stdout} {ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """munged, slurmctld and slurmd, all of our own, with SLURM_CONF set; the parameter: more lines of that file."""
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if not shutil.which(name)]
    missing += [] if importlib.util.find_spec("submitit") else ["submitit"]
    small_sweeps.skip_without("SLURM", missing, request.config)
    if os.getuid() != 0:
        pytest.skip("slurmd runs as root only")
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a short path: a socket lies in it
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    configuration, key = folder / "slurm.conf", folder / "munge.key"
    configuration.write_text(
        CONFIGURATION.format(folder=folder, host=host, user="root", **ports) + request.param, encoding="utf-8"
    )
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
                os.kill(int((folder / f"{daemon}.pid").read_text(encoding="utf-8")), signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


# With SIGTERM beforehand, or with what `sbatch --signal` says.
@pytest.mark.parametrize(
    "cluster", ["", "SlurmctldParameters=preempt_send_user_signal\n"], indirect=True, ids=["SIGTERM", "SIGUSR2"]
)
def test_preempted_runs_save_go_on_and_finish(cluster, tmp_path):
    out = tmp_path / "preempted"
    argv = small_sweeps.tiny(out, "--method", "none", "--method", "nap", tasks=3000)
    small_sweeps.finish([*argv, "--launcher", "slurm", "--minutes", "60"])
    assert len(list((out / "slurm").glob("*_submission.sh"))) == 1, "one array for both runs"
    small_sweeps.wait_until(lambda: len(small_sweeps.under_way(out)) == 2)
    ours = command("squeue", "--noheader", "--format=%F").split()[0]
    command("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    small_sweeps.wait_until(lambda: not command("squeue", "--noheader"), seconds=400)
    assert command("scontrol", "show", "job", ours).count("Restarts=1") == 2, "SLURM has preempted both"
    assert "2 runs: 2 done, 0 running, 0 failed, 0 waiting" in small_sweeps.finish([*argv, "--status"])
    for folder in small_sweeps.folders(out):
        assert small_sweeps.times_started(folder) == 2
        assert "error: stopped by SIGTERM" in (folder / files.OUTPUT).read_text(encoding="utf-8"), (
            "it was killed without a checkpoint"
        )
    whole = tmp_path / "whole"
    small_sweeps.finish(small_sweeps.tiny(whole, "--method", "none", "--method", "nap", tasks=3000))
    small_sweeps.assert_same_runs(out, whole)


@pytest.mark.parametrize("cluster", [""], indirect=True, ids=["SIGTERM"])
def test_a_failure_is_slurms_failure_too(cluster, tmp_path):
    argv = small_sweeps.tiny(tmp_path, "--lr", "1e30")
    small_sweeps.finish([*argv, "--launcher", "slurm"])
    small_sweeps.wait_until(lambda: not command("squeue", "--noheader"))
    sweep = small_sweeps.start([*argv, "--status"])
    shown, _ = sweep.communicate()
    assert sweep.returncode == 1 and "the loss is nan" in shown
    (log,) = (tmp_path / "slurm").glob("*_log.err")
    assert "RuntimeError: the loss is nan" in log.read_text(encoding="utf-8")
