"""Scores of random play and of a human tester, the two ends of the human-normalised scale; and sets of games by name.

The figures are those of DQN Zoo's `atari_data.py` (Apache-2.0): the 57 games of the usual Atari benchmark.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, overload

import numpy as np

from envs.atari import games, resolve_game
from envs.games import GAMES


class Reference(NamedTuple):
    """Mean episode returns, unclipped: of uniformly random play, and of a professional human tester."""

    random: float
    human: float

    @overload
    def normalised(self, score: float) -> float: ...
    @overload
    def normalised(self, score: np.ndarray) -> np.ndarray: ...
    def normalised(self, score: float | np.ndarray) -> float | np.ndarray:
        """The score on the scale where random play is 0 and the human tester 1: (score - random) / (human - random)."""
        return (score - self.random) / (self.human - self.random)


REFERENCES: Mapping[str, Reference] = MappingProxyType(
    {
        "alien": Reference(227.8, 7127.7),
        "amidar": Reference(5.8, 1719.5),
        "assault": Reference(222.4, 742.0),
        "asterix": Reference(210.0, 8503.3),
        "asteroids": Reference(719.1, 47388.7),
        "atlantis": Reference(12850.0, 29028.1),
        "bank_heist": Reference(14.2, 753.1),
        "battle_zone": Reference(2360.0, 37187.5),
        "beam_rider": Reference(363.9, 16926.5),
        "berzerk": Reference(123.7, 2630.4),
        "bowling": Reference(23.1, 160.7),
        "boxing": Reference(0.1, 12.1),
        "breakout": Reference(1.7, 30.5),
        "centipede": Reference(2090.9, 12017.0),
        "chopper_command": Reference(811.0, 7387.8),
        "crazy_climber": Reference(10780.5, 35829.4),
        "defender": Reference(2874.5, 18688.9),
        "demon_attack": Reference(152.1, 1971.0),
        "double_dunk": Reference(-18.6, -16.4),
        "enduro": Reference(0.0, 860.5),
        "fishing_derby": Reference(-91.7, -38.7),
        "freeway": Reference(0.0, 29.6),
        "frostbite": Reference(65.2, 4334.7),
        "gopher": Reference(257.6, 2412.5),
        "gravitar": Reference(173.0, 3351.4),
        "hero": Reference(1027.0, 30826.4),
        "ice_hockey": Reference(-11.2, 0.9),
        "jamesbond": Reference(29.0, 302.8),
        "kangaroo": Reference(52.0, 3035.0),
        "krull": Reference(1598.0, 2665.5),
        "kung_fu_master": Reference(258.5, 22736.3),
        "montezuma_revenge": Reference(0.0, 4753.3),
        "ms_pacman": Reference(307.3, 6951.6),
        "name_this_game": Reference(2292.3, 8049.0),
        "phoenix": Reference(761.4, 7242.6),
        "pitfall": Reference(-229.4, 6463.7),
        "pong": Reference(-20.7, 14.6),
        "private_eye": Reference(24.9, 69571.3),
        "qbert": Reference(163.9, 13455.0),
        "riverraid": Reference(1338.5, 17118.0),
        "road_runner": Reference(11.5, 7845.0),
        "robotank": Reference(2.2, 11.9),
        "seaquest": Reference(68.4, 42054.7),
        "skiing": Reference(-17098.1, -4336.9),
        "solaris": Reference(1236.3, 12326.7),
        "space_invaders": Reference(148.0, 1668.7),
        "star_gunner": Reference(664.0, 10250.0),
        "surround": Reference(-10.0, 6.5),
        "tennis": Reference(-23.8, -8.3),
        "time_pilot": Reference(3568.0, 5229.2),
        "tutankham": Reference(11.4, 167.6),
        "up_n_down": Reference(533.4, 11693.2),
        "venture": Reference(0.0, 1187.5),
        "video_pinball": Reference(16256.9, 17667.9),
        "wizard_of_wor": Reference(563.5, 4756.5),
        "yars_revenge": Reference(3092.9, 54576.9),
        "zaxxon": Reference(32.5, 9173.3),
    }
)

# "atari-57": the games that have figures, which is what "the Atari benchmark" mostly means.
#
# "atari-10": the ten games from whose scores Aitchison, Sweetser and Hutter (2022), "Atari-5: Distilling the Arcade
#   Learning Environment down to Five Games", predict the median over all 57 (the first five are
#   their Atari-5). Their prediction is a regression: a median over these ten is not by itself one over the 57.
GAME_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "atari-57": tuple(REFERENCES),
        "atari-10": (
            "battle_zone",
            "double_dunk",
            "name_this_game",
            "phoenix",
            "qbert",
            "amidar",
            "bowling",
            "frostbite",
            "kung_fu_master",
            "riverraid",
        ),
    }
)


def games_in(text: str) -> tuple[str, ...]:
    """The names of the games that a text lists: "atari-57", "pong,breakout", "atari-10,ALE/Pong-v5", "catch,pong".

    Args:
        text: names with commas between them, each of a set in `GAME_SETS`, of a game in `envs.games.GAMES`, or of one
            of ale-py's in any spelling that `envs.atari.resolve_game` takes.

    Returns:
        Each game once, in the order in which it is named first; those of ale-py in snake_case.

    Raises:
        ValueError: no such game or set, or no name at all.
    """
    found: dict[str, None] = {}
    for name in filter(None, map(str.strip, text.split(","))):
        found |= dict.fromkeys(_games_named(name))
    if not found:
        raise ValueError(f"'{text}' names no game; give {', '.join(GAME_SETS)}, or games with commas between them")
    return tuple(found)


def _games_named(name: str) -> tuple[str, ...]:
    if name.lower() in GAME_SETS:
        return GAME_SETS[name.lower()]
    if name in GAMES:
        return (name,)
    try:
        return (resolve_game(name),)
    except ValueError:
        near = difflib.get_close_matches(name.lower(), [*games(), *GAMES, *GAME_SETS], n=1, cutoff=0.75)
        if near and near[0] not in games():
            what = "games" if near[0] in GAME_SETS else "game"
            raise ValueError(f"unknown {what} '{name}'; did you mean '{near[0]}'?") from None
        raise


def human_normalised(game: str, score: float) -> float | None:
    """The score on the scale where random play is 0 and the human tester 1: (score - random) / (human - random).

    Args:
        game: in any spelling that `envs.atari.resolve_game` takes.
        score: a mean episode return, unclipped and undiscounted.

    Returns:
        The normalised score; None for a game outside `REFERENCES`, which has no figures: report its raw score alone.

    Raises:
        ValueError: no such game.
    """
    reference = REFERENCES.get(resolve_game(game))
    return None if reference is None else reference.normalised(score)
