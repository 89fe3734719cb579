"""A sweep on this machine: what its folders tell, what is run, what is left, and how it stops and goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_sweeps

from experiments import harness, plasticity, sweep
from experiments.harness import folder as files
from experiments.harness import held, jobs, launchers
from experiments.harness.catalogue import catalogue
from experiments.harness.cores import cores_here
from experiments.harness.jobs import Job, Status, look, note, progress
from experiments.harness.launchers import pool
from experiments.harness.launchers.slots import gpus_here, pinned, slots_of
from experiments.harness.study import plan

ROOT = Path(__file__).resolve().parents[2]


def job(folder: Path, *names: str) -> Job:
    return Job(("plasticity",), tuple(folder / name for name in names or ("run",)), ROOT)


def test_a_job_is_what_its_folders_say(tmp_path):
    two = job(tmp_path, "a", "b")
    assert look(two) == Status("waiting")
    with held.locked(tmp_path / "b"):
        state, holder = look(two)
        assert state == "running" and holder.startswith(f"process {os.getpid()} on ")
    assert look(two) == Status("waiting")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / files.DONE).touch()
    assert look(two) == Status("waiting")
    note(two, 1, ["error: the loss is nan"])
    assert look(two) == Status("failed", "the loss is nan")
    assert not (tmp_path / "a" / files.FAILED).exists(), "it is the other run that failed"
    with held.locked(tmp_path / "b"):
        assert look(two).state == "running"
    (tmp_path / "b" / files.DONE).touch()
    assert look(two) == Status("done")


def test_a_run_that_begins_again_has_not_failed(tmp_path):
    with harness.open_run("counter", plasticity.NapConfig(), harness.RunOptions(out=tmp_path)) as run:
        pass
    one = Job((), (run.folder,))
    note(one, 1, ["error: full"])
    assert look(one).state == "failed"
    with harness.open_run("counter", plasticity.NapConfig(), harness.RunOptions(out=tmp_path)):
        pass
    assert look(one) == Status("waiting")


def test_a_table_names_what_a_run_has_and_others_have_not(tmp_path):
    shared = ("plasticity", "--stream", "random-labels")
    jobs = [Job((*shared, "--hidden", "8", lr), (tmp_path / lr,)) for lr in ("--lr=1", "--lr=2")]
    lines = sweep.table(jobs, [Status("done"), Status("failed", "nan")]).splitlines()
    assert [line.split() for line in lines[1:3]] == [["--lr=1"] * 2 + ["done"], ["--lr=2"] * 2 + ["failed", "nan"]]


TRACEBACK = [
    "seed0: 3/9",
    "Traceback (most recent call last):",
    '  File "x.py"',
    "    f()",
    "KeyError: 'a'",
    "---",
    "JAX has",
]


@pytest.mark.parametrize(
    ("exit_code", "said", "reason"),
    [
        (2, ["error: first", "error: no game 'pogn'", "bye"], "no game 'pogn'"),
        (1, TRACEBACK, "KeyError: 'a'"),
        (-9, TRACEBACK, "killed by SIGKILL (the machine's memory was full?)"),
        (-11, [], "killed by SIGSEGV"),
        (3, ["something"], "exit code 3; see output.log"),
        (0, [], "exit code 0; see output.log"),
    ],
)
def test_the_reason_of_a_failure(exit_code, said, reason, tmp_path):
    (tmp_path / "run").mkdir()
    note(job(tmp_path), exit_code, said)
    assert look(job(tmp_path)) == Status("failed", reason)


@pytest.mark.parametrize("exit_code", [130, 143, -2, -15])
def test_to_be_stopped_is_not_to_fail(exit_code, tmp_path):
    (tmp_path / "run").mkdir()
    note(job(tmp_path), exit_code, ["error: stopped by SIGTERM"])
    assert look(job(tmp_path)) == Status("waiting")


def test_who_finds_a_folder_taken_waits_if_told_to(tmp_path):
    hold = "from experiments.harness.held import locked; from pathlib import Path; import sys, time\n"
    hold += f"with locked(Path({str(tmp_path)!r})): print(1, flush=True); time.sleep(1.5)"
    with subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        taken = pytest.raises(harness.UserError, match=f"is being written by process {holder.pid} on ")
        with taken, held.locked(tmp_path):
            pass
        with held.locked(tmp_path, wait=True):
            assert held.held_by(tmp_path).startswith(f"process {os.getpid()} ")
            assert holder.wait(10) == 0


LOOKS_SLOWLY = """
import fcntl, os, sys, time
looked_at = [os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[1] + "/lock", os.O_RDWR | os.O_CREAT)]
print(1, flush=True)
while True:
    for descriptor in looked_at:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        time.sleep(0.02)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(0.01)
