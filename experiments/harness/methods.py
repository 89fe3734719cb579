"""What `--method`, `--optimizer`, `--lr` and `--schedule` stand for: one place for every experiment.

A method is a network (`none`, `layernorm`, `rmsnorm`, `nap`), an activation, and interventions, joined by "+":
`nap+redo`, `layernorm+l2-init`, `crelu`. Where no network is named it is `none`, the plain one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

import nap
from experiments.harness import rivals
from experiments.harness.bounds import at_least, read_if
from experiments.harness.errors import UserError, unknown
from experiments.harness.rivals import Context, RivalsConfig, Setting
from nap import interventions, paths, schedules
from nap.activations import ActivationName, features_per_unit
from nap.layers import Norm
from nap.networks import Recipe
from nap.paths import PyTree
from nap.projection import Affine
from nap.schedules import profiles

Base = Literal["none", "layernorm", "rmsnorm", "nap"]
ACTIVATIONS: tuple[ActivationName, ...] = ("leaky-relu", "crelu", "prelu", "rational", "fourier")
NOT_HOMOGENEOUS: tuple[ActivationName, ...] = ("rational", "fourier")
"""Activations for which scaling scale and offset together changes the function: projecting them would constrain it."""


FIXED_END = ("constant", "step", "nap-cosine", "inverse-sqrt", "matching", "global-matching")
"""The schedules that end where they do, whatever `lr_end` is."""


def _reads_end(config: Any) -> bool:
    return config.optimizer.schedule not in FIXED_END


def _reads_epsilon(config: Any) -> bool:
    if config.optimizer.optimizer == "adam":
        return not rivals.has_part(config, "large-epsilon")
    return config.optimizer.optimizer in ("radam", "rmsprop")


def _reads_betas(config: Any) -> bool:
    if config.optimizer.optimizer == "adam":
        return not rivals.has_part(config, "equal-betas")
    return config.optimizer.optimizer == "radam"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    optimizer: Literal["adam", "radam", "rmsprop", "momentum", "sgd"] = "adam"
    """adam; radam (rectified, which is a warm-up); rmsprop (centred, decay 0.95, as DQN has it); momentum (0.9); sgd
    (plain)."""
    lr: Annotated[float, at_least(0)] = 6.25e-5
    """Learning rate, at its peak."""
    schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "rex",
        "step",
        "one-cycle",
        "warmup-cosine",
        "nap-cosine",
        "wsd",
        "inverse-sqrt",
        "matching",
        "global-matching",
    ] = "constant"
    """How the learning rate goes from its peak to `lr_end` over the run's updates. warmup-cosine, wsd and inverse-sqrt
    first rise from 0, for 1 % of them; then wsd is constant but for the last 10 %, where it decays exponentially (to 0,
    linearly), and inverse-sqrt falls to a tenth. step: a tenth at 30, 60 and 90 %, each time. one-cycle: up from 1/25
    until 30 %, back until 85 %, and on to the end. nap-cosine is NaP's own for sequences of games: 1,000 updates up
    from 1e-8 (a tenth of them at most), then a cosine to 1e-6. Or, for nap on Atari, as the growing norms of the same
    run with layernorm imply, which is made first: each hidden layer's rate by its own norm (matching) or all by the
    geometric mean (global-matching)."""
    lr_end: Annotated[
        float, at_least(0), read_if(_reads_end, "--schedule linear, cosine, rex, one-cycle, warmup-cosine or wsd")
    ] = 0.01
    """Where the schedule ends, as a fraction of the peak; constant, step, nap-cosine, inverse-sqrt do not read it."""
    optimizer_epsilon: Annotated[
        float, at_least(0), read_if(_reads_epsilon, "--optimizer adam, radam or rmsprop, without large-epsilon")
    ] = 1.5e-4
    """Added to the root of the second moment (adam), or inside the root (rmsprop)."""
    adam_b1: Annotated[
        float, at_least(0, below=1), read_if(_reads_betas, "--optimizer adam or radam, without equal-betas")
    ] = 0.9
    """Decay of Adam's first moment."""
    adam_b2: Annotated[
        float, at_least(0, below=1), read_if(_reads_betas, "--optimizer adam or radam, without equal-betas")
    ] = 0.999
    """Decay of Adam's second moment."""
    clip: Annotated[float, at_least(0)] = 10.0
    """Largest global norm of the gradient; 0 for no clipping."""


