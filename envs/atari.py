"""Atari games, many at once, under a published protocol whose every option is written down.

`AtariEnvs` puts `ale_py.vector_env.AtariVectorEnv` under a protocol and gives plain numpy arrays back. The vector
environment's own defaults (clipped rewards, a FIRE press at reset, no sticky actions) are no published protocol, so
none of them is relied upon.

    envs = AtariEnvs("pong", protocol=PROTOCOLS["machado"], num_envs=8, seed=0)
    timestep = envs.reset()
    envs.send(actions)         # the games run in ALE's threads, and the learner may run here,
    timestep = envs.recv()     # until their results are taken
"""

import dataclasses
import difflib
import functools
import re
from types import MappingProxyType
from typing import Any, Literal

import ale_py.roms
import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Int64

from envs.atari_modes import FlavouredVectorEnv, resolve_flavour
from envs.screens import View
from envs.timestep import Episode, TimeStep

# ale-py ships these ROMs without a single-player mode; loading one exits the process, with no exception to catch.
_NO_SINGLE_PLAYER = frozenset({"combat", "joust", "maze_craze", "warlords"})


@dataclasses.dataclass(frozen=True)
class AtariProtocol:
    """What the numbers of a game depend on. There are no defaults: a protocol says everything.

    Fixed for every protocol, because `TimeStep` depends on it: grey frames, rewards as the game gives them (clipping
    is the agent's), no FIRE press at reset, discrete actions, and a new episode that begins within the step that ends
    the old one.

    Attributes:
        repeat_action_probability: the probability, at every emulator frame, that the action before is executed again
            in place of the one that was chosen (sticky actions).
        full_action_space: all 18 joystick actions in every game, rather than the game's minimal set.
        noop_min: fewest no-op frames before an episode's first observation. In 16 games, Double Dunk and Name This Game
            among them, ALE itself needs some frames to start an episode in the default mode, and they count as well.
        noop_max: most of them; their number is uniform over both ends included.
        frame_skip: emulator frames for which an action is held.
        max_pool: a frame is the pixel-wise maximum of the last two emulator frames.
        stack: frames in an observation, the newest last.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        max_frames_per_episode: emulator frames, no-ops not counted, after which an episode is truncated.
        life_loss: what the loss of a life does. "ignored": nothing. "zero-discount": that step's discount is 0 and
            the game goes on. Neither ends the episode.

    Raises:
        ValueError: a value out of its range.
    """

    repeat_action_probability: float
    full_action_space: bool
    noop_min: int
    noop_max: int
    frame_skip: int
    max_pool: bool
    stack: int
    height: int
    width: int
    max_frames_per_episode: int
    life_loss: Literal["ignored", "zero-discount"]

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 0 <= self.repeat_action_probability <= 1:
            nearest = min(max(self.repeat_action_probability, 0.0), 1.0)
            raise ValueError(
                f"AtariProtocol: repeat_action_probability is {self.repeat_action_probability}, must lie in 0 to 1; "
                f"nearest: {nearest}"
            )
        for name in ("frame_skip", "stack", "height", "width", "max_frames_per_episode"):
            if getattr(self, name) < 1:
                raise ValueError(f"AtariProtocol: {name} is {getattr(self, name)}, must be at least 1")
        if self.noop_min < 0:
            raise ValueError(f"AtariProtocol: noop_min is {self.noop_min}, must be at least 0")
        if self.noop_max < self.noop_min:
            raise ValueError(f"AtariProtocol: noop_max is {self.noop_max}, must be at least noop_min = {self.noop_min}")
        if self.life_loss not in ("ignored", "zero-discount"):
            raise ValueError(f"AtariProtocol: life_loss is '{self.life_loss}', must be 'ignored' or 'zero-discount'")


