"""Questions with choices, from local files: PIQA, SIQA, and LAMBADA's last word.

A model answers by the choice that it finds most likely behind the context. How a question is put is what EleutherAI's
evaluation harness does for these tasks: every choice begins with the space that goes before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from envs.datasets import DatasetMissing, data_folder
from envs.loaders.text import json_lines
from envs.reading import BadFile, content, reading


class Question(NamedTuple):
    """A context and what can follow it.

    Attributes:
        context: what is given.
        choices: what can follow; LAMBADA has a single one, the word to be predicted.
        answer: the place of the right one, from 0.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


class Form(NamedTuple):
    """A published form of questions.

    Attributes:
        keys: what each line must have, as text.
        ask: (those texts) -> the context and the choices.
        first_label: the number in the file of labels that means the first choice; None: there is no such file.
        file: where the published questions are looked for, in $NAP_DATA.
        source: where they come from.
    """

    keys: tuple[str, ...]
    ask: Callable[..., tuple[str, tuple[str, ...]]]
    first_label: int | None
    file: str
    source: str


def _piqa(goal: str, *solutions: str) -> tuple[str, tuple[str, ...]]:
    return f"Question: {goal}\nAnswer:", tuple(f" {solution}" for solution in solutions)


def _siqa(context: str, question: str, *answers: str) -> tuple[str, tuple[str, ...]]:
    return f"Q: {context} {question}\nA:", tuple(f" {answer}" for answer in answers)


def _lambada(text: str) -> tuple[str, tuple[str, ...]]:
    context, _, word = text.strip().rpartition(" ")
    if not context:
        raise ValueError("a passage of a single word")
    return context, (f" {word}",)


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        # Bisk et al. 2020, arXiv 1911.11641.
        "piqa": Form(
            ("goal", "sol1", "sol2"), _piqa, 0, "piqa/valid.jsonl", "https://yonatanbisk.com/piqa/data/valid.jsonl"
        ),
        # Sap et al. 2019, arXiv 1904.09728.
        "siqa": Form(
            ("context", "question", "answerA", "answerB", "answerC"),
            _siqa,
            1,
            "siqa/dev.jsonl",
            "https://storage.googleapis.com/ai2-mosaic/public/socialiqa/socialiqa-train-dev.zip",
        ),
        # Paperno et al. 2016, arXiv 1606.06031; the lines of OpenAI's lambada_test.jsonl.
        "lambada": Form(
            ("text",),
            _lambada,
            None,
            "lambada/lambada_test.jsonl",
            "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        ),
    }
)


def load_questions(form: str, path: Path | None = None, labels: Path | None = None) -> list[Question]:
    """Reads questions.

    Args:
        form: one of `FORMS`.
        path: a file of JSON lines, as its authors publish it; by default the form's in $NAP_DATA.
        labels: the file with the number of the right choice, one a line; by default the one beside it, dev-labels.lst
            for dev.jsonl. LAMBADA has none.

    Raises:
        DatasetMissing: there is no such file.
        ValueError: an unknown form; or a file that has something else in it, with the line.
    """
    if form not in FORMS:
        nearest = difflib.get_close_matches(form, FORMS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown form of questions {form!r}: known are {', '.join(FORMS)}; nearest: {nearest}")
    keys, ask, first_label, file, source = FORMS[form]
    path = path or (data_folder() or Path("$NAP_DATA")) / file
    if not path.is_file():
        raise DatasetMissing(f"{form}: there is no {path}: its authors have it at {source}")
    asked = []
    for number, value in json_lines(path):
        if missing := [key for key in keys if not isinstance(value.get(key), str)]:
            raise BadFile(f"{path}: line {number} has no text {missing[0]!r}, which {form} must have")
        with reading(path, f"line {number} has half of a surrogate pair"):
            "".join(value[key] for key in keys).encode()
        try:
            asked.append(ask(*(value[key] for key in keys)))
        except ValueError as error:
            raise BadFile(f"{path}: line {number}: {error}") from error
    if not asked:
        raise BadFile(f"{path}: no questions")
    if first_label is None:
        return [Question(context, choices, 0) for context, choices in asked]
    labels = labels or path.with_name(f"{path.stem}-labels.lst")
    answers = _labels(labels, first_label, len(asked[0][1]))
    if len(answers) != len(asked):
        raise BadFile(f"{path}: {len(asked)} questions but {len(answers)} labels in {labels.name}")
    return [Question(context, choices, answer) for (context, choices), answer in zip(asked, answers, strict=True)]


def _labels(path: Path, first: int, choices: int) -> list[int]:
    found = content(path)
    with reading(path, "can't be read"):
        lines = found.decode().split()
    allowed = {str(first + i): i for i in range(choices)}
    if wrong := next(((number, line) for number, line in enumerate(lines, 1) if line not in allowed), None):
        raise BadFile(f"{path}: line {wrong[0]} is {wrong[1]!r}, must be one of {', '.join(allowed)}")
    return [allowed[line] for line in lines]
