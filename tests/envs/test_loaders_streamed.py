"""Streams: every token once an epoch, the same from any position; with Hugging Face's `datasets` where it is there."""

import gzip
import itertools
import json

import numpy as np
import polars as pl
import pytest

from envs.loaders import Share, byte_tokenizer, first_documents, open_stream, stream_fingerprint, training_stream
from envs.loaders.loader import WINDOW
from envs.loaders.shards import LocalShards
from envs.reading import BadFile

BYTES = byte_tokenizer()


class Lists:
    """As much of `datasets.IterableDataset` as is used, over lists of rows."""

    def __init__(self, shards):
        self.shards, self.num_shards = shards, len(shards)

    def shard(self, num_shards, index):
        assert num_shards == self.num_shards
        return Lists([self.shards[index]])

    def skip(self, n):
        return Lists([list(self)[n:]])

    def take(self, n):
        return Lists([list(self)[:n]])

    def __iter__(self):
        return itertools.chain.from_iterable(self.shards)


def texts():
    """Five shards, one of them empty: documents of 0 to 9 letters, which differ but for the empty ones."""
    words = [f"{chr(97 + i)}{i:02d}" * (i % 4) for i in range(26)]
    return [words[:7], [], words[7:8], words[8:25], words[25:]]


def documents():
    return list(itertools.chain.from_iterable(texts()))


