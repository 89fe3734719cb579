"""The schedule that a finished run's gradient norms ask for (Defazio et al., 2310.07831, "When, Why and How Much?").

Run once with any schedule (the paper: linear decay), log the norm of the gradient at every update, refine, and run
again with `schedules.follow(peak, steps, profiles.table(schedules.refine(norms)))`. Where norms fall at first a warm-up
appears; where they rise at the end the last decay gets faster; constant norms give linear decay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nap.checks import Number

Multipliers = Float[np.ndarray, " updates"]


def refine(gradient_norms: Number | Sequence[Number], order: int = 2, smooth: float = 0.1) -> Multipliers:
    """The refined multipliers of a run, largest 1 (the paper's algorithm 1).

    w_t * (w_{t+1} + ... + w_T) with w = G^-order, G the smoothed norms; 0 at the last update.

    Args:
      gradient_norms: norm of the gradient at every update [updates]: l2 for order 2, l1 for order 1.
      order: 2 for SGD, 1 for Adam and its like.
      smooth: width of the median filter that the norms go through, as a share of the run; 0 for none.

    Raises:
      ValueError: another order, smooth outside of [0, 1], less than two norms, or one that is not positive.
    """
    if order not in (1, 2):
        raise ValueError(f"order is 2 for SGD or 1 for Adam-like optimizers, got {order}")
    weights = _smoothed(gradient_norms, smooth) ** -float(order)
    after = np.append(np.cumsum(weights[::-1])[::-1][1:], 0.0)
    multipliers = weights * after
    return multipliers / multipliers.max()


def refine_by_bound(gradient_norms: Number | Sequence[Number], smooth: float = 0.1) -> Multipliers:
    """The multipliers that minimise the paper's bound on the last iterate's loss, for SGD; largest 1.

    The bound, for steps l_1, ..., l_T and a start at distance D from the optimum,

        (D^2 + sum_t G_t^2 l_t^2) / (2 S_1) + 1/2 sum_{k<T} l_k / (S_k S_{k+1}) sum_{t>=k} G_t^2 l_t^2,

    S_k = l_k + ... + l_T, is minimised numerically by the paper (by L-BFGS). As l_k / (S_k S_{k+1}) is
    1 / S_{k+1} - 1 / S_k, it telescopes to

        D^2 / (2 S_1) + G_T^2 S_T / 2 + 1/2 sum_{k<T} G_k^2 (S_k - S_{k+1})^2 / S_{k+1},

    of which the best S_{k+1} / S_k follows backwards from k = T - 1, exactly; D only scales the steps. For constant
    norms it is linear, up to the last step, which is 1 + sqrt(2) times the one before.

    Args:
      gradient_norms: l2 norm of the gradient at every update [updates].
      smooth: width of the median filter that the norms go through, as a share of the run; 0 for none.

    Raises:
      ValueError: smooth outside of [0, 1], less than two norms, or one that is not positive.
    """
    norms = _smoothed(gradient_norms, smooth)
    norms = norms / norms.max()
    cost, ratios = norms[-1] ** 2, np.zeros_like(norms)  # least cost of the tail from k on is cost * S_k; S_{k+1} / S_k
    for k in range(len(norms) - 2, -1, -1):
        root = np.sqrt(cost + norms[k] ** 2)
        ratios[k] = norms[k] / root
        cost = 2 * norms[k] * cost / (root + norms[k])
    sums = np.cumprod(np.append(1.0, ratios[:-1]))
    steps = sums * (1 - ratios)
    return steps / steps.max()


def _smoothed(gradient_norms: Number | Sequence[Number], smooth: float) -> Multipliers:
    """The norms behind a running median: the published code's window, and its reflection at the end of the run."""
    from scipy.ndimage import median_filter  # 0.2 s, which `import nap` does not need

    norms = np.asarray(gradient_norms, np.float64)
    if norms.ndim != 1 or norms.size < 2 or not np.all((norms > 0) & np.isfinite(norms)):
        raise ValueError(f"gradient_norms must be at least 2 positive numbers, a sequence, got shape {norms.shape}")
    if not 0 <= smooth <= 1:
        raise ValueError(f"smooth is a share of the run, from 0 to 1, got {smooth}")
    width = 2 * (int(smooth * norms.size) // 2) + 1
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    return median_filter(padded, size=width, mode="nearest")[: norms.size]
