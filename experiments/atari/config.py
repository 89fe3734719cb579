"""What an Atari run is: its options, the published presets, and what is refused."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any, Literal

import tyro

from agents.family import FAMILY, AgentName, Ingredients
from envs.atari import PROTOCOLS, AtariProtocol, resolve_game
from envs.games import GAMES
from experiments import harness
from experiments.harness.bounds import A_SEED, at_least, check_bounds, more_than, read_if
from experiments.harness.methods import MATCHING, NapConfig, OptimizerConfig, parse_method
from experiments.harness.rivals import RivalsConfig
from nap.layers import NormAxes

ON_ALE = read_if(lambda config: config.on_ale, "ale-py's games")
EXPLORES = read_if(lambda config: not config.ingredients.noisy, "agents that explore by epsilon, without noisy layers")
PRIORITIZES = read_if(lambda config: config.ingredients.prioritized, "agents with prioritized replay: --agent rainbow")
NORMALIZES = read_if(lambda config: parse_method(config.method).base != "none", "--method layernorm, rmsnorm or nap")
BY_EPISODES = read_if(lambda config: not config.evaluation_frames, "evaluations without --evaluation-frames")
ONE_GAME = read_if(lambda config: not config.games, "one game, without --games")


@dataclasses.dataclass(frozen=True)
class Config:
    """An Atari run. Frames are the emulator's: 4 for each agent step."""

    game: Annotated[str, ONE_GAME] = "pong"
    """Any of ale-py's games: pong, space_invaders, ...; a small one of ours: catch, bricks, moving-goals-0 (to 7),
    switching-bright, switching-dim; or, with pgx, minatar-asterix (breakout, freeway, seaquest, space_invaders)."""
    games: str = ""
    """Several games, one run after another, instead of one: names joined by commas, atari-10 or atari-57."""
    method: str = "nap"
    """none: the plain network; layernorm: a normalization before every nonlinearity; nap: that, and projection. With
    interventions joined by +: nap+redo, layernorm+l2-init."""
    agent: AgentName = "double-dqn"
    """What learns. Each ingredient of it can be taken out:"""
    no_distribution: bool = False
    """Learn expected returns only, not their distribution (c51, qr-dqn, iqn, rainbow)."""
    no_double: bool = False
    """The target network chooses the bootstrap action (double-dqn, rainbow)."""
    no_dueling: bool = False
    """One stream, not two for value and advantages (rainbow)."""
    no_noisy: bool = False
    """Dense layers and epsilon-greedy exploration, not noisy layers (rainbow)."""
    no_prioritized: bool = False
    """Uniform replay (rainbow)."""
    n_step: Annotated[int, at_least(0)] = 0
    """Rewards summed before bootstrapping; 0: the agent's own number, 3 for rainbow and 1 for the others."""
    torso: Literal["nature", "impala"] = "nature"
    """The convolutions: Mnih et al.'s three layers, or the residual network of IMPALA. Other games than ale-py's have
    none, or MinAtar's own."""
    hidden: Annotated[int, at_least(0)] = 0
    """Units of each hidden dense layer; 0: the published 512, and 128 for MinAtar."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; its weights are float32."""
    seed: Annotated[int, A_SEED] = 0
    """Determines the run, together with the other options and the version of the code."""
    frames: Annotated[int, at_least(1)] = 10_000_000
    """Training frames."""
    iteration_frames: Annotated[int, at_least(1)] = 100_000
    """Training frames between evaluations; a checkpoint is saved there, and new episodes begin."""
    evaluation_episodes: Annotated[int, at_least(1), BY_EPISODES] = 8
    """Episodes of each evaluation, with learning and noise off; rounded up to a multiple of the environments."""
    evaluation_frames: Annotated[int, at_least(0)] = 0
    """Frames of each evaluation, instead of a number of episodes (DQN Zoo: 500,000); the episodes that begin within
    them count, and are played to their end."""
    protocol: Annotated[Literal["machado", "dqn-zoo"], ON_ALE] = "machado"
    """machado: sticky actions, no life-loss signal. dqn-zoo: no-op starts, zero discount on life loss."""
    full_action_space: Annotated[bool, ON_ALE] = False
    """All 18 actions, not only those that do something in the game."""
    environment: Annotated[AtariProtocol | None, tyro.conf.Suppress] = None
    """The protocol's settings, filled in from its name, so that the run's folder has them."""
    num_envs: Annotated[int, at_least(1)] = 8
    """Environments stepped together."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    nap: NapConfig = dataclasses.field(default_factory=NapConfig)
    rivals: RivalsConfig = dataclasses.field(default_factory=RivalsConfig)
    norm_axes: Annotated[NormAxes, NORMALIZES] = "channels"
    """What a convolution's normalization averages over: channels, or all (height, width and channels)."""
    batch_size: Annotated[int, at_least(1)] = 32
    """Transitions in an update."""
    update_period: Annotated[int, at_least(1)] = 4
    """Agent steps for each update."""
    target_period: Annotated[int, at_least(1)] = 2000
    """Updates between copies to the target network; the first period begins with the run, not with the first update."""
    reward: Literal["clipped", "raw"] = "clipped"
    """What is learned from: the game's rewards clipped to -1 to 1, or as they are. Scores are never clipped."""
    gamma: Annotated[float, more_than(0, most=1)] = 0.99
    """Discount of one agent step."""
    replay_capacity: Annotated[int, at_least(1)] = 1_000_000
    """Agent steps in replay; 7,069 bytes each."""
    priority_exponent: Annotated[float, at_least(0, most=1), PRIORITIZES] = 0.5
    """How much priorities count when experience is drawn: 0 not at all, 1 fully."""
    importance_exponent: Annotated[float, at_least(0, most=1), PRIORITIZES] = 0.4
    """How far drawing by priority is corrected for at first; linear to 1 at the run's end."""
    uniform_probability: Annotated[float, at_least(0, most=1), PRIORITIZES] = 1e-3
    """Share of the draws that is uniform, with prioritized replay."""
    min_replay_frames: Annotated[int, at_least(0)] = 80_000
    """Frames before the first update."""
    exploration_frames: Annotated[int, at_least(0), EXPLORES] = 1_000_000
    """Frames over which epsilon goes linearly from 1 to its end (not with noisy layers, which explore)."""
    epsilon_end: Annotated[float, at_least(0, most=1), EXPLORES] = 0.01
    """Probability of a random action in training, at last (0 with noisy layers)."""
    evaluation_epsilon: Annotated[float, at_least(0, most=1)] = 0.001
    """Probability of a random action in evaluation."""
    log_every: Annotated[int, at_least(1)] = 500
    """Updates between records."""

    @property
    def on_ale(self) -> bool:
        """Whether it is played on ale-py's emulator, so that the protocol is of use."""
        return any(game not in GAMES for game in (self.games.split(",") if self.games else [self.game]))

    @property
    def ingredients(self) -> Ingredients:
        """What the agent is made of, without what was taken out."""
        made = FAMILY[self.agent]
        return Ingredients(
            distribution="none" if self.no_distribution else made.distribution,
            double=made.double and not self.no_double,
            dueling=made.dueling and not self.no_dueling,
            noisy=made.noisy and not self.no_noisy,
            shared_bias=made.shared_bias,
            prioritized=made.prioritized and not self.no_prioritized,
            n_step=self.n_step or made.n_step,
        )

    @property
    def iterations(self) -> int:
        """Iterations in the run."""
        return self.frames // self.iteration_frames

    @property
    def total_updates(self) -> int:
        """Updates in the run."""
        return (self.frames - self.min_replay_frames) // (FRAME_SKIP * self.update_period)


