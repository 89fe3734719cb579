import csv
import pathlib
import statistics

import pytest

from envs.atari import games
from envs.scores import GAME_SETS, REFERENCES, games_in, human_normalised

PUBLISHED = pathlib.Path(__file__).parents[1] / "data" / "ppo_returns_and_hns.csv"


def published() -> dict[str, tuple[float, float]]:
    """Mean returns of one PPO and the human-normalised scores that its authors give (CleanRL's documentation, MIT)."""
    with PUBLISHED.open(encoding="utf-8") as lines:
        return {
            row["game"]: (float(row["mean_return"]), float(row["human_normalised_score"]))
            for row in csv.DictReader(lines)
        }


def test_published_returns_give_the_published_scores():
    rows = published()
    assert rows.keys() == REFERENCES.keys()
    scores = {game: human_normalised(game, mean_return) for game, (mean_return, _) in rows.items()}
    for game, (_, score) in rows.items():
        assert scores[game] == pytest.approx(score, rel=0.01, abs=1e-6), game
    assert statistics.median(scores.values()) == pytest.approx(1.041, abs=5e-4)


def test_the_ends_of_the_scale():
    assert len(REFERENCES) == 57
    assert set(REFERENCES) <= set(games())
    for game, reference in REFERENCES.items():
        assert reference.random < reference.human
        assert human_normalised(game, reference.random) == 0
        assert human_normalised(game, reference.human) == 1


def test_other_spellings_and_games_without_figures():
    assert human_normalised("ALE/SpaceInvaders-v5", 908.35) == pytest.approx(0.5)
    assert human_normalised("donkey_kong", 100.0) is None
    with pytest.raises(ValueError, match="unknown game 'ponk'; did you mean 'pong'"):
        human_normalised("ponk", 1.0)


def test_sets_of_games():
    assert games_in("atari-57") == tuple(REFERENCES)
    published = "amidar bowling frostbite kung_fu_master riverraid battle_zone double_dunk name_this_game phoenix qbert"
    assert sorted(games_in("Atari-10")) == sorted(published.split())
    for members in GAME_SETS.values():
        assert len(set(members)) == len(members)
        assert set(members) <= set(REFERENCES), "an aggregate over a set needs human scores for all of it"


def test_games_by_name_each_once_and_in_order():
    assert games_in("pong") == ("pong",)
    assert games_in(" Pong, ALE/SpaceInvaders-v5,donkey_kong,pong, ") == ("pong", "space_invaders", "donkey_kong")
    assert games_in("qbert,atari-10")[:3] == ("qbert", "battle_zone", "double_dunk")
    assert len(games_in("qbert,atari-10")) == 10
    assert games_in("catch,Pong,minatar-breakout,breakout") == ("catch", "pong", "minatar-breakout", "breakout")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pong,brekout", "unknown game 'brekout'; did you mean 'breakout'"),
        ("pong,catsh", "unknown game 'catsh'; did you mean 'catch'"),
        ("space_invaderss", "unknown game 'space_invaderss'; did you mean 'space_invaders'"),
        ("atari57", "unknown games 'atari57'; did you mean 'atari-57'"),
        ("atari-10k", "unknown games 'atari-10k'; did you mean 'atari-10'"),
        ("combat", "game 'combat' has no single-player mode"),
        (" , ", "names no game; give atari-57, atari-10, or games"),
    ],
)
def test_a_typo_is_told_with_the_nearest_right_name(text, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        games_in(text)
    assert "\n" not in str(caught.value)
