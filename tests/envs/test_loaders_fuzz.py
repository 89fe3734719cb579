"""Files of every kind, damaged at random, always alike: each is read, or refused in one line that names it."""

import gzip
import io
import json
import pickle
import random
import tarfile
import warnings

import numpy as np
import polars as pl
import pytest
from PIL import Image

from envs import cifar, datasets
from envs.cifar import CIFARS
from envs.datasets import DatasetMissing
from envs.loaders import (
    first_documents,
    held_out_image_files,
    load_bpe,
    load_image_files,
    load_questions,
    load_text,
    open_stream,
)
from envs.reading import BadFile

TEXTS = ["the first document", "another one, in two\nlines", "日本 and \U0001f600", "the last"]
LINES = "\n".join(json.dumps({"text": text, "n": i}) for i, text in enumerate(TEXTS)).encode()


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def overwritten(content: bytes, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(content)), rng.randrange(1, 40)
    return content[:start] + rng.choice((b"\0", b"\xff", b"9", b"[", b"(")) * size + content[start + size :]


def repeated(content: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:stop] + content[start:stop] + content[stop:]


def without(content: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:start] + content[stop:]


DAMAGES = (flipped, flipped, flipped, cut, overwritten, repeated, without)


def of_arrays(tmp_path):
    file = io.BytesIO()
    pictures = np.random.default_rng(0).integers(0, 256, (10, 3, 3), np.uint8)
    np.savez(file, images=pictures, labels=np.arange(10) % 3)
    path = tmp_path / "a.npz"
    return path, file.getvalue(), lambda: datasets.load(str(path))


def of_idx(tmp_path):
    """Unpacked, as every change of what is packed is found by its sum; it is the sum that is left out here."""
    array = np.zeros((3, 4, 4), np.uint8)
    content = b"\x00\x00\x08\x03" + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()
    path = tmp_path / "images.idx"

    class Any(str):
        def __eq__(self, other):
            return True

        def __ne__(self, other):
            return False

        __hash__ = str.__hash__

    return path, content, lambda: datasets._idx(path, Any("any"))


def batch(rng) -> bytes:
    images = rng.integers(0, 256, (2, 3072), np.uint8)
    return pickle.dumps({b"data": images, b"labels": [3, 4], b"filenames": [b"a.png"] * 2}, protocol=3)


def of_pickle(tmp_path):
    """The head, as most of a batch is pixels."""
    content = batch(np.random.default_rng(0))
    head = content.index(b"numpy") + 300
    path = tmp_path / "data_batch_1"

    def read():
        whole = path.read_bytes() + content[head:]
        return cifar._examples(tmp_path, path.name, whole, CIFARS["cifar10"])

    return path, content[:head], read


def of_archive(tmp_path, packed=False):
    file, rng = io.BytesIO(), np.random.default_rng(0)
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in (*CIFARS["cifar10"].train, *CIFARS["cifar10"].test):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            content = pickle.dumps({b"data": rng.integers(0, 2, (1, 3072), np.uint8), b"labels": [1]}, protocol=3)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path = tmp_path / "mine.tar"
    content = gzip.compress(file.getvalue()) if packed else file.getvalue()
    return path, content, lambda: datasets.load("cifar10", root=path)


def of_packed_archive(tmp_path):
    return of_archive(tmp_path, packed=True)


def of_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    return path, LINES, lambda: load_text(str(path))


def of_packed_lines(tmp_path):
    path = tmp_path / "a.json.gz"
    return path, gzip.compress(LINES), lambda: load_text(str(path))


def of_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    return path, "\n".join(TEXTS).encode(), lambda: load_text(str(path))


def of_text_in_parquet(tmp_path):
    path, file = tmp_path / "a.parquet", io.BytesIO()
    pl.DataFrame({"text": [*TEXTS, None], "n": [1, 2, 3, 4, 5]}).write_parquet(file)
    return path, file.getvalue(), lambda: load_text(str(path))


def of_shards(tmp_path):
    path = tmp_path / "train-0.jsonl"
    (tmp_path / "train-1.jsonl").write_bytes(LINES)
    return path, LINES, lambda: first_documents(open_stream(str(tmp_path)), 9)


def of_questions(tmp_path):
    path = tmp_path / "valid.jsonl"
    (tmp_path / "valid-labels.lst").write_text("0\n1\n", encoding="utf-8")
    lines = [json.dumps({"goal": "to sit", "sol1": "on a mat", "sol2": f"on {i}"}) for i in range(2)]
    return path, "\n".join(lines).encode(), lambda: load_questions("piqa", path)


