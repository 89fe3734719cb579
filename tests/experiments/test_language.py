"""`python -m experiments language` from end to end on tiny runs, and the scoring of choices by hand."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_folders import completed, folder_in, rows, typed

import experiments
import nap
from envs.loaders import Question, TextBatch, Tokenizer
from experiments import language
from experiments.harness import mesh, training
from experiments.harness.choices import load_choices, score
from experiments.harness.run import Run
from experiments.harness.supervised import make_learner
from experiments.harness.utilisation import training_flops
from nap import paths

TINY = {"layers": 2, "width": 8, "heads": 2, "sequence": 8, "batch-size": 4, "updates": 6}
TINY |= {"evaluations": 2, "log-every": 2, "lr": 0.01}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two documents to train on and one held out, of 37 letters; and two questions with their labels."""
    folder = tmp_path_factory.mktemp("text")
    documents = [
        "the cat sat on the mat. " * 4,
        "a dog ran over the hill. " * 4,
        "the dog sat on the hill with the cat.",
    ]
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
    )
    questions = [{"goal": "sit", "sol1": "on the mat", "sol2": "zzzz"}, {"goal": "run", "sol1": "qq", "sol2": "over"}]
    (folder / "valid.jsonl").write_text(
        "".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8"
    )
    (folder / "valid-labels.lst").write_text("0\n1\n", encoding="utf-8")
    return folder


def command(data: Path, out: Path, *arguments: str) -> int:
    return language.main([*completed(arguments, {"text": data / "text.jsonl", **TINY}), "--out", str(out)])


OPTIONS = ("--scan-layers", "--z-loss", "1e-4")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a finished run of NaP."""
    out = tmp_path_factory.mktemp("finished")
    assert command(data, out, *OPTIONS, "--choices", f"piqa={data / 'valid.jsonl'}") == 0
    return folder_in(out)


def test_what_a_run_records(finished):
    train, evaluation = rows(finished, "train"), rows(finished, "eval")
    assert [row["updates"] for row in train] == [1, 2, 4, 6]
    assert [row["updates"] for row in evaluation] == [3, 6]
    for layer in ("blocks/1/attention/query", "blocks/0/mlp/up"):  # each scanned layer by itself
        norms = [row[f"weight_norm/{layer}"] for row in train]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    # 37 letters and a separator at the end are targets, each once.
    accuracy = evaluation[-1]["eval/accuracy"] * 38
    assert accuracy == pytest.approx(round(accuracy), abs=1e-4)
    (choices,) = rows(finished, "choices")
    assert choices["piqa/accuracy"] in (0, 0.5, 1)
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["piqa/accuracy"] == choices["piqa/accuracy"]
    assert len(summary["held_out_text"]) == 64
    assert json.loads((finished / "config.json").read_text(encoding="utf-8"))["config"]["nap"]["affine"] == "regularize"


def test_the_transformer_that_is_loaded_scores_as_the_last_evaluation(finished):
    run = experiments.load(finished)
    held_out = language.load(run.config, training.TrainingOptions()).data.held_out
    sums = np.zeros(3)
    for batch, _ in held_out.batches(held_out.start):
        judged = language.judge(run.apply(run.params, jnp.asarray(batch.inputs)), batch)
        sums += [np.sum(batch.weights * of) for of in (1, judged.loss, judged.correct)]
    assert sums[0] == 38
    assert sums[1] / 38 == pytest.approx(run.summary["eval/loss"], rel=1e-5)
    assert sums[2] / 38 == pytest.approx(run.summary["eval/accuracy"])


def test_a_run_stopped_within_an_epoch_and_resumed_is_the_same(data, finished, tmp_path, monkeypatch):
    arguments = (*OPTIONS, "--choices", f"piqa={data / 'valid.jsonl'}")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        save = Run.save

        def save_and_die(run: Run, done: int, state) -> None:
            save(run, done, state)
            if done == 3:
                raise KeyboardInterrupt

        patch.setattr(Run, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            command(data, tmp_path, *arguments)
    assert command(data, tmp_path, *arguments) == 0
    for name in ("metrics.jsonl", "summary.json"):
        assert (folder_in(tmp_path) / name).read_text(encoding="utf-8") == (finished / name).read_text(encoding="utf-8")


def handed_over(monkeypatch, data: Path, out: Path, *arguments: str):
    """What a command gives to the training loop: by position, and by name."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(language, "run_to_end", lambda *given, **named: seen.append((given, named)))
        assert command(data, out, *arguments) == 0
    return seen[0]


