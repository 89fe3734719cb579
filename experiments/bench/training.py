"""What normalization and projection cost a step of ordinary training: of a transformer, and of a ResNet.

Everything is the product's own code and data at the default configurations of `language` and `images`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from experiments import images, language
from experiments.harness.supervised import Learner, Task, learner_of
from experiments.harness.timing import Goal, Row, interleaved, scaled
from experiments.harness.training import TrainingOptions

LANGUAGE, IMAGES = language.Config(), images.Config()
METHODS = ("none", "layernorm", "nap")
STEPS = 3  # in a row, in each repeat


def rows(repeats: int) -> Iterator[Row]:
    """A training step by each method against the usual network's, which has normalizations of its own."""
    yield from _of_language(repeats)
    yield from _of_images(repeats)


def _of_language(repeats: int) -> list[Row]:
    configs = {method: language.resolve(dataclasses.replace(LANGUAGE, method=method)) for method in METHODS}
    text = language.load(configs["none"], TrainingOptions())

    def learner(config: language.Config) -> Learner:
        network = language.network_of(config, text.tokenizer.vocabulary)
        return learner_of(Task(network, lambda batch: batch.inputs, language.judge), config)

    batch, _ = next(text.data.train.batches(text.data.train.start))
    return _rows("transformer", {method: learner(config) for method, config in configs.items()}, batch, repeats)


def _of_images(repeats: int) -> list[Row]:
    configs = {method: images.resolve(dataclasses.replace(IMAGES, method=method)) for method in METHODS}
    loaded = images.load_images(configs["none"], images.Options())

    def learner(config: images.Config) -> Learner:
        return learner_of(loaded.task(images.network_of(config, loaded)), config)

    batch, _ = next(loaded.data.train.batches(loaded.data.train.start))
    return _rows("ResNet", {method: learner(config) for method, config in configs.items()}, batch, repeats)


def _rows(network: str, learners: Mapping[str, Learner], batch: Any, repeats: int) -> list[Row]:
    batch = jax.device_put(batch)
    sides = {method: _steps_of(learner, batch) for method, learner in learners.items()}
    times = {name: scaled(seconds, 1e3) for name, seconds in interleaved(sides, repeats=repeats, calls=STEPS).items()}
    return [
        Row(f"{network} step: nap, vs none", "ms", times["nap"], times["none"], Goal(1.05)),
        Row("  layernorm, vs none", "ms", times["layernorm"], times["none"]),
        Row("  projection alone: nap, vs layernorm", "ms", times["nap"], times["layernorm"]),
    ]


def _steps_of(learner: Learner, batch: Any) -> Callable[[], Any]:
    update, state = jax.jit(learner.update, donate_argnums=0), jax.jit(learner.init)(jax.random.key(0))

    def step() -> Any:
        nonlocal state
        state, loss, _ = update(state, batch)
        return loss

    return step
