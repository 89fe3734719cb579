"""The benchmark of ordinary training, at a size that says nothing of speed."""

import dataclasses

import pytest

from experiments.bench import training


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("the cat sat on the mat, and the dog on the log. " * 20, encoding="utf-8")
    network = dataclasses.replace(training.LANGUAGE.network, layers=1, heads=2, width=16)
    batch = dataclasses.replace(training.LANGUAGE.training, batch_size=8)
    language = dataclasses.replace(training.LANGUAGE, text=str(text), sequence=16, network=network)
    monkeypatch.setattr(training, "LANGUAGE", dataclasses.replace(language, training=batch))
    monkeypatch.setattr(training, "IMAGES", dataclasses.replace(training.IMAGES, data="digits", training=batch))


def test_each_method_is_held_against_the_usual_network():
    rows = list(training.rows(2))
    names = [row.what.strip() for row in rows]
    assert names[0].startswith("transformer") and names[3].startswith("ResNet") and names[1:3] == names[4:]
    for whole, normalized, projected in (rows[:3], rows[3:]):
        assert whole.goal is not None and whole.reference == normalized.reference
        assert whole.ours == projected.ours and normalized.ours == projected.reference
        # Three networks, each timed by itself.
        assert len({whole.ours, whole.reference, normalized.ours}) == 3
