"""`python -m experiments audit`: a clean table for the networks of supervised learning, and bad input in one line."""

import jaxtyping
import pytest

from experiments import audit, harness


@pytest.fixture(autouse=True)
def _keep_the_tests_cache(monkeypatch):
    monkeypatch.setattr(harness, "enable_compilation_cache", lambda: None)


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        (["resnet"], "blocks/1/shortcut/kernel hidden weight"),
        (["resnet", "--norm", "group"], "blocks/0/layers/0/norm/offset offset"),
        (["transformer"], "blocks/1/attention/value/kernel hidden weight"),
    ],
)
def test_the_audit_is_clean(arguments, row, capsys):
    assert audit.main(["--network", *arguments]) == 0
    told = capsys.readouterr().out
    assert "All fine" in told
    assert row in "\n".join(" ".join(line.split()) for line in told.splitlines())


def test_what_is_given_is_what_is_audited(capsys):
    assert audit.main(["--network", "transformer", "--norm", "layer", "--affine", "project"]) == 0
    told = capsys.readouterr().out
    assert "4 of 40 parameters need a look" in told  # scale and offset before GELU, in two blocks
    assert told.count("projected but not invariant") == 4


@pytest.mark.parametrize(
    ("network", "norm", "message"),
    [
        ("transformer", "none", "--network transformer: norm must be one of 'layer', 'rms', got 'none'"),
        ("mlp", "batch", "--network mlp: norm must be one of 'none', 'layer', 'rms', got 'batch'"),
    ],
)
def test_a_normalization_that_the_network_has_not_is_told_in_one_line(network, norm, message, capsys, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    assert audit.main(["--network", network, "--norm", norm]) == 2
    assert message in capsys.readouterr().err
