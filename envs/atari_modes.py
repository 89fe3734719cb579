"""Other modes and difficulties of Atari games: one game, made harder, or merely different.

A mode is what the console's SELECT switch chooses, a difficulty what its difficulty switches say; the two together are
a flavour of the game. Machado et al. (2018), "Revisiting the Arcade Learning Environment", made them part of ALE;
Farebrother, Machado and Bowling (2018), "Generalization and Regularization in DQN", train in one flavour and go on in
another.

`ale_py.vector_env.AtariVectorEnv` plays a game's default flavour and has no way to another (ALE's issue 699 asks for
one), so `FlavouredVectorEnv` takes its place where one is asked for. In the default flavour the two agree to the bit,
frames and sticky actions included (`tests/envs/test_atari_modes.py`), but for three things:
  - no-ops are drawn alike, but not the same number for the same seed;
  - where a frame is a whole fraction of the screen both ways, 105 × 80 say, a mean that is halfway between two grey
    levels may be rounded the other way;
  - it plays one game after another on the caller's thread, as ALE's single games keep Python's lock: some 0.6 times the
    frames a second that AtariVectorEnv has on one core, however many there are.
"""

import functools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ale_py.roms
import numpy as np
from ale_py import Action, ALEInterface, LoggerMode
from jaxtyping import Float32, Int64, UInt8

from envs.screens import Screen as Colours
from envs.screens import View

Screen = UInt8[np.ndarray, "screen_height screen_width"]
Screens = UInt8[np.ndarray, "num_envs screen_height screen_width"]
Frames = UInt8[np.ndarray, "num_envs height width"]


class Flavours(NamedTuple):
    """What a game can be set to.

    Attributes:
        modes: of one player.
        difficulties: of the first player's switch.
        default: the mode and the difficulty that it starts in.
    """

    modes: tuple[int, ...]
    difficulties: tuple[int, ...]
    default: tuple[int, int]


@functools.cache
def flavours(game: str) -> Flavours:
    """What a game, in ale-py's own spelling, can be set to."""
    ale = _load(game)
    state = ale.cloneState()
    default = state.getCurrentMode(), state.getDifficulty()
    return Flavours(tuple(ale.getAvailableModes()), tuple(ale.getAvailableDifficulties()), default)


@functools.cache
def resolve_flavour(game: str, mode: int | None, difficulty: int | None) -> tuple[int | None, int | None]:
    """The mode and the difficulty, each None where it is the game's default anyway.

    Args:
        game: in ale-py's own spelling.
        mode: one that the game has; None for its default.
        difficulty: likewise.

    Raises:
        ValueError: no such mode or difficulty; or one in which ale-py takes the game for over before it has begun.
    """
    if mode is None and difficulty is None:
        return None, None
    there = flavours(game)
    mode = _resolve(game, "mode", mode, there.modes, there.default[0])
    difficulty = _resolve(game, "difficulty", difficulty, there.difficulties, there.default[1])
    ale = _load(game, mode, difficulty)
    ale.reset_game()
    if ale.game_over():  # in ale-py 0.12: Demon Attack, in every mode but its default
        raise ValueError(f"ale-py can't play '{game}' in mode {mode}: it takes the game for over before it has begun")
    return mode, difficulty


def _resolve(game: str, what: str, value: int | None, known: tuple[int, ...], default: int) -> int | None:
    if value is None or value == default:
        return None
    if value not in known:
        nearest = min(known, key=lambda one: abs(one - value))
        raise ValueError(f"'{game}' has no {what} {value}; nearest: {nearest}; of all: {_told(known)}")
    return value


