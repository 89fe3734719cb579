"""What a run has trained, taken up again: loaded, played with, filmed and exported."""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_runs import Config as MadeUp
from made_up_runs import make_run
from PIL import Image
from run_folders import folder_in, rows, typed

import experiments
import nap
from agents.evaluation import evaluate
from experiments import atari, harness
from experiments.harness.checkpoint import Checkpoints
from experiments.harness.identity import plain
from experiments.play import _Player, decider
from nap import networks, paths

OPTIONS = {
    "game": "catch", "agent": "c51", "seeds": 2, "frames": 1280, "iteration_frames": 640, "min_replay_frames": 256,
    "replay_capacity": 300, "num_envs": 2, "evaluation_episodes": 6, "batch_size": 8, "hidden": 16, "log_every": 8,
    "lr": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Two finished runs, of seeds 0 and 1; and a folder of another name."""
    out = tmp_path_factory.mktemp("runs")
    assert harness.dispatch(["atari", *typed(OPTIONS), "--out", str(out)]) == 0
    return out


@pytest.fixture
def folder(out) -> Path:
    return sorted((out / "atari").iterdir())[1]


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def test_configuration_records_and_summary_are_those_of_the_run(folder):
    run = experiments.load(folder)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert type(run.config) is atari.Config and plain(run.config) == about["config"]
    assert (run.config.seed, run.seed, run.experiment, run.done) == (1, 1, "atari", True)
    assert run.config == atari.resolve(run.config)
    assert run.records["updates"].to_list() == [row["updates"] for row in rows(folder)]
    assert run.summary == json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert str(folder) in repr(run)


def test_it_plays_as_in_the_runs_last_evaluation(folder):
    """Weights, how outputs are read, and the game: the very returns that were recorded."""
    run = experiments.load(str(folder))
    evaluation_key = jax.random.split(jax.random.key(1), 3)[2]
    with contextlib.closing(run.stage.open(2, seed=0)) as environments:
        returns = evaluate(
            _Player(decider(run)), run.params, environments, epsilon=run.stage.epsilon,
            key=jax.random.fold_in(evaluation_key, 1), seed=atari.environment_seed(1, 1, 1), episodes=6,
        )  # fmt: skip
        observations = environments.reset().observation
    last = rows(folder, "eval")[-1]
    assert np.mean(returns) == last["eval/return"]
    assert last["eval/return_low"] <= np.mean(returns) <= last["eval/return_high"]
    values = run.apply(run.params, observations)
    assert values.shape == (2, 3) and run.act(observations[1]) == np.argmax(values[1])
    assert set(nap.roles(run.params).paths(nap.Role.HIDDEN)) == {"hidden/kernel"}


def test_an_unfinished_run_is_loaded_from_its_checkpoint(copy):
    (copy / "DONE").unlink()
    run, whole = experiments.load(copy), experiments.load(copy)
    assert not run.done and run.saved.iteration == 2
    with pytest.raises(harness.UserError, match="not finished"):
        _ = run.summary
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params, whole.params))


def test_large_arrays_are_read_from_their_own_files(copy, monkeypatch):
    """As those of a network at full size; the finished run has orbax's only."""
    whole = experiments.load(copy)
    about = {name: whole.about[name] for name in ("experiment", "config")}
    state = ({"agent": {"params": whole.params}, "replay": np.zeros(10)}, np.zeros([]))
    state = jax.tree.map(np.asarray, state)
    monkeypatch.setattr("experiments.harness.large_arrays.LARGE_BYTES", 100)
    Checkpoints(copy / "checkpoints", about).save(3, state, {})
    run = experiments.load(copy)
    assert run.saved.iteration == 3 and len(list((copy / "checkpoints" / "3.arrays").iterdir())) >= 2
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params, whole.params))


def test_what_cannot_be_loaded_is_told_in_a_line(out, copy, tmp_path):
    def refused(match: str, folder: Path, *names: str, **choice) -> None:
        with pytest.raises(harness.UserError, match=match) as error:
            run = experiments.load(folder, **choice)
            for name in names:
                getattr(run, name)
        assert "\n" not in str(error.value)

    refused("no run in .*nothing", tmp_path / "nothing")
    refused(r"seed0-\w+, .*seed1-\w+: name one", out / "atari")
    refused("no seed 0; it has seed 1", copy, seed=0)
    refused("has one task", copy, "params", task="pong")
    about = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(about | {"experiment": "chess"}), encoding="utf-8")
    refused("no such experiment", copy, "config")
    (copy / "config.json").write_text(json.dumps(about | {"config": about["config"] | {"gamee": 1}}), encoding="utf-8")
    refused("'gamee' is not a setting; did you mean 'game'", copy, "config")
    (copy / "config.json").write_text(
        json.dumps(about | {"config": about["config"] | {"hidden": 32}}), encoding="utf-8"
    )
    refused("is of another run", copy, "params")
    (copy / "config.json").write_text("[]", encoding="utf-8")
    refused("no run's", copy)
    (copy / "config.json").write_text("{", encoding="utf-8")
    refused("can't be read", copy)


