"""Sequences of games: which game is played when, and for how many frames.

A sequence is data. Its tasks are played one after another, and the whole list as many times as it has passes; each time
that a task is played is a visit. What happens to a learner at a switch is `experiments.sequential_atari`'s business.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

from envs.games import GAMES, Game, permute_channels
from envs.scores import games_in


@dataclasses.dataclass(frozen=True)
class Task:
    """A game, and for how long it is played.

    Attributes:
        game: its name, in `envs.games.GAMES` or ale-py's.
        frames: the budget of each visit, in emulator frames, or what counts for one.
        order: the planes of its frames are in the order that this number seeds; 0: as they are.
    """

    game: str
    frames: int
    order: int = 0

    @property
    def name(self) -> str:
        """The game, with its order of planes if that is another: "minatar-breakout:order=3"."""
        return f"{self.game}:order={self.order}" if self.order else self.game

    def make(self) -> Game:
        """The game, if it is one of `envs.games`; KeyError otherwise."""
        game = GAMES[self.game]()
        return permute_channels(game, self.order) if self.order else game


@dataclasses.dataclass(frozen=True)
class Visit:
    """One time that a task is played.

    Attributes:
        number: of all visits, from 0.
        place: the task's place in the list, from 0.
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
        played = list(itertools.product(range(self.passes), enumerate(self.tasks)))
        starts = itertools.accumulate((task.frames for _, (_, task) in played), initial=0)
        return tuple(
            Visit(number, place, passed, task, start)
            for number, ((passed, (place, task)), start) in enumerate(zip(played, starts, strict=False))
        )

    def alone(self, place: int) -> Sequence:
        """The sequence in which one of the tasks is the only one, played once."""
        return Sequence((self.tasks[place],))


def parse_tasks(text: str, frames: int) -> tuple[Task, ...]:
    """The tasks that a text lists: "bricks,moving-goals-0:frames=32000", "minatar-breakout:order=1" or "atari-10".

    Args:
        text: games joined by commas, or lists of them that `envs.scores` has. Behind a game can stand ":order=N", see
            `Task`, and ":frames=N", its budget.
        frames: the budget of a task whose own is not given.

    Raises:
        ValueError: an unknown game, or one whose planes can't be put in another order.
    """
    tasks = tuple(task for word in text.split(",") if word.strip() for task in _parse_task(word.strip(), frames))
    if not tasks:
        raise ValueError("a sequence needs a game at least")
    for task in tasks:
        if task.order:
            _check_order(task)
    return tasks


def _parse_task(word: str, frames: int) -> list[Task]:
    game, *given = word.split(":")
    options = {"order": 0, "frames": frames}
    for option in given:
        found = re.fullmatch(r"(order|frames)=(\d+)", option)
        if not found:
            raise ValueError(f"'{word}': behind a game there can be :order=N and :frames=N, not ':{option}'")
        options[found[1]] = int(found[2])
    names = (game,) if game in GAMES else games_in(game)
    return [Task(name, **options) for name in names]


def _check_order(task: Task) -> None:
    if task.game not in GAMES:
        raise ValueError(f"'{task.name}': the frames of ale-py's games have no planes to put in another order")


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
    "quick": ("bricks,moving-goals-0,switching-bright,switching-dim", 240_000, 2),
    # Lyle et al. (2024), section 5.2, without their games, which are not published: the ten of Atari-10 instead.
    "nap": ("atari-10", 20_000_000, 2),
    # Abbas et al. (2023).
    "switching-ale": ("alien,atlantis,boxing,breakout,centipede", 20_000_000, 3),
    # Powers et al. (2022), CORA.
    "cora": ("space_invaders,krull,beam_rider,hero,star_gunner,ms_pacman", 50_000_000, 5),
    "three-games": ("pong,breakout,freeway", 320_000, 2),
    "minatar": (",".join(MINATAR), 2_000_000, 2),
    "minatar-permuted": (_permuted(20), 60_000_000, 1),
    "moving-goals": (",".join(f"moving-goals-{phase}" for phase in range(8)), 240_000, 2),
}
"""Published forms of sequences, and small ones."""
