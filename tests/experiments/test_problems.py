"""What the studies of schedules learn: text cut by hand, losses and a gradient from elsewhere, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import harness
from experiments.harness import problems
from experiments.harness.classifier import make_training, over_seeds
from experiments.harness.problems import CONTEXT, TEXT, Problem, load_problem


@pytest.fixture
def text(tmp_path) -> str:
    """Twenty documents, every tenth of which is held out, and which repeat two letters."""
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(chr(ord("a") + i) + "xy" * 100, encoding="utf-8")
    return str(tmp_path)


def of_text(text: str, **changes) -> Problem:
    return Problem("text", data=text, **{"hidden": (8,), "batch_size": 4, **changes})


def trained(problem, method="none", rates=(0.0,), optimizer="adam"):
    _, task = load_problem(problem)
    make = functools.partial(make_training, problem, task, method, optimizer)
    return over_seeds(make, task, 1, range(3, 5))(np.asarray(rates)[None]), task


def test_text_is_cut_into_whole_sequences_each_target_the_byte_behind(text):
    _, task = load_problem(of_text(text))
    whole = b"".join(b"\0" + bytes([ord("a") + i]) + b"xy" * 100 for i in range(20) if i not in (9, 19)) + b"\0"
    tokens = np.frombuffer(whole, np.uint8).astype(int)
    tokens[tokens == 0] = 256  # between documents
    count = (len(tokens) - 1) // CONTEXT
    expected = {tuple(tokens[i * CONTEXT : (i + 1) * CONTEXT + 1]) for i in range(count)}
    found = [(*x, y[-1]) for x, y in zip(task.data.x, task.data.y, strict=True)]
    assert len(found) == count and set(found) == expected
    np.testing.assert_array_equal(task.data.x[:, 1:], task.data.y[:, :-1])
    assert found[0] != tuple(tokens[: CONTEXT + 1])  # in an order of their own, so that the first ones are no document
    held_out = set(np.unique(task.data.test_x)) - {256, *b"xy"}
    assert held_out == {ord("j"), ord("t")} and not held_out & set(np.unique(task.data.x))
    np.testing.assert_array_equal(load_problem(of_text(text))[1].data.x, task.data.x)


def test_no_more_is_trained_on_than_half_a_megabyte(text, monkeypatch):
    _, whole = load_problem(of_text(text))
    monkeypatch.setattr(problems, "MOST_SEQUENCES", 5)
    _, task = load_problem(of_text(text))
    np.testing.assert_array_equal(task.data.x, whole.data.x[:5])
    np.testing.assert_array_equal(task.data.test_x, whole.data.test_x)


def test_losses_of_text_are_means_over_bytes(text):
    result, task = trained(of_text(text))  # nothing is learned at rate 0
    network = task.network("none")
    params = network.init(jax.random.split(jax.random.key(4), 3)[0])
    for name, x, y in (("train", *task.data[:2]), ("test", *task.data[2:])):
        logits = np.asarray(network.apply(params, jnp.asarray(x)), float).reshape(-1, 257)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(y.size), y.reshape(-1)]
        assert result.scores[f"{name}_loss"][0, 1] == pytest.approx(losses.mean(), rel=1e-5)
    wrong = np.mean(logits.argmax(axis=1) != y.reshape(-1))
    assert result.scores["test_error"][0, 1] == pytest.approx(wrong, abs=1e-6)


def test_a_transformer_learns_what_repeats_and_is_projected_by_nap(text):
    rates = np.full(80, 0.02)
    for method in ("none", "nap"):
        result, _ = trained(of_text(text), method, rates)
        assert np.all(result.scores["test_loss"] < 0.5) and np.all(result.scores["test_error"] < 0.1)
        norms = result.trace["weight_norm"][0]
        still = np.allclose(norms, norms[:, :1], rtol=1e-5)
        assert still == (method == "nap")


def test_logistic_regression_takes_the_gradient_that_is_known():
    problem = Problem(data="digits", hidden=(), batch_size=1500)  # all images at once
    rate = 0.3
    result, task = trained(problem, rates=(rate, 0.0), optimizer="sgd")
    params = task.network("none").init(jax.random.split(jax.random.key(4), 3)[0])
    kernel = np.asarray(params["output"]["kernel"][...], float)
    x, y = task.data.x.reshape(1500, -1) / 255, np.eye(10)[task.data.y]

    def probabilities(inputs, kernel, bias):
        powers = np.exp(inputs @ kernel + bias)
        return powers / powers.sum(axis=1, keepdims=True)

    off = (probabilities(x, kernel, np.zeros(10)) - y) / 1500
    gradient = x.T @ off, off.sum(axis=0)
    stepped = kernel - rate * gradient[0], -rate * gradient[1]
    expected = -np.log(probabilities(x, *stepped)[y == 1]).mean()
    assert result.scores["train_loss"][0, 1] == pytest.approx(expected, rel=1e-5)
    norm = np.sqrt(sum(np.square(of).sum() for of in gradient))
    assert result.trace["gradient_l2"][0, 1, 0] == pytest.approx(norm, rel=1e-5)
    assert set(result.trace) == {"gradient_l1", "gradient_l2"}  # there is nothing hidden


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": (8, 4)}, "--hidden 8 4: widths of a transformer's blocks, all alike and multiples of 4"),
        ({"hidden": (6,)}, "--hidden 6: "),
        ({"hidden": ()}, "--hidden : "),
        ({"text": "/no/such/text"}, "--data /no/such/text: no such file or folder; or take stdlib"),
        ({"batch_size": 114}, "--batch-size 114: from 1 to the 113 training sequences of "),
    ],
)
def test_what_makes_no_sense_of_text_is_named(text, changes, words):
    with pytest.raises(harness.UserError) as caught:
        load_problem(of_text(**{"text": text, **changes}))
    assert str(caught.value).startswith(words)


def test_a_text_without_a_whole_sequence_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("word " * 40, encoding="utf-8")  # a tenth of it, 20 bytes, is held out
    with pytest.raises(harness.UserError, match="a sequence of 32 bytes is needed in both parts of the text"):
        load_problem(of_text(str(path)))


def test_the_preset_is_small():
    _, task = load_problem(TEXT)
    shapes = jax.eval_shape(task.network("none").init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2 * 257 * 32 + 12 * 32**2 + 3 * 2 * 32
