"""Schedule matching through its command line, on a few digits: the match itself, the records, resuming, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import config_of, folders_in, rows, stopped, typed, written

from experiments import schedule_matching
from experiments.schedule_matching import FREE, METHODS, Config, load_trace, multipliers_of, resolve

SEEDS = (3, 4)
# 2 tasks of 100 updates each, recorded every 20; a rate at which norms grow within them.
OPTIONS = {
    "data": "digits", "tasks": 2, "epochs": 10, "examples": 200, "batch_size": 20, "lr": 0.5, "record_every": 20,
    "hidden": (32, 32), "seed": SEEDS[0], "seeds": len(SEEDS),
}  # fmt: skip
HIDDEN = ["weight_norm/hidden/0", "weight_norm/hidden/1"]


def command(out: Path, **changes) -> int:
    return schedule_matching.main([*typed(OPTIONS | changes), "--out", str(out)])


def folders(out: Path) -> dict[str, Path]:
    """The run folders by variant."""
    found = {config_of(path)["method"]: path for path in folders_in(out)}
    return {method: found[method] for method in METHODS}


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The out folder of one finished command, which is only read."""
    out = tmp_path_factory.mktemp("done")
    assert command(out) == 0
    return out


def test_each_layers_own_schedule_makes_the_free_function_and_nothing_less_does(done):
    distances = {method: summary(folder)["function_distance"] for method, folder in folders(done).items()}
    assert distances[FREE] == 0
    assert 0 < distances["nap+matching"] < 1e-3
    assert distances["nap"] > 10 * distances["nap+matching"] and distances["nap"] > 0.05
    assert distances["nap"] > distances["nap+global-matching"] > 10 * distances["nap+matching"]
    # At every record, not at the end alone; and the losses tell the same.
    assert max(row["function_distance"] for row in rows(folders(done)["nap+matching"])) < 1e-3
    losses = {method: summary(folder)["loss_distance"] for method, folder in folders(done).items()}
    assert losses["nap"] > 10 * losses["nap+matching"] > losses[FREE] == 0


def test_norms_grow_in_the_free_run_and_stay_in_the_others(done):
    for method, folder in folders(done).items():
        for seed in SEEDS:
            of_seed = [row for row in rows(folder) if row["seed"] == seed]
            for name in HIDDEN:
                norms = [row[name] for row in of_seed]
                if method == FREE:
                    assert all(np.diff(norms) > 0) and norms[-1] > 1.1 * norms[0]
                else:  # both the projection and the record sum 2,048 float32 squares, one after another on some CPUs
                    np.testing.assert_allclose(norms, norms[0], rtol=5e-6)
            # Nothing holds the output layer.
            assert of_seed[-1]["weight_norm/output"] > 1.02 * of_seed[0]["weight_norm/output"]
    growth = {method: summary(folder)["norm_growth"] for method, folder in folders(done).items()}
    assert growth.pop(FREE) > 1.1
    assert list(growth.values()) == pytest.approx([1, 1, 1], rel=5e-6)


def test_the_free_runs_trace_holds_every_update_and_the_records_follow_from_it(done):
    folder = folders(done)[FREE]
    trace, of_run = load_trace(folder), rows(folder)
    assert trace["weight_norm/hidden/1"].shape == trace["elr/output"].shape == trace["online_loss"].shape == (2, 200)
    assert trace["outputs"].shape == (2, 10, 200, 10)  # seeds, stretches, probe, classes
    assert [(row["updates"], row["seed"]) for row in of_run] == [(n, s) for n in range(20, 201, 20) for s in SEEDS]
    row = next(row for row in of_run if row["updates"] == 140 and row["seed"] == SEEDS[1])
    assert (row["phase"], row["method"], row["task"], row["task_updates"]) == ("task", FREE, 2, 40)
    assert (row["scored"], row["learning_rate"]) == (True, 0.5)
    for name in ("online_loss", "online_accuracy"):
        assert row[name] == pytest.approx(trace[name][1, 120:140].mean(), rel=1e-6)
    for name in (*HIDDEN, "elr/hidden/0", "elr/output"):
        assert row[name] == trace[name][1, 139]
    # Plain SGD leaves the sphere at a right angle to it, so that the norm before the next update follows.
    elr, norms = trace["elr/hidden/0"].astype(float), trace[HIDDEN[0]].astype(float)
    np.testing.assert_allclose(norms[:, 1:], norms[:, :-1] * np.sqrt(1 + elr[:, :-1] ** 2), rtol=1e-5)


