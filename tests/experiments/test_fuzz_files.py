"""Every file of a run's folder damaged in every way: told, never believed, and nothing else is lost. `make fuzz`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzzing import (
    DAMAGES,
    Ended,
    command,
    contents,
    experiments,
    is_told_in_a_line,
    make_data,
    run,
    stopped_at_the_first_save,
)
from run_folders import folders_in, written

from experiments import harness

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]

CASES = 24
"""How many damages are tried on each experiment's folders; on those of `plasticity`, which are quick, all."""
LOGS = ("lock", "timings.jsonl", "events")
"""What a resumed run may add to."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def cases(folder: Path, rng: np.random.Generator) -> list[tuple[str, int]]:
    """What to damage, by its path in the folder, and how: all of it for the run's own files, a few of orbax's."""
    names = [name for name, content in contents(folder).items() if content is not None]
    deep = [name for name in names if name.count("/") > 1]
    chosen = [name for name in names if name not in deep] + list(rng.permutation(deep)[:3])
    chosen += ["checkpoints"] if (folder / "checkpoints").is_dir() else []
    folders = [i for i, damage in enumerate(DAMAGES) if damage.__name__ in ("delete", "directory", "fifo")]
    return [(str(name), how) for name in chosen for how in (folders if name == "checkpoints" else range(len(DAMAGES)))]


@pytest.mark.parametrize("ending", ["stopped", "done"])
@pytest.mark.parametrize("experiment", experiments())
def test_a_damaged_file_is_told_and_never_believed(experiment, ending, data, tmp_path):
    argv = command(experiment, data, tmp_path / "runs")
    assert run(argv).exit_code == 0
    whole = {folder: written(folder) for folder in folders_in(tmp_path / "runs")}
    if ending == "stopped":
        shutil.rmtree(tmp_path / "runs")
        with stopped_at_the_first_save():
            assert run(argv).exit_code == harness.Interrupted("").exit_code
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    target = folders_in(tmp_path / "runs")[-1].relative_to(tmp_path / "runs")
    rng = np.random.default_rng(sum(map(ord, experiment)))
    every = cases(tmp_path / "copy" / target, rng)
    chosen = every if experiment == "plasticity" else [every[i] for i in rng.permutation(len(every))[:CASES]]
    wrong = []
    for name, how in chosen:
        shutil.rmtree(tmp_path / "runs")
        shutil.copytree(tmp_path / "copy", tmp_path / "runs")
        folder = tmp_path / "runs" / target
        DAMAGES[how](folder / name, rng)
        before = contents(folder)
        case = f"{name}, {DAMAGES[how].__name__}"
        try:
            ended = run(argv)
        except Exception as error:  # what gets out is a finding, not the end of the search
            wrong.append(f"{case}: {type(error).__name__}: {error}")
            continue
        wrong += [f"{case}: {what}" for what in faults(ended, before, folder, whole)]
    assert not wrong, f"{len(wrong)} of {len(chosen)}:\n" + "\n".join(wrong)


def faults(ended: Ended, before: dict, folder: Path, whole: dict[Path, list[bytes]]) -> list[str]:
    """What is wrong with how a command went on from a damaged folder."""
    if ended.exit_code == 0:
        found = folders_in(folder.parents[1])
        if set(found) != set(whole):
            return [f"it succeeded, and left the runs {[path.name for path in found]}"]
        return [f"it succeeded with other records in {path.name}" for path in found if written(path) != whole[path]]
    after = contents(folder)
    lost = [
        name
        for name, content in before.items()
        if not name.startswith(LOGS) and after.get(name) != content and name != "config.json"
    ]
    wrong = [f"it failed, and changed {name}" for name in lost]
    if ended.exit_code not in (1, 2) or not is_told_in_a_line(ended):
        wrong.append(f"exit code {ended.exit_code}: {ended.errors[-400:]!r}")
    return wrong
