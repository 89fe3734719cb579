"""What the studies of schedules learn: images by a small network, or text, byte by byte, by a small transformer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from envs.datasets import default_name, load
from envs.fingerprints import of_dataset
from envs.loaders import byte_tokenizer, fingerprint, load_text, tokenize, unread_files
from envs.loaders.sequences import cut
from envs.loaders.text import STANDARD_LIBRARY
from experiments.harness.bounds import A_PATH, at_least, check_bounds
from experiments.harness.data import refused, say_unread
from experiments.harness.errors import UserError
from nap.layers import Output, identity
from nap.networks import MLP, Network, as_functions
from nap.networks.transformer import Transformer

Method = Literal["none", "layernorm", "nap"]

CONTEXT = 32
"""Bytes of a sequence of text."""
HEADS = 2
"""Of attention."""
MOST_SEQUENCES = 2**14
"""Sequences of a text that are trained on, drawn once out of all: half a megabyte."""
MOST_SCORED = {"images": 10_000, "text": 256}
"""Examples of training and of the held-out data that losses are measured on; all of them where there are fewer."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is learned, and by which network; the studies of schedules share it."""

    task: Literal["images", "text"] = "images"
    """images: their classes, by an MLP; text: each next byte, by a transformer."""
    data: Annotated[str, A_PATH] = ""
    """images: fashion-mnist, mnist, digits, cifar10, cifar100 or the path of an .npz file; "" for what is on the
    machine. text: a file or a folder; "" for stdlib, Python's own library."""
    hidden: Annotated[tuple[int, ...], at_least(1)] = (64, 64)
    """images: widths of the hidden layers; with no number logistic regression. text: of the blocks, all alike."""
    batch_size: Annotated[int, at_least(1)] = 50
    """Images, or sequences of 32 bytes, in an update."""
    label_noise: Annotated[float, at_least(0, below=1)] = 0.0
    """How likely a label is replaced by a random one, anew whenever it is seen; losses are expectations over it."""


TEXT = Problem("text", hidden=(32,), batch_size=8)
"""A language model that is trained within seconds: one block, 29,000 parameters."""


class Data(NamedTuple):
    """Images [n, height, width, channels] (uint8) and labels [n]; or bytes [n, CONTEXT] and those behind each.

    NumPy's arrays, or JAX's where they are on a device.
    """

    x: Any
    y: Any
    test_x: Any
    test_y: Any


class Task(NamedTuple):
    """A problem with its data.

    Attributes:
        data: in NumPy's arrays.
        classes: what a target can be.
        scored: at most so many examples of each part are scored.
        network: (method, widths of the hidden layers; by default the problem's) -> the functions of its network.
        prepared: (x) -> what the network takes.
        fingerprints: of what the data come from, by the option that names it.
    """

    data: Data
    classes: int
    scored: int
    network: Callable[..., Network]
    prepared: Callable[[jax.Array], jax.Array]
    fingerprints: Mapping[str, str]


def load_problem(problem: Problem) -> tuple[Problem, Task]:
    """The problem with its data named, and the task.

    Raises:
        UserError: the data are not there, or a value makes no sense.
    """
    check_bounds(problem)
    of_text = problem.task == "text"
    problem = dataclasses.replace(problem, data=problem.data or (STANDARD_LIBRARY if of_text else default_name()))
    task = (_text if of_text else _images)(problem)
    if not 1 <= problem.batch_size <= (count := len(task.data.y)):
        examples = "sequences" if of_text else "images"
        raise UserError(
            f"--batch-size {problem.batch_size}: from 1 to the {count} training {examples} of {problem.data}"
        )
    return problem, task


class LogisticRegression(nnx.Module):
    """A linear layer alone, whose cross-entropy is convex.

    Args:
        inputs: size of the (flattened) input.
        classes: how many there are.
        rngs: NNX random streams.
    """

    def __init__(self, inputs: int, classes: int, *, rngs: nnx.Rngs):
        self.output = Output(inputs, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits for a batch; each input is flattened."""
        return self.output(x.reshape(x.shape[0], -1))

    def with_activations(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and no activations."""
        return self(x), {}


def _images(problem: Problem) -> Task:
    try:
        dataset = load(problem.data)
    except ValueError as error:
        raise UserError(str(error)) from None
    told = {"--data": of_dataset(dataset)}
    inputs, classes = math.prod(dataset.images.shape[1:]), dataset.classes

    def make(method: Method, hidden: tuple[int, ...], rngs: nnx.Rngs) -> Any:
        if not hidden:
            return LogisticRegression(inputs, classes, rngs=rngs)
        norm = "none" if method == "none" else "layer"
        return MLP(inputs, hidden, classes, norm=norm, rngs=rngs)

    data = Data(dataset.images, dataset.labels, dataset.test_images, dataset.test_labels)
    network = _network_of(make, problem)
    return Task(data, classes, MOST_SCORED["images"], network, lambda x: x.astype(jnp.float32) / 255, told)


def _text(problem: Problem) -> Task:
    sizes, written = problem.hidden, " ".join(map(str, problem.hidden))
    if len(set(sizes)) != 1 or sizes[0] % (2 * HEADS):
        raise UserError(f"--hidden {written}: widths of a transformer's blocks, all alike and multiples of {2 * HEADS}")
    tokenizer = byte_tokenizer()
    try:
        corpus = load_text(problem.data)
        say_unread("--data", problem.data, unread_files(problem.data))
    except ValueError as error:
        raise refused("--data", problem.data, error) from None
    parts = [_sequences(tokenize(part, tokenizer)) for part in corpus]
    if not all(len(x) for x, _ in parts):
        raise UserError(f"--data {problem.data}: a sequence of {CONTEXT} bytes is needed in both parts of the text")

    def make(method: Method, hidden: tuple[int, ...], rngs: nnx.Rngs) -> Any:
        plain = method == "none"
        return Transformer(
            tokenizer.vocabulary,
            context=CONTEXT,
            layers=len(hidden),
            heads=HEADS,
            width=hidden[0],
            norm="layer",
            placement="pre" if plain else "every",
            qk_norm=not plain,
            rngs=rngs,
        )

    (x, y), (test_x, test_y) = parts
    data = Data(x[:MOST_SEQUENCES], y[:MOST_SEQUENCES], test_x, test_y)
    told = {"--data": fingerprint((*corpus.documents, *corpus.held_out))}
    return Task(data, tokenizer.vocabulary, MOST_SCORED["text"], _network_of(make, problem), identity, told)


def _sequences(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All whole sequences of a text and their targets, in an order that is drawn once."""
    count = (len(tokens) - 1) // CONTEXT
    batch = cut(tokens, np.random.default_rng(0).permutation(count), CONTEXT)
    return batch.inputs, batch.targets


def _network_of(make: Callable[..., Any], problem: Problem) -> Callable[..., Network]:
    def network(method: Method, hidden: tuple[int, ...] = problem.hidden) -> Network:
        return as_functions(lambda rngs: make(method, hidden, rngs))

    return network
