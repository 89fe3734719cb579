"""Text into tokens into sequences: nothing lost, nothing twice, nothing of what is held out."""

import gzip
import itertools
import json
import os

import numpy as np
import polars as pl
import pytest

from envs import reading
from envs.loaders import (
    Share,
    byte_tokenizer,
    fingerprint,
    held_out_sequences,
    load_bpe,
    load_text,
    text,
    tokenize,
    train_bpe,
    training_sequences,
    unread_files,
)
from envs.loaders.tokens import Tokenizer
from envs.reading import BadFile

STRANGE = "héllo <|endoftext|>\r\n\t日本 \U0001f600"


def some(loader, count, position=None):
    found = list(itertools.islice(loader.batches(position or loader.start), count))
    return [batch for batch, _ in found], [position for _, position in found]


def targets_of(batches):
    return np.concatenate([batch.targets[batch.weights > 0] for batch in batches])


def test_the_standard_library_is_split_by_file():
    corpus = load_text()
    assert len(corpus.documents) > 400
    assert len(corpus.held_out) == (len(corpus.documents) + len(corpus.held_out)) // 10
    assert not set(corpus.documents) & set(corpus.held_out)
    assert any('"""HTTP/1.1 client library' in text for text in corpus.documents + corpus.held_out)
    assert load_text() == corpus