def write_folder(folder):
    for number, shard in enumerate(texts()):
        lines = [json.dumps({"text": text, "url": "x"}) for text in shard] if shard else []
        (folder / f"train-{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "validation-0.jsonl").write_text(json.dumps({"text": "held out"}), encoding="utf-8")


@pytest.fixture(params=["lists", "folder", "datasets"])
def stream(request, tmp_path):
    if request.param == "lists":
        return Lists([[{"text": text} for text in shard] for shard in texts()])
    write_folder(tmp_path)
    if request.param == "folder":
        assert first_documents(open_stream(str(tmp_path), "validation"), 9) == ["held out"]
        return open_stream(str(tmp_path))
    library = pytest.importorskip("datasets", reason="the extra data is not installed")
    return library.load_dataset(str(tmp_path), split="train", streaming=True)


def some(loader, count, position=None):
    batches = loader.batches(position or loader.start)
    found = list(itertools.islice(batches, count))
    batches.close()
    return [batch for batch, _ in found], [position for _, position in found]


def test_every_token_once_an_epoch_whatever_the_window(stream):
    expected = sorted(documents())
    tokens = sum(len(text) + 1 for text in expected)
    for window, batch_size, length in ((1, 1, 7), (3, 2, 5), (1, 1, 2 * tokens)):
        loader = training_stream(stream, BYTES, length, batch_size, seed=0, window=window)
        needed = -(-2 * tokens // (length * batch_size * window)) * window
        batches, _ = some(loader, needed)
        row = []
        for first in range(0, needed, window):
            inputs = np.concatenate([batch.inputs for batch in batches[first : first + window]])
            targets = np.concatenate([batch.targets for batch in batches[first : first + window]])
            row += in_a_row(inputs, targets, row, first // window)
        epochs = bytes(b if b < 256 else 0 for b in [256, *row][: 2 * tokens])
        for epoch in (epochs[:tokens], epochs[tokens:]):
            assert sorted(epoch[1:].decode().split("\0")) == expected
        assert loader.steps_per_epoch is None


def in_a_row(inputs, targets, before, window):
    """The targets of a window, its sequences put in a row again: each begins where the one before it ends."""
    order = np.random.default_rng((WINDOW, 0, window)).permutation(len(inputs))
    behind = order.argsort()
    assert inputs[behind][1:, 0].tolist() == targets[behind][:-1, -1].tolist()
    assert inputs[behind][0, 0] == (before[-1] if before else 256)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    return targets[behind].ravel().tolist()


@pytest.mark.parametrize("window", [1, 3])
def test_it_goes_on_from_any_position(stream, window):
    loader = training_stream(stream, BYTES, 11, 2, seed=1, window=window)
    batches, positions = some(loader, 14)
    assert positions[-1].epoch > 0
    for done in (1, 2, 3, 7, 11):
        again, same = some(loader, 14 - done, tuple(positions[done - 1]))
        assert same == positions[done:]
        for one, other in zip(again, batches[done:], strict=True):
            np.testing.assert_array_equal(one.inputs, other.inputs)
            np.testing.assert_array_equal(one.targets, other.targets)


def test_shards_come_in_another_order_in_each_epoch_and_for_each_seed(stream):
    tokens = sum(len(text) + 1 for text in documents())
    rows = [some(training_stream(stream, BYTES, tokens, 1, seed=seed, window=1), 2)[0] for seed in (0, 1)]
    orders = {batch.inputs.tobytes() for batches in rows for batch in batches}
    assert len(orders) == 4


def test_the_shares_of_processes_make_up_the_batch(stream):
    (whole,), _ = some(training_stream(stream, BYTES, 5, 4, seed=0, window=2), 1)
    parts = [some(training_stream(stream, BYTES, 5, 4, seed=0, window=2, share=Share(i, 2)), 1)[0][0] for i in (0, 1)]
    np.testing.assert_array_equal(whole.targets, np.concatenate([part.targets for part in parts]))


def test_the_first_documents(stream):
    assert first_documents(stream, 9) == documents()[:9]


def test_a_null_is_passed_over_and_positions_stay_right():
    stream = Lists([[{"text": "ab"}, {"text": None}, {"text": "c"}], [{"text": None}]])
    assert first_documents(stream, 3) == ["ab", "c"]
    loader = training_stream(stream, BYTES, 1, 1, seed=0, window=1)
    batches, positions = some(loader, 10)
    read = [int(batch.inputs[0, 0]) for batch in batches]
    assert sorted(read[:5]) == sorted(read[5:]) == sorted([*b"abc", BYTES.separator, BYTES.separator])
    for place in (1, 4):
        assert [int(batch.inputs[0, 0]) for batch in some(loader, 5, positions[place])[0]] == read[
            place + 1 : place + 6
        ]


def test_streams_without_texts():
    with pytest.raises(ValueError, match="the stream has no documents"):
        some(training_stream(Lists([[], []]), BYTES, 5, 1, seed=0), 1)
    with pytest.raises(BadFile, match="a document has no text 'text'; it has content"):
        some(training_stream(Lists([[{"content": "x"}]]), BYTES, 5, 1, seed=0), 1)
    with pytest.raises(ValueError, match="in windows of 0 batches: must be at least 1"):
        training_stream(Lists([[]]), BYTES, 5, 1, seed=0, window=0)


def test_saved_to_disk(tmp_path):
    library = pytest.importorskip("datasets", reason="the extra data is not installed")
    library.disable_progress_bars()
    parts = {"train": library.Dataset.from_dict({"text": [str(i) for i in range(100)]})}
    parts["validation"] = library.Dataset.from_dict({"text": ["held out"]})
    library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert first_documents(open_stream(str(tmp_path / "saved")), 1000) == [str(i) for i in range(100)]
    assert first_documents(open_stream(str(tmp_path / "saved"), "validation"), 1000) == ["held out"]
    library.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "single"))
    assert first_documents(open_stream(str(tmp_path / "single")), 9) == ["a", "b"]
    with pytest.raises(ValueError, match="it was saved without splits; save a DatasetDict"):
        open_stream(str(tmp_path / "single"), "validation")
    library.Dataset.from_dict({"text": []}).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="its split train can't be opened"):
        open_stream(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="its split other can't be opened"):
        open_stream(str(tmp_path / "saved"), "other")
    with pytest.raises(ValueError, match="its split train can't be opened"):
        open_stream(str(tmp_path / "not" / "there"))


def test_a_folder_gives_what_datasets_gave(tmp_path):
    """A run that began before files were read here goes on: same shards, same documents, same places."""
    library = pytest.importorskip("datasets", reason="the extra data is not installed")
    write_folder(tmp_path)
    theirs = library.load_dataset(str(tmp_path), split="train", streaming=True)
    one, other = (
        some(training_stream(of, BYTES, 7, 2, seed=0, window=2), 20) for of in (open_stream(str(tmp_path)), theirs)
    )
    assert one[1] == other[1]
    for batch, same in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(batch.inputs, same.inputs)


