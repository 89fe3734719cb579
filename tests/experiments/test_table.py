"""`python -m experiments table`: the numbers of made-up runs of every kind, grouped and within a terminal's width."""

import dataclasses
import io
import itertools

import numpy as np
import polars as pl
import pytest
from made_up_runs import (
    Config,
    PlasticityConfig,
    SequenceConfig,
    make_plasticity_run,
    make_run,
    make_sequence,
    plasticity_rows,
    sequence_rows,
)

from experiments import harness
from experiments.harness.finals import in_words
from experiments.harness.read import load_runs
from experiments.harness.statistics import stratified_bootstrap


@dataclasses.dataclass(frozen=True)
class Supervised:
    """What is read of a supervised run's configuration."""

    data: str = "digits"
    method: str = "nap"
    seed: int = 0
    updates: int = 4
    optimizer: dict = dataclasses.field(default_factory=lambda: {"lr": 0.1})


def make_supervised(out, config: Supervised, losses: list[float]):
    with harness.open_run("images", config, harness.RunOptions(out=out), label=config.method) as run:
        run.restore({"count": 0})
        for updates, loss in enumerate(losses, start=1):
            run.record({"phase": "eval", "updates": updates, "eval/loss": loss, "eval/accuracy": 1 - loss / 10})
        run.finish({})
        return run.folder


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """Pong: two methods, two learning rates, three seeds, each with a return of its own."""
    out = tmp_path_factory.mktemp("games")
    for method, lr, seed in itertools.product(("none", "nap"), (1e-3, 3e-4), range(3)):
        make_run(out, Config(method=method, seed=seed, optimizer={"name": "adam", "lr": lr}), rows=20)
    return out


