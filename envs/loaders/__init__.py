"""Loaders for supervised training: images and text in batches, in an order that a seed fixes, resumable anywhere.

train = training_images(load("cifar10"), 128, seed=0, augment=True)
for batch, position in train.batches(train.start):
    ...
"""

from envs.loaders.choices import FORMS, Question, load_questions
from envs.loaders.image_files import (
    ImageFiles,
    ImageSplits,
    held_out_image_files,
    load_image_files,
    training_image_files,
)
from envs.loaders.images import (
    PUBLISHED,
    ImageBatch,
    Statistics,
    crop_and_flip,
    held_out_images,
    normalize,
    statistics,
    training_images,
)
from envs.loaders.loader import WHOLE, Loader, Position, Share
from envs.loaders.sequences import TextBatch, held_out_sequences, tokenize, training_sequences
from envs.loaders.streamed import first_documents, open_stream, stream_fingerprint, training_stream
from envs.loaders.text import Corpus, fingerprint, load_text, unread_files
from envs.loaders.tokens import Tokenizer, byte_tokenizer, load_bpe, train_bpe

__all__ = [
    "FORMS",
    "PUBLISHED",
    "WHOLE",
    "Corpus",
    "ImageBatch",
    "ImageFiles",
    "ImageSplits",
    "Loader",
    "Position",
    "Question",
    "Share",
    "Statistics",
    "TextBatch",
    "Tokenizer",
    "byte_tokenizer",
    "crop_and_flip",
    "fingerprint",
    "first_documents",
    "held_out_image_files",
    "held_out_images",
    "held_out_sequences",
    "load_bpe",
    "load_image_files",
    "load_questions",
    "load_text",
    "normalize",
    "open_stream",
    "statistics",
    "stream_fingerprint",
    "tokenize",
    "train_bpe",
    "training_image_files",
    "training_images",
    "training_sequences",
    "training_stream",
    "unread_files",
]