# "machado": after Machado et al. (2018), "Revisiting the Arcade Learning Environment": sticky actions and nothing else
#   at random, a lost life tells nothing; with Dopamine's cap (30 minutes of play) and minimal actions. For all 18:
#   dataclasses.replace(PROTOCOLS["machado"], full_action_space=True).
#
# "dqn-zoo": as DQN Zoo's gym_atari.py and processors.py have it. What still differs:
#   - a frame is the maximum of two grey frames, shrunk by area averaging; there the maximum of two RGB frames, made
#     grey and shrunk by bilinear interpolation.
#   - the number of no-ops is uniform over 1 to 30 as there, but drawn from ALE's generator, so seeds do not correspond.
#   - a life lost at the very step that the cap truncates goes unseen, for the lives that ALE then reports are those
#     of the new episode.
#   - the emulator is today's ALE, there atari_py's older one.
PROTOCOLS = MappingProxyType(
    {
        "machado": AtariProtocol(
            repeat_action_probability=0.25,
            full_action_space=False,
            noop_min=0,
            noop_max=0,
            frame_skip=4,
            max_pool=True,
            stack=4,
            height=84,
            width=84,
            max_frames_per_episode=108_000,
            life_loss="ignored",
        ),
        "dqn-zoo": AtariProtocol(
            repeat_action_probability=0.0,
            full_action_space=False,
            noop_min=1,
            noop_max=30,
            frame_skip=4,
            max_pool=True,
            stack=4,
            height=84,
            width=84,
            max_frames_per_episode=108_000,
            life_loss="zero-discount",
        ),
    }
)


@functools.cache
def games() -> tuple[str, ...]:
    """The names, snake_case and sorted, of the games that ale-py ships and one player can play (104 in ale-py 0.12)."""
    return tuple(sorted(set(ale_py.roms.get_all_rom_ids()) - _NO_SINGLE_PLAYER))


