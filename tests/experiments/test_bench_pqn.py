"""PQN's benchmark, at a size that says nothing of speed."""

import dataclasses

import pytest

from agents.pqn import Settings
from experiments import pqn as experiment
from experiments.bench import pqn


@pytest.fixture(autouse=True)
def small(monkeypatch):
    settings = Settings(num_envs=8, steps=4, minibatches=2)
    preset = dataclasses.replace(experiment.PRESETS["quick"], frames=1280, iteration_frames=128, pqn=settings)
    monkeypatch.setitem(experiment.PRESETS, "minatar", preset)
    monkeypatch.setattr(pqn, "SEEDS", (1, 2))


def test_projection_is_held_against_the_published_agent_and_seeds_are_counted_together():
    pair, minutes, two = pqn.rows_of(2, "catch")
    assert [len(row.reference) for row in (pair, minutes, two)] == [2, 0, 0]
    for rate, taken in zip(pair.ours, minutes.ours, strict=True):
        assert taken == pytest.approx(10_000_000 / rate / 60)
    assert min(pair.reference) > 0 and min(two.ours) > 0
    assert "10,000,000 agent steps" in minutes.what and "2 seeds" in two.what


def test_without_pgx_a_line_says_what_to_install(monkeypatch, capsys):
    def without_pgx():
        raise ValueError("minatar-breakout needs pgx: `pip install pgx`")

    monkeypatch.setitem(pqn.GAMES, experiment.PRESETS["minatar"].game, without_pgx)
    assert list(pqn.rows(1)) == []
    assert "pip install pgx" in capsys.readouterr().err
