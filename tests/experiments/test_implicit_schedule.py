"""The study of the implicit schedule through its command line, on a few frames of catch."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_folders import config_of, folders_in, rows, typed

from experiments import atari, harness, implicit_schedule
from experiments.atari.agent import make_learner
from experiments.atari.config import Config
from experiments.atari.matching import free_of, multipliers_of
from experiments.harness.methods import NapConfig, OptimizerConfig
from experiments.harness.read import load_runs
from experiments.implicit_schedule import ARMS, FREE, SCHEDULES
from nap import paths

# Two iterations of 160 agent steps; the first update is number 1, of 64 in all.
OPTIONS = {
    "game": "catch", "frames": 1280, "iteration_frames": 640, "min_replay_frames": 256, "replay_capacity": 300,
    "num_envs": 2, "evaluation_episodes": 4, "batch_size": 8, "update_period": 4, "target_period": 16,
    "log_every": 10, "lr": 3e-3, "seed": 3,
}  # fmt: skip
# Rainbow without what takes long to compile; two hidden layers are left.
WITHOUT = ("--no-noisy", "--no-distribution", "--no-prioritized")
UPDATES = [1, 10, 20, 30, 40, 50, 60]
HIDDEN = ["value_hidden", "advantage_hidden"]


def command(out: Path, **changes) -> int:
    return implicit_schedule.main([*typed(OPTIONS | changes), *WITHOUT, "--out", str(out)])


def folders(out: Path) -> dict[str, Path]:
    """The run folders by arm."""
    found = {}
    for path in folders_in(out):
        config = config_of(path)
        found[FREE if config["method"] == FREE else f"nap {config['optimizer']['schedule']}"] = path
    return found


def norms(folder: Path, layer: str) -> np.ndarray:
    return np.array([row[f"weight_norm/{layer}"] for row in measured(folder)])


def measured(folder: Path) -> list[dict]:
    """The records of training that hold more than what was left to tell at an iteration's end."""
    return [row for row in rows(folder, "train") if "elr/value_output" in row]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The out folder of one finished command, which is only read."""
    out = tmp_path_factory.mktemp("done")
    assert command(out) == 0
    return out


def test_all_arms_run_and_only_the_free_norms_grow(done):
    found = folders(done)
    assert found.keys() == set(ARMS) and len(list(done.glob("atari/*"))) == len(ARMS)
    assert found["nap global-matching"].name.startswith("catch-rainbow-nap-global-matching-seed3-")
    for arm, folder in found.items():
        assert (folder / "DONE").exists()
        assert [row["updates"] for row in measured(folder)] == UPDATES
        for layer in HIDDEN:
            of_arm, free = norms(folder, layer), norms(found[FREE], layer)
            assert of_arm[0] == pytest.approx(free[0], rel=1e-6)  # the same initial weights
            if arm == FREE:
                assert of_arm[-1] > 1.02 * of_arm[0]
            else:
                np.testing.assert_allclose(of_arm, of_arm[0], rtol=5e-6)


def test_rates_follow_the_free_norms_by_hand(done):
    found = folders(done)
    free = {layer: norms(found[FREE], layer) for layer in HIDDEN}
    mean = np.sqrt(free[HIDDEN[0]] * free[HIDDEN[1]])
    for layer in HIDDEN:
        for arm, followed in (("nap matching", free[layer]), ("nap global-matching", mean)):
            rates = [row[f"learning_rate/{layer}"] for row in measured(found[arm])]
            np.testing.assert_allclose(rates, 3e-3 * followed[0] / followed, rtol=1e-5)
            assert {row["learning_rate"] for row in rows(found[arm], "train")} == {
                rows(found["nap constant"], "train")[0]["learning_rate"]
            }
    for arm in ("nap constant", "nap linear", "nap cosine"):
        assert not [name for name in rows(found[arm], "train")[0] if name.startswith("learning_rate/")]
    written = {arm: [row["learning_rate"] for row in measured(folder)] for arm, folder in found.items()}
    assert len(set(written[FREE])) == 1
    assert written["nap linear"][3] == pytest.approx(3e-3 * (1 - 0.99 * 29 / 64), rel=1e-5)
    assert written["nap cosine"][3] == pytest.approx(3e-3 * (0.01 + 0.99 * (1 + np.cos(np.pi * 29 / 64)) / 2), rel=1e-5)


def test_between_records_norms_are_interpolated_and_the_order_is_the_optimizers(done):
    found = folders(done)
    free = norms(found[FREE], "value_hidden")
    at_24 = free[2] + 0.5 * (free[3] - free[2])  # before update 25: between those before updates 20 and 30
    for optimizer, order in (("adam", 1), ("rmsprop", 1), ("momentum", 2), ("sgd", 2)):
        config = Config(game="catch", agent="rainbow", optimizer=OptimizerConfig(optimizer, schedule="matching"))
        multipliers = multipliers_of(config, atari.network_of(config, 3, (4, 10, 5)), found[FREE])
        assert multipliers.keys() == {f"{layer}/kernel+{layer}/noise" for layer in HIDDEN}
        of_layer = multipliers["value_hidden/kernel+value_hidden/noise"]
        assert float(of_layer(0)) == 1
        assert float(of_layer(24)) == pytest.approx((free[0] / at_24) ** order, rel=1e-5)
        assert float(of_layer(10**6)) == pytest.approx((free[0] / free[-1]) ** order, rel=1e-5)


def test_the_multipliers_reach_the_optimizer():
    config = Config(game="catch", agent="rainbow", no_distribution=True, optimizer=OptimizerConfig(lr=1e-4))
    network = atari.network_of(config, 3, (4, 10, 5))
    halved = {f"{layer}/kernel+{layer}/noise": optax.constant_schedule(0.5) for layer in HIDDEN}
    params = {}
    for name, multipliers in (("whole", None), ("half", halved)):
        learner = make_learner(config, 3, (4, 10, 5), network, multipliers)
        start = learner.init(jax.random.key(0))
        batch = jax.tree.map(jnp.asarray, _batch())
        state, _ = jax.jit(learner.learn)(start, batch, jax.random.key(1))
        old, new = paths.leaves(start.params), paths.leaves(state.params)
        params[name] = {path: float(jnp.linalg.norm(new[path] - old[path])) for path in old}
    for layer in HIDDEN:
        for part in ("kernel", "noise"):
            moved = {name: of_run[f"{layer}/{part}"] for name, of_run in params.items()}
            assert moved["half"] == pytest.approx(0.5 * moved["whole"], rel=1e-2) and moved["half"] > 0
    for path in ("value_output/kernel", "advantage_output/kernel"):
        assert params["half"][path] == pytest.approx(params["whole"][path], rel=1e-6)


def _batch():
    from agents.replay import Transition

    frames = np.random.default_rng(0).integers(0, 255, (2, 8, 4, 10, 5), np.uint8)
    actions = np.arange(8, dtype=np.int32) % 3
    ones = np.ones(8, np.float32)
    return Transition(s_tm1=frames[0], a_tm1=actions, r_t=ones, discount_t=0.9 * ones, s_t=frames[1], weight=ones)


def test_a_finished_command_returns_at_once_with_the_table(done, capsys, monkeypatch):
    monkeypatch.setattr(atari, "make_environments", lambda *_: pytest.fail("it ran again"))
    assert command(done) == 0
    out = capsys.readouterr().out
    returns, growth, rates, report = out.split("\n\n")[1:5]
    for table, first in ((returns, "arm"), (growth, "layer"), (rates, "layer")):
        assert any(line.startswith(first) for line in table.splitlines())
    last = {
        arm: json.loads((path / "summary.json").read_text(encoding="utf-8"))["eval/return"]
        for arm, path in folders(done).items()
    }
    lines = {arm: line.split() for arm in ARMS for line in returns.splitlines() if line.startswith(arm + " ")}
    assert lines.keys() == set(ARMS)
    for arm in SCHEDULES:
        assert float(lines[f"nap {arm}"][3]) == pytest.approx(last[f"nap {arm}"], rel=1e-2)
        assert float(lines[f"nap {arm}"][4]) == pytest.approx(last[f"nap {arm}"] - last[FREE], abs=1e-2)
    hidden = next(line.split() for line in growth.splitlines() if line.startswith("value_hidden"))
    free = norms(folders(done)[FREE], "value_hidden")
    assert float(hidden[1]) == pytest.approx(free[-1] / free[0], rel=1e-3) and set(hidden[2:]) == {"1"}
    assert len(load_runs(map(Path, report.partition(" report ")[2].split()))) == len(ARMS)
    # Beside each other in a report they are told apart by their schedules.
    assert {run.label for run in load_runs([done])} == {
        "layernorm (schedule constant)",
        *(f"nap (schedule {schedule})" for schedule in SCHEDULES),
    }


def test_several_seeds_have_intervals():
    runs = [_run("layernorm", "constant", seed, [0.0, 0.5]) for seed in range(4)]
    runs += [_run("nap", "matching", seed, [0.5, 0.9 + 0.01 * seed]) for seed in range(4)]
    runs += [_run("nap", "linear", seed, [0.0, (-1.0) ** seed]) for seed in range(3)]
    runs += [_run("nap", "cosine", seed, [-1.0, -1.0]) for seed in range(2)]
    returns = implicit_schedule.tables(runs).split("\n\n")[0].splitlines()
    lines = {arm: line for arm in ARMS for line in returns if line.startswith(arm + " ")}
    assert lines.keys() == set(ARMS) - {"nap constant", "nap global-matching"}
    assert "0.915 [0.905, 0.925]" in lines["nap matching"] and lines["nap matching"].count("better") == 2
    assert "open" in lines["nap linear"] and "better" not in lines["nap linear"]
    assert lines["nap cosine"].count("worse") == 2 and lines["nap cosine"].split()[2] == "2"
    assert "0.5 [0.5, 0.5]" in lines[FREE] and "worse" not in lines[FREE]


def _run(method: str, schedule: str, seed: int, returns: list[float]):
    import polars as pl

    from experiments.harness.read import LoadedRun

    records = pl.DataFrame(
        {
            "frames": [1, 2],
            "eval/return": returns,
            "weight_norm/hidden": [1.0, 2.0],
            "elr/hidden": [1e-3, 1e-4],
        }
    )
    config = {"method": method, "optimizer": {"schedule": schedule}}
    return LoadedRun(Path("run"), {"config": config, "experiment": "atari"}, seed, records, done=True)


def test_a_diverging_arm_ends_alone_and_a_diverging_free_run_ends_its_seed(done, capsys, monkeypatch):
    asked = []

    def run(arm: Config, options: harness.RunOptions) -> list[Path]:
        name = FREE if arm.method == FREE else f"nap {arm.optimizer.schedule}"
        asked.append((arm.seed, name))
        if (arm.seed, name) in ((3, "nap linear"), (4, FREE)):
            raise harness.NonFinite(f"{name} diverged")
        return [folders(done)[name]]

    monkeypatch.setattr(atari, "run", run)
    assert command(done, seeds=2) == 1
    assert asked == [*((3, name) for name in ARMS), (4, FREE)]
    heard = capsys.readouterr()
    assert heard.err.splitlines() == ["error: nap linear diverged", "error: layernorm diverged"]
    assert "nap cosine" in heard.out and "nap linear" not in heard.out


def test_an_interrupted_arm_goes_on_and_equals_the_uninterrupted_one(done, tmp_path, monkeypatch, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(folders(tmp_path)["nap matching"])
    save = harness.Run.save

    def save_and_stop(run, iteration, state):
        save(run, iteration, state)
        raise harness.Interrupted("stopped by the test")

    with monkeypatch.context() as patched:
        patched.setattr(harness.Run, "save", save_and_stop)
        assert command(tmp_path) == 130
    heard = capsys.readouterr()
    assert "stopped by the test" in heard.err and "the tables above" not in heard.out
    assert command(tmp_path) == 0
    assert "after iteration 1" in capsys.readouterr().err
    for name in ("metrics.jsonl", "summary.json"):
        ours, theirs = (folders(out)["nap matching"] / name for out in (tmp_path, done))
        assert ours.read_bytes() == theirs.read_bytes()


def test_another_option_of_the_free_run_is_another_run_of_every_arm():
    def names(**changes) -> dict[str, str]:
        config = atari.resolve(Config(game="catch", agent="rainbow", **changes))
        return {name: harness.config_hash("atari", arm) for name, arm in implicit_schedule.arms_of(config).items()}

    usual = names()
    assert len(set(usual.values())) == len(ARMS)
    for changes in ({"batch_size": 16}, {"seed": 1}, {"optimizer": OptimizerConfig(lr=1e-3)}, {"log_every": 100}):
        assert all(usual[name] != other for name, other in names(**changes).items())
    # What is of the projection alone leaves the free run as it is.
    other = names(nap=NapConfig(affine="free", project_every=10))
    assert other[FREE] == usual[FREE] and all(other[name] != usual[name] for name in ARMS[1:])
    config = Config(method="redo+nap", nap=NapConfig(norm="rms", affine="free"))
    assert (free_of(config).method, free_of(config).nap) == ("redo+layernorm", NapConfig(norm="rms"))


def test_a_free_run_without_its_norms_is_named(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(folders(tmp_path)["nap matching"])
    path = folders(tmp_path)[FREE] / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("weight_norm/value_hidden", "something"), encoding="utf-8")
    assert command(tmp_path) == 2
    heard = capsys.readouterr().err
    assert "metrics.jsonl has " in heard and "start over with --fresh" in heard


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "layernorm"}, "--method layernorm: this study runs layernorm, nap constant, nap matching"),
        ({"schedule": "linear"}, "--schedule linear: this study runs"),
        ({"schedule": "matchin"}, "matchin"),
        ({"game": "catsh"}, "--game"),
        ({"games": "atari-11"}, "--games"),
        ({"frames": 1000}, "--frames 1000: it must be a multiple"),
        ({"agent": "rainbov"}, "rainbov"),
        ({"seeds": 0}, "--seeds 0"),
        ({"preset": "cats"}, "catch"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, changes, words):
    assert command(tmp_path, **changes) == 2
    heard = capsys.readouterr()
    (line,) = [line for line in heard.err.splitlines() if not line.startswith("note: ")]  # --game beside --games
    assert words in line and line.startswith("error: ")
    assert heard.out == "" and not folders_in(tmp_path)


def test_a_schedule_that_follows_needs_projection(tmp_path, capsys):
    argv = ["--game", "catch", "--schedule", "matching", "--out", str(tmp_path)]
    assert atari.main([*argv, "--method", "layernorm+redo"]) == 2
    assert "its own must be held: --method nap, not layernorm+redo" in capsys.readouterr().err
