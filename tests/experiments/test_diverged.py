"""Seeds that diverge: each ends alone, in PQN and in plasticity alike; sequences have tests of their own."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import folder_in, rows

from experiments import harness, plasticity, pqn
from experiments.harness.diverged import Diverged, not_finite
from experiments.harness.read import load_runs

OF_PQN = ["--game", "catch", "--num-envs", "4", "--steps", "4", "--minibatches", "2", "--hidden", "8", "--stack", "1"]
OF_PQN += ["--frames", "384", "--iteration-frames", "192", "--evaluation-episodes", "3", "--log-every", "2"]
OF_PLASTICITY = ["--data", "digits", "--tasks", "4", "--epochs", "1", "--examples", "40", "--batch-size", "10"]
OF_PLASTICITY += ["--hidden", "8"]


def broken(key, params):
    """The parameters, of which those of the seed 1 are broken."""
    added = jnp.where(jax.random.key_data(key)[..., 1] == 1, jnp.nan, 0.0)
    return jax.tree.map(lambda leaf: leaf + added.reshape(added.shape + (1,) * (leaf.ndim - added.ndim)), params)


@pytest.fixture
def break_seed_1(monkeypatch):
    build, make_start = pqn.build, plasticity.make_start

    def broken_build(*arguments):
        made = build(*arguments)

        def begin(shared, keys):
            running = made.begin(shared, keys)
            return running._replace(params=broken(keys, running.params))

        return made._replace(begin=begin)

    def broken_start(learner):
        def start(key):
            own = make_start(learner)(key)
            return own._replace(state=own.state._replace(params=broken(key, own.state.params)))

        return start

    monkeypatch.setattr(pqn, "build", broken_build)
    monkeypatch.setattr(plasticity, "make_start", broken_start)


@pytest.mark.parametrize(
    ("experiment", "arguments", "scores"),
    [
        (pqn, OF_PQN, ("loss", "train/return", "eval/return")),
        # A reset makes the weights finite again at each task's end, and the scores are missing all the same.
        (
            plasticity,
            [*OF_PLASTICITY, "--method", "none+reset-network"],
            ("loss", "online_loss", "accuracy", "online_accuracy"),
        ),
    ],
    ids=["pqn", "plasticity"],
)
def test_a_diverged_seed_ends_alone(experiment, arguments, scores, break_seed_1, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)
    flush, calls = experiment._Recorder.flush, []

    def interrupted_once(self) -> None:
        flush(self)
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiment._Recorder, "flush", interrupted_once)
    command = [*arguments, "--seeds", "2", "--out", str(tmp_path)]
    assert experiment.main(command) == 128 + signal.SIGTERM
    told = "seed 1: the loss is not finite at update "
    assert capsys.readouterr().err.count(told) == 1
    assert experiment.main(command) == 0
    assert told not in capsys.readouterr().err  # what has diverged is known after a resume
    found = rows(folder_in(tmp_path))
    for name in scores:
        recorded = [row for row in found if name in row and row.get("train/episodes") != 0]
        assert {(row["seed"], row[name] is None) for row in recorded} == {(0, False), (1, True)}, name
    summary = json.loads((folder_in(tmp_path) / "summary.json").read_text(encoding="utf-8"))
    assert None in summary.values()


@pytest.mark.parametrize(("experiment", "arguments"), [(pqn, OF_PQN), (plasticity, OF_PLASTICITY)])
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_ends_when_all_its_seeds_have_diverged(experiment, arguments, count, tmp_path, capsys):
    command = [*arguments, "--method", "none", "--optimizer", "sgd", "--clip", "0", "--lr", "1e30"]
    assert experiment.main([*command, "--seeds", str(count), "--out", str(tmp_path)]) == 1
    which = "the loss" if count == 1 else "the loss of every seed"
    lines = [line for line in capsys.readouterr().err.splitlines() if "not finite" in line or "error" in line]
    assert len(lines) == 1 and lines[0].startswith(f"error: {which} is nan at update ")
    assert not (folder_in(tmp_path) / "DONE").exists()
    runs = load_runs([tmp_path])
    assert len(runs) == count
    for run in runs:
        assert f" at update {run.diverged_at} in " in lines[0]


class Opened:
    """A run that only listens."""

    def __init__(self) -> None:
        self.progress, self.name, self.said = self, "run", []

    def say(self, line: str) -> None:
        self.said.append(line)

    def check_finite(self, name: str, value: float, *, updates: int) -> None:
        raise harness.NonFinite(f"{name} {value} {updates}")


def test_the_last_seed_ends_the_run_even_if_the_first_has_recovered():
    opened = Opened()
    diverged = Diverged(opened, first=4, count=2)
    for updates in (10, 20):
        diverged.add([1])
        diverged.tell(updates)
    (line,) = opened.said
    assert line == "run, seed 5: the loss is not finite at update 10; it has no scores from there on"
    np.testing.assert_array_equal(diverged.scores(np.array([1, 2])), [1, np.nan])
    diverged.add([0])
    with pytest.raises(harness.NonFinite, match="loss of every seed nan 30"):
        diverged.tell(30)


def test_a_seed_is_finite_where_all_of_its_numbers_are():
    numbers = {"a": jnp.array([0.0, jnp.inf, 1.0]), "b": np.array([[0, 1], [2, 3], [4, np.nan]])}
    assert not_finite(numbers) == [1, 2]