def shown(capsys, *arguments) -> list[str]:
    assert harness.dispatch(["table", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def as_csv(capsys, *arguments) -> pl.DataFrame:
    assert harness.dispatch(["table", *map(str, arguments), "--csv"]) == 0
    return pl.read_csv(io.StringIO(capsys.readouterr().out))


def returns(folder, **wanted) -> list[float]:
    """The last return of each run, by its own records."""
    runs = load_runs([folder])
    found = [run for run in runs if all(str(run.config.get(name)) == value for name, value in wanted.items())]
    return [run.records["eval/return"].drop_nulls()[-1] for run in found]


def test_a_row_is_the_mean_over_seeds_with_its_interval(games, capsys):
    frame = as_csv(capsys, games)
    assert frame.select("method", "lr").rows() == [
        ("none", 0.0003), ("none", 0.001), ("nap", 0.0003), ("nap", 0.001),
    ]  # fmt: skip
    row = frame.filter((pl.col("method") == "nap") & (pl.col("lr") == 1e-3))
    expected = stratified_bootstrap(np.array(returns(games, method="nap")[:3]))
    found = [row[f"eval/return{end}"][0] for end in ("", "/low", "/high")]
    np.testing.assert_allclose(found, expected)
    assert row["eval/return/seeds"][0] == 3 and row["problem"][0] == "atari: pong"
    assert row["eval/human_normalised"][0] == pytest.approx((expected.value + 20.7) / (14.6 + 20.7))
    lines = shown(capsys, games)
    assert f"{expected.value:.2f} [{expected.low:.2f}, {expected.high:.2f}]" in lines[-4]


def test_what_is_grouped_by_and_what_is_mixed_is_told(games, capsys):
    lines = shown(capsys, games, "--by", "lr")
    assert [line.split()[0] for line in lines[3:5]] == ["0.0003", "0.001"]
    assert "--by method tells them apart." in " ".join(lines)
    assert [line.split()[-1] for line in lines[1:5:2]] == ["runs", "6"]
    lines = shown(capsys, games, "--by", "optimizer.lr", "--by", "method")
    assert [line.split()[:2] for line in lines[3:7]] == [
        ["0.0003", "none"], ["0.0003", "nap"], ["0.001", "none"], ["0.001", "nap"],
    ]  # fmt: skip
    assert "apart" not in " ".join(lines) and lines[1].split()[-1] == "seeds"


def test_an_unknown_setting_is_a_line_with_the_nearest(games, capsys):
    assert harness.dispatch(["table", str(games), "--by", "mehtod"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'method'?" in error and error.count("\n") == 1


def test_streams_of_tasks(tmp_path, capsys):
    config = PlasticityConfig(protocol={"tasks": 10})
    folder = make_plasticity_run(tmp_path, config)
    make_plasticity_run(tmp_path, dataclasses.replace(config, method="none"))
    rows = pl.DataFrame(plasticity_rows(config))
    frame = as_csv(capsys, tmp_path).filter(pl.col("method") == "nap")
    assert frame["online_accuracy"][0] == pytest.approx(rows["online_accuracy"].mean())
    last = rows.filter(pl.col("task") == 10)["online_accuracy"].mean()
    assert frame["online_accuracy_last_tasks"][0] == pytest.approx(last)
    (line,) = (line for line in shown(capsys, tmp_path) if line.startswith("nap"))
    assert f"{100 * rows['online_accuracy'].mean():.1f} [" in line
    told = in_words(load_runs([folder]))
    assert told.startswith(f"online accuracy {100 * rows['online_accuracy'].mean():.1f} % [")
    assert told.endswith(f"(3 seeds), last tasks {100 * last:.1f} %")


def test_sequences_of_games(tmp_path, capsys):
    config = SequenceConfig()
    make_sequence(tmp_path, config)
    rows = pl.DataFrame(sequence_rows(config), infer_schema_length=None)
    ends = rows.filter((pl.col("phase") == "eval") & (pl.col("visit_frames") == 80_000))
    frame = as_csv(capsys, tmp_path).filter(pl.col("problem").str.contains("bricks,switching-dim"))
    for name, passed in (("first", 1), ("last", 2)):
        expected = ends.filter(pl.col("pass") == passed)["eval/return"].mean()
        assert frame[f"eval/return_{name}_pass"][0] == pytest.approx(expected)
    assert frame["eval/return_last_pass/seeds"][0] == 3


def test_held_out_losses(tmp_path, capsys):
    for seed, loss in enumerate((2.0, 3.0)):
        folder = make_supervised(tmp_path, Supervised(seed=seed), [9.0, loss])
    frame = as_csv(capsys, tmp_path)
    assert (frame["eval/loss"][0], frame["eval/accuracy"][0], frame["eval/loss/seeds"][0]) == (2.5, 0.75, 2)
    assert in_words(load_runs([folder])) == "held-out loss 3, held-out accuracy 70.0 %"


def test_a_seed_without_a_score_is_counted_as_such(tmp_path, capsys):
    make_run(tmp_path, Config(seed=0), rows=20)
    make_run(tmp_path, Config(seed=1), rows=5, finish=False)  # no evaluation yet
    lines = shown(capsys, tmp_path)
    assert lines[3].split()[-3:] == ["1", "of", "2"]
    make_run(tmp_path / "none", Config(seed=1), rows=5, finish=False)
    assert shown(capsys, tmp_path / "none")[3].split() == ["nap", "0", "of", "1"]
    assert in_words(load_runs([tmp_path / "none"])) == "no score"


def test_long_names_are_cut_to_the_terminals_width(tmp_path, capsys):
    long = "nap+shrink-and-perturb+noisy-updates+self-normalized-resets+l2-init+weight-clipping"
    make_run(tmp_path, Config(method=long), rows=20)
    make_run(tmp_path, Config(method="none"), rows=20)
    assert any("…" in line for line in shown(capsys, tmp_path))
    assert long in as_csv(capsys, tmp_path)["method"].to_list()


def test_one_seed_tells_the_interval_over_its_episodes(tmp_path):
    with harness.open_run("atari", Config(), harness.RunOptions(out=tmp_path)) as run:
        run.restore({"count": 0})
        row = {"phase": "eval", "frames": 4, "eval/return": 0.5, "eval/return_low": 0.25, "eval/return_high": 0.75}
        run.record(row | {"eval/episodes": 8})
        run.finish({})
    assert in_words(load_runs([tmp_path])) == "return 0.50 [0.25, 0.75] (8 episodes)"