def test_the_matched_run_has_the_effective_learning_rates_of_the_free_one(done):
    free = load_trace(folders(done)[FREE])
    for row in rows(folders(done)["nap+matching"]):
        seed, last = row["seed"] - SEEDS[0], row["updates"] - 1
        for layer in ("hidden/0", "hidden/1"):
            # The free update is a tangent of the sphere, the projected one the chord of the same angle.
            chord = 2 * np.sin(np.arctan(free[f"elr/{layer}"][seed, last]) / 2)
            assert row[f"elr/{layer}"] == pytest.approx(chord, rel=1e-4)
            norms = free[f"weight_norm/{layer}"][seed]
            assert row[f"learning_rate/{layer}"] == pytest.approx(0.5 * (norms[0] / norms[last]) ** 2, rel=1e-5)
        assert row["learning_rate"] == 0.5 and "learning_rate/output" not in row


def test_multipliers_by_hand():
    free = {"weight_norm/hidden/0": np.array([[2.0, 4.0]]), "weight_norm/hidden/1": np.array([[3.0, 24.0]])}
    settings = {"hidden": (5, 5), "protocol": schedule_matching.Protocol(tasks=1, epochs=1, examples=2, batch_size=1)}
    first, second = "hidden/0/kernel", "hidden/1/kernel"
    for optimizer, expected in (("sgd", (1 / 4, 1 / 64)), ("momentum", (1 / 4, 1 / 64)), ("adam", (1 / 2, 1 / 8))):
        matched = multipliers_of(Config(method="nap+matching", optimizer=optimizer, **settings), free)
        assert (matched[first].tolist(), matched[second].tolist()) == ([[1, expected[0]]], [[1, expected[1]]])
        everywhere = multipliers_of(Config(method="nap+global-matching", optimizer=optimizer, **settings), free)
        assert everywhere.keys() == {first, second}
        for values in everywhere.values():
            np.testing.assert_allclose(values, [[1, np.sqrt(expected[0] * expected[1])]], rtol=1e-6)
    assert multipliers_of(Config(method="nap", **settings), free) == {}
    assert multipliers_of(Config(method=FREE, **settings), None) == {}


def test_function_distance_by_hand():
    free = np.array([[[3.0, 4.0]], [[0.0, 2.0]]])
    outputs = np.array([[[3.0, 4.0]], [[1.0, 2.0]]])
    np.testing.assert_allclose(schedule_matching.function_distances(outputs, free), [0, 0.5])


def test_a_finished_command_returns_at_once_with_the_same_table(done, capsys, monkeypatch):
    monkeypatch.setattr(schedule_matching, "make_stream", lambda *_: pytest.fail("it ran again"))
    assert command(done) == 0
    header, _, *lines, _, end = capsys.readouterr().out.splitlines()
    assert end.startswith(f"done: the table above · {done / schedule_matching.NAME} · ")
    assert header.split("  ")[0] == "variant" and "function distance" in header
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert lines[0].split()[2:4] == ["0", "0"]
    assert float(lines[1].split()[2]) == pytest.approx(summary(folders(done)["nap"])["function_distance"], rel=1e-2)


def test_an_interrupted_variant_goes_on_and_equals_the_uninterrupted_one(done, tmp_path, monkeypatch, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(folders(tmp_path)["nap+matching"])

    with stopped(monkeypatch, schedule_matching):
        assert command(tmp_path) == 130
    assert "stopped by the test" in capsys.readouterr().err
    assert len(rows(folders(tmp_path)["nap+matching"])) == 10  # the first of the two tasks
    assert command(tmp_path) == 0
    assert "after iteration 1" in capsys.readouterr().err
    assert written(folders(tmp_path)["nap+matching"]) == written(folders(done)["nap+matching"])


def test_a_lost_trace_is_named(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    free = folders(tmp_path)[FREE]
    (free / "trace.npz").write_bytes(b"PK\x03\x04 cut short")
    shutil.rmtree(folders(tmp_path)["nap+matching"])
    assert command(tmp_path) == 2
    assert "trace.npz has 14 bytes, but had " in capsys.readouterr().err
    (free / "DONE").unlink()
    assert command(tmp_path) == 0, "it ends again, from its last checkpoint"
    assert written(folders(tmp_path)["nap+matching"]) == written(folders(done)["nap+matching"])


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("lr", 0, "--lr 0: it must be above 0; for sgd try 0.2"),
        ("lr", "nan", "--lr nan"),
        ("record_every", 30, "must divide a task's 100 updates; the nearest is 25"),
        ("record_every", -1, "--record-every -1"),
        ("seed", -1, "--seed -1"),
        ("seeds", 0, "--seeds 0"),
        ("data", "digitz", "nearest: digits"),
        ("examples", 5000, "nearest: 1500"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, option, value, words):
    assert command(tmp_path, **{option: value}) == 2
    heard = capsys.readouterr()
    assert words in heard.err and heard.err.startswith("error: ") and heard.err.count("\n") == 1
    assert heard.out == "" and not list(tmp_path.rglob("DONE"))


def test_defaults_that_depend_on_others():
    for optimizer, lr in (("sgd", 0.2), ("momentum", 0.02), ("adam", 0.003)):
        config = resolve(Config(optimizer=optimizer))
        assert (config.lr, config.record_every) == (lr, 40)