def test_every_kind_of_file_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    lines = "\n".join(json.dumps({"text": text, "url": "x"}) for text in ("two", "three\nlines", "two", ""))
    (tmp_path / "b" / "c4.json.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    pl.DataFrame({"text": ["four", None], "n": [1, 2]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    corpus = load_text(str(tmp_path))
    assert corpus.documents == ("one", "two", "three\nlines")
    assert corpus.held_out == ("four",)
    assert load_text(str(tmp_path / "b"), held_out=str(tmp_path)).held_out == ("one", "four")


def test_one_file_is_cut(tmp_path):
    (tmp_path / "book").write_text("0123456789" * 3, encoding="utf-8")
    corpus = load_text(str(tmp_path / "book"))
    assert corpus.documents == ("0123456789" * 2 + "0123456",)
    assert corpus.held_out == ("789",)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2 is a list, must be an object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b'{"content": "x"}', "line 1 has no text 'text'; it has content"),
        ("a.jsonl", b'{"text": "cut \\ud83d"}', "line 1 has half of a surrogate pair"),
        ("a.jsonl", b'{"text": ' + b"[" * 200_000, "line 1 is not JSON"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.json.gz", b"\x1f\x8b\x08 and nothing", "can't be read"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "y", "n": ' + b"9" * 5000 + b"}", r"a\.jsonl: line 3 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\xff', r"a\.jsonl: line 2 is not UTF-8"),
        ("a.ndjson", b'{"text": 1}', r"a\.ndjson: line 1 has no text"),
        ("a.rst", b"a text", r"a\.rst: files \.rst are not read; known are \.jsonl, "),
        ("a.csv.gz", b"", r"a\.csv\.gz: files \.csv are not read"),
        ("a.json.zst", b"", r"a\.json\.zst: packed as \.zst, which is not read"),
        ("a.tgz", b"", r"a\.tgz: packed as \.tgz"),
        ("a.parquet", b"PAR1", "not Parquet with texts"),
        ("a.txt", b"", "there is no text to train on"),
        ("a.txt", b"x", "there is no text to train on"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        load_text(str(tmp_path / name))


def test_marks_nulls_and_capitals(tmp_path):
    (tmp_path / "a.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n{"text": null}\n{"text": "y"}\n{"text": "z"}')
    (tmp_path / "b.txt.GZ").write_bytes(gzip.compress(b"\xef\xbb\xbfw"))
    corpus = load_text(str(tmp_path))
    assert sorted(corpus.documents + corpus.held_out) == ["w", "x", "y", "z"]


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonlines", "a.NDJSON.gz"])
def test_json_lines_under_any_of_their_names(tmp_path, name):
    content = b'{"text": "a b"}\n{"text": "c d"}'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    corpus = load_text(str(tmp_path / name))
    assert corpus.documents + corpus.held_out == ("a b", "c d")


def test_documents_that_can_not_be_read_are_not_passed_over_beside_a_readme(tmp_path):
    (tmp_path / "README.md").write_text("what the data are", encoding="utf-8")
    (tmp_path / "c4.json.zst").write_bytes(b"(\xb5/\xfd")
    with pytest.raises(BadFile, match=r"c4\.json\.zst: packed as \.zst, which is not read"):
        load_text(str(tmp_path))
    (tmp_path / "c4.json.zst").rename(tmp_path / "c4.csv")
    load_text(str(tmp_path))
    assert unread_files(str(tmp_path)) == [tmp_path / "c4.csv"]
    assert unread_files(str(tmp_path / "README.md")) == unread_files("stdlib") == []


def test_what_is_hidden_is_not_trained_on(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.jsonl").write_text('{"text": "old"}', encoding="utf-8")
    (tmp_path / ".git" / "description.md").write_text("unnamed", encoding="utf-8")
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}', encoding="utf-8")
    assert load_text(str(tmp_path)) == (("x",), ("y",))
    assert unread_files(str(tmp_path)) == []
    hidden = tmp_path / ".corpus"  # named itself, it is meant
    (tmp_path / ".ipynb_checkpoints").rename(hidden)
    (hidden / "b.txt").write_text("z", encoding="utf-8")
    assert load_text(str(hidden)) == (("old",), ("z",))


def test_a_folder_that_can_not_be_listed_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abcdefghijk", encoding="utf-8")
    (tmp_path / "b").mkdir()
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path) == str(tmp_path / "b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(BadFile, match=r"b: can't be read \(Permission denied\)"):
        load_text(str(tmp_path))


def test_a_packed_line_is_read_only_as_far_as_memory_goes(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"x" * 100_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * 100_000))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\n" * 100_000))
    monkeypatch.setattr(reading, "_BLOCK", 1 << 8)
    monkeypatch.setattr(reading, "_UNASKED", 1 << 10)
    monkeypatch.setattr(reading, "host_bytes", lambda: 2000)
    for name in ("a.jsonl.gz", "a.txt.gz", "b.jsonl.gz"):
        with pytest.raises(BadFile, match=rf"{name}: it needs .* GB of memory"):
            load_text(str(tmp_path / name))


def test_many_rows_of_parquet_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_ROWS_AT_ONCE", 3)
    path = tmp_path / "a[0].parquet"  # a name, not a pattern
    pl.DataFrame({"text": [str(i) for i in range(8)] + [None]}).write_parquet(path, row_group_size=4)
    (tmp_path / "a0.parquet").write_bytes(b"PAR1")
    assert list(text.documents_of(path)) == [*map(str, range(8)), None]


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder; or take stdlib"):
        load_text(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"no file \.jsonl, .* in it"):
        load_text(str(tmp_path))
    pl.DataFrame({"words": ["x"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="one must be text: String"):
        load_text(str(tmp_path))


def test_the_fingerprint_knows_where_documents_end():
    assert len({fingerprint(texts) for texts in (["ab"], ["a", "b"], ["b", "a"], ["ab", ""])}) == 4


def test_bytes():
    tokenizer = byte_tokenizer()
    tokens = tokenize(["ab", "", "é"], tokenizer)
    assert tokens.tolist() == [256, 97, 98, 256, 256, 0xC3, 0xA9, 256]
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokenizer.encode([STRANGE])[0].tolist()) == STRANGE
    assert tokenizer.decode([97, 256, 0xC3]) == "a<|endoftext|>\ufffd"


@pytest.fixture
def bpe(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra data is not installed")
    words = ["the cat sat on the mat", "the dog sat on the log", "the cat and the dog"] * 5
    return train_bpe(words, 270, tmp_path / "new" / "bpe.json"), tmp_path / "new" / "bpe.json", words


def test_byte_pairs(bpe):
    tokenizer, path, words = bpe
    assert tokenizer.vocabulary == 270
    encoded, strange = tokenizer.encode(["the cat", STRANGE])
    assert len(encoded) < 7
    assert tokenizer.decode(encoded.tolist()) == "the cat"
    # Any text comes back, and the separator stands in none of it, even where it is spelled out.
    assert tokenizer.decode(strange.tolist()) == STRANGE
    assert tokenizer.separator not in strange
    library = pytest.importorskip("tokenizers")
    used = library.Tokenizer.from_file(str(path))
    used.enable_truncation(4)
    used.enable_padding(length=99)
    used.save(str(path))
    again = load_bpe(path)
    assert again.encode(words)[0].tolist() == tokenizer.encode(words)[0].tolist()
    assert sorted(file.name for file in path.parent.iterdir()) == ["bpe.json"]


def test_byte_pairs_are_the_same_each_time(bpe, tmp_path):
    _, path, words = bpe
    train_bpe(words, 270, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_what_is_no_tokenizer(bpe, tmp_path):
    _, path, _ = bpe
    with pytest.raises(ValueError, match="nearest: 257"):
        train_bpe(["a"], 256, tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"x\.json: can't be read \(No such file"):
        load_bpe(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json: not a tokenizer"):
        load_bpe(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(
        path.read_text(encoding="utf-8").replace("<|endoftext|>", "<|other|>"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"no token <\|endoftext\|>"):
        load_bpe(tmp_path / "x.json")


def changed(path, change):
    """Loads a tokenizer whose JSON has been changed."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    change(saved)
    path.write_text(json.dumps(saved), encoding="utf-8")
    return load_bpe(path)


def test_a_text_that_spells_the_separator_is_letters_whatever_the_file_calls_it(bpe):
    _, path, _ = bpe
    tokenizer = changed(path, lambda saved: saved["added_tokens"][0].update(special=False, normalized=True))
    (tokens,) = tokenizer.encode(["a<|endoftext|>b"])
    assert tokenizer.separator not in tokens
    assert tokenizer.decode(tokens.tolist()) == "a<|endoftext|>b"


def test_a_separator_that_is_found_in_texts_is_refused(tmp_path):
    library = pytest.importorskip("tokenizers", reason="the extra data is not installed")
    words = library.Tokenizer(library.models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(BadFile, match=r"words\.json: a text that spells <\|endoftext\|>"):
        load_bpe(tmp_path / "words.json")


def test_a_vocabulary_reaches_to_the_highest_number(bpe):
    _, path, _ = bpe

    def move(number):
        def change(saved):
            vocabulary = saved["model"]["vocab"]
            vocabulary[max(vocabulary, key=vocabulary.get)] = number

        return change

    assert changed(path, move(999)).vocabulary == 1000
    with pytest.raises(BadFile, match=r"bpe\.json: its 270 tokens have numbers up to 100000"):
        changed(path, move(100_000))


@pytest.mark.parametrize("token", [257, 70_000, -1])
def test_a_token_beyond_the_vocabulary_is_no_other_one(token):
    """Taken as uint16, 65,536 + 1 would be the token 1; an embedding would take it for its last one."""
    wrong = Tokenizer(257, 256, lambda texts: [np.array([0, token]) for _ in texts], lambda tokens: "")
    with pytest.raises(ValueError, match=rf"the token {token}, and has 257: 0 to 256"):
        tokenize(["a"], wrong)


def test_a_text_that_a_tokenizer_can_not_say(tmp_path):
    library = pytest.importorskip("tokenizers", reason="the extra data is not installed")
    words = library.Tokenizer(library.models.WordLevel({"a": 0}))
    words.add_special_tokens(["<|endoftext|>"])
    words.save(str(tmp_path / "words.json"))
    tokenizer = load_bpe(tmp_path / "words.json")
    assert tokenize(["a"], tokenizer).tolist() == [1, 0, 1]
    with pytest.raises(BadFile, match=r"words\.json: it can't encode a text"):
        tokenize(["b"], tokenizer)


@pytest.fixture
def tokens():
    """Distinct numbers, so that a token that is lost or twice is seen."""
    return np.arange(1, 41, dtype=np.uint16)  # 39 targets: 2..40


@pytest.mark.parametrize("length", [1, 7, 13, 39, 50])
def test_each_token_is_a_target_once_an_epoch(tokens, length):
    count = -(-39 // length)
    loader = training_sequences(tokens, length, 2, seed=0)
    assert loader.steps_per_epoch == count / 2
    batches, _ = some(loader, count)  # two epochs
    targets = targets_of(batches)
    assert sorted(targets[:39]) == sorted(targets[39:]) == list(range(2, 41))
    assert sorted(targets_of(some(held_out_sequences(tokens, length, 2), None)[0])) == list(range(2, 41))
    for batch in batches:
        there = batch.weights > 0
        assert (batch.targets[there] == batch.inputs[there] + 1).all()


def test_sequences_are_shuffled_and_held_out_ones_are_not(tokens):
    first = [some(training_sequences(tokens, 3, 13, seed=seed), 2)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(first[0][0].inputs, first[1][0].inputs)
    assert not np.array_equal(first[0][0].inputs, first[0][1].inputs)
    assert not np.array_equal(first[0][0].inputs, first[2][0].inputs)
    assert some(held_out_sequences(tokens, 3, 13), 1)[0][0].inputs[:, 0].tolist() == list(range(1, 40, 3))


def test_sequences_go_on_from_any_position_in_any_number_of_processes(tokens):
    batches, positions = some(training_sequences(tokens, 4, 6, seed=0), 5)
    shares = [training_sequences(tokens, 4, 6, seed=0, share=Share(process, 3)) for process in range(3)]
    parts = [some(loader, 3, positions[1])[0] for loader in shares]
    for batch, *rows in zip(batches[2:], *parts, strict=True):
        np.testing.assert_array_equal(batch.targets, np.concatenate([row.targets for row in rows]))
        np.testing.assert_array_equal(batch.weights, np.concatenate([row.weights for row in rows]))


def test_sequences_of_nothing(tokens):
    with pytest.raises(ValueError, match="must be at least 1"):
        training_sequences(tokens, 0, 2, seed=0)
