"""The learning of `by_hand` in PyTorch's eager mode, for a process of its own: its threads must not disturb JAX."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.bench.by_hand import ADAM_EPSILON, B1, B2, CLASSES, HIDDEN, NORM_EPSILON, PROJECTED, RATE


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is learnt.

    Attributes:
      weights: to start from, float32, by path as in `by_hand`.
      images: uint8 [examples, pixels].
      batch_size: examples in an update.
    """

    weights: Mapping[str, np.ndarray]
    images: np.ndarray
    batch_size: int


class Learner:
    """A seed.

    Args:
      weights: to start from, by path.
      fused: whether Adam is the fused one instead of PyTorch's default.

    Attributes:
      weights: as they are now.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], *, fused: bool) -> None:
        self._torch = _torch()
        self.weights: dict[str, Any] = {
            path: self._torch.tensor(weight, requires_grad=True) for path, weight in weights.items()
        }
        self._radii = [self._norm(group) for group in PROJECTED]
        self._adam = self._torch.optim.Adam(
            list(self.weights.values()), lr=RATE, betas=(B1, B2), eps=ADAM_EPSILON, fused=fused
        )

    def update(self, x: Any, y: Any) -> Any:
        """One update; returns the loss before it. x is float32 [batch, pixels], y int64 [batch]."""
        functional, weights = self._torch.nn.functional, self.weights
        for layer in HIDDEN:
            x = x @ weights[f"{layer}/kernel"]
            scale, offset = weights[f"{layer}/norm/scale"], weights[f"{layer}/norm/offset"]
            x = functional.relu(functional.layer_norm(x, scale.shape, scale, offset, NORM_EPSILON))
        logits = self._torch.addmm(weights["output/bias"], x, weights["output/kernel"])
        loss = functional.cross_entropy(logits, y)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        with self._torch.no_grad():
            for group, radius in zip(PROJECTED, self._radii, strict=True):
                factor = radius / self._norm(group)
                for path in group:
                    weights[path].mul_(factor)
        return loss.detach()

    def train(self, images: Any, batch_size: int, updates: int) -> float:
        """Updates on random labels; returns the mean loss. images is uint8 [examples, pixels]."""
        torch = self._torch
        labels = torch.randint(CLASSES, (len(images),))
        steps = len(images) // batch_size
        total, order = torch.zeros([]), []
        for i in range(updates):
            if i % steps == 0:
                order = torch.randperm(len(images))[: steps * batch_size].split(batch_size)
            rows = order[i % steps]
            total += self.update(images[rows].float().div_(255), labels[rows])
        return float(total) / updates

    def _norm(self, group: tuple[str, ...]) -> Any:
        with self._torch.no_grad():
            norms = [self._torch.linalg.vector_norm(self.weights[path]) for path in group]
            return norms[0] if len(norms) == 1 else self._torch.hypot(*norms)


def train(problem: Problem, updates: int, *, threads: int, fused: bool) -> float:
    """So many updates of a new seed, with so many threads; returns the mean loss."""
    torch = _torch()
    torch.set_num_threads(threads)
    learner = Learner(problem.weights, fused=fused)
    return learner.train(torch.from_numpy(problem.images), problem.batch_size, updates)


def _torch() -> Any:
    # By name, as the package is optional and the type checker is to know nothing of it.
    return importlib.import_module("torch")
