"""Questions with choices, answered zero-shot by a language model: by the choice that it finds likeliest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from envs.loaders import FORMS, Question, Tokenizer, load_questions
from envs.loaders.tokens import encoded
from experiments.harness.errors import UserError, unknown

_ROWS = 16
"""Choices that go through the network at once."""


class Choices(NamedTuple):
    """Questions of one published form, a key of `envs.loaders.FORMS`."""

    form: str
    questions: Sequence[Question]


def load_choices(given: Sequence[str]) -> list[Choices]:
    """What `--choices` names: "piqa", or with a file, "piqa=valid.jsonl".

    Raises:
        UserError: an unknown form; a file that is not there, or has something else in it.
    """
    loaded = []
    for one in given:
        form, _, file = one.partition("=")
        if form not in FORMS:
            raise unknown("a form of --choices", form, FORMS)
        try:
            loaded.append(Choices(form, load_questions(form, Path(file) if file else None)))
        except ValueError as error:
            raise UserError(f"--choices {one}: {error}") from None
    return loaded


def score(
    logits_of: Callable[[Any], Float[Array, "rows time vocabulary"]],
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    length: int,
) -> dict[str, float]:
    """How many questions are answered rightly.

    A choice's log-likelihood is that of its tokens behind the separator and the context; of what does not fit, the
    beginning is cut off. Context and choice are tokenized apart.

    Args:
        logits_of: (tokens, [rows, time]) -> the logits of the token behind each.
        questions: at least one.
        tokenizer: of the text.
        length: tokens of a sequence, the model's context.

    Returns:
        `accuracy`; with choices, `accuracy_per_byte` (each log-likelihood divided by the bytes of the choice, the space
        before it not counted); without, as in LAMBADA, `loss`, the mean of minus the log-likelihood in nats, and an
        answer is right where each of its tokens is the likeliest one.
    """
    asked = [(question.context, choice) for question in questions for choice in question.choices]
    found = itertools.chain.from_iterable(
        zip(*map(np.asarray, _likelihoods(logits_of, *_rows(some, tokenizer, length))), strict=True)
        for some in _some(asked)
    )
    right, per_byte, losses = [], [], []
    for question in questions:
        likelihoods, likeliest = zip(*itertools.islice(found, len(question.choices)), strict=True)
        if len(question.choices) == 1:
            right.append(bool(likeliest[0]))
            losses.append(-float(likelihoods[0]))
            continue
        sizes = [max(1, len(choice.removeprefix(" ").encode())) for choice in question.choices]
        right.append(int(np.argmax(likelihoods)) == question.answer)
        per_byte.append(int(np.argmax(np.divide(likelihoods, sizes))) == question.answer)
    means = {"accuracy": right, "accuracy_per_byte": per_byte, "loss": losses}
    return {name: float(np.mean(values)) for name, values in means.items() if values}


def _some(asked: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for first in range(0, len(asked), _ROWS):
        yield list(asked[first : first + _ROWS])


def _rows(
    asked: Sequence[tuple[str, str]], tokenizer: Tokenizer, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and targets, [16, length], filled up; and which targets are of a choice. Rows that fill up have none."""
    inputs = np.full((_ROWS, length), tokenizer.separator, np.int32)
    targets, counted = inputs.copy(), np.zeros((_ROWS, length), np.float32)
    contexts = encoded(tokenizer, [context for context, _ in asked])
    choices = encoded(tokenizer, [choice for _, choice in asked])
    for row, (context, choice) in enumerate(zip(contexts, choices, strict=True)):
        tokens = np.concatenate([[tokenizer.separator], context, choice]).astype(np.int32)[-length - 1 :]
        inputs[row, : len(tokens) - 1], targets[row, : len(tokens) - 1] = tokens[:-1], tokens[1:]
        counted[row, max(0, len(tokens) - 1 - len(choice)) : len(tokens) - 1] = 1
    return inputs, targets, counted


def _likelihoods(
    logits_of: Callable[[Any], Float[Array, "rows time vocabulary"]],
    inputs: Int[np.ndarray, "rows time"],
    targets: Int[np.ndarray, "rows time"],
    counted: Float[np.ndarray, "rows time"],
) -> tuple[Float[Array, " rows"], Array]:
    """For each row the log-likelihood of what counts, and whether each such token is the likeliest one."""
    logits = logits_of(inputs).astype(jnp.float32)
    of_targets = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(targets)[..., None], axis=-1)[..., 0]
    likeliest = (jnp.argmax(logits, axis=-1) == targets) | (counted == 0)
    return jnp.sum(counted * of_targets, axis=1), jnp.all(likeliest, axis=1)
