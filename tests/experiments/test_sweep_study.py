"""A study, from its file or its command line, as jobs: every command sound, every folder known, nothing started."""

import types
from pathlib import Path

import pytest
import small_sweeps

from experiments import atari, harness, implicit_schedule, plasticity, schedule_matching, sweep
from experiments.harness import dispatch, scoreboard
from experiments.harness.grid import with_options
from experiments.harness.study import plan

STUDY = """
experiment = "plasticity"
[fixed]
data = "digits"
tasks = 4
hidden = [8, 7]
batch_size = 10
out = "here"
[grid]
seed = [0, 10]
method = ["none", "nap"]
[[cell]]
lr = 1e-2
[[cell]]
lr = 3e-4
optimizer = "sgd"
"""


def written(folder: Path, text: str) -> str:
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return str(folder / "study.toml")


def arguments(jobs: list[harness.Job]) -> list[str]:
    return [" ".join(job.argv) for job in jobs]


def test_a_file_is_a_grid_times_its_cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = plan(written(tmp_path, STUDY), [])
    fixed = "plasticity --data digits --tasks 4 --hidden 8 7 --batch-size 10 --out here"
    assert arguments(jobs) == [
        f"{fixed} --seed {seed} --method {method} --lr {lr}"
        for lr in ("0.01", "0.0003 --optimizer sgd")
        for seed in (0, 10)
        for method in ("none", "nap")
    ]
    assert {job.directory for job in jobs} == {tmp_path}
    assert {job.folders[0].parent for job in jobs} == {tmp_path / "here" / "plasticity"}
    assert len({job.folders for job in jobs}) == 8
    assert not (tmp_path / "here").exists()


def test_options_on_the_command_line_replace_the_files(tmp_path):
    study = written(tmp_path, STUDY)
    jobs = plan(study, ["--seed", "3", "--tasks=2"])
    assert len(jobs) == 4
    assert all("--seed 3 " in line and "--seed 0" not in line and "--tasks=2" in line for line in arguments(jobs))
    assert len(plan(study, ["--seed", "3", "--seed", "4", "--seed", "5"])) == 12
    with pytest.raises(harness.UserError, match="--lr: the study's cells set it"):
        plan(study, ["--lr", "1"])


def test_what_two_commands_share_belongs_to_the_first(tmp_path):
    out = ["--out", str(tmp_path)]
    jobs = plan("atari", ["--game", "catch", "--seeds", "2", "--seed", "0", "--seed", "1", *out])
    assert [job.name.partition("-seed")[2][0] for job in jobs] == ["0", "1", "2"]
    first, second = plan("implicit-schedule", ["--preset", "catch", "--affine", "project", "--affine", "free", *out])
    assert (len(first.folders), len(second.folders)) == (6, 5), "the free run has no affine option"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("experiment = ", "Invalid value"),
        ("[fixed]\nlr = 1", 'experiment = "NAME" is missing'),
        (
            'experiment = "plastcity"',
            "'plastcity' is not an experiment that a sweep can run; did you mean 'plasticity'?",
        ),
        ('experiment = "report"', "'report' is not an experiment that a sweep can run; there are: atari, "),
        ('experiment = "atari"\n[gird]\nlr = [1]', "'gird' is not a part of a study; did you mean 'grid'?"),
        ('experiment = "atari"\nfixed = 3', r"fixed must be a table, \[fixed\]"),
        ('experiment = "atari"\n[grid]\nlr = 1', r"\[grid\] lr = 1: it must be a list"),
        ('experiment = "atari"\n[grid]\nlr = []', r"\[grid\] lr = \[\]: it must be a list"),
        ('experiment = "atari"\n[fixed]\nlr = 1\n[grid]\nlr = [1, 2]', "lr is given twice"),
        ('experiment = "atari"\n[fixed]\nnum-envs = 1\nnum_envs = 2', "num_envs is given twice"),
        ('experiment = "atari"\n[fixed]\nlr = 1\n[[cell]]\nlr = 2', "lr is given twice"),
        ('experiment = "atari"\n[fixed]\nlr = 1979-05-27', "lr = .*: it must be a text, a number"),
        ('experiment = "atari"\n[cell]\nlr = 1', r"cells are written as \[\[cell\]\]"),
        ('experiment = "atari"\n[fixed]\nfresh = true', "--fresh: not for a sweep"),
        ('experiment = "atari"\n[grid]\nlr = [1e-3, "fast"]', r"--lr: .*'fast'.* \(in atari --lr fast\)"),
        ('experiment = "atari"\n[fixed]\ngmae = "pong"', "'--gmae' is not an option; did you mean '--game'?"),
        ('experiment = "atari"\n[grid]\ngame = ["pong", "pnog"]', r"--game: .*pnog.* \(in atari --game pnog\)"),
        (
            'experiment = "atari"\n[fixed]\nno-dubble = false',
            "no-dubble = false: '--no-dubble' is not an option; did you",
        ),
        ('experiment = "plasticity"\n[fixed]\ndata = "digts"', "digts"),
        ('experiment = "atari"\n[fixed]\ngame = ["catch", "--fresh"]', "game = '--fresh': a value can't look like"),
        (
            'experiment = "atari"\n[grid]\ngame = ["catch", "--out=there"]',
            "game = '--out=there': a value can't look like",
        ),
        ('experiment = "atari"\n[[cell]]\nagent = "-h"', "agent = '-h': a value can't look like"),
        ('experiment = "atari"\n[fixed]\n"fresh=" = "True"', "'fresh=' is not an option's name"),
        ('experiment = "atari"\n[fixed]\nlr = nan', "--lr nan: it must be at least 0, and finite"),
        ('experiment = "plasticity"\n[fixed]\nstream = ""', "--stream: '' is not a stream"),
    ],
)
def test_a_mistake_anywhere_is_one_line_and_nothing_has_started(text, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = written(tmp_path, text)
    with pytest.raises(harness.UserError, match=words):
        plan(study, [])
    assert sweep.main([study]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "study.toml"]


def test_a_flag_is_set_by_true(tmp_path):
    text = 'experiment = "atari"\n[fixed]\nagent = "rainbow"\ngame = "catch"\n[grid]\nno-noisy = [true, false]'
    assert [job.argv[:5] + job.argv[5:6] for job in plan(written(tmp_path, text), [])] == [
        ("atari", "--agent", "rainbow", "--no-noisy", "--game", "catch"),
        ("atari", "--agent", "rainbow", "--game", "catch", "--seed"),
    ]


def test_true_and_false_mean_what_they_say(tmp_path):
    text = 'experiment = "atari"\n[fixed]\nagent = "rainbow"\ngame = "catch"\n[grid]\ndouble = [true, false]'
    assert [" ".join(job.argv) for job in plan(written(tmp_path, text), [])] == [
        "atari --agent rainbow --game catch --seed 0",
        "atari --agent rainbow --no-double --game catch --seed 0",
    ]
    text = 'experiment = "plasticity"\n[fixed]\ntasks = 2\nreset-head = true'
    assert arguments(plan(written(tmp_path, text), [])) == ["plasticity --tasks 2 --reset-head True"]


def test_a_negative_number_is_a_value(tmp_path):
    text = 'experiment = "plasticity"\n[fixed]\nstream = "growing-offset"\ntasks = 2\ngrowth = -1.5\nmethod = "none"'
    assert arguments(plan(written(tmp_path, text), [])) == [
        "plasticity --stream growing-offset --tasks 2 --growth -1.5 --method none"
    ]


def test_home_is_found_in_a_study_and_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    text = 'experiment = "plasticity"\n[fixed]\ntasks = 2\ndata = "digits"\nout = "~/runs"'
    (job,) = plan(written(tmp_path, text), [])
    assert job.folders[0].parent == tmp_path / "runs" / "plasticity"
    (again,) = plan("plasticity", ["--tasks", "2", "--data", "digits", "--out=~/runs"])
    assert again.folders == job.folders


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([f"--lr={i}" for i in range(400)] + [f"--seed={i}" for i in range(400)], "160,000 combinations"),
        (["--seeds", "1000000"], "--seeds 1000000: a sweep has at most 100,000 runs"),
    ],
)
def test_more_runs_than_can_be_planned_are_refused_at_once(argv, words):
    with pytest.raises(harness.UserError, match=words):
        plan("atari", ["--game", "catch", *argv])