def test_divided_weights_train_as_on_one_device_and_no_device_gathers_the_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(mesh, "_SMALL", 64)
    sizes, states = ("--scan-layers", "--batch-size", "16", "--width", "16"), []
    for devices in ((), ("--devices", "8", "--shard")):
        (_, config, options, task_of, text), _ = handed_over(monkeypatch, data, tmp_path, *sizes, *devices)
        made = make_learner(task_of(config), config.training, lambda key: nap.normalize_and_project(optax.sgd(0.1)))
        functions = training.compiled(made, config.training, options)
        batch, _ = next(text.train.batches(text.train.start))
        state, batch = functions.init(jax.random.key(0)), functions.place(batch)
        update = functions.update.lower(state, batch).compile()
        states.append(update(state, batch))
    for one, eight in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)
    assert not paths.leaves(states[1][0].params)["blocks/mlp/up/kernel"].is_fully_replicated
    collective = r"= (.*) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    moved = [
        shape for shapes in re.findall(collective, update.as_text()) for shape in re.findall(r"f32\[.*?\]", shapes)
    ]
    assert "f32[16,64]" in moved  # an MLP's kernel
    assert not [shape for shape in moved if re.match(r"f32\[(16,8|128)\b", shape)]


def test_speed_and_utilisation_leave_compilation_out(data, tmp_path, monkeypatch):
    """Updates 1 and 2 compile the two kinds of updates, which the records of 1 and 3 tell of."""
    monkeypatch.setattr(training, "measured_peak", lambda dtype: 1e9)
    assert command(data, tmp_path, "--updates", "9", "--log-every", "3", "--evaluations", "1") == 0
    assert [row["updates"] for row in rows(folder_in(tmp_path), "train")] == [1, 3, 6, 9]
    told = [
        json.loads(line) for line in (folder_in(tmp_path) / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    told = [row for row in told if "utilisation" in row]
    assert [row["updates"] for row in told] == [6, 9]
    # Of each token and layer: 12 width^2 weights, and 2 x 8 products of width with queries or values; and the logits.
    of_token = 3 * 2 * (2 * (12 * 8**2 + 2 * 8 * 8) + 8 * 257)
    for row in told:  # of the 96 places of three batches, 3 may lie behind the text's end
        assert 95.99 / 96 < row["utilisation"] / (row["tokens_per_second"] * of_token / 1e9) < 96.01 / 93


def test_flash_attention_counts_as_what_it_computes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    flops = []
    for kernel in ("xla", "cudnn"):
        (_, _, _, _, text), named = handed_over(
            monkeypatch, data, tmp_path, "--attention", kernel, "--dtype", "bfloat16"
        )
        batch, _ = next(text.train.batches(text.train.start))
        counted = named["counted"]()
        params, rest = jax.eval_shape(counted.init, jax.random.key(0))
        flops.append(training_flops(counted.train, params, rest, batch.inputs))
    assert flops[0] == flops[1] > 0


@pytest.mark.parametrize(("updates", "traced"), [(10, False), (11, True)])
def test_a_profile_is_written_unless_the_run_is_too_short(updates, traced, data, tmp_path, capfd):
    flags = ("--updates", str(updates), "--profile", str(tmp_path / "profile"))
    assert command(data, tmp_path / "runs", *flags) == 0
    assert bool([*(tmp_path / "profile").rglob("*.xplane.pb")]) == traced
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("--profile")]
    assert said == (
        [] if traced else ["--profile: no trace, since it begins at update 11 of a process, and 10 are left"]
    )


def test_the_methods_networks():
    made = {}
    for method in ("none", "rmsnorm", "layernorm", "nap"):
        config = language.resolve(language.Config(method=method, sequence=8))
        params, rest = jax.eval_shape(language.network_of(config, 11).init, jax.random.key(0))
        assert not jax.tree.leaves(rest)
        made[method] = set(paths.leaves(params))
    assert not any("query_norm" in path for path in made["none"])
    assert "blocks/0/mlp/down/norm/scale" not in made["none"]
    every = {"blocks/0/attention/query_norm/scale", "blocks/0/mlp/down/norm/scale", "blocks/0/mlp/up/norm/scale"}
    assert every <= made["nap"] == made["layernorm"] == made["rmsnorm"]
    squared = language.Config(network=language.NetworkConfig(mlp="squared-relu"))
    assert language.resolve(squared).nap.affine == "project"


def test_z_loss_is_minimized_and_not_told():
    logits = jnp.log(jnp.array([[[1.0, 3.0], [2.0, 2.0]]]))
    batch = TextBatch(np.zeros((1, 2), np.int32), np.array([[1, 0]], np.int32), np.ones((1, 2), np.float32))
    judged = language.judge(logits, batch, z_loss=0.5)
    np.testing.assert_allclose(judged.loss, [[-np.log(0.75), -np.log(0.5)]], rtol=1e-6)
    np.testing.assert_allclose(judged.objective, judged.loss + 0.5 * np.log(4) ** 2, rtol=1e-6)
    assert judged.correct.tolist() == [[1, 1]]


# A language of the letters a, b, c and the separator, 3: the likeliest next one is the following letter.
NEXT = np.array([[0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.6, 0.1], [0.6, 0.2, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]], np.float32)
LETTERS = Tokenizer(4, 3, lambda texts: [np.array(["abc".index(c) for c in t], np.uint8) for t in texts], str)


def test_choices_by_hand():
    def logits_of(tokens):
        assert tokens.shape[1] == 5
        return jnp.log(jnp.asarray(NEXT))[tokens]

    # Behind a, "b" has 0.6, and "bca" 0.6 ** 3 = 0.216, whose root is 0.6; "c" has 0.2, "cab" 0.2 * 0.36 = 0.072.
    questions = [
        Question("a", ("b", "c"), 0),  # right, right
        Question("a", ("c", "cab"), 1),  # wrong: 0.2 > 0.072; per byte right: 0.2 < 0.072 ** (1 / 3) = 0.416
        Question("", ("a", "c"), 1),  # wrong, wrong: behind the separator
        Question("bcabcab", ("ca", "aa"), 0),  # longer than fits
    ]
    assert score(logits_of, questions, LETTERS, 5) == {"accuracy": 0.5, "accuracy_per_byte": 0.75}
    # The last word: all its letters must be the likeliest.
    words = [Question("ab", ("cab",), 0), Question("ab", ("cac",), 0)]
    found = score(logits_of, words * 20, LETTERS, 5)  # more than go at once
    assert found["accuracy"] == 0.5
    np.testing.assert_allclose(found["loss"], -np.mean([np.log(0.6**3), np.log(0.6**2 * 0.2)]), rtol=1e-6)
    # Of a choice as long as a sequence every letter counts, with one of its context before it.
    longest = score(logits_of, [Question("cca", ("bcabc",), 0)], LETTERS, 5)
    np.testing.assert_allclose(longest["loss"], -5 * np.log(0.6), rtol=1e-6)


def test_a_plan_names_the_folder_that_the_run_has(data, finished):
    argv = ["--text", str(data / "text.jsonl"), *typed(TINY), *OPTIONS, "--choices", f"piqa={data / 'valid.jsonl'}"]
    (job,) = language.plan([*argv, "--out", str(finished.parents[1])])
    assert job.folders == (finished,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heads", "3"], "heads must divide the width, got heads=3 for width=8"),
        (["--method", "nap+crelu"], "--method nap+crelu: the activation of a transformer is --mlp"),
        (["--text", "nowhere"], "--text: nowhere: no such file or folder"),
        (["--choices", "piq=x"], "'piq' is not a form of --choices; did you mean 'piqa'?"),
        (["--choices", "lambada=nowhere"], "--choices lambada=nowhere: lambada: there is no nowhere"),
        (["--streamed", "c4"], "--evaluation-tokens 0: a stream's validation split has no end"),
        (["--sequence", "0"], "--sequence 0: it must be at least 1"),
        (["--vocabulary", "300", "--tokenizer", "x.json"], "give one of them"),
        (["--attention", "cudnn", "--dtype", "bfloat16"], "--attention cudnn: it needs an NVIDIA GPU"),
    ],
)
def test_bad_input_gets_one_line(data, tmp_path, capfd, arguments, said):
    assert command(data, tmp_path, *arguments) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert said in line


def test_choices_are_read_with_their_labels(data):
    (choices,) = load_choices([f"piqa={data / 'valid.jsonl'}"])
    assert choices.form == "piqa"
    assert [question.answer for question in choices.questions] == [0, 1]
