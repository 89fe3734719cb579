"""Tokenizers: bytes, or byte pairs (BPE) by the library `tokenizers`. Both give any text back exactly."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Integer

from envs.loaders.loader import extra
from envs.reading import BadFile, content, reading

SEPARATOR = "<|endoftext|>"
_SPARE = 1024
"""So many numbers may be left out whatever the size of a vocabulary is, and besides as many as it has tokens."""


class Tokenizer(NamedTuple):
    """How text becomes numbers.

    Attributes:
        vocabulary: one more than the highest token: how many there are, unless numbers are left out.
        separator: the token that stands between documents, and in none: a text that spells it is encoded as letters.
        encode: (texts) -> the tokens of each.
        decode: (tokens, separators among them or not) -> the text.
    """

    vocabulary: int
    separator: int
    encode: Callable[[Sequence[str]], list[Integer[np.ndarray, " tokens"]]]
    decode: Callable[[Sequence[int]], str]


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
    """The tokens of each text, all of which the vocabulary has: an embedding would take any other for its last one.

    Raises:
        BadFile: a text that the tokenizer can't encode, or a token beyond the vocabulary.
    """
    found = tokenizer.encode(texts)
    for tokens in found:
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocabulary:
            wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise BadFile(
                f"the tokenizer gives the token {wrong}, and has {tokenizer.vocabulary}: 0 to "
                f"{tokenizer.vocabulary - 1}"
            )
    return [tokens.astype(np.int32) for tokens in found]


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes of UTF-8, and 256 as separator."""

    def decode(tokens: Sequence[int]) -> str:
        spelled = (SEPARATOR.encode() if token == 256 else bytes([token]) for token in tokens)
        return b"".join(spelled).decode(errors="replace")

    return Tokenizer(257, 256, lambda texts: [np.frombuffer(text.encode(), np.uint8) for text in texts], decode)


def load_bpe(path: Path) -> Tokenizer:
    """A tokenizer that `train_bpe` saved, or another of the library `tokenizers` that has the token <|endoftext|>.

    GPT-2's tokenizer.json is one.

    Raises:
        BadFile: the file is not a tokenizer, has no such token or finds it in texts, or leaves out too many numbers.
        ValueError: `tokenizers` is not installed.
    """
    library = extra("tokenizers", f"the tokenizer {path}")
    found = content(path)
    with reading(path, "not a tokenizer"):
        tokenizer = library.Tokenizer.from_str(_with_special_separator(found.decode()))
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()  # as some were saved with, for another use
        tokenizer.no_padding()
        separator, numbers = tokenizer.token_to_id(SEPARATOR), tokenizer.get_vocab().values()
    if separator is None:
        raise BadFile(f"{path}: it has no token {SEPARATOR}, which stands between documents")
    vocabulary = max(numbers) + 1
    if vocabulary > 2 * len(numbers) + _SPARE:
        raise BadFile(
            f"{path}: its {len(numbers)} tokens have numbers up to {vocabulary - 1}: number them without gaps"
        )

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        with reading(path, "it can't encode a text"):
            some = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int64) for one in some]

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=False)

    found_in = []
    for text in (SEPARATOR, f"a{SEPARATOR}b", f" {SEPARATOR} "):
        with contextlib.suppress(BadFile):  # where it has no tokens for the letters
            found_in += encode([text])
    if any(separator in tokens for tokens in found_in):
        raise BadFile(
            f"{path}: a text that spells {SEPARATOR} becomes that token, which stands between documents alone"
        )
    return Tokenizer(vocabulary, separator, encode, decode)


def _with_special_separator(saved: str) -> str:
    """A saved tokenizer whose separator is a special token: only those can be kept from being found in texts."""
    tokens = json.loads(saved)
    others = [token for token in tokens["added_tokens"] if token["content"] == SEPARATOR and not token["special"]]
    for token in others:
        token["special"] = True
    return json.dumps(tokens) if others else saved


def train_bpe(documents: Iterable[str], vocabulary: int, path: Path) -> Tokenizer:
    """Learns byte pairs (Sennrich et al. 2016, over bytes as GPT-2 has them) and saves them as JSON.

    Args:
        documents: to train on; not those held out.
        vocabulary: how many tokens there are to be: at least 257, the bytes and the separator. Few documents can give
            fewer.
        path: the file.

    Raises:
        ValueError: `tokenizers` is not installed, or the vocabulary is too small.
    """
    if vocabulary < 257:
        raise ValueError(f"a vocabulary of {vocabulary} has no room for 256 bytes and a separator; nearest: 257")
    library: Any = extra("tokenizers", "a tokenizer of byte pairs")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: a process that is stopped leaves no half file to be taken for a tokenizer.
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(tokenizer.to_str())
    Path(partial).chmod(0o644)
    Path(partial).replace(path)
    return load_bpe(path)
