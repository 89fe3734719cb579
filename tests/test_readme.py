"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np

import nap

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(first_line: str) -> str:
    """The indented block of the README that begins with a line."""
    found = re.search(rf"^    {re.escape(first_line)}.*\n(?:    .*\n|\n(?=    ))*", README, flags=re.MULTILINE)
    assert found, first_line
    return re.sub(r"^    ", "", found[0], flags=re.MULTILINE)


def test_your_own_training_loop(capsys):
    names: dict = {}
    exec(block("import jax, optax"), names)
    exec(block("print(nap.audit("), names)
    assert "All fine" in capsys.readouterr().out
    x, labels = jax.random.normal(jax.random.key(1), (32, 8)), jax.numpy.arange(32) % 3
    before, params, state = nap.weight_norms(names["params"]), names["params"], names["state"]
    for _ in range(20):
        params, state = names["step"](params, state, x, labels)
    for path, norm in nap.weight_norms(params).items():
        np.testing.assert_allclose(norm, before[path], rtol=1e-5)


def test_the_rivals_in_it():
    code = block("from nap import interventions, networks")
    names = {"jax": jax, "nap": nap, "optax": __import__("optax"), "x": jax.numpy.ones((4, 8))}
    setup, call = code.split("updates, state = ")
    exec(setup, names)
    names["gradients"] = jax.tree.map(jax.numpy.ones_like, names["params"])
    exec(f"updates, state = {call}", names)
    assert jax.tree.structure(names["updates"]) == jax.tree.structure(names["params"])


def test_its_prose_fits_into_an_editor():
    prose = [line for line in README.splitlines() if not line.startswith(("|", "    "))]
    assert [line for line in prose if len(line) > 124] == []


def test_it_links_to_what_is_there():
    titles = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert target.removeprefix("#") in anchors if target.startswith("#") else (ROOT / target).exists(), target