FRAME_SKIP = 4
STACK = 4

_ZOO = Config(
    frames=200_000_000,
    iteration_frames=1_000_000,
    evaluation_frames=500_000,
    protocol="dqn-zoo",
    target_period=2500,
    min_replay_frames=200_000,
    exploration_frames=4_000_000,
    method="none",
)
"""What DQN Zoo's agents have in common."""


def _zoo(agent: AgentName, optimizer: OptimizerConfig, **changes: Any) -> Config:
    return dataclasses.replace(_ZOO, agent=agent, optimizer=optimizer, **changes)


_RMSPROP = OptimizerConfig(optimizer="rmsprop", lr=2.5e-4, optimizer_epsilon=0.01 / 32**2, clip=0)

PRESETS = {
    "default": Config(),
    "dqn": _zoo("dqn", _RMSPROP, epsilon_end=0.1, evaluation_epsilon=0.05),
    "double-dqn": _zoo("double-dqn", _RMSPROP, evaluation_epsilon=0.01, target_period=7500),
    "c51": _zoo("c51", OptimizerConfig(lr=2.5e-4, optimizer_epsilon=0.01 / 32)),
    "qr-dqn": _zoo("qr-dqn", OptimizerConfig(lr=5e-5, optimizer_epsilon=0.01 / 32)),
    "iqn": _zoo("iqn", OptimizerConfig(lr=5e-5, optimizer_epsilon=0.01 / 32, clip=0), min_replay_frames=80_000),
    "rainbow": _zoo(
        "rainbow",
        OptimizerConfig(lr=6.25e-5, optimizer_epsilon=0.005 / 32),
        target_period=2000,
        min_replay_frames=80_000,
        evaluation_epsilon=0.0,
    ),
    "demo": Config(
        frames=48_000,
        iteration_frames=24_000,
        n_step=3,
        replay_capacity=20_000,
        min_replay_frames=8_000,
        exploration_frames=30_000,
        target_period=250,
        update_period=8,
        log_every=50,
        optimizer=OptimizerConfig(lr=2.5e-4),
    ),
}