def train_and_validation(folder, shards):
    folder.mkdir(exist_ok=True)
    for number, rows in enumerate(shards):
        (folder / f"train-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "validation-0.jsonl").write_text('{"text": "held out"}', encoding="utf-8")
    return open_stream(str(folder))


@pytest.mark.parametrize(
    "others",
    [
        [{}, {"url": "x"}],
        [{"id": 1}, {"id": "8a"}],
        [{"id": None}, {"id": [1, {"a": 2}]}],
    ],
)
def test_other_columns_may_differ_from_shard_to_shard(tmp_path, others):
    stream = train_and_validation(tmp_path, [[{"text": f"document {i}", **more}] for i, more in enumerate(others)])
    assert first_documents(stream, 9) == ["document 0", "document 1"]


def test_a_folder_of_every_kind_whose_name_is_a_pattern(tmp_path):
    folder = tmp_path / "v[1]*?"
    stream = train_and_validation(folder, [[{"text": "a"}, {"text": None}]])
    assert isinstance(stream, LocalShards)
    assert first_documents(stream, 9) == ["a"]
    pl.DataFrame({"n": [1, 2, 3], "text": ["b", None, "c"]}).write_parquet(folder / "train-1[0].parquet")
    (folder / "train-2.json.gz").write_bytes(gzip.compress(b'{"text": "d"}'))
    (folder / "training.ndjson").write_text('{"text": "e"}', encoding="utf-8")
    (folder / "trained.jsonl").write_text("not a shard", encoding="utf-8")
    (folder / "._train-0.jsonl").write_text("not a shard", encoding="utf-8")
    (folder / "README.md").write_text("not a shard", encoding="utf-8")
    stream = open_stream(str(folder))
    assert stream.num_shards == 4
    assert first_documents(stream, 9) == ["a", "b", "c", "d", "e"]
    assert first_documents(stream.shard(4, 1).skip(1), 9) == ["c"]
    (folder / "train-3.json.zst").write_bytes(b"")
    with pytest.raises(BadFile, match=r"train-3\.json\.zst: packed as \.zst"):
        open_stream(str(folder))


def test_a_folder_without_the_split_that_is_asked_for(tmp_path):
    train_and_validation(tmp_path, [[{"text": "a"}]])
    (tmp_path / "validation-0.jsonl").unlink()
    with pytest.raises(BadFile, match=r"its split validation can't be opened \(there is no file validation-"):
        open_stream(str(tmp_path), "validation")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "b', r"train-1\.jsonl: line 2 is not JSON"),
        ('{"text": 1}', r"train-1\.jsonl: line 2 has no text 'text'"),
        ('{"text": "b", "n": ' + "9" * 5000 + "}", r"train-1\.jsonl: line 2 is not JSON"),
        ('{"text": "\\ud83d"}', r"train-1\.jsonl: line 2 has half of a surrogate pair"),
    ],
)
def test_a_damaged_document_is_met_while_the_stream_is_read(tmp_path, line, told):
    stream = train_and_validation(tmp_path, [[{"text": "a"}], []])
    (tmp_path / "train-1.jsonl").write_text('{"text": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(BadFile, match=told):
        some(training_stream(stream, BYTES, 2, 1, seed=0, window=1), 9)


def test_what_datasets_raises_is_one_line():
    class Cast(Exception):
        pass

    class Broken(Lists):
        def __iter__(self):
            yield {"text": "a"}
            raise Cast("Couldn't cast\ntext: string\nto\n{}")

        def shard(self, num_shards, index):
            return self

    with pytest.raises(BadFile, match=r"the stream: shard 0: a document can't be read \(Couldn't cast text: string to"):
        some(training_stream(Broken([[]]), BYTES, 1, 1, seed=0, window=1), 9)


def test_a_fingerprint_of_a_stream(tmp_path):
    rows = [[{"text": f"document {i}"}] for i in range(3)]
    before = stream_fingerprint(train_and_validation(tmp_path / "a", rows))
    assert stream_fingerprint(train_and_validation(tmp_path / "b", rows)) == before  # wherever it is
    assert stream_fingerprint(train_and_validation(tmp_path / "b", [*rows[:2], [{"text": "document X"}]])) != before
    (tmp_path / "a" / "train-2.jsonl").rename(tmp_path / "a" / "train-3.jsonl")
    assert stream_fingerprint(open_stream(str(tmp_path / "a"))) != before
    lists = [stream_fingerprint(Lists(shards)) for shards in ([rows[0]], [rows[1]], [rows[0], rows[1]], [rows[0]])]
    assert lists[0] == lists[3] and len(set(lists)) == 3
