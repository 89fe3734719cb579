"""Options of sbatch that a sweep passes on, and those that it sets itself."""

import re
import sys
import types

import pytest
from small_sweeps import ROOT

from experiments import harness
from experiments.harness import launchers
from experiments.harness.jobs import Job


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("time=60", "--sbatch time=60: --minutes sets it"),
        ("array=0-3", "--workers"),
        ("signal=USR1@60", "a run relies on it"),
        ("no_requeue", "a run relies on it"),
        ("--exclusive", "a long name of sbatch's"),
        ("=5", "a long name of sbatch's"),
        ("comment=a\n#SBATCH --time=1", "a long name of sbatch's"),
    ],
)
def test_what_a_run_relies_on_is_not_for_sbatch(option, words, monkeypatch):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(harness.UserError, match=re.escape(words)):
        launchers.check(launchers.Options(launcher="slurm", sbatch=("account=vision", option)))


def test_an_option_of_sbatch_without_a_value_is_a_flag(tmp_path, monkeypatch):
    given = {}

    class Executor:
        def __init__(self, **_):
            pass

        def update_parameters(self, **parameters):
            given.update(parameters)

        def map_array(self, task, jobs):
            return [types.SimpleNamespace(job_id="7_0") for _ in jobs]

    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=Executor, __spec__=True))
    options = launchers.Options(launcher="slurm", sbatch=("exclusive", "qos=low", "comment=a=b"))
    launchers.check(options)
    launchers.launch([Job(("run",), (tmp_path / "x" / "run",), ROOT)], options)
    more = {"requeue": True, "exclusive": True, "qos": "low", "comment": "a=b"}
    assert given["slurm_additional_parameters"] == more