"""


def test_to_look_does_not_get_in_the_way(tmp_path):
    """Whoever looks holds the lock for a moment, in which a run that begins must not think it taken."""
    with subprocess.Popen([sys.executable, "-c", LOOKS_SLOWLY, str(tmp_path)], stdout=subprocess.PIPE) as watcher:
        watcher.stdout.readline()
        for _ in range(20):
            with held.locked(tmp_path):
                pass
        watcher.kill()


def test_how_far_a_run_is(tmp_path):
    one = job(tmp_path)
    assert progress(one) == ""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / files.CONFIG).write_text('{"total": 48000, "unit": "agent_steps"}', encoding="utf-8")
    (tmp_path / "run" / files.METRICS).write_text(
        '{"agent_steps": 8000}\n{"agent_steps": 12000}\n{"agent_st', encoding="utf-8"
    )
    assert progress(one) == "12,000/48,000 agent steps"
    assert progress(one._replace(folders=(*one.folders, tmp_path / "b"))) == "run 1 of 2: 12,000/48,000 agent steps"
    (tmp_path / "run" / files.DONE).touch()
    assert progress(one) == ""


@pytest.fixture
def trained(monkeypatch):
    """Cells of plasticity without the training: a rate above 1 fails as one that diverges, above 2 as a wrong code."""
    runs = []

    def train(config, stream, opened):
        runs.append(config.optimizer.lr)
        print("to the terminal", file=sys.stderr)
        opened.restore({})
        if config.optimizer.lr > 2:
            raise ZeroDivisionError("by zero")
        opened.check_finite("loss", 1.0 if config.optimizer.lr <= 1 else float("nan"), updates=3)
        opened.record({"updates": 4, "online_accuracy": 0.5, "seed": 0, "learning_rate": config.optimizer.lr})
        opened.finish({})

    monkeypatch.setattr(plasticity, "_run", train)
    monkeypatch.setattr("experiments.harness.scoreboard.scoreboard", lambda folders: "a table of one run")
    return runs


def test_here_what_failed_is_told_and_run_again_only_when_asked(tmp_path, trained, capsys):
    argv = small_sweeps.tiny(tmp_path, "--lr", "0.5", "--lr", "1.5", "--lr", "2.5")
    assert sweep.main(argv) == 1
    shown = capsys.readouterr()
    assert trained == [0.5, 1.5, 2.5]
    assert "3 runs: 1 done, 0 running, 2 failed, 0 waiting" in shown.out and "a table of one run" not in shown.out
    first, second, third = (re.sub(" +", " ", line) for line in shown.out.splitlines()[1:4])
    assert re.fullmatch(r"random-labels-nap-adam-lr0.5-\S+ --lr 0.5 done", first)
    assert re.match(r"random-labels-nap-adam-lr1.5-\S+ --lr 1.5 failed the loss is nan at update 3 in ", second)
    assert re.fullmatch(r"random-labels-nap-adam-lr2.5-\S+ --lr 2.5 failed ZeroDivisionError: by zero", third)
    assert "to the terminal" in shown.err and "--retry-failed" in shown.err
    assert sweep.main(argv) == 1 and len(trained) == 3
    assert sweep.main([*argv, "--retry-failed"]) == 1 and trained[3:] == [1.5, 2.5]
    assert sweep.main(small_sweeps.tiny(tmp_path, "--lr", "0.5")) == 0 and len(trained) == 5


def test_here_a_run_that_another_process_has_is_left_to_it(tmp_path, trained, capsys):
    argv = small_sweeps.tiny(tmp_path, "--lr", "0.5", "--lr", "0.25")
    first, second = plan(argv[0], argv[1:])
    with held.locked(first.folders[0]):
        assert sweep.main(argv) == 0
        assert trained == [0.25]
        assert "2 runs: 1 done, 1 running, 0 failed, 0 waiting" in capsys.readouterr().out
    assert look(second).state == "done" and look(first).state == "waiting"


def test_here_a_signal_stops_the_sweep(tmp_path, trained, monkeypatch, capsys):
    def stop(config, stream, opened):
        trained.append(config.optimizer.lr)
        signal.raise_signal(signal.SIGTERM)
        opened.check_interrupted()

    monkeypatch.setattr(plasticity, "_run", stop)
    assert sweep.main(small_sweeps.tiny(tmp_path, "--lr", "0.5", "--lr", "0.25")) == 143
    assert trained == [0.5]
    assert not list(tmp_path.rglob(files.FAILED))
    assert "the same command goes on" in capsys.readouterr().err.splitlines()[-1]


def test_dry_run_prints_ordinary_commands(tmp_path, capsys):
    assert sweep.main(small_sweeps.tiny(tmp_path, "--lr", "0.5", "--lr", "1", "--dry-run")) == 0
    shown = capsys.readouterr().out
    start = f"python -m experiments plasticity {' '.join(small_sweeps.TINY)} --tasks 4 --out {tmp_path} --lr"
    assert shown.splitlines() == [f"{start} 0.5", f"{start} 1"]
    assert not list(tmp_path.iterdir())


# A job without JAX: it holds its folder for a moment, writes down the cores and the time, and is done.
STANDS_IN = """
import os, sys, time; from pathlib import Path; from experiments.harness.held import locked
with locked(Path(sys.argv[1])):
    began = time.time(); time.sleep(float(sys.argv[2]))
    Path(sys.argv[1], "cores").write_text(f"{began} {time.time()} {sorted(os.sched_getaffinity(0))}")
    Path(sys.argv[1], "DONE").touch()
