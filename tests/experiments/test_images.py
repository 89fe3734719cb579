"""`python -m experiments images` from end to end on tiny runs: records, exact resume, methods, bad input."""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_folders import completed, folder_in, rows, typed

import experiments
from envs.datasets import load
from envs.loaders import ImageBatch, normalize, statistics
from experiments import harness, images
from experiments.harness import methods, training
from experiments.harness.errors import UserError
from experiments.harness.methods import NapConfig
from experiments.harness.rivals import RivalsConfig, Setting
from experiments.harness.run import Run
from nap import networks, paths
from nap.networks import Network

# 20 images to train on and 6 held out, in batches of 4: epochs end within a batch, and the last held-out one is filled.
TINY = {"updates": 8, "batch-size": 4, "evaluations": 2, "log-every": 3, "lr": 0.05}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "stripes.npz"
    labels, test_labels = np.arange(20) % 3, np.arange(6) % 3
    pictures = [rng.integers(0, 256, (len(of), 8, 8, 1)).astype(np.uint8) for of in (labels, test_labels)]
    np.savez(file, x_train=pictures[0], y_train=labels, x_test=pictures[1], y_test=test_labels)
    return file


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """A network that compiles at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "NETWORKS", {"resnet-8": {"blocks": (1,), "width": 4}})
        yield


def command(data: Path, out: Path, *arguments: str) -> int:
    return images.main([*completed(arguments, {"data": data, **TINY}), "--out", str(out)])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a finished run of NaP."""
    out = tmp_path_factory.mktemp("finished")
    assert command(data, out, "--ema", "0.9", "--accumulate", "2", "--augmentation", "crop-and-flip") == 0
    return folder_in(out)


def test_what_a_run_records(finished):
    train, evaluation = rows(finished, "train"), rows(finished, "eval")
    assert [row["updates"] for row in train] == [1, 3, 6, 8]
    assert [row["updates"] for row in evaluation] == [4, 8]
    assert [row["epochs"] for row in evaluation] == [0.8, 1.6]
    for layer in ("stem", "blocks/0/layers/0", "blocks/0/layers/1"):
        norms = [row[f"weight_norm/{layer}"] for row in train]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    assert train[-1]["elr/output"] > 0
    assert all(row["eval/accuracy"] * 6 == pytest.approx(round(row["eval/accuracy"] * 6)) for row in evaluation)
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary == {"updates": 8, **{name: evaluation[-1][name] for name in ("eval/loss", "eval/accuracy")}}


def test_the_network_that_is_loaded_or_exported_scores_as_the_last_evaluation(data, finished, tmp_path):
    run = experiments.load(finished)
    held_out = load(str(data))
    inputs = normalize(held_out.test_images, statistics(held_out))
    logits = np.asarray(run.apply(run.params, inputs), np.float64)
    loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), held_out.test_labels]
    assert np.mean(logits.argmax(-1) == held_out.test_labels) == pytest.approx(run.summary["eval/accuracy"])
    assert np.mean(loss) == pytest.approx(run.summary["eval/loss"], rel=1e-5)
    assert harness.dispatch(["export", str(finished), "--out", str(tmp_path)]) == 0
    loaded = networks.load(tmp_path)
    np.testing.assert_allclose(jax.jit(loaded.network.apply)(loaded.params, inputs), logits, rtol=1e-5, atol=1e-6)


def test_a_run_stopped_within_an_epoch_and_resumed_is_the_same(data, finished, tmp_path, monkeypatch):
    arguments = ("--ema", "0.9", "--accumulate", "2", "--augmentation", "crop-and-flip")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        save = Run.save

        def save_and_die(run: Run, done: int, state) -> None:
            save(run, done, state)
            if done == 7:  # within the second epoch, and between records
                raise KeyboardInterrupt

        patch.setattr(Run, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            command(data, tmp_path, *arguments)
    assert not (folder_in(tmp_path) / "DONE").exists()
    assert command(data, tmp_path, *arguments) == 0
    for name in ("metrics.jsonl", "summary.json"):
        assert (folder_in(tmp_path) / name).read_text(encoding="utf-8") == (finished / name).read_text(encoding="utf-8")


def test_the_baseline_has_batch_norm_and_free_weights(data, tmp_path):
    assert command(data, tmp_path, "--method", "none+l2", "--lr", "0.5", "--label-smoothing", "0.1") == 0
    norms = [row["weight_norm/stem"] for row in rows(folder_in(tmp_path), "train")]
    assert abs(norms[-1] / norms[0] - 1) > 1e-3
    config = images.resolve(images.Config(data=str(data), method="none"))
    loaded = images.load_images(config, images.Options())
    _, rest = jax.eval_shape(images.network_of(config, loaded).init, jax.random.key(0))
    assert "stem/norm/variance" in paths.leaves(rest)
    run = experiments.load(folder_in(tmp_path))
    assert paths.leaves(run.rest).keys() == paths.leaves(rest).keys()
    assert np.any(paths.leaves(run.rest)["stem/norm/mean"])  # they have been collected
    assert harness.dispatch(["export", str(run.folder), "--out", str(tmp_path / "saved")]) == 0
    saved = networks.load(tmp_path / "saved")
    inputs = np.ones((2, 8, 8, 1), np.float32)
    outputs = jax.jit(saved.network.evaluate)(saved.params, saved.rest, inputs)
    np.testing.assert_allclose(outputs, run.apply(run.params, inputs), rtol=1e-6)


def test_smoothed_labels_by_hand():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]], np.float32))
    batch = ImageBatch(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 2], np.int32), np.ones(2, np.float32))
    judged = images.judge(logits, batch, smoothing=0.3)
    np.testing.assert_allclose(judged.loss, -np.log([0.7, 0.25]), rtol=1e-6)
    # 0.7 on the label, and 0.1 on each of the three.
    expected = [0.8 * np.log(0.7) + 0.1 * np.log(0.2 * 0.1), 0.8 * np.log(0.25) + 0.1 * np.log(0.5 * 0.25)]
    np.testing.assert_allclose(judged.objective, -np.array(expected), rtol=1e-6)
    assert judged.correct.tolist() == [1, 0]


