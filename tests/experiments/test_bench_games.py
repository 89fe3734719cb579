"""The compiled loop's benchmark, at a size that says nothing of speed."""

import pytest

from experiments.bench import games


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(games, "UPDATES", 100)
    monkeypatch.setattr(games, "SEEDS", (1, 2))


def test_the_loop_is_held_against_the_sum_of_its_parts():
    whole, *parts = games.against_its_parts(2, game="switching-dim")
    assert [row.what.strip() for row in parts] == ["act", "step", "add", "learn"]
    for repeat, together in enumerate(whole.reference):
        assert sum(row.ours[repeat] for row in parts) == pytest.approx(together)
    assert min(whole.ours) > 0
    # Learning is most of it; a part that the compiler could leave out of its loop would be next to nothing.
    assert min(min(row.ours) for row in parts) > 1e-3 * min(whole.reference)


def test_seeds_are_counted_together():
    one, two = games.many_seeds(1, game="switching-dim")
    assert "1 seed" in one.what and "2 seeds" in two.what
    assert one.ours[0] > 0 and two.ours[0] > 0
