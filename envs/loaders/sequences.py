"""Token sequences of one length, packed without a gap: each token is a target exactly once in an epoch.

Documents stand in a row, a separator before each and one at the end. A sequence goes on over separators, so what it
reads before one is of another document, as in GPT-2's training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Integer

from envs.loaders.loader import WHOLE, Loader, Share, drawn, endless, epoch_order, in_turn, one_pass
from envs.loaders.tokens import Tokenizer, encoded


class TextBatch(NamedTuple):
    """Some sequences.

    Attributes:
        inputs: tokens.
        targets: the token behind each of them.
        weights: 1; 0 for targets that only fill up a sequence or a batch.
    """

    inputs: Int32[np.ndarray, "batch length"]
    targets: Int32[np.ndarray, "batch length"]
    weights: Float32[np.ndarray, "batch length"]


def tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> Integer[np.ndarray, " tokens"]:
    """All documents in a row, a separator before each and one at the end; uint16 where that is enough, else int32."""
    dtype = np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.int32
    separator = np.array([tokenizer.separator], dtype)
    parts = [part.astype(dtype) for part in encoded(tokenizer, documents)]
    return np.concatenate([piece for part in parts for piece in (separator, part)] + [separator])


def sequence_count(tokens: Integer[np.ndarray, " tokens"], length: int) -> int:
    """How many sequences there are: the last one is filled up."""
    return -(-(len(tokens) - 1) // length)


def training_sequences(
    tokens: Integer[np.ndarray, " tokens"], length: int, batch_size: int, *, seed: int, share: Share = WHOLE
) -> Loader:
    """Sequences, every one once in each epoch, in an order of its own.

    Args:
        tokens: from `tokenize`.
        length: targets of a sequence.
        batch_size: sequences of a batch, in all processes together.
        seed: of the orders.
        share: the part of each batch that is wanted.

    Returns:
        Batches: `TextBatch`.

    Raises:
        ValueError: a length below 1, or a batch that can't be shared.
    """
    _check(length, batch_size, share)
    batch_at = functools.partial(_training_batch, tokens, length, batch_size, seed, share)
    return endless(batch_at, batch_size, sequence_count(tokens, length))


def held_out_sequences(
    tokens: Integer[np.ndarray, " tokens"], length: int, batch_size: int, *, share: Share = WHOLE
) -> Loader:
    """The sequences in turn, once; see `training_sequences`."""
    _check(length, batch_size, share)
    batch_at = functools.partial(_held_out_batch, tokens, length, batch_size, share)
    return one_pass(batch_at, batch_size, sequence_count(tokens, length))


def cut(tokens: Integer[np.ndarray, " tokens"], numbers: Integer[np.ndarray, " batch"], length: int) -> TextBatch:
    """The sequences of these numbers; where the tokens end before a sequence does, the last one is repeated."""
    places = numbers[:, None] * length + np.arange(length + 1)
    windows = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int32)
    return TextBatch(windows[:, :-1], windows[:, 1:], (places[:, 1:] < len(tokens)).astype(np.float32))


def _check(length: int, batch_size: int, share: Share) -> None:
    if length < 1:
        raise ValueError(f"sequences of {length} tokens: must be at least 1")
    share.rows(batch_size)


def _training_batch(
    tokens: Integer[np.ndarray, " tokens"], length: int, batch_size: int, seed: int, share: Share, step: int
) -> TextBatch:
    count = sequence_count(tokens, length)
    _, chosen = drawn(step, batch_size, share, count, lambda epoch: epoch_order(seed, epoch, count))
    return cut(tokens, chosen, length)


def _held_out_batch(
    tokens: Integer[np.ndarray, " tokens"], length: int, batch_size: int, share: Share, step: int
) -> TextBatch:
    chosen, weights = in_turn(step, batch_size, share, sequence_count(tokens, length))
    batch = cut(tokens, chosen, length)
    return batch._replace(weights=batch.weights * weights[:, None])
