"""Task streams: the benchmarks of plasticity, as pure functions of a seed's key and the task's index.

stream = make_stream("random-labels", "quick")
task = stream.begin(stream.data, jax.random.key(seed), 0)
for item in stream.order(stream.data, task, jax.random.key(1)):
    x, y = stream.batch(stream.data, task, item)
"""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from envs.datasets import Dataset, default_name, load
from envs.streams import classes, inputs, labels, regression, warm_start
from envs.streams.stream import Protocol, Published, Stream

__all__ = ["STREAMS", "Protocol", "Published", "Stream", "StreamKind", "make_stream"]


class StreamKind(NamedTuple):
    """A kind of stream.

    Attributes:
        make: (dataset, protocol) -> Stream; (protocol) -> Stream where it needs no data set.
        published: the protocols by name, and "quick": minutes on two cores, with digits and Fashion-MNIST alike.
        needs_data: whether it needs a data set.
        summary: in a line.
    """

    make: Callable[..., Stream]
    published: Mapping[str, Published]
    needs_data: bool
    summary: str


STREAMS: Mapping[str, StreamKind] = MappingProxyType(
    {
        "random-labels": StreamKind(
            labels.random_labels,
            labels.RANDOM_LABEL_PROTOCOLS,
            True,
            "memorize labels that every task draws anew",
        ),
        "permuted-inputs": StreamKind(
            inputs.permuted_inputs, inputs.PERMUTED_PROTOCOLS, True, "pixels in a new random order in every task"
        ),
        "label-permutation": StreamKind(
            labels.label_permutation, labels.LABEL_PERMUTATION_PROTOCOLS, True, "classes renamed in every task"
        ),
        "class-split": StreamKind(
            classes.class_split, classes.SPLIT_PROTOCOLS, True, "another pair of classes in every task"
        ),
        "five-plus-one": StreamKind(
            classes.five_plus_one, classes.FIVE_PLUS_ONE_PROTOCOLS, True, "five new classes, then one, in turn"
        ),
        "class-incremental": StreamKind(
            classes.class_incremental, classes.INCREMENTAL_PROTOCOLS, True, "classes join and stay"
        ),
        "warm-start": StreamKind(
            warm_start.warm_start, warm_start.WARM_START_PROTOCOLS, True, "the same problem with more and more data"
        ),
        "slowly-changing-regression": StreamKind(
            regression.slowly_changing_regression,
            regression.SLOW_PROTOCOLS,
            False,
            "a fixed target network, one of whose input bits flips in every task",
        ),
        "growing-offset": StreamKind(
            regression.growing_offset, regression.OFFSET_PROTOCOLS, False, "random targets whose mean grows"
        ),
        "input-scaling": StreamKind(
            inputs.input_scaling, inputs.SCALING_PROTOCOLS, True, "inputs times another factor in every task"
        ),
        "sign-flips": StreamKind(
            inputs.sign_flips, inputs.SIGN_PROTOCOLS, True, "another random sign for each input in every task"
        ),
        "interpolated-permutations": StreamKind(
            inputs.interpolated_permutations,
            inputs.INTERPOLATED_PROTOCOLS,
            True,
            "pixels that go gradually from one random order to the next",
        ),
    }
)


def make_stream(name: str, protocol: str | Protocol, dataset: Dataset | None = None) -> Stream:
    """Makes a stream.

    Args:
        name: one of `STREAMS`.
        protocol: one of the stream's published ones by name, or numbers of your own.
        dataset: the images. Without it: those of the published protocol, or with numbers of your own
            `envs.datasets.default_name()`. Not read by a stream that needs none.

    Raises:
        DatasetMissing: the protocol's data set is not on this machine.
        ValueError: an unknown name; more examples than the data set has; or what the stream itself refuses.
    """
    if name not in STREAMS:
        raise ValueError(f"unknown stream {_unknown(name, STREAMS)}")
    kind = STREAMS[name]
    wanted = ""
    if isinstance(protocol, str):
        if protocol not in kind.published:
            raise ValueError(f"{name} has no protocol {_unknown(protocol, kind.published)}")
        wanted, protocol = kind.published[protocol].dataset, kind.published[protocol].protocol
    if not kind.needs_data:
        return kind.make(protocol)
    if dataset is None:
        dataset = load(wanted or default_name())
    available = len(dataset.images)
    if protocol.examples > available:
        raise ValueError(
            f"{name}: the protocol asks for {protocol.examples} examples, {dataset.name} has {available} for training; "
            f"nearest: {available}"
        )
    return kind.make(dataset, protocol)


def _unknown(name: str, known: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{name!r}: known are {', '.join(known)}; nearest: {nearest}"