MATCHING = ("matching", "global-matching")
"""The schedules that follow the norms of another run; their own rate is constant."""
WARMUP = 0.01
"""Share of the updates in which a schedule that warms up does so."""


def _warmup_cosine(peak: float, updates: int, end: float) -> optax.Schedule:
    warmup = round(WARMUP * updates)
    return schedules.phases(peak, [(profiles.warmup(), warmup), (profiles.cosine(end), updates - warmup)])


def _wsd(peak: float, updates: int, end: float) -> optax.Schedule:
    return schedules.wsd(peak, updates, profile=profiles.exponential(end) if end else profiles.linear())


def _nap_cosine(peak: float, updates: int, end: float) -> optax.Schedule:
    if not peak:
        return schedules.constant(peak)
    return schedules.warmup_cosine(peak, updates, warmup=min(1000, updates // 10))


SCHEDULES: Mapping[str, Callable[[float, int, float], optax.Schedule]] = {
    **dict.fromkeys(("constant", *MATCHING), lambda peak, updates, end: schedules.constant(peak)),
    "linear": lambda peak, updates, end: schedules.linear(peak, updates, end=end),
    "cosine": lambda peak, updates, end: schedules.cosine(peak, updates, end=end),
    "rex": lambda peak, updates, end: schedules.rex(peak, updates, end=end),
    "step": lambda peak, updates, end: schedules.step(peak, updates),
    "one-cycle": lambda peak, updates, end: schedules.one_cycle(peak, updates, end=end),
    "warmup-cosine": _warmup_cosine,
    "nap-cosine": _nap_cosine,
    "wsd": _wsd,
    "inverse-sqrt": lambda peak, updates, end: schedules.inverse_sqrt(peak, max(1, round(WARMUP * updates))),
}
"""What `--schedule` names: functions of the peak, the run's updates and the end as a fraction of the peak."""
ORDERS = {"adam": 1, "radam": 1, "rmsprop": 1, "momentum": 2, "sgd": 2}
"""`optimizer_order` of `nap.matching_schedule`, for each optimizer."""
WEIGHTS = (nap.Role.HIDDEN, nap.Role.NOISE, nap.Role.OUTPUT, nap.Role.OUTPUT_NOISE, nap.Role.EMBEDDING)
"""What a weight decay acts on."""


@dataclasses.dataclass(frozen=True)
class NapConfig:
    """Normalize-and-Project's own choices; no other method reads them, except `norm` (layernorm does)."""

    norm: Annotated[Literal["layer", "rms"], rivals.of_parts("nap", "layernorm")] = "layer"
    """LayerNorm or RMSNorm before every nonlinearity."""
    affine: Annotated[Affine | Literal["auto"], rivals.of_parts("nap")] = "auto"
    """Scale and offset of hidden normalizations: projected jointly, regularized to 1 and 0, or left free; auto projects
    them before activations like ReLU, and regularizes them before others."""
    project_every: Annotated[int, at_least(1), rivals.of_parts("nap")] = 1
    """Project after every so many updates."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method's parts."""

    base: Base
    activation: ActivationName
    interventions: tuple[str, ...]


def parse_method(text: str) -> Method:
    """The parts of a method's name.

    Raises:
      UserError: a part that does not exist (with the nearest one), two networks or two activations, a part twice.
    """
    parts = text.split("+")
    for part in parts:
        if part not in method_names():
            raise unknown("a method", part, method_names(), option="--method")
    bases: list[Base] = [base for base in get_args(Base) if base in parts]
    activations = [activation for activation in ACTIVATIONS if activation in parts]
    for chosen in (bases, activations):
        if len(chosen) > 1:
            raise UserError(f"--method {text}: it can have one of {' and '.join(chosen)}, not both")
    if len(set(parts)) < len(parts):
        raise UserError(f"--method {text}: a part is named twice")
    if "plasticity-injection" in parts and (others := [name for name in rivals.RECYCLING if name in parts]):
        raise UserError(f"--method {text}: plasticity-injection has two heads, and {others[0]} is for one; drop either")
    others = tuple(name for name in rivals.names() if name in parts)
    return Method(bases[0] if bases else "none", activations[0] if activations else "relu", others)


def method_names() -> list[str]:
    """All parts that a method can have."""
    return [*get_args(Base), *ACTIVATIONS, *rivals.names()]


def method_label(method: str, config: OptimizerConfig) -> str:
    """The method in the name of a run's folder: with the schedule, where the rate is not constant."""
    return method if config.schedule == "constant" else f"{method}-{config.schedule}"


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The learning rate at each update of a run of `updates` updates; without the multipliers of a matching one.

    Raises:
      UserError: a peak or an end that the schedule cannot have.
    """
    try:
        return SCHEDULES[config.schedule](config.lr, updates, config.lr_end)
    except ValueError as error:
        raise UserError(f"--schedule {config.schedule} --lr {config.lr} --lr-end {config.lr_end}: {error}") from None


def norm_of(method: Method, config: NapConfig) -> Norm:
    """The normalization that a method's network has."""
    if method.base == "none":
        return "none"
    return "rms" if method.base == "rmsnorm" else config.norm


def adapt_recipe(method: Method, recipe: Recipe) -> Recipe:
    """The network as the method trains it: with a second head for plasticity injection, otherwise as it is.

    The head is the last hidden layer and the output, or both of each in a dueling network.
    """
    if "plasticity-injection" not in method.interventions:
        return recipe
    head = tuple(f"{layer}/*" for layer in rivals.last_layers(recipe.functions()))
    return dataclasses.replace(recipe, injected=head)


def make_optimizer(
    method: Method,
    config: OptimizerConfig,
    nap_config: NapConfig,
    rivals_config: RivalsConfig,
    setting: Setting,
    multipliers: Mapping[str, optax.Schedule] | None = None,
    rate: optax.Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The complete optimizer of a method.

    In this order: regularizers on the gradient, clipping, the optimizer, interventions, and projection if the method
    has it.

    Args:
      method: the parts of its name.
      config: of the optimizer.
      nap_config: of the projection.
      rivals_config: of the interventions.
      setting: the run.
      multipliers: of the learning rate, for the parameters that have a schedule of their own, by path.
      rate: the learning rate at each update, where it is not simply that of `learning_rate`.

    Raises:
      UserError: an intervention that comes once a task in a run without tasks, or a strength that makes no sense.
    """
    assert multipliers or config.schedule not in MATCHING, "a matching schedule is in its multipliers"
    rate = rate or learning_rate(config, setting.updates)
    context = Context(rivals_config, setting, rate, features_per_unit(method.activation))
    chosen = method.interventions
    try:
        before = [build(context) for name, build in rivals.REGULARIZERS.items() if name in chosen]
        clip = [_clip_by_global_norm(config.clip)] if config.clip else []
        optimizer = _step(method, config, context)
        if setting.forget_at:
            optimizer = interventions.reset_optimizer_state(optimizer, every=setting.forget_at)
        if multipliers:
            optimizer = optax.chain(optimizer, nap.scale_by_schedules(multipliers))
        for name, wrap in rivals.WRAPPERS.items():
            if name in chosen:
                optimizer = wrap(optimizer, context)
        after = [build(context) for name, build in rivals.AFTER.items() if name in chosen]
    except ValueError as error:
        raise UserError(f"--method {'+'.join(chosen)}: {error}") from None
    # The regularizers stand outside of the wrappers: a reset of the optimizer must not move what L2-init pulls to.
    optimizer = optax.chain(*before, *clip, optimizer, *after)
    if method.base == "nap":
        fitting: Affine = "regularize" if method.activation in NOT_HOMOGENEOUS else "project"
        affine = fitting if nap_config.affine == "auto" else nap_config.affine
        return nap.normalize_and_project(optimizer, affine=affine, every=nap_config.project_every)
    return optax.with_extra_args_support(optimizer)


def _clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """What `optax.clip_by_global_norm` does, by one factor for all gradients.

    Optax divides each entry by the norm; XLA's CPU backend writes the quotients to memory and reads them twice, which
    takes 1 to 5 % of a Rainbow update's time.
    """

    def clip(gradients: PyTree, _: PyTree | None) -> PyTree:
        factor = jnp.minimum(1.0, largest / optax.tree.norm(gradients))
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), gradients)

    return optax.stateless(clip)


def _step(method: Method, config: OptimizerConfig, context: Context) -> optax.GradientTransformation:
    """The optimizer proper, the learning rate included."""
    if config.optimizer == "rmsprop":
        if rest := set(method.interventions) & set(rivals.OF_THE_STEP):
            raise ValueError(f"{min(rest)} needs --optimizer adam, momentum or sgd, got rmsprop")
        return optax.rmsprop(context.rate, decay=0.95, eps=config.optimizer_epsilon, centered=True)
    direction = _direction(method, config, context)
    if "upgd" in method.interventions:
        if "weight-decay" in method.interventions:
            raise ValueError("upgd has a weight decay of its own, --upgd-weight-decay")
        step = interventions.upgd(
            1.0,
            sigma=context.config.upgd_sigma,
            weight_decay=context.config.upgd_weight_decay,
            key=context.key("upgd"),
            direction=direction,
        )
        # The rate stands behind it, where it goes on when the optimizer's state is reset.
        return optax.chain(step, optax.scale_by_schedule(context.rate))
    decay = [_weight_decay(context.config.weight_decay)] if "weight-decay" in method.interventions else []
    return optax.chain(direction, *decay, optax.scale_by_learning_rate(context.rate))


def _weight_decay(strength: float) -> optax.GradientTransformation:
    """For matrices, kernels and embeddings; biases, scales and offsets keep their size."""

    def decays(params: PyTree) -> PyTree:
        weights = set(nap.roles(params).paths(*WEIGHTS))
        return paths.map_leaves(lambda path, leaf: path in weights, params)

    return optax.add_decayed_weights(strength, decays)


def _direction(method: Method, config: OptimizerConfig, context: Context) -> optax.GradientTransformation:
    chosen = method.interventions
    if config.optimizer == "adam":
        # Recycled units need a step count of their own; where there are none, the single count is cheaper.
        adam = interventions.scale_by_adam if set(chosen) & set(rivals.RECYCLING) else optax.scale_by_adam
        equal = context.config.equal_beta
        b1, b2 = (equal, equal) if "equal-betas" in chosen else (config.adam_b1, config.adam_b2)
        epsilon = context.config.large_epsilon if "large-epsilon" in chosen else config.optimizer_epsilon
        return adam(b1, b2, eps=epsilon)
    for name in ("large-epsilon", "equal-betas"):
        if name in chosen:
            raise ValueError(f"{name} changes Adam, and the optimizer is {config.optimizer}")
    if config.optimizer == "radam":
        return optax.scale_by_radam(config.adam_b1, config.adam_b2, eps=config.optimizer_epsilon)
    return optax.trace(0.9) if config.optimizer == "momentum" else optax.identity()