def test_the_weight_decay_that_is_recommended_shrinks_weights_as_sgd_does_with_5e_4():
    """Over 400 updates without a gradient; l2 stands before the momentum of 0.9, weight-decay behind it."""
    start = {"output": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
    network = Network(lambda key: start, lambda *_: jnp.zeros(()), lambda *_: (jnp.zeros(()), {}), {})
    config = dataclasses.replace(images.Config().optimizer, schedule="constant")
    nothing = jax.tree.map(jnp.zeros_like, start)

    def shrunk(optimizer: optax.GradientTransformation) -> float:
        def update(both, _):
            params, state = both
            steps, state = optimizer.update(nothing, state, params)
            return (optax.apply_updates(params, steps), state), None

        (params, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), length=400)
        return -math.log(params["output"]["kernel"][0, 0])

    usual = shrunk(
        optax.chain(optax.add_decayed_weights(5e-4), optax.trace(0.9), optax.scale_by_learning_rate(config.lr))
    )
    assert usual == pytest.approx(0.196, abs=1e-3)
    recommended = re.findall(r"--method none\+(\S+) --(\S+) ([\d.e-]+)`", images.__doc__)
    assert [method for method, _, _ in recommended] == ["l2", "weight-decay"]
    for method, option, value in recommended:
        rivals = RivalsConfig(**{option.replace("-", "_"): float(value)})
        setting = Setting(network, jax.random.key(0), 400)
        optimizer = methods.make_optimizer(methods.parse_method(method), config, NapConfig(), rivals, setting)
        assert shrunk(optimizer) == pytest.approx(usual, rel=0.03)


def test_a_data_set_is_known_by_its_name_whatever_folders_there_are(tmp_path, monkeypatch):
    for name in ("digits", "pictures"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = images.load_images(images.resolve(images.Config(data="digits")), images.Options())
    assert (loaded.classes, loaded.channels) == (10, 1)
    with pytest.raises(UserError, match="--data pictures"):
        images.load_images(images.resolve(images.Config(data="pictures")), images.Options())


def test_a_plan_names_the_folder_that_the_run_has(data, finished, tmp_path):
    argv = ["--data", str(data), "--seeds", "2", "--ema", "0.9", "--accumulate", "2", "--out", str(finished.parents[1])]
    argv += ["--augmentation", "crop-and-flip", *typed(TINY)]
    first, second = images.plan(argv)
    assert first.folders == (finished,)
    assert second.folders[0].name.startswith("stripes-resnet-8-nap-seed1-")
    assert first.argv[-2:] == ("--seed", "0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--network", "resnet-9"], "'resnet-9' is not a network; did you mean 'resnet-8'?"),
        (["--accumulate", "3"], "--accumulate 3: it must divide the batch of 4; the nearest is 2"),
        (["--method", "nap+crelu"], "--method nap+crelu: activation 'crelu' makes two features"),
        (["--method", "nap+redo"], "--method redo: it needs a plain network's hidden units"),
        (["--label-smoothing", "1"], "--label-smoothing 1.0: it must be at least 0 and below 1"),
        (["--schedule", "matching"], "--schedule matching: it is for atari"),
        (["--updates", "0"], "--updates 0: it must be at least 1"),
        (["--ema", "1"], "--ema 1.0: it must be at least 0 and below 1"),
        (["--data", "digit"], "--data digit: unknown data set"),
        (["--devices", "9"], "--devices 9"),
    ],
)
def test_bad_input_gets_one_line(data, tmp_path, capfd, arguments, said):
    assert command(data, tmp_path, *arguments) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert said in line
