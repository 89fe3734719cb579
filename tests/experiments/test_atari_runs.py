"""The Atari experiment through its command line and the real ALE: killed, stopped, diverging, finished, mistyped."""

import fcntl
import itertools
import json
import math
import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from atari_command import bits, command_line, final_state, finish, folder_of, records, start

from experiments import atari, harness
from experiments.harness import NonFinite, large_arrays
from experiments.harness.catalogue import dispatch

HIDDEN = [f"weight_norm/{layer}" for layer in ("torso/0", "torso/1", "torso/2", "hidden")]
# Two iterations of 160 agent steps, more than the replay holds.
OPTIONS = {
    "game": "pong", "frames": 1280, "iteration_frames": 640, "min_replay_frames": 256, "replay_capacity": 300,
    "num_envs": 2, "evaluation_episodes": 2, "batch_size": 8, "update_period": 4, "n_step": 3, "target_period": 16,
    "log_every": 8, "exploration_frames": 1000, "lr": 1e-3,
}  # fmt: skip
RECORDS = [5, 7]  # of each iteration: at updates 1, 8, 16 / 24, ..., 56, at its end, and one of the evaluation


def arguments(out: Path, **changes) -> list[str]:
    return command_line(OPTIONS | changes, out)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The out folder of one uninterrupted run, shared by all workers: the second to come finds it finished."""
    out = tmp_path_factory.getbasetemp()
    out = (out.parent if "PYTEST_XDIST_WORKER" in os.environ else out) / "uninterrupted-atari"
    out.mkdir(exist_ok=True)
    with open(out / "lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not list(out.glob("atari/*/DONE")):
            finish(arguments(out))
    return out


def test_killed_at_random_moments_and_resumed_it_equals_the_uninterrupted_run(whole, tmp_path):
    wanted = folder_of(whole)
    metrics = tmp_path / "atari" / wanted.name / "metrics.jsonl"
    seed = time.time_ns()
    print("seed of the kills:", seed)  # shown when the test fails
    moments = random.Random(seed)
    targets = [
        moments.randint(1, 3),  # in the first iteration: nothing is saved yet
        RECORDS[0] + moments.randint(1, 4),  # after the first checkpoint
        RECORDS[0] + moments.randint(1, 5),  # there again, or in the evaluation
    ]
    for target, saved in zip(targets, (0, 0, 1), strict=True):
        with start(arguments(tmp_path)) as process:
            ready = f"after iteration {saved}" if saved else " frames"
            while process.poll() is None and ready not in process.stderr.readline():
                pass  # until it has resumed, which cuts the records
            while process.poll() is None and lines(metrics) < target:
                time.sleep(0.002)
            time.sleep(moments.random() * 0.2)
            assert process.poll() is None, f"it ended before it was killed:\n{process.stderr.read()}"
            process.kill()
        assert not (metrics.parent / "DONE").exists()
    finish(arguments(tmp_path))
    for name in ("metrics.jsonl", "summary.json"):
        assert (metrics.parent / name).read_bytes() == (wanted / name).read_bytes(), name
    ours, theirs = (
        bits(final_state(folder, arguments(tmp_path), 6, (4, 84, 84))) for folder in (metrics.parent, wanted)
    )
    assert [path for path, *rest in ours if (path, *rest) not in theirs] == []
    assert len(ours) == len(theirs) > 20


def test_stopped_and_resumed_from_our_own_files_of_large_arrays_it_equals_the_uninterrupted_run(tmp_path, monkeypatch):
    """The replay's and the network's arrays as those of a run at full size; the uninterrupted run has orbax's only."""
    small = {"game": "catch", "agent": "dqn", "log_every": 4, "evaluation_episodes": 1}
    whole, broken = (arguments(tmp_path / name, **small) for name in ("whole", "broken"))
    assert dispatch(whole) == 0
    saved, save = [], harness.Run.save

    def save_and_stop(run, iteration, state):
        save(run, iteration, state)
        saved.append(sorted(path.stat().st_size for path in run.folder.glob(f"checkpoints/{iteration}*.arrays/*")))
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # it stops after the first step of the second iteration, and saves

    monkeypatch.setattr(large_arrays, "LARGE_BYTES", 1000)
    monkeypatch.setattr(harness.Run, "save", save_and_stop)
    assert dispatch(broken) == 143
    assert dispatch(broken) == 0
    folders = [folder_of(tmp_path / name) for name in ("whole", "broken")]
    assert len(saved) == 3 and saved[0] == saved[1] == saved[2] and not list(folders[0].glob("checkpoints/*.arrays"))
    for name in ("metrics.jsonl", "summary.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    states = [final_state(folder, whole, 3, (4, 10, 5)) for folder in folders]
    assert saved[0] == sorted(leaf.nbytes for leaf in jax.tree.leaves(states[0]) if large_arrays.is_large(leaf))
    assert bits(states[0]) == bits(states[1])


@pytest.mark.parametrize("game", ["catch", "pong"])
def test_a_signal_in_training_saves_and_the_run_goes_on_from_there(game, tmp_path, monkeypatch, capsys):
    """Two signals in the first iteration, the second as its games are played again; and one in the second."""
    small = {"game": game, "agent": "dqn", "log_every": 4, "evaluation_episodes": 1}
    whole, broken = (arguments(tmp_path / name, **small) for name in ("whole", "broken"))
    assert dispatch(whole) == 0
    signals, hooks_of = iter([50, 20]), atari._hooks

    def signalled(*given):
        hooks, steps, at = hooks_of(*given), itertools.count(1), next(signals)

        def on_state(now):
            if next(steps) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            hooks.on_state(now)

        return hooks._replace(on_state=on_state)

    updates, save = [], harness.Run.save

    def saved(run, iteration, state):
        save(run, iteration, state)
        updates.append(int(state[0].agent.updates))

    monkeypatch.setattr(atari, "_hooks", signalled)
    monkeypatch.setattr(harness.Run, "save", saved)
    for iteration in (1, 1):
        assert dispatch(broken) == 143
        assert f"(iteration {iteration})" in capsys.readouterr().err.splitlines()[-1]
    signals = iter([0, 60])  # the first iteration to its end, and into the second
    assert dispatch(broken) == 143
    assert "(iteration 2)" in capsys.readouterr().err.splitlines()[-1]
    signals = iter([0])
    assert dispatch(broken) == 0
    assert "iteration 2 goes on 480 frames in" in capsys.readouterr().err
    assert updates == [8, 8, 23, 53, 63]  # those due before the step at which it was saved
    folders = [folder_of(tmp_path / name) for name in ("whole", "broken")]
    for name in ("metrics.jsonl", "summary.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    shape = (3, (4, 10, 5)) if game == "catch" else (6, (4, 84, 84))
    states = [final_state(folder, whole, *shape) for folder in folders]
    assert bits(states[0]) == bits(states[1])


@pytest.mark.parametrize("evaluation", [1, 2], ids=["the-first", "the-last"])
def test_a_signal_in_an_evaluation_loses_no_training(tmp_path, monkeypatch, capsys, evaluation):
    small = {"game": "catch", "agent": "dqn", "log_every": 4, "evaluation_episodes": 1}
    whole, broken = (arguments(tmp_path / name, **small) for name in ("whole", "broken"))
    assert dispatch(whole) == 0
    trained, train = [], atari.train
    evaluated, evaluate = [], atari.evaluate

    def counted(*given, **options):
        trained.append(1)
        return train(*given, **options)

    def signalled(*given, **options):
        evaluated.append(1)
        if len(evaluated) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*given, **options)

    monkeypatch.setattr(atari, "train", counted)
    monkeypatch.setattr(atari, "evaluate", signalled)
    assert dispatch(broken) == 143
    assert f"iteration {evaluation}" in capsys.readouterr().err.splitlines()[-1]
    assert dispatch(broken) == 0
    assert (len(trained), len(evaluated)) == (2, 3)
    folders = [folder_of(tmp_path / name) for name in ("whole", "broken")]
    for name in ("metrics.jsonl", "summary.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    states = [final_state(folder, whole, 3, (4, 10, 5)) for folder in folders]
    assert bits(states[0]) == bits(states[1])


def test_the_records_say_what_was_done_when(whole):
    folder = folder_of(whole)
    rows, evaluations = records(folder), records(folder, "eval")
    assert [row["updates"] for row in rows] == [1, 8, 16, 23, *range(24, 57, 8), 63]
    assert [row["iteration"] for row in rows + evaluations] == [1] * 4 + [2] * 6 + [1, 2]
    assert lines(folder / "metrics.jsonl") == sum(RECORDS)
    for row, frames in zip((rows.pop(3), rows.pop()), (640, 1280), strict=True):  # what was left to tell at the end
        assert row["frames"] == frames and math.isfinite(row["loss"]) and "elr/output" not in row
    for row in rows:
        # An update is due every 4 agent steps from the 64th on.
        assert row["agent_steps"] == 64 + 4 * row["updates"] and row["frames"] == 4 * row["agent_steps"]
        assert row["epsilon"] == pytest.approx(1 - 0.99 * min(1, (row["frames"] - 256) / 1000))
        assert row["learning_rate"] == pytest.approx(1e-3) and math.isfinite(row["loss"])
    assert [(row["frames"], row["updates"]) for row in evaluations] == [(640, 23), (1280, 63)]
    for row in evaluations:
        assert row["eval/episodes"] == 2 and -21 <= row["eval/return"] <= 21
        assert row["eval/human_normalised"] == pytest.approx((row["eval/return"] + 20.7) / (14.6 + 20.7))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary == {"frames": 1280} | {key: evaluations[-1][key] for key in summary if key.startswith("eval/")}
    assert {"eval/return", "eval/human_normalised"} < summary.keys()


def test_nap_holds_the_hidden_norms_and_only_those(whole):
    rows = [row for row in records(folder_of(whole)) if "elr/output" in row]
    for name in HIDDEN:
        np.testing.assert_allclose([row[name] for row in rows], rows[0][name], rtol=1e-6, err_msg=name)
    output = [row["weight_norm/output"] for row in rows]
    assert abs(output[-1] / output[0] - 1) > 1e-3
    for layer in ("torso/0", "hidden", "output"):
        assert rows[-1][f"elr/{layer}"] == pytest.approx(
            rows[-1][f"update_norm/{layer}"] / rows[-1][f"weight_norm/{layer}"], rel=1e-5
        )


def test_sigterm_ends_with_143_and_one_line_and_layernorm_alone_holds_no_norm(tmp_path):
    with start(arguments(tmp_path, method="layernorm", frames=6400, iteration_frames=6400)) as process:
        heard = [process.stderr.readline(), process.stderr.readline()]  # the replay's size; progress: it trains
        metrics = folder_of(tmp_path) / "metrics.jsonl"
        while process.poll() is None and lines(metrics) < 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        heard += process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 143, heard
    announced, last = (line for line in heard[1:] if not line.startswith("pong-"))
    assert announced.startswith("SIGTERM: stopping")
    checkpoint = metrics.parent / "checkpoints" / "1"
    saved = f"the last good checkpoint is {checkpoint} (iteration 1)"
    assert last == f"error: stopped by SIGTERM; {saved}; the same command goes on"
    assert checkpoint.exists() and not (metrics.parent / "DONE").exists()
    rows = records(metrics.parent)
    for name in HIDDEN:
        assert abs(rows[-1][name] / rows[0][name] - 1) > 1e-4, name


def test_the_same_command_returns_at_once_from_a_finished_run(whole, monkeypatch, capsys):
    monkeypatch.setattr(atari, "build", lambda *_: pytest.fail("a finished run must not build anything"))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the run had none
    folder = folder_of(whole)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}
    for game in ("pong", "ALE/Pong-v5"):
        assert dispatch(arguments(whole, game=game)) == 0
        said = capsys.readouterr()
        assert said.err == f"{folder} is finished; --fresh would run it again\n"
        assert said.out.startswith("done: return ") and said.out.endswith(f"report {whole / 'atari'}\n")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"} == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    argv = arguments(tmp_path, method="none", optimizer="sgd", lr=1e30, clip=0, log_every=1)
    assert dispatch(argv) == 1
    folder = folder_of(tmp_path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last in [
        f"error: the loss is {number} at update 2 in {folder}; no checkpoint was saved yet" for number in ("nan", "inf")
    ]
    assert not (folder / "DONE").exists() and not (folder / "summary.json").exists()
    assert [row["updates"] for row in records(folder)] == [1]


def test_a_game_that_diverges_ends_alone(tmp_path, capsys, monkeypatch):
    ran = []

    def one(config, options, mesh):
        ran.append((config.game, config.seed))
        if config.game == "pong":
            raise NonFinite(f"the loss is nan in {config.game}")

    monkeypatch.setattr(atari, "_run_one", one)
    monkeypatch.setattr(harness, "tell_end", lambda folder: None)
    assert atari.main(["--games", "breakout,pong,seaquest", "--seeds", "2", "--out", str(tmp_path)]) == 1
    assert ran == [(game, seed) for seed in (0, 1) for game in ("breakout", "pong", "seaquest")]
    assert capsys.readouterr().err.splitlines() == 2 * [
        "error: the loss is nan in pong",
        "error: pong: ended early, as told above; the other games have been run",
    ]


def test_the_fewest_frames_that_are_taken_make_an_update(tmp_path):
    argv = arguments(tmp_path, game="catch", agent="dqn", evaluation_episodes=1, min_replay_frames=1256)
    assert dispatch(argv) == 0
    assert records(folder_of(tmp_path), "eval")[-1]["updates"] == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"game": "pongg"}, "--game: unknown game 'pongg'; did you mean 'pong'?"),
        ({"game": "joust"}, "--game: game 'joust' has no single-player mode"),
        ({"frames": 2000}, "--frames 2000: it must be a multiple of --iteration-frames 640; the nearest is 1920"),
        ({"iteration_frames": 12, "frames": 24}, "--iteration-frames 12: it must be a multiple of 8 "),
        ({"min_replay_frames": 55}, "--min-replay-frames 55: it must be at least 56, for the first batch"),
        ({"min_replay_frames": 56, "batch_size": 15}, "--min-replay-frames 56: it must be at least 60, "),
        ({"min_replay_frames": 1280}, "--frames 1280: it must be at least 1304, for an update every 4 agent steps "),
        ({"min_replay_frames": 1260}, "--frames 1280: it must be at least 1284, for an update every 4 agent steps "),
        ({"update_period": 1000}, "--frames 1280: it must be at least 4264, for an update every 1000 agent steps "),
        ({"adam_b1": 1.0}, "--adam-b1 1.0: it must be at least 0 and below 1"),
        ({"adam_b2": -0.5}, "--adam-b2 -0.5: it must be at least 0 and below 1"),
        ({"exploration_frames": -1}, "--exploration-frames -1: it must be at least 0"),
        ({"replay_capacity": 13}, "--replay-capacity 13: it must be at least 14"),
        ({"frames": -640}, "--frames -640: it must be at least 1"),
        ({"log_every": 0}, "--log-every 0: it must be at least 1"),
        ({"project_every": 0}, "--project-every 0: it must be at least 1"),
        ({"seed": -1}, "--seed -1: it must lie in 0 to 4294967295"),
        ({"lr": -1.0}, "--lr -1.0: it must be at least 0"),
        ({"lr": "inf"}, "--lr inf: it must be at least 0, and finite"),
        ({"game": "catch", "torso": "impala"}, "--torso impala: it is for ale-py's games, and catch has a network"),
        ({"clip": -1.0}, "--clip -1.0: it must be at least 0"),
        ({"gamma": 0.0}, "--gamma 0.0: it must be above 0 and at most 1"),
        ({"epsilon_end": 1.5}, "--epsilon-end 1.5: it must lie in 0 to 1"),
        ({"evaluation_epsilon": -0.5}, "--evaluation-epsilon -0.5: it must lie in 0 to 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(changes, line, tmp_path, capsys):
    assert dispatch(arguments(tmp_path, **changes)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []
