import csv
import pathlib
import statistics

import pytest

from envs.atari import games
from envs.scores import REFERENCES, human_normalised

PUBLISHED = pathlib.Path(__file__).parents[1] / "data" / "ppo_returns_and_hns.csv"


def published() -> dict[str, tuple[float, float]]:
    """Mean returns of one PPO and the human-normalised scores that its authors give (CleanRL's documentation, MIT)."""
    with PUBLISHED.open() as lines:
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
