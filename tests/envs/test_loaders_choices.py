"""Questions with choices, from lines as their authors publish them (the contents made up)."""

import json

import pytest

from envs.datasets import DatasetMissing
from envs.loaders import Question, load_questions


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_piqa(tmp_path, monkeypatch):
    write(
        tmp_path / "piqa" / "valid.jsonl",
        {"goal": "To open a jar,", "sol1": "twist the lid.", "sol2": "twist the jar's label."},
        {"goal": "To dry a cup,", "sol1": "fill it.", "sol2": "wipe it."},
    )
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n1\n", encoding="utf-8")
    monkeypatch.setenv("NAP_DATA", str(tmp_path))
    first, second = load_questions("piqa")
    choices = (" twist the lid.", " twist the jar's label.")
    assert first == Question("Question: To open a jar,\nAnswer:", choices, 0)
    assert second.choices[second.answer] == " wipe it."


def test_siqa_counts_from_1(tmp_path):
    row = {
        "context": "Kim fell.",
        "question": "How does Kim feel?",
        "answerA": "hurt",
        "answerB": "tall",
        "answerC": "x",
    }
    write(tmp_path / "dev.jsonl", row, row)
    (tmp_path / "answers").write_text("1\n3\n", encoding="utf-8")
    first, second = load_questions("siqa", tmp_path / "dev.jsonl", tmp_path / "answers")
    assert first == Question("Q: Kim fell. How does Kim feel?\nA:", (" hurt", " tall", " x"), 0)
    assert second.answer == 2


def test_lambada_asks_for_the_last_word(tmp_path):
    write(tmp_path / "lambada_test.jsonl", {"text": "where is the captain ? he asked the captain"})
    (question,) = load_questions("lambada", tmp_path / "lambada_test.jsonl")
    assert question == Question("where is the captain ? he asked the", (" captain",), 0)


def test_something_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"unknown form of questions 'pica': .* nearest: piqa"):
        load_questions("pica", tmp_path / "x")
    with pytest.raises(DatasetMissing, match=r"piqa: there is no .*x\.jsonl: its authors have it at https://"):
        load_questions("piqa", tmp_path / "x.jsonl")
    path = tmp_path / "x.jsonl"
    row = {"goal": "g", "sol1": "a", "sol2": "b"}
    write(path, row, {"goal": "g", "sol1": "a"})
    with pytest.raises(ValueError, match="line 2 has no text 'sol2', which piqa must have"):
        load_questions("piqa", path)
    write(path, row)
    with pytest.raises(ValueError, match=r"x-labels\.lst: can't be read"):
        load_questions("piqa", path)
    labels = tmp_path / "x-labels.lst"
    labels.write_text("2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is '2', must be one of 0, 1"):
        load_questions("piqa", path)
    labels.write_text("1\n0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="1 questions but 2 labels"):
        load_questions("piqa", path)
    write(path, {"text": "word"})
    with pytest.raises(ValueError, match="line 1: a passage of a single word"):
        load_questions("lambada", path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no questions"):
        load_questions("lambada", path)
