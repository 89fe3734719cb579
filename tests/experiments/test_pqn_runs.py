"""`python -m experiments pqn` from end to end on tiny runs: records, resume, seeds, rivals, bad input."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from run_folders import completed, folder_in, folders_in, rows, typed

import experiments
from experiments import harness, pqn
from experiments.atari.config import FRAME_SKIP
from experiments.harness.read import load_runs
from nap import paths

# Rollouts of 16 agent steps (64 frames), six of them, an evaluation after each three.
TINY = {"game": "catch", "num-envs": 4, "steps": 4, "epochs": 2, "minibatches": 2, "hidden": 8, "stack": 1}
TINY |= {"frames": 384, "iteration-frames": 192, "evaluation-episodes": 3, "log-every": 2, "lr": 0.01}


def command(out: Path, *arguments: str) -> int:
    return pqn.main([*completed(arguments, TINY), "--out", str(out)])


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory) -> Path:
    """The folder of a finished run of two seeds."""
    out = tmp_path_factory.mktemp("two")
    assert command(out, "--seeds", "2") == 0
    return folder_in(out)


def test_a_run_records_every_seed(two_seeds):
    # After the first rollout, after every second one, and before each evaluation.
    train, evaluation = rows(two_seeds, "train"), rows(two_seeds, "eval")
    assert [(row["updates"], row["seed"]) for row in train] == [(4 * n, s) for n in (1, 2, 3, 4, 6) for s in (0, 1)]
    assert [(row["updates"], row["seed"]) for row in evaluation] == [(12, 0), (12, 1), (24, 0), (24, 1)]
    for row in [*train, *evaluation]:
        assert row["frames"] == FRAME_SKIP * row["agent_steps"] == 64 * row["updates"] // 4
        assert row["iteration"] == (1 if row["updates"] <= 12 else 2)
    for seed in (0, 1):
        own = [row for row in train if row["seed"] == seed]
        assert sum(row["train/episodes"] for row in own) == 4 * (6 * 4 // 9)  # an episode of catch has 9 steps
        assert all((row["train/return"] is None) == (row["train/episodes"] == 0) for row in own)
        norms = [row["weight_norm/hidden"] for row in own]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
        assert {"elr/output", "angle/hidden", "dormant_fraction_0/hidden", "loss"} <= own[0].keys()
    # Linear to 0 over 24 updates, as the measured ones had it: the first of each last rollout.
    rates = [row["learning_rate"] for row in train if row["seed"] == 0]
    np.testing.assert_allclose(rates, [0.01 * (1 - at / 24) for at in (0, 4, 8, 12, 20)], rtol=1e-5)
    assert [row["epsilon"] for row in train][:3] == pytest.approx([1, 1, 0.05])
    summary = json.loads((two_seeds / "summary.json").read_text(encoding="utf-8"))
    assert summary["eval/return"] == pytest.approx(np.mean([row["eval/return"] for row in evaluation[-2:]]))
    assert (two_seeds / "DONE").exists()


def test_each_seed_is_a_run_of_a_report(two_seeds):
    runs = load_runs([two_seeds])
    assert [(run.seed, run.problem, run.label, run.done) for run in runs] == [(s, "catch", "nap", True) for s in (0, 1)]
    assert [run.reached for run in runs] == [384, 384]
    assert all(run.layers("elr") == ["hidden", "output"] for run in runs)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_agent_of_each_seed_is_loaded(two_seeds, seed):
    run = experiments.load(two_seeds, seed=seed)
    assert run.config.seeds == 2 and run.records["seed"].unique().to_list() == [seed]
    # NaP holds the norm, which is another one in each seed.
    norm = np.linalg.norm(paths.leaves(run.params)["hidden/kernel"])
    assert norm == pytest.approx(run.records["weight_norm/hidden"][0], rel=1e-5)
    observations = run.stage.open(2, seed=0).reset().observation
    values = run.apply(run.params, observations)
    assert values.shape == (2, 3) and run.act(observations[1]) == np.argmax(values[1])
    with pytest.raises(harness.UserError, match="the seeds 0 to 1"):
        experiments.load(two_seeds, seed=2)


def test_a_seed_is_the_same_alone_and_among_others(tmp_path, two_seeds):
    assert command(tmp_path, "--seed", "1") == 0
    for phase in ("train", "eval"):
        among = [row for row in rows(two_seeds, phase) if row["seed"] == 1]
        assert rows(folder_in(tmp_path), phase) == among


@pytest.mark.parametrize("stretches", [1, 4])
def test_an_interrupted_run_goes_on_to_the_same_records(tmp_path, monkeypatch, capsys, two_seeds, stretches):
    added, calls = pqn._Recorder.add, []

    def stop(self, done, told) -> None:
        added(self, done, told)
        calls.append(done)
        if len(calls) == stretches:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(pqn._Recorder, "add", stop)
        assert command(tmp_path, "--seeds", "2") == 128 + signal.SIGTERM
    part = folder_in(tmp_path)
    assert not (part / "DONE").exists()
    assert (part / "checkpoints" / str(calls[-1])).exists()
    assert command(tmp_path, "--seeds", "2") == 0
    assert "resuming" in capsys.readouterr().err
    for name in ("metrics.jsonl", "summary.json"):
        assert (part / name).read_text(encoding="utf-8") == (two_seeds / name).read_text(encoding="utf-8")


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, two_seeds):
    class Killed(BaseException):
        pass

    def killed(self, done, told) -> None:
        added(self, done, told)
        if done == 4:
            raise Killed

    added = pqn._Recorder.add
    with monkeypatch.context() as patched:
        patched.setattr(pqn, "SAVE_SECONDS", 0.0)
        patched.setattr(pqn._Recorder, "add", killed)
        with pytest.raises(Killed):
            command(tmp_path, "--seeds", "2")
    part = folder_in(tmp_path)
    assert (part / "checkpoints" / "3").exists()  # rollouts, the first evaluation included
    assert command(tmp_path, "--seeds", "2") == 0
    for name in ("metrics.jsonl", "summary.json"):
        assert (part / name).read_text(encoding="utf-8") == (two_seeds / name).read_text(encoding="utf-8")


def test_a_rival_has_its_place_and_its_norms_drift(tmp_path):
    assert command(tmp_path, "--method", "layernorm+redo", "--redo-every", "7", "--optimizer", "adam") == 0
    norms = [row["weight_norm/hidden"] for row in rows(folder_in(tmp_path), "train")]
    assert norms[-1] > 1.001 * norms[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--game", "cach"], "'cach' is not a game in JAX; did you mean 'catch'?"),
        (["--preset", "minatr"], "did you mean 'minatar'?"),
        (["--method", "nap+redoo"], "'redoo' is not a method; did you mean 'redo'?"),
        (["--method", "nap+reset-head"], "--method reset-head: it comes once a task"),
        (["--schedule", "matching"], "--schedule matching: it is for atari"),
        (["--minibatches", "3"], "it must divide the 16 agent steps of a rollout (--num-envs times --steps)"),
        (["--minibatches", "7"], "the nearest is 8"),
        (["--iteration-frames", "100"], "must be a multiple of 64, a rollout's frames; the nearest is 128"),
        (["--frames", "400"], "must be a multiple of 192, --iteration-frames; the nearest is 384"),
        (["--num-envs", "0"], "--num-envs 0: it must be at least 1"),
        (["--q-lambda", "1.5"], "--q-lambda 1.5: it must lie in 0 to 1"),
        (["--adam-b1", "1"], "--adam-b1 1.0: it must be at least 0 and below 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--seeds", "0"], "--seeds 0"),
        (["--agent", "dqn"], "--agent"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, capsys, arguments, words):
    assert command(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not folders_in(tmp_path)


def test_a_sweep_finds_the_run_where_the_command_puts_it(two_seeds):
    (job,) = pqn.plan([*typed(TINY), "--seeds", "2", "--out", str(two_seeds.parents[1])])
    assert job.folders == (two_seeds,)
    assert job.argv[0] == "pqn"


@pytest.mark.parametrize("name", pqn.PRESETS)
def test_every_preset_resolves(name):
    if name == "minatar":
        pytest.importorskip("pgx")
    config = pqn.resolve(pqn.PRESETS[name])
    assert config.stack == (1 if name == "minatar" else 4)
    assert config.frames == config.rollouts * config.pqn.agent_steps * FRAME_SKIP


def test_the_published_run_has_its_published_length():
    config = pqn.PRESETS["minatar"]
    assert config.pqn.agent_steps == 4096
    assert config.frames // FRAME_SKIP == pytest.approx(10e6, rel=1e-3)
    assert config.frames // config.iteration_frames == 20


def test_a_run_of_another_configuration_has_another_folder():
    configs = [pqn.Config(), pqn.Config(seeds=2), dataclasses.replace(pqn.Config(), pqn=pqn.Settings(q_lambda=0.5))]
    assert len({harness.config_hash("pqn", config) for config in configs}) == 3