def of_answers(tmp_path):
    path, content, read = of_questions(tmp_path)
    path.write_bytes(content)
    return tmp_path / "valid-labels.lst", b"0\n1\n", read


def of_tokenizer(tmp_path):
    library = pytest.importorskip("tokenizers", reason="the extra data is not installed")
    tokenizer = library.Tokenizer(library.models.BPE({"a": 0, "b": 1, "ab": 2, "<": 3}, [("a", "b")]))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = tmp_path / "tokenizer.json"
    return path, tokenizer.to_str().encode(), lambda: load_bpe(path).encode(["abba <"])


def of_image(image_format):
    def made(tmp_path):
        for place in ("train/a", "val/a"):
            (tmp_path / place).mkdir(parents=True)
        file = io.BytesIO()
        pictures = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
        Image.fromarray(pictures).save(file, image_format)
        path = tmp_path / "val" / "a" / "0.png"
        (tmp_path / "train" / "a" / "0.png").write_bytes(file.getvalue())

        def read():
            held_out = load_image_files(tmp_path).held_out
            return [*held_out_image_files(held_out, 1, workers=0, size=8).batches((0,))]

        return path, file.getvalue(), read

    return made


def of_images_in_parquet(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    images = [{"bytes": file.getvalue(), "path": "a"}] * 4
    content = io.BytesIO()
    pl.DataFrame({"image": images, "label": [0, 1, 0, 1]}).write_parquet(content)
    path = tmp_path / "val-0.parquet"
    (tmp_path / "train-0.parquet").write_bytes(content.getvalue())

    def read():
        held_out = load_image_files(tmp_path).held_out
        return [*held_out_image_files(held_out, 1, workers=0, size=8).batches((0,))]

    return path, content.getvalue(), read


KINDS = {
    "npz": (of_arrays, 75),
    "idx": (of_idx, 30),
    "pickle": (of_pickle, 200),
    "tar": (of_archive, 30),
    "tar.gz": (of_packed_archive, 20),
    "jsonl": (of_lines, 75),
    "json.gz": (of_packed_lines, 40),
    "txt": (of_plain_text, 20),
    "text in parquet": (of_text_in_parquet, 40),
    "shards": (of_shards, 40),
    "questions": (of_questions, 40),
    "answers": (of_answers, 20),
    "tokenizer": (of_tokenizer, 40),
    "jpeg": (of_image("JPEG"), 40),
    "png": (of_image("PNG"), 40),
    "webp": (of_image("WEBP"), 30),
    "bmp": (of_image("BMP"), 30),
    "images in parquet": (of_images_in_parquet, 30),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_in_a_line(kind, tmp_path):
    make, tries = KINDS[kind]
    path, content, read = make(tmp_path)
    path.write_bytes(content)
    read()
    rng, refused = random.Random(kind), 0
    for _ in range(tries):
        path.write_bytes(rng.choice(DAMAGES)(content, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read()
            except ValueError as error:
                told, refused = str(error), refused + 1
                assert path.name in told and told.count(str(path)) <= 1 and "\n" not in told and len(told) < 900
                assert isinstance(error, BadFile) or "there is no text" in told
    assert refused > tries / 20


# Any UTF-8 is a text, a shard may be empty, and what is no file is none.
FINE = [("txt", "JSON"), ("txt", "zeros"), ("txt", "an image"), ("shards", "empty"), ("shards", "a folder")]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("idx", "pickle")])
@pytest.mark.parametrize("other", ["empty", "a folder", "an image", "JSON", "zeros"])
def test_a_file_of_another_kind_is_refused_in_a_line(kind, other, tmp_path):
    path, _, read = KINDS[kind][0](tmp_path)
    image = io.BytesIO()
    Image.new("L", (2, 2)).save(image, "TIFF")
    contents = {
        "empty": b"",
        "an image": image.getvalue(),
        "JSON": b'{"a": [1, null, {"b": 1e999}]}',
        "zeros": bytes(999),
    }
    path.unlink(missing_ok=True)
    path.mkdir() if other == "a folder" else path.write_bytes(contents[other])
    if (kind, other) in FINE:
        read()
        return
    with pytest.raises(ValueError) as refused:
        read()
    named = 2 if isinstance(refused.value, DatasetMissing) else 1  # once more in the command that makes it
    assert "\n" not in str(refused.value) and str(refused.value).count(str(path)) <= named