def test_options_are_set_anew():
    argv = ["--num_envs=8", "--hidden", "9", "9", "--fresh", "--seed", "1"]
    changed = with_options(argv, {"--seed": 3, "--num-envs": None, "--game": "pong"})
    assert changed == ("--hidden", "9", "9", "--fresh", "--seed", "3", "--game", "pong")


@pytest.mark.parametrize(
    ("module", "argv", "jobs"),
    [
        (plasticity, [*small_sweeps.TINY, "--method", "none", "--method", "nap", "--seeds", "2"], 2),
        (schedule_matching, ["--tasks", "2", "--seeds", "2", "--seed", "3"], 1),
        (atari, ["--game", "catch", "--seeds", "2", "--method", "nap", "--schedule", "cosine"], 2),
        (atari, ["--games", "breakout,pong"], 2),
        (implicit_schedule, ["--preset", "catch", "--seeds", "2", "--seed", "1"], 2),
    ],
)
def test_a_run_lies_where_the_plan_says(module, argv, jobs, tmp_path, monkeypatch):
    """Every command is run, but for the training and for what is shown at the end."""
    ran = []
    monkeypatch.setattr(plasticity, "_run", lambda config, stream, opened: ran.append(opened.folder))
    monkeypatch.setattr(scoreboard, "scoreboard", lambda folders: "")
    monkeypatch.setattr(schedule_matching, "_run", lambda config, data, opened, free: ran.append(opened.folder))
    monkeypatch.setattr(harness, "tell_end", lambda *_, **__: None)
    monkeypatch.setattr(schedule_matching, "load_trace", lambda folder: {})
    monkeypatch.setattr(schedule_matching, "_table", lambda summaries: "")
    monkeypatch.setattr(harness.Run, "summary", {})
    monkeypatch.setattr(atari, "_run", lambda config, opened, free, mesh: ran.append(opened.folder))
    monkeypatch.setattr(implicit_schedule, "load_runs", lambda folders: [types.SimpleNamespace(problem="catch")])
    monkeypatch.setattr(implicit_schedule, "tables", lambda runs: "")
    planned = module.plan([*argv, "--out", str(tmp_path)])
    assert len(planned) == jobs and not ran
    for job in planned:
        ran.clear()
        assert dispatch(job.argv) == 0
        assert set(ran) == set(job.folders)
