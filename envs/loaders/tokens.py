"""Tokenizers: bytes, or byte pairs (BPE) by the library `tokenizers`. Both give any text back exactly."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from envs.loaders.loader import extra

SEPARATOR = "<|endoftext|>"


class Tokenizer(NamedTuple):
    """How text becomes numbers.

    Attributes:
        vocabulary: how many tokens there are.
        separator: the token that stands between documents, and in none: a text that spells it is encoded as letters.
        encode: (texts) -> the tokens of each.
        decode: (tokens, separators among them or not) -> the text.
    """

    vocabulary: int
    separator: int
    encode: Callable[[Sequence[str]], list[Integer[np.ndarray, " tokens"]]]
    decode: Callable[[Sequence[int]], str]


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
        ValueError: `tokenizers` is not installed, or the file is not a tokenizer or has no such token.
    """
    library = extra("tokenizers", f"the tokenizer {path}")
    try:
        tokenizer = library.Tokenizer.from_str(path.read_text())
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path}: not a tokenizer ({error})") from error
    separator = tokenizer.token_to_id(SEPARATOR)
    if separator is None:
        raise ValueError(f"{path}: it has no token {SEPARATOR}, which stands between documents")
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()  # as some were saved with, for another use
    tokenizer.no_padding()

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=False)

    return Tokenizer(tokenizer.get_vocab_size(), separator, encode, decode)


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