def resolve_game(name: str) -> str:
    """The snake_case name of a game given as "space_invaders", "SpaceInvaders", "ALE/SpaceInvaders-v5" or the like.

    Only the name is taken from a Gymnasium id: the protocol that the id stands for is not.

    Raises:
        ValueError: no such game, or one that a single player cannot play.
    """
    by_key = {_key(game): game for game in games()}
    key = _key(re.sub(r"^ALE/|(NoFrameskip)?(-v\d+)?$", "", name, flags=re.IGNORECASE))
    if key in by_key:
        return by_key[key]
    for game in _NO_SINGLE_PLAYER:
        if key == _key(game):
            raise ValueError(f"game '{game}' has no single-player mode in ale-py; envs.atari.games() lists the others")
    near = [f"'{by_key[match]}'" for match in difflib.get_close_matches(key, by_key, n=3, cutoff=0.55)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"envs.atari.games() lists the {len(by_key)} that exist"
    raise ValueError(f"unknown game '{name}'; {hint}")


def _key(name: str) -> str:
    """The name without what spellings differ in: case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class AtariEnvs:
    """The same game `num_envs` times, stepped together by ALE's own threads.

    Every array of a `TimeStep` is new: no later step overwrites it.

    Args:
        game: in any spelling that `resolve_game` takes.
        protocol: one of `PROTOCOLS`, or your own.
        num_envs: how many.
        seed: any integer. The same (game, protocol, num_envs, seed) and actions give the same bits, whatever `threads`.
        threads: that ALE uses; 0 lets it take as many as there are cores or environments. With a mode or a difficulty
            that is not the game's default there are none, and it is slower: see `envs.atari_modes`.
        mode: of the game; None for its default.
        difficulty: likewise.
        filmed: whether `view` is to be asked. They are then stepped as those of another mode: one after another, and
            with other numbers of no-ops for a seed.

    Attributes:
        game: its snake_case name.
        flavour: its mode and its difficulty, each None where it is the game's default.
        protocol: as given.
        num_envs: as given.
        num_actions: how many there are to choose from.
        action_meanings: their names: "NOOP", "FIRE", "UPRIGHT", ...
        observation_shape: of one environment: (stack, height, width).
        options: all that `AtariVectorEnv` is given, by name, as JSON can hold it.

    Raises:
        ValueError: an unknown game, a mode or difficulty that it does not have, `num_envs` < 1 or `threads` < 0.
    """

    def __init__(
        self,
        game: str,
        *,
        protocol: AtariProtocol,
        num_envs: int,
        seed: int,
        threads: int = 0,
        mode: int | None = None,
        difficulty: int | None = None,
        filmed: bool = False,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"AtariEnvs: num_envs is {num_envs}, must be at least 1")
        if threads < 0:
            raise ValueError(f"AtariEnvs: threads is {threads}, must be at least 1, or 0 to let ALE choose")
        self.game = resolve_game(game)
        self.protocol = protocol
        self.num_envs = num_envs
        self.observation_shape = (protocol.stack, protocol.height, protocol.width)
        self.options = _vector_env_options(self.game, protocol, num_envs, threads)
        self.flavour, self._filmed = resolve_flavour(self.game, mode, difficulty), filmed
        if self.flavour == (None, None) and not filmed:
            self._env = AtariVectorEnv(**self.options)
            actions = self._env.ale.get_action_set()
        else:
            self._env = FlavouredVectorEnv(self.options, *self.flavour, filmed)
            actions = self._env.actions
        self.action_meanings = tuple(action.name for action in actions)
        self.num_actions = len(self.action_meanings)
        self._seeds = _fold_seed(seed, num_envs)
        self._state: Literal["new", "idle", "stepping", "closed"] = "new"

    def reset(self, seed: int | None = None) -> TimeStep:
        """Starts every environment afresh from its seed: a second reset repeats the first one's episodes.

        The emulators load their games anew, so what was played before leaves no trace: these environments then equal
        new ones of that seed. The GIL is free meanwhile.

        Args:
            seed: any integer, for this reset and those after it; None keeps the one there was.

        Raises:
            RuntimeError: actions were sent and not received, or the environments are closed.
        """
        self._expect("reset", "new", "idle")
        if seed is not None:
            self._seeds = _fold_seed(seed, self.num_envs)
        first = np.ones(self.num_envs, bool)
        observation, info = self._redraw_noops(first, *self._env.reset(seed=self._seeds))
        self._lives, self._frame_number = info["lives"], info["frame_number"]
        self._returns = np.zeros(self.num_envs, np.float64)
        self._frames = np.zeros(self.num_envs, np.int64)
        self._state = "idle"
        return TimeStep(
            observation, np.zeros(self.num_envs, np.float32), np.ones(self.num_envs, np.float32), first, episodes=()
        )

    def send(self, actions: npt.ArrayLike) -> None:
        """Hands every environment its action and returns at once.

        Args:
            actions: integers of shape [num_envs], each an index into `action_meanings`.

        Raises:
            ValueError: actions of another shape, not integers, or out of range.
            RuntimeError: not reset yet, actions sent before were not received, or the environments are closed.
        """
        # ALE itself hangs for good on an action out of range and on a send or recv out of turn.
        self._expect("send", "idle")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"actions to '{self.game}' are {actions.dtype} of shape {actions.shape}, "
                f"must be integers of shape ({self.num_envs},)"
            )
        outside = (actions < 0) | (actions >= self.num_actions)
        if outside.any():
            env = int(outside.argmax())
            raise ValueError(
                f"action of environment {env} is {actions[env]}, '{self.game}' has 0 to {self.num_actions - 1}; "
                f"nearest: {np.clip(actions[env], 0, self.num_actions - 1)}"
            )
        self._env.send(actions.astype(np.int64))
        self._state = "stepping"

    def recv(self) -> TimeStep:
        """Waits for what the actions sent last have led to. The GIL is free meanwhile.

        Raises:
            RuntimeError: no actions were sent, or the environments are closed.
        """
        self._expect("recv", "stepping")
        observation, reward, terminated, truncated, info = self._env.recv()
        first = terminated | truncated
        discount = 1 - terminated.astype(np.float32)
        if self.protocol.life_loss == "zero-discount":
            # ALE's own life_loss_info is of no use here: under it a lost life and the end of the game look the same
            # when the reset comes within the step, and a drop to no spare life while the game goes on is not told.
            discount[~first & (info["lives"] < self._lives)] = 0
        self._returns += reward
        # `frame_number` runs on over episodes and no-ops, so what it grew by, less the frames that the new episode
        # has had already, is the length of a step that game over cut short.
        self._frames += info["frame_number"] - self._frame_number - first * info["episode_frame_number"]
        episodes = tuple(
            Episode(int(env), float(self._returns[env]), int(self._frames[env])) for env in np.flatnonzero(first)
        )
        self._returns[first] = 0
        self._frames[first] = 0
        observation, info = self._redraw_noops(first, observation, info)
        self._lives, self._frame_number = info["lives"], info["frame_number"]
        self._state = "idle"
        return TimeStep(observation, reward.astype(np.float32), discount, first, episodes)

    def step(self, actions: npt.ArrayLike) -> TimeStep:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def view(self, env: int) -> View:
        """What is to be seen of a filmed environment, in the console's colours: the frame of which the agent sees grey.

        Raises:
            RuntimeError: not reset yet, or actions were sent and not received, or they are not filmed.
        """
        self._expect("view", "idle")
        if not (self._filmed and isinstance(self._env, FlavouredVectorEnv)):
            raise RuntimeError(f"AtariEnvs.view() on '{self.game}': make them with filmed=True")
        return self._env.view(env)

    def close(self) -> None:
        """Frees the emulators and their threads, even between `send` and `recv`. May be called twice."""
        if self._state != "closed":
            self._state = "closed"
            self._env.close()
            del self._env

    def _expect(self, method: str, *states: str) -> None:
        if self._state in states:
            return
        reason = {
            "new": "call reset() first",
            "idle": "no actions were sent: call send() first",
            "stepping": "actions were sent: call recv() first",
            "closed": "it is closed",
        }[self._state]
        raise RuntimeError(f"AtariEnvs.{method}() on '{self.game}': {reason}")

    def _redraw_noops(
        self, started: Bool[np.ndarray, " num_envs"], observation: np.ndarray, info: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Resets those of the environments just `started` that drew fewer no-ops than the protocol's `noop_min`.

        ALE draws from 0 upwards, so drawing again is what gives the uniform distribution over noop_min to noop_max.
        """
        while (redraw := started & (info["episode_frame_number"] < self.protocol.noop_min)).any():
            # No seed: each environment's generator goes on, so the redraw is as repeatable as the draw was.
            observation, info = self._env.reset(options={"reset_mask": redraw})
        return observation, info


def _vector_env_options(game: str, protocol: AtariProtocol, num_envs: int, threads: int) -> dict[str, Any]:
    """Every option of `AtariVectorEnv` by name, so that no default of it is in force."""
    return {
        "game": game,
        "num_envs": num_envs,
        "batch_size": num_envs,
        "num_threads": threads,
        "thread_affinity_offset": -1,
        "max_num_frames_per_episode": protocol.max_frames_per_episode,
        "repeat_action_probability": protocol.repeat_action_probability,
        "full_action_space": protocol.full_action_space,
        "continuous": False,
        "continuous_action_threshold": 0.5,
        "autoreset_mode": AutoresetMode.SAME_STEP.value,
        "img_height": protocol.height,
        "img_width": protocol.width,
        "grayscale": True,
        "stack_num": protocol.stack,
        "frameskip": protocol.frame_skip,
        "maxpool": protocol.max_pool,
        # ALE draws 0 to noop_max - 1 of them, and its 0 and 1 both mean none.
        "noop_max": protocol.noop_max + 1,
        "episodic_life": False,
        "life_loss_info": False,
        "reward_clipping": False,
        "use_fire_reset": False,
    }


def _fold_seed(seed: int, num_envs: int) -> Int64[np.ndarray, " num_envs"]:
    """Distinct seeds in ALE's range of 1 to 2^31 - 1, by a hash, lest seeds 0 and 1 share all games but one."""
    (start,) = np.random.SeedSequence([abs(seed), int(seed < 0)]).generate_state(1)
    return (int(start) + np.arange(num_envs, dtype=np.int64)) % (2**31 - 1) + 1
