"""The rivals of Normalize-and-Project by name: their strengths, and their place around or behind an optimizer."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import optax

import nap
from experiments.harness.bounds import ReadIf, at_least, more_than
from nap import interventions
from nap.networks import Network


def has_part(config: Any, *names: str) -> bool:
    """Whether the method of a configuration has one of these parts."""
    return not set(config.method.split("+")).isdisjoint(names)


def of_parts(*names: str) -> ReadIf:
    """Declares that an option is read where the method has one of these parts."""
    return ReadIf(lambda config: has_part(config, *names), f"--method with {' or '.join(names)}")


ONCE_A_TASK = (
    "reset-head", "reset-layers", "reset-network", "reset-optimizer", "dash", "hard-shrink-and-perturb",
    "hare-and-tortoise",
)  # fmt: skip
"""Those that come once a task."""


@dataclasses.dataclass(frozen=True)
class RivalsConfig:
    """Strengths of the interventions, each read by the one it is named after. Defaults are published ones where there
    are any."""

    every: Annotated[int, at_least(0), of_parts(*ONCE_A_TASK)] = 0
    """Updates between the interventions that come once a task (reset-*, hard-shrink-and-perturb, hare-and-tortoise,
    dash); 0: at the end of every task."""
    l2_strength: Annotated[float, at_least(0), of_parts("l2")] = 1e-3
    """l2: weight of ||theta||^2 / 2, normalizations left out: what a weight decay in the gradient is."""
    weight_decay: Annotated[float, at_least(0), of_parts("weight-decay")] = 1e-2
    """weight-decay: share of each matrix and kernel that is taken away at every update, in learning rates (decoupled,
    as in AdamW); 0.1 is usual for language. Behind momentum (0.9), which makes a step ten gradients, ten times what is
    usual inside the gradient: 5e-3 for 5e-4."""
    l2_init_strength: Annotated[float, at_least(0), of_parts("l2-init")] = 1e-2
    """l2-init: weight of ||theta - theta_0||^2 / 2, normalizations left out (Kumar et al.'s best with Adam)."""
    w2_init_strength: Annotated[float, at_least(0), of_parts("w2-init")] = 1e-2
    """w2-init: weight of the squared Wasserstein distance to the initial weights."""
    parseval_strength: Annotated[float, at_least(0), of_parts("parseval")] = 1e-3
    """parseval: weight of ||W W^T - 2 I||^2 in a layer of 64 units; one of n units has (64 / n)^2 times that."""
    spectral_strength: Annotated[float, at_least(0), of_parts("spectral-regularization")] = 1e-3
    """spectral-regularization: weight of (sigma_max^k - 1)^2."""
    shrink: Annotated[float, at_least(0, most=1), of_parts("shrink-and-perturb")] = 1e-4
    """shrink-and-perturb: share of each weight that is taken away at every update."""
    perturb: Annotated[float, at_least(0), of_parts("shrink-and-perturb")] = 1e-2
    """shrink-and-perturb: share of a fresh draw that is added at every update."""
    hard_shrink: Annotated[float, at_least(0, most=1), of_parts("hard-shrink-and-perturb")] = 0.5
    """hard-shrink-and-perturb: share of each weight that a fresh draw replaces."""
    clip_kappa: Annotated[float, more_than(0), of_parts("weight-clipping")] = 3.0
    """weight-clipping: largest weight, in bounds of the uniform initialization."""
    noise: Annotated[float, at_least(0), of_parts("noisy-updates")] = 0.01
    """noisy-updates: standard deviation of the noise on each update, in learning rates."""
    upgd_sigma: Annotated[float, at_least(0), of_parts("upgd")] = 1e-3
    """upgd: standard deviation of the noise on the gradient."""
    upgd_weight_decay: Annotated[float, at_least(0), of_parts("upgd")] = 1e-3
    """upgd: weight decay, in learning rates."""
    redo_tau: Annotated[float, of_parts("redo")] = 0.025
    """redo: largest dormancy score of a dormant unit."""
    redo_every: Annotated[int, at_least(1), of_parts("redo")] = 1000
    """redo: updates between recyclings."""
    redo_batches: Annotated[int, at_least(1), of_parts("redo")] = 16
    """redo: batches, the last before a recycling, that the scores are of."""
    replacement_rate: Annotated[float, at_least(0, most=1), of_parts("continual-backprop")] = 1e-4
    """continual-backprop: share of a layer's mature units that is replaced at every update."""
    maturity: Annotated[int, at_least(0), of_parts("continual-backprop")] = 100
    """continual-backprop: updates before a unit may be replaced."""
    snr_percentile: Annotated[float, more_than(0, most=1), of_parts("self-normalized-resets")] = 0.99
    """self-normalized-resets: share of a unit's silences that are as long as its threshold or shorter."""
    tortoise_momentum: Annotated[float, at_least(0, most=1), of_parts("hare-and-tortoise")] = 0.999
    """hare-and-tortoise: of the moving average of the weights."""
    dash_alpha: Annotated[float, more_than(0, most=1), of_parts("dash")] = 0.3
    """dash: weight of a new gradient in the moving average."""
    dash_shrink: Annotated[float, at_least(0, most=1), of_parts("dash")] = 0.3
    """dash: least factor that weights are shrunk by."""
    dash_window: Annotated[int, at_least(1), of_parts("dash")] = 10
    """dash: updates over which the gradient on new data is averaged, with the weights held still."""
    large_epsilon: Annotated[float, at_least(0), of_parts("large-epsilon")] = 1e-3
    """large-epsilon: Adam's epsilon."""
    equal_beta: Annotated[float, at_least(0, most=1), of_parts("equal-betas")] = 0.9
    """equal-betas: both of Adam's decays."""
    inject_at: Annotated[float, at_least(0, most=1), of_parts("plasticity-injection")] = 0.5
    """plasticity-injection: when the head is replaced, as a share of the run; for a sequence's fresh agents, of the
    sequence's run."""


class Setting(NamedTuple):
    """What the interventions need to know of a run.

    Attributes:
        network: the network that is trained.
        key: for what is random; may be traced.
        updates: length of the run.
        task_updates: length of a task; 0 where there are no tasks, or not all of one length.
        forget_at: updates behind which the optimizer forgets its moments, whatever the method.
    """

    network: Network
    key: jax.Array
    updates: int
    task_updates: int = 0
    forget_at: tuple[int, ...] = ()


class Context(NamedTuple):
    """What a rival is built from.

    Attributes:
        config: the strengths.
        setting: the run.
        rate: the learning rate at each update.
        features: features of a unit: 2 with crelu and fourier.
    """

    config: RivalsConfig
    setting: Setting
    rate: optax.Schedule
    features: int = 1

    @property
    def every(self) -> int:
        """Updates between the interventions that come once a task; ValueError in a run without tasks."""
        every = self.config.every or self.setting.task_updates
        if not every:
            raise ValueError("it comes once a task, and this run has no tasks of one length: give --every N (updates)")
        return every

    def key(self, name: str) -> jax.Array:
        """A random key for one intervention, whichever others there are."""
        return jax.random.fold_in(self.setting.key, zlib.crc32(name.encode()))

    def recycling(self, name: str) -> dict[str, Any]:
        """What every intervention that recycles units takes."""
        network = self.setting.network
        return {"readers": network.readers, "init": network.init, "key": self.key(name)}

    def resetting(self, name: str, layers: list[str] | None = None) -> dict[str, Any]:
        """What every reset of layers takes; None: of all."""
        patterns = ["*"] if layers is None else [f"{layer}/*" for layer in layers]
        return {"layers": patterns, "every": self.every, "init": self.setting.network.init, "key": self.key(name)}


Build = Callable[[Context], optax.GradientTransformation]
Wrap = Callable[[optax.GradientTransformation, Context], optax.GradientTransformation]

REGULARIZERS: dict[str, Build] = {
    "l2": lambda c: interventions.l2(c.config.l2_strength),
    "l2-init": lambda c: interventions.l2_init(c.config.l2_init_strength),
    "w2-init": lambda c: interventions.w2_init(c.config.w2_init_strength),
    "parseval": lambda c: interventions.parseval(c.config.parseval_strength),
    "spectral-regularization": lambda c: interventions.spectral_regularization(c.config.spectral_strength),
}
"""Added to the gradient, before clipping."""

OF_THE_STEP = ("large-epsilon", "equal-betas", "weight-decay", "upgd")
"""Part of the optimizer's own step: see `methods.make_optimizer`."""

WRAPPERS: dict[str, Wrap] = {
    "plasticity-injection": lambda inner, c: interventions.plasticity_injection(
        inner, at=max(1, round(c.config.inject_at * c.setting.updates))
    ),
    "redo": lambda inner, c: interventions.redo(
        inner,
        tau=c.config.redo_tau,
        every=c.config.redo_every,
        batches=min(c.config.redo_batches, c.config.redo_every),
        **c.recycling("redo"),
    ),
    "continual-backprop": lambda inner, c: interventions.continual_backprop(
        inner,
        rate=c.config.replacement_rate,
        maturity=c.config.maturity,
        features=c.features,
        **c.recycling("continual-backprop"),
    ),
    "self-normalized-resets": lambda inner, c: interventions.self_normalized_resets(
        inner, percentile=c.config.snr_percentile, **c.recycling("self-normalized-resets")
    ),
    "reset-head": lambda inner, c: interventions.reset_layers(
        inner, **c.resetting("reset-head", output_layers(c.setting.network))
    ),
    "reset-layers": lambda inner, c: interventions.reset_layers(
        inner, **c.resetting("reset-layers", last_layers(c.setting.network))
    ),
    "reset-network": lambda inner, c: interventions.reset_layers(inner, **c.resetting("reset-network")),
    "reset-optimizer": lambda inner, c: interventions.reset_optimizer_state(inner, every=c.every),
    "dash": lambda inner, c: interventions.dash(
        inner, every=c.every, alpha=c.config.dash_alpha, shrink=c.config.dash_shrink, window=c.config.dash_window
    ),
}
"""Put around the optimizer, in this order, the innermost first."""

AFTER: dict[str, Build] = {
    "noisy-updates": lambda c: interventions.noisy_updates(
        lambda count: c.config.noise * c.rate(count), key=c.key("noisy-updates")
    ),
    "shrink-and-perturb": lambda c: interventions.shrink_and_perturb(
        shrink=1 - c.config.shrink,
        perturb=c.config.perturb,
        init=c.setting.network.init,
        key=c.key("shrink-and-perturb"),
    ),
    "hard-shrink-and-perturb": lambda c: interventions.shrink_and_perturb(
        shrink=1 - c.config.hard_shrink,
        perturb=c.config.hard_shrink,
        init=c.setting.network.init,
        key=c.key("hard-shrink-and-perturb"),
        every=c.every,
    ),
    "weight-clipping": lambda c: interventions.clip_weights(c.config.clip_kappa),
    "spectral-normalization": lambda c: interventions.spectral_normalization(),
    "unit-projection": lambda c: interventions.project_units(),
    "hare-and-tortoise": lambda c: interventions.hare_and_tortoise(momentum=c.config.tortoise_momentum, every=c.every),
}
"""Behind the optimizer, on the weights it leads to, in this order."""

RECYCLING = ("redo", "continual-backprop", "self-normalized-resets", "reset-head", "reset-layers")
"""Those that reset an optimizer's state for a part of the weights."""


def names() -> list[str]:
    """All interventions."""
    return [*REGULARIZERS, *OF_THE_STEP, *WRAPPERS, *AFTER]


def output_layers(network: Network) -> list[str]:
    """The output layer, or those of a dueling network."""
    roles = nap.roles(jax.eval_shape(network.init, jax.random.key(0)))
    return list(dict.fromkeys(path.rpartition("/")[0] for path in roles.paths(nap.Role.OUTPUT)))


def last_layers(network: Network) -> list[str]:
    """The last hidden layers and the output layers."""
    outputs = output_layers(network)
    return [layer for layer, readers in network.readers.items() if set(readers) <= set(outputs)] + outputs
