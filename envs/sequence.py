"""Sequences of games: which game is played when, and for how many frames.

A sequence is data. Its tasks are played one after another, and the whole list as many times as it has passes; each time
that a task is played is a visit. What happens to a learner at a switch is `experiments.sequential_atari`'s business.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re

from envs.atari_modes import resolve_flavour
from envs.games import GAMES, Game, permute_channels
from envs.scores import REFERENCES, Reference, games_in


@dataclasses.dataclass(frozen=True)
class Task:
    """A game, and for how long it is played.

    Attributes:
        game: its name, in `envs.games.GAMES` or ale-py's.
        frames: the budget of each visit, in emulator frames, or what counts for one.
        order: the planes of its frames are in the order that this number seeds; 0: as they are.
        mode: of a game of ale-py's; None: its default.
        difficulty: likewise.
    """

    game: str
    frames: int
    order: int = 0
    mode: int | None = None
    difficulty: int | None = None

    @property
    def name(self) -> str:
        """The game, with what is not as usual: "minatar-breakout:order=3", "pong:mode=1:difficulty=2"."""
        options = {"order": self.order or None, "mode": self.mode, "difficulty": self.difficulty}
        return ":".join([self.game, *(f"{option}={value}" for option, value in options.items() if value is not None)])

    @property
    def reference(self) -> Reference | None:
        """Scores of random play and of a human tester, if there are any: there are none of another mode, say."""
        return REFERENCES.get(self.game) if self.name == self.game else None

    def make(self) -> Game:
        """The game, if it is one of `envs.games`; KeyError otherwise."""
        game = GAMES[self.game]()
        return permute_channels(game, self.order) if self.order else game


@dataclasses.dataclass(frozen=True)
class Visit:
    """One time that a task is played.

    Attributes:
        number: of all visits, from 0.
        place: where the task is first in the list, from 0.
        passed: how many passes are over.
        task: the task.
        start: frames of the whole sequence before it.
    """

    number: int
    place: int
    passed: int
    task: Task
    start: int


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Tasks, one after another, `passes` times.

    Attributes:
        tasks: the tasks of a pass.
        passes: how often the list is played.
    """

    tasks: tuple[Task, ...]
    passes: int = 1

    @property
    def frames(self) -> int:
        """Frames of the whole sequence."""
        return self.passes * sum(task.frames for task in self.tasks)

    @property
    def visits(self) -> tuple[Visit, ...]:
        """All visits, in their order."""
        played = list(itertools.product(range(self.passes), self.tasks))
        starts = itertools.accumulate((task.frames for _, task in played), initial=0)
        return tuple(
            Visit(number, self.places[task.name], passed, task, start)
            for number, ((passed, task), start) in enumerate(zip(played, starts, strict=False))
        )

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Where each task is first in the list, by its name: one that is listed again is the same task."""
        return {task.name: place for place, task in reversed(list(enumerate(self.tasks)))}


def parse_tasks(text: str, frames: int) -> tuple[Task, ...]:
    """The tasks that a text lists: "bricks,moving-goals-0:frames=32000", "minatar-breakout:order=1" or "atari-10".

    Args:
        text: games joined by commas, or lists of them that `envs.scores` has. Behind a game can stand ":order=N",
            ":mode=N" and ":difficulty=N", see `Task`, and ":frames=N", its budget. A mode or a difficulty that is the
            game's default is as good as none.
        frames: the budget of a task whose own is not given.

    Raises:
        ValueError: an unknown game, one whose planes can't be put in another order, or one without that mode or
            difficulty.
    """
    tasks = tuple(task for word in text.split(",") if word.strip() for task in _parse_task(word.strip(), frames))
    if not tasks:
        raise ValueError("a sequence needs a game at least")
    return tuple((_game_in_jax if task.game in GAMES else _game_of_ale)(task) for task in tasks)


def _parse_task(word: str, frames: int) -> list[Task]:
    game, *given = word.split(":")
    options = {"frames": frames}
    for option in given:
        found = re.fullmatch(r"(order|mode|difficulty|frames)=(\d+)", option)
        if not found:
            raise ValueError(
                f"'{word}': behind a game there can be :order=N, :mode=N, :difficulty=N and :frames=N, not ':{option}'"
            )
        options[found[1]] = int(found[2])
    return [Task(name, **options) for name in games_in(game)]


def _game_in_jax(task: Task) -> Task:
    if (task.mode, task.difficulty) != (None, None):
        raise ValueError(f"'{task.name}': only ale-py's games have modes and difficulties")
    return task


def _game_of_ale(task: Task) -> Task:
    if task.order:
        raise ValueError(f"'{task.name}': the frames of ale-py's games have no planes to put in another order")
    mode, difficulty = resolve_flavour(task.game, task.mode, task.difficulty)
    return dataclasses.replace(task, mode=mode, difficulty=difficulty)


MINATAR = ("minatar-breakout", "minatar-asterix", "minatar-space_invaders", "minatar-freeway")


def _permuted(cycles: int) -> str:
    """MinAtar's games, again and again: the planes of each cycle in an order of their own, and the games, too."""
    words = []
    for cycle in range(cycles):
        shift = cycle % len(MINATAR)
        words += [f"{game}:order={cycle}" if cycle else game for game in MINATAR[shift:] + MINATAR[:shift]]
    return ",".join(words)


PRESETS: dict[str, tuple[str, int, int]] = {
    # The tasks' names, frames of a visit, passes.
    "quick": (",".join(f"moving-goals-{phase}" for phase in range(4)), 160_000, 2),
    # Lyle et al. (2024), section 5.2, without their games, which are not published: the ten of Atari-10 instead.
    "nap": ("atari-10", 20_000_000, 2),
    # Abbas et al. (2023).
    "switching-ale": ("alien,atlantis,boxing,breakout,centipede", 20_000_000, 3),
    # Powers et al. (2022), CORA.
    "cora": ("space_invaders,krull,beam_rider,hero,star_gunner,ms_pacman", 50_000_000, 5),
    "three-games": ("pong,breakout,freeway", 320_000, 2),
    # Each is harder than the one before by one thing: shields that move, bombs that zigzag, fast bombs, invaders that
    # are not seen, a wide cannon. Farebrother et al. (2018) go from this game's default to other modes of it.
    "space-invaders-modes": (
        "space_invaders,space_invaders:mode=1,space_invaders:mode=3,space_invaders:mode=7,space_invaders:mode=15,"
        "space_invaders:mode=15:difficulty=1",
        320_000,
        1,
    ),
    "minatar": (",".join(MINATAR), 2_000_000, 2),
    "minatar-permuted": (_permuted(20), 60_000_000, 1),
    "moving-goals": (",".join(f"moving-goals-{phase}" for phase in range(8)), 240_000, 2),
}
"""Published forms of sequences, and small ones."""