"""


@pytest.fixture
def standing_in(monkeypatch):
    def start(one: Job, environment):
        environment = {**os.environ, **environment}
        command = [sys.executable, "-c", STANDS_IN, str(one.folders[0]), one.argv[1]]
        held.make(one.folders[0])
        (one.folders[0] / files.OUTPUT).touch()
        return jobs.Started(one, subprocess.Popen(command, cwd=ROOT, env=environment), 0)

    monkeypatch.setattr(pool, "start", start)


def test_a_pool_fills_its_slots_and_no_more(tmp_path, standing_in):
    names = [str(number) for number in range(5)]
    of_names = {name: Job((name, "0.4"), (tmp_path / name,), ROOT) for name in names}
    with held.locked(tmp_path / "3"):
        pool.launch(list(of_names.values()), launchers.Options(launcher="pool", workers=2))
    assert [look(one).state for one in of_names.values()] == ["done", "done", "done", "waiting", "done"]
    times, cores = [], set()
    for name in ("0", "1", "2", "4"):
        began, ended, where = (tmp_path / name / "cores").read_text(encoding="utf-8").split(" ", 2)
        times.append((float(began), float(ended)))
        cores.add(where)
    assert max(sum(began <= moment < ended for began, ended in times) for moment, _ in times) == 2
    assert len(cores) == min(2, len(cores_here()))


def test_a_second_signal_ends_a_pool_at_once(tmp_path, standing_in, monkeypatch):
    signals = iter([signal.SIGINT, signal.SIGINT])

    def sleep(seconds: float, ours=time.sleep) -> None:
        ours(seconds)
        if (tmp_path / "run" / held.LOCK).exists():
            os.kill(os.getpid(), next(signals))

    monkeypatch.setattr(subprocess.Popen, "terminate", lambda self: None)  # it does not hear
    monkeypatch.setattr(pool.time, "sleep", sleep)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.launch([Job(("run", "60"), (tmp_path / "run",), ROOT)], launchers.Options(launcher="pool"))
    assert time.monotonic() - began < 30
    assert held.held_by(tmp_path / "run") is None


def test_a_pool_of_processes(tmp_path):
    """One run that ends well, one that fails, and both are told of."""
    process = small_sweeps.start(small_sweeps.tiny(tmp_path, "--lr", "0.01", "--lr", "1e30", "--launcher", "pool"))
    shown, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "2 runs: 1 done, 0 running, 1 failed, 0 waiting" in shown and "the loss is nan" in shown
    good, bad = (folder / files.OUTPUT for folder in small_sweeps.folders(tmp_path))
    assert "accuracy" in good.read_text(encoding="utf-8") and "error: the loss is nan" in bad.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pool_is_stopped_and_its_runs_save(number, tmp_path):
    """Also where the sweep itself is killed: the runs end with it. The same command goes on."""
    argv = small_sweeps.tiny(tmp_path, "--launcher", "pool", tasks=100_000)
    process = small_sweeps.start(argv)
    small_sweeps.wait_until(lambda: small_sweeps.under_way(tmp_path), process)
    (folder,) = small_sweeps.folders(tmp_path)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    small_sweeps.wait_until(lambda: held.held_by(folder) is None)
    assert list((folder / files.CHECKPOINTS).glob("*.json"))
    assert look(Job((), (folder,))) == Status("waiting")


def test_how_a_machine_is_divided():
    assert [slot.cores for slot in slots_of(0, [0, 1, 2], [])] == [{0}, {1}, {2}]
    assert [slot.cores for slot in slots_of(2, [0, 1, 2, 3], [])] == [{0, 2}, {1, 3}]
    assert [slot.cores for slot in slots_of(3, [4, 5], [])] == [{4}, {5}, {4}]
    each = slots_of(0, [0, 1, 2, 3], ["0", "GPU-ab"])
    assert [slot.environment for slot in each] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "GPU-ab"}]
    shared = slots_of(3, [0, 1, 2, 3], ["5"])
    assert {slot.environment["CUDA_VISIBLE_DEVICES"] for slot in shared} == {"5"}
    assert {slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in shared} == {"0.300"}


def test_the_gpus_are_those_that_may_be_seen(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert gpus_here() == ["1", "3"]
    for none in ("", "-1", "NoDevFiles"):  # the last is SLURM's
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert gpus_here() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho 'GPU 1: H100'\n", encoding="utf-8"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpus_here() == ["0", "1"]
    monkeypatch.setenv("PATH", "")
    assert gpus_here() == []


def test_cores_are_given_back():
    before = cores_here()
    with pinned(frozenset(before[:1])):
        assert cores_here() == before[:1]
    assert cores_here() == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--status", "study.toml"], "error: --status: the study comes first: "),
        (["study.toml"], "error: the study study.toml cannot be read: No such file"),
        (["atari", "--cpus", "2"], "error: --cpus: --launcher here has no use for it; it is for slurm and ray"),
        (["atari", "--launcher", "pool", "--workers", "-1"], "error: --workers -1: it must lie in 0 to 100000"),
        (["atari", "--launcher", "ray", "--cpus", "0"], "error: --cpus 0: it must be at least 1"),
        (["atari", "--launcher", "slrm"], "error: invalid choice 'slrm' for argument '--launcher'"),
        (["atari", "pong"], "error: Unrecognized options: pong"),
    ],
)
def test_bad_input_is_one_line(argv, words, capsys, monkeypatch):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: name)
    assert sweep.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(words) and error.count("\n") == 1


def test_an_address_without_a_ray_cluster_is_one_line():
    pytest.importorskip("ray")
    with pytest.raises(harness.UserError, match=r"--address 127.0.0.1:1: Connection refused; is Ray running there\?"):
        launchers.launch([], launchers.Options(launcher="ray", address="127.0.0.1:1"))


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(name, package, capsys, monkeypatch):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    assert sweep.main(["atari", "--launcher", name]) == 2
    assert f"needs {package}: pip install " in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, entry in catalogue().items() if entry.plans])
def test_no_experiment_has_an_option_of_the_sweeps(name, capsys):
    assert harness.dispatch([name, "--help"]) == 0
    options = re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)
    assert len(options) > 10 and set(sweep.divide(options)[0]) <= {"--help"}