"""Under the agents' names DQN Zoo's agents, with its constants. What differs: 8 environments instead of one, so that
updates come two at a time; noise is drawn for each example (there once for a batch); evaluations are played
without noise, and iqn's with evenly spaced quantiles (there both are drawn); the episodes that begin in an evaluation
are played to their end (there the last one is left out); nothing is evaluated before training (there a first
iteration)."""


def resolve(config: Config) -> Config:
    """The configuration with ale-py's name of the game and the protocol's settings.

    Raises:
      harness.UserError: a value that makes no sense, with the option and the nearest right value.
    """
    check_bounds(config)
    try:
        game = _named(config.game)
    except ValueError as error:
        raise harness.UserError(f"--game: {error}") from None
    if parse_method(config.method).base != "nap" and config.optimizer.schedule in MATCHING:
        raise harness.UserError(
            f"--schedule {config.optimizer.schedule}: it follows the norms of another run, so its own must be held: "
            f"--method nap, not {config.method}"
        )
    if config.reward == "raw" and config.ingredients.distribution == "categorical" and game not in GAMES:
        raise harness.UserError(
            f"--reward raw: the returns that {config.agent} can tell apart go from -10 to 10, and a game's scores go "
            "beyond; take --reward clipped, --no-distribution, or an agent without such an end, qr-dqn or iqn"
        )
    if config.torso == "impala" and game in GAMES:
        raise harness.UserError(f"--torso impala: it is for ale-py's games, and {game} has a network of its own")
    _check_ingredients(config)
    if config.frames % config.iteration_frames:
        nearest = max(1, round(config.frames / config.iteration_frames)) * config.iteration_frames
        raise harness.UserError(
            f"--frames {config.frames}: it must be a multiple of --iteration-frames {config.iteration_frames}; "
            f"the nearest is {nearest}"
        )
    step = FRAME_SKIP * config.num_envs
    if config.iteration_frames % step:
        raise harness.UserError(
            f"--iteration-frames {config.iteration_frames}: it must be a multiple of {step} "
            f"(4 frames a step in each of {config.num_envs} environments); "
            f"the nearest is {max(1, round(config.iteration_frames / step)) * step}"
        )
    length = STACK + config.ingredients.n_step
    sequence = FRAME_SKIP * config.num_envs * length
    if config.min_replay_frames < max(sequence, FRAME_SKIP * config.batch_size):
        raise harness.UserError(
            f"--min-replay-frames {config.min_replay_frames}: it must be at least "
            f"{max(sequence, FRAME_SKIP * config.batch_size)}, for the first batch"
        )
    # What is due after the last step is not made.
    fewest = config.min_replay_frames + FRAME_SKIP * config.update_period + step
    if config.frames < fewest:
        raise harness.UserError(
            f"--frames {config.frames}: it must be at least {fewest}, for an update every {config.update_period} agent "
            f"steps after --min-replay-frames {config.min_replay_frames}"
        )
    if config.replay_capacity < sequence // FRAME_SKIP:
        raise harness.UserError(
            f"--replay-capacity {config.replay_capacity}: it must be at least {sequence // FRAME_SKIP}, "
            f"{length} steps of each of {config.num_envs} environments"
        )
    if 0 < config.evaluation_frames < step:
        raise harness.UserError(f"--evaluation-frames {config.evaluation_frames}: it must be 0, or at least {step}")
    protocol = dataclasses.replace(PROTOCOLS[config.protocol], full_action_space=config.full_action_space)
    return dataclasses.replace(config, game=game, environment=protocol)


def _named(game: str) -> str:
    """The game by its own name.

    Raises:
        ValueError: there is no such game, or what it needs is not installed.
    """
    if game in GAMES:
        GAMES[game]()
        return game
    try:
        return resolve_game(game)
    except ValueError:
        near = difflib.get_close_matches(game.lower(), GAMES, n=1, cutoff=0.75)
        if not near:
            raise
        raise ValueError(f"unknown game '{game}'; did you mean '{near[0]}'?") from None


def _check_ingredients(config: Config) -> None:
    """Refuses to take out what the agent does not have."""
    made = FAMILY[config.agent]
    if config.ingredients.distribution == "implicit-quantile" and "plasticity-injection" in config.method.split("+"):
        raise harness.UserError(
            f"--method {config.method}: plasticity-injection adds outputs, and iqn's can't be added"
        )
    has = {"distribution": made.distribution != "none"}
    has |= {name: getattr(made, name) for name in ("double", "dueling", "noisy", "prioritized")}
    for name, there in has.items():
        if getattr(config, f"no_{name}") and not there:
            found = ", ".join(f"--no-{other}" for other, kept in has.items() if kept) or "nothing"
            raise harness.UserError(f"--no-{name}: {config.agent} does not have it; what can be taken out is {found}")