class FlavouredVectorEnv:
    """What `AtariEnvs` uses of `AtariVectorEnv`, in any flavour of the game.

    The games are stepped one after another, in `recv`.

    Args:
        options: those of `AtariVectorEnv`, by name; but for those that no `envs.atari.AtariProtocol` varies, which are
            not read, as what they are set to is all that is known here.
        mode: one that the game has; None for its default.
        difficulty: likewise.
        filmed: whether `view` is to be asked; it costs a third of the speed.

    Attributes:
        actions: those to choose from.

    Raises:
        ValueError: frames larger than the screen.
    """

    def __init__(
        self, options: Mapping[str, Any], mode: int | None, difficulty: int | None, filmed: bool = False
    ) -> None:
        self._emulators = [_Emulator(options, mode, difficulty, filmed) for _ in range(options["num_envs"])]
        self.actions = self._emulators[0].actions
        shape = options["img_height"], options["img_width"]
        self._shrink = shrinker(self._emulators[0].screen_shape, shape)
        self._stack = np.zeros((len(self._emulators), options["stack_num"], *shape), np.uint8)

    def reset(
        self, *, seed: Int64[np.ndarray, " num_envs"] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Begins new episodes: in all environments, loaded anew from their seeds; or in those of a "reset_mask"."""
        if seed is not None:
            for emulator, one in zip(self._emulators, seed, strict=True):
                emulator.load(int(one))
        chosen = np.ones(len(self._emulators), bool) if options is None else options["reset_mask"]
        screens = np.stack([self._emulators[env].begin() for env in np.flatnonzero(chosen)])
        self._stack = self._stack.copy()
        self._stack[chosen, :-1] = 0
        self._stack[chosen, -1] = self._shrink(screens)
        return self._stack, self._info()

    def send(self, actions: Int64[np.ndarray, " num_envs"]) -> None:
        """Takes the actions, indices into `actions`, that `recv` is to play."""
        self._sent = actions

    def recv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Observations, rewards, terminations, truncations, and what else is known, as `AtariVectorEnv` tells them."""
        played = [emulator.step(int(action)) for emulator, action in zip(self._emulators, self._sent, strict=True)]
        screens, rewards, terminated, truncated = map(np.asarray, zip(*played, strict=True))
        self._stack = np.concatenate([self._stack[:, 1:], self._shrink(screens)[:, None]], axis=1)
        self._stack[terminated | truncated, :-1] = 0
        return self._stack, rewards, terminated, truncated, self._info()

    def view(self, env: int) -> View:
        """What is to be seen of a filmed environment: a frame in the console's colours and at its size."""
        return self._emulators[env].view

    def close(self) -> None:
        """Frees the emulators."""
        self._emulators.clear()

    def _info(self) -> dict[str, np.ndarray]:
        return {
            "lives": np.asarray([emulator.lives for emulator in self._emulators]),
            "frame_number": np.asarray([emulator.frames for emulator in self._emulators]),
            "episode_frame_number": np.asarray([emulator.episode_frames for emulator in self._emulators]),
        }


class _Step(NamedTuple):
    """What one emulator answers to an action. If that ended the episode, the screen is the next one's first."""

    screen: Screen
    reward: int
    terminated: bool
    truncated: bool


class _Emulator:
    """One game, stepped as `AtariVectorEnv` steps each of its own.

    Attributes:
        actions: those to choose from.
        screen_shape: in pixels.
        frames: emulated since the game was loaded, but for those that ALE itself needs to start an episode.
        episode_frames: likewise, of the episode, its no-ops included.
    """

    _now: Colours
    _ended: Colours | None

    def __init__(self, options: Mapping[str, Any], mode: int | None, difficulty: int | None, filmed: bool) -> None:
        self._options, self._flavour, self._filmed = options, (mode, difficulty), filmed
        self.load(seed=0)
        full = options["full_action_space"]
        self.actions = self._ale.getLegalActionSet() if full else self._ale.getMinimalActionSet()
        self.screen_shape = self._ale.getScreenDims()

    @property
    def lives(self) -> int:
        """As the game tells them."""
        return self._ale.lives()

    @property
    def view(self) -> View:
        """What is to be seen of it, if it is filmed."""
        return View(self._now, self._ended)

    def load(self, seed: int) -> None:
        """Loads the game anew, so that what was played before leaves no trace."""
        self._ale = _load(self._options["game"], *self._flavour, self._options["repeat_action_probability"], seed)
        self._noops = np.random.default_rng(seed)
        self.frames, self._ended = 0, None

    def begin(self) -> Screen:
        """Begins an episode, no-ops and all."""
        self._start()
        for _ in range(self._noops.integers(self._options["noop_max"])):
            self._act(Action.NOOP)
            if self._ale.game_over():
                self._start()
        self._last_frame = self.episode_frames + self._options["max_num_frames_per_episode"]
        if self._filmed:
            self._now = self._ale.getScreenRGB()
        return self._ale.getScreenGrayscale()

    def step(self, action: int) -> _Step:
        """Holds an action for as many frames as is asked for, or until the episode is over."""
        reward, screens, seen, self._ended = 0, [], [], None
        for left in reversed(range(self._options["frameskip"])):
            reward += self._act(self.actions[action])
            terminated = self._ale.game_over()
            truncated = self.episode_frames >= self._last_frame
            if terminated or truncated:
                self._ended = self._ale.getScreenRGB() if self._filmed else None
                return _Step(self.begin(), reward, terminated, truncated)
            if left == 0 or (left == 1 and self._options["maxpool"]):
                screens.append(self._ale.getScreenGrayscale())
                seen += [self._ale.getScreenRGB()] if self._filmed else []
        if self._filmed:
            self._now = np.maximum.reduce(seen)
        return _Step(np.maximum.reduce(screens), reward, terminated=False, truncated=False)

    def _start(self) -> None:
        self._ale.reset_game()
        self.episode_frames = 0

    def _act(self, action: Action) -> int:
        self.frames += 1
        self.episode_frames += 1
        return self._ale.act(action)


def _load(
    game: str,
    mode: int | None = None,
    difficulty: int | None = None,
    repeat_action_probability: float = 0.0,
    seed: int = 0,
) -> ALEInterface:
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", repeat_action_probability)
    ale.setInt("random_seed", seed)
    rom = ale_py.roms.get_rom_path(game)
    assert rom is not None, "envs.atari.resolve_game gives the names of games that are there"
    ale.loadROM(rom)
    if mode is not None:
        ale.setMode(mode)
    if difficulty is not None:
        ale.setDifficulty(difficulty)
    return ale


def shrinker(screen: tuple[int, int], frame: tuple[int, int]) -> Callable[[Screens], Frames]:
    """The function that shrinks screens to frames: a new pixel is the mean of the area that it covers of the old ones.

    The sums are those of OpenCV's area interpolation, single-precision and in its order, so that roundings agree.

    Args:
        screen: height and width, in pixels.
        frame: likewise, no larger.

    Raises:
        ValueError: a larger frame.
    """
    if frame[0] > screen[0] or frame[1] > screen[1]:
        raise ValueError(
            f"frames of {frame[0]} × {frame[1]} are larger than the screen; in a mode or a difficulty that is not the "
            f"game's default they can be {screen[0]} × {screen[1]} at most"
        )
    (rows, row_weights), (columns, column_weights) = (_covered(*sides) for sides in zip(screen, frame, strict=True))

    def shrink(screens: Screens) -> Frames:
        narrow = _sum(screens[:, :, at] * weight for at, weight in zip(columns, column_weights, strict=True))
        small = _sum(narrow[:, at] * weight[:, None] for at, weight in zip(rows, row_weights, strict=True))
        return np.rint(small).astype(np.uint8)

    return shrink


def _covered(old: int, new: int) -> tuple[Int64[np.ndarray, "covered new"], Float32[np.ndarray, "covered new"]]:
    """Which of `old` pixels in a row each of `new` ones covers, from the left, and the part of it that each makes up.

    All are said to cover as many; the parts of those that a pixel does not really cover are 0.
    """
    # In units of 1 / new of an old pixel, so that no edge is off by a rounding.
    left = np.arange(new) * old
    first = left // new
    most = int((-(-(left + old) // new) - first).max())
    at = first + np.arange(most)[:, None]
    length = np.minimum((at + 1) * new, left + old) - np.maximum(at * new, left)
    return np.minimum(at, old - 1), (np.maximum(length, 0) / old).astype(np.float32)


def _sum(terms: Iterable[np.ndarray]) -> np.ndarray:
    """In their order: `np.sum` may choose another."""
    return functools.reduce(np.add, terms)


def _told(values: tuple[int, ...]) -> str:
    return textwrap.shorten(", ".join(map(str, values)), 80, placeholder=" ...")