def test_without_a_whole_checkpoint_there_are_records_but_no_weights(copy):
    (checkpoint,) = (copy / "checkpoints").glob("*.json")
    checkpoint.write_text(checkpoint.read_text(encoding="utf-8").replace("float32", "float16", 1), encoding="utf-8")
    with pytest.raises(harness.UserError, match=r"no checkpoint in .* is whole"):
        _ = experiments.load(copy).params
    shutil.rmtree(copy / "checkpoints")
    run = experiments.load(copy)
    assert run.records.height == len(rows(copy))
    with pytest.raises(harness.UserError, match="no checkpoint"):
        _ = run.params


def test_weights_of_other_code_are_told_by_their_path(copy):
    about = {name: experiments.load(copy).about[name] for name in ("experiment", "config")}
    Checkpoints(copy / "checkpoints", about).save(3, ({"agent": {"weights": np.ones(3)}},), {})
    with pytest.raises(harness.UserError, match="other code: there is no 0/agent/params"):
        _ = experiments.load(copy).params
    Checkpoints(copy / "checkpoints", about).save(4, ({"agent": {"params": {"w": np.ones(3)}}},), {})
    with pytest.raises(harness.UserError, match="other code: hidden/kernel is missing there"):
        _ = experiments.load(copy).params


def test_a_run_without_a_network_says_so(tmp_path):
    folder = make_run(tmp_path, MadeUp(), rows=2)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(about | {"experiment": "river-valley"}), encoding="utf-8")
    run = experiments.load(folder)
    with pytest.raises(harness.UserError, match="keep no network"):
        _ = run.trained


def test_play_prints_returns_and_their_mean(folder, capsys):
    assert harness.dispatch(["play", str(folder), "--episodes", "5", "--epsilon", "0"]) == 0
    returns, told = capsys.readouterr().out.splitlines()
    values = [float(value) for value in returns.removeprefix("returns: ").split(", ")]
    assert len(values) == 5 and set(values) <= {-1.0, 1.0}
    assert told.startswith(f"catch, epsilon 0, 5 episodes: return {np.mean(values):.2f}")
    assert harness.dispatch(["play", str(folder), "--episodes", "5", "--epsilon", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == returns


def test_play_films_whole_episodes(folder, tmp_path):
    film = tmp_path / "films" / "catch.gif"
    assert harness.dispatch(["play", str(folder), "--episodes", "2", "--gif", str(film)]) == 0
    with Image.open(film) as shown:
        assert shown.n_frames == 2 * 10  # nine steps and what they lead to
        assert shown.width % 2 == 0 and shown.height % 2 == 0
        colours = {colour for _, colour in shown.convert("RGB").getcolors(1 << 24)}
    assert (255, 208, 96) in colours  # the ball, in its own colour
    assert [path.name for path in film.parent.iterdir()] == ["catch.gif"]
    assert harness.dispatch(["play", str(folder), "--episodes", "2", "--gif", str(film), "--seconds", "1"]) == 0
    with Image.open(film) as shown:
        assert shown.n_frames == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], "--episodes 0"),
        (["--epsilon", "2"], "--epsilon 2"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--gif", "film.png"], "--gif film.png"),
        (["--protocol", "machado"], "catch is in JAX"),
        (["--protocol", "zoo"], "--protocol: 'zoo'"),
        (["--task", "pong"], "has one task"),
        (["--of-seed", "7"], "no seed 7"),
        (["--video", "film.mp4"], "needs ffmpeg"),
    ],
)
def test_what_cannot_be_played_is_told_in_a_line(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert harness.dispatch(["play", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_an_exported_network_is_the_runs_bit_for_bit(folder, tmp_path, capsys):
    assert harness.dispatch(["export", str(folder), "--out", str(tmp_path / "agent")]) == 0
    assert f"nap.networks.load({str(tmp_path / 'agent')!r})" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "agent").iterdir()} == {
        "config.json", "network.json", "weights.safetensors",
    }  # fmt: skip
    loaded, run = networks.load(tmp_path / "agent"), experiments.load(folder)
    ours, theirs = (
        {path: np.asarray(leaf).tobytes() for path, leaf in paths.leaves(of.params).items()} for of in (run, loaded)
    )
    assert ours == theirs and loaded.rest == ()
    observations = jax.random.randint(jax.random.key(0), (3, 4, 10, 5), 0, 256).astype(jnp.uint8)
    values = jax.jit(lambda x: run.trained.values(loaded.network.apply(loaded.params, x)))(observations)
    np.testing.assert_allclose(values, run.apply(run.params, observations), rtol=0, atol=1e-6)
    about = json.loads((tmp_path / "agent" / "config.json").read_text(encoding="utf-8"))
    assert about["config"] == plain(run.config) and (about["seed"], about["iteration"]) == (1, 2)


def test_a_finished_run_tells_its_result_again(out, folder, capsys):
    argv = ["atari", *typed(OPTIONS | {"seeds": 1, "seed": 1}), "--out", str(out)]
    assert harness.dispatch(argv) == 0
    last = rows(folder, "eval")[-1]
    low, high = last["eval/return_low"], last["eval/return_high"]
    interval = f" [{low:.2f}, {high:.2f}]" if low < high else ""
    assert capsys.readouterr().out == (
        f"done: return {last['eval/return']:.2f}{interval} (6 episodes) · {folder} · "
        f"python -m experiments report {out / 'atari'}\n"
    )
    assert folder_in(folder) == folder
