"""What experiments hand to their runs of the files they read: fingerprints; and what they say of files."""

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import completed, typed

from envs.loaders import Loader
from envs.reading import BadFile
from experiments import (
    harness,
    images,
    language,
    plasticity,
    river_valley,
    schedule_budgets,
    schedule_matching,
    schedule_refinement,
)
from experiments.harness import stages, training
from experiments.harness.run import Run


def given(monkeypatch, main, *arguments) -> dict[str, str]:
    """The fingerprints that a command hands to its run, which is not begun."""
    seen = []

    def not_opened(*args, data=None, **named):
        seen.append(data)
        raise harness.UserError("it is not begun")

    with monkeypatch.context() as patch:
        for module in (harness, stages, training):
            patch.setattr(module, "open_run", not_opened)
        assert main([str(word) for word in arguments]) == 2
    assert seen, "no run was opened"
    return dict(seen[0])


def write_images(path: Path, first_pixel: int = 0) -> Path:
    pictures = np.random.default_rng(0).integers(0, 256, (100, 8, 8), np.uint8)
    pictures[0, 0, 0] = first_pixel
    np.savez(path, images=pictures, labels=np.arange(100) % 10)
    return path


SMALL = {"hidden": 16, "updates": 30, "seeds": 1}
OF_IMAGES = {
    "plasticity": (plasticity.main, {"tasks": 2, "epochs": 1, "examples": 40, "batch-size": 10, "hidden": 8}),
    "images": (images.main, {"batch-size": 8}),
    "schedule-matching": (schedule_matching.main, {"tasks": 2, "epochs": 1, "examples": 40, "batch-size": 10}),
    "schedule-budgets": (schedule_budgets.main, SMALL | {"budgets": 1.0}),
    "schedule-refinement": (schedule_refinement.main, SMALL),
    "river-valley": (river_valley.main, {"hidden": 16, "seeds": 1}),
}


@pytest.mark.parametrize("experiment", OF_IMAGES)
def test_a_changed_pixel_is_another_fingerprint(tmp_path, monkeypatch, experiment):
    main, options = OF_IMAGES[experiment]
    path = write_images(tmp_path / "mine.npz")
    arguments = (*typed({"data": path, **options}), "--out", tmp_path)
    before = given(monkeypatch, main, *arguments)
    assert list(before) == ["--data"] and len(before["--data"]) == 64
    assert given(monkeypatch, main, *arguments) == before
    write_images(path, first_pixel=1)
    assert given(monkeypatch, main, *arguments)["--data"] != before["--data"]


def test_images_of_a_package_have_a_fingerprint_and_streams_without_images_none(tmp_path, monkeypatch):
    options = {"tasks": 2, "epochs": 1, "examples": 40, "batch-size": 10, "hidden": 8}
    assert given(monkeypatch, plasticity.main, *typed({"data": "digits", **options}), "--out", tmp_path)["--data"]
    regression = typed({"stream": "growing-offset", **options})
    assert given(monkeypatch, plasticity.main, *regression, "--out", tmp_path) == {}


@pytest.fixture
def text(tmp_path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [json.dumps({"text": f"document {i} of the text"}) for i in range(12)]
    for name in ("train-0.jsonl", "train-1.jsonl", "validation-0.jsonl"):
        (folder / name).write_text("\n".join(line.replace("document", name) for line in lines), encoding="utf-8")
    return folder


def change(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("of the text", "of a text", 1), encoding="utf-8")


NETWORK = {"layers": 1, "width": 8, "heads": 2, "sequence": 8, "batch-size": 4, "updates": 6}


def language_given(monkeypatch, out: Path, **options) -> dict[str, str]:
    return given(monkeypatch, language.main, *typed({**NETWORK, **options}), "--out", out)


def test_fingerprints_of_text(text, tmp_path, monkeypatch):
    alone = language_given(monkeypatch, tmp_path, text=text / "train-0.jsonl")
    assert list(alone) == ["--text"]
    options = {"text": text / "train-0.jsonl", "held-out": text / "train-1.jsonl"}
    before = language_given(monkeypatch, tmp_path, **options)
    change(text / "train-1.jsonl")
    after = language_given(monkeypatch, tmp_path, **options)
    assert before["--text"] == after["--text"] and before["--held-out"] != after["--held-out"]
    change(text / "train-0.jsonl")
    assert language_given(monkeypatch, tmp_path, text=text / "train-0.jsonl") != alone


def test_fingerprints_of_a_stream(text, tmp_path, monkeypatch):
    options = {"streamed": text, "evaluation-tokens": 100}
    seen = {language_given(monkeypatch, tmp_path, **options)["--streamed"]}
    for name in ("train-1.jsonl", "validation-0.jsonl"):
        change(text / name)
        seen.add(language_given(monkeypatch, tmp_path, **options)["--streamed"])
    assert len(seen) == 3


def test_fingerprints_of_a_tokenizer_and_of_choices(text, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="the extra data is not installed")
    options = {"text": text / "train-0.jsonl", "vocabulary": 260}
    learned = language_given(monkeypatch, tmp_path, **options)
    (saved,) = (tmp_path / "tokenizers").iterdir()
    tokenizer = json.loads(saved.read_text(encoding="utf-8"))
    tokens = tokenizer["model"]["vocab"]
    tokens["h"], tokens["w"] = tokens["w"], tokens["h"]
    saved.write_text(json.dumps(tokenizer), encoding="utf-8")
    swapped = language_given(monkeypatch, tmp_path, **options)
    assert swapped["--vocabulary"] != learned["--vocabulary"] and swapped["--text"] == learned["--text"]
    questions = tmp_path / "valid.jsonl"
    questions.write_text('{"goal": "sit", "sol1": "on the mat", "sol2": "zzzz"}', encoding="utf-8")
    labels = tmp_path / "valid-labels.lst"
    seen = set()
    for answer in ("0", "1"):
        labels.write_text(answer, encoding="utf-8")
        found = language_given(
            monkeypatch, tmp_path, text=text / "train-0.jsonl", tokenizer=saved, choices=f"piqa={questions}"
        )
        assert list(found) == ["--text", "--tokenizer", "--choices"]
        seen.add(found["--choices"])
    assert len(seen) == 2


def test_a_study_on_text_has_a_fingerprint_of_it(text, tmp_path, monkeypatch):
    path = text / "train-0.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} " * 200}) + "\n" for i in range(12)), encoding="utf-8")
    arguments = (
        *typed({"task": "text", "data": path, "hidden": 8, "batch-size": 2, "budgets": 1.0}),
        "--out",
        tmp_path,
    )
    before = given(monkeypatch, schedule_budgets.main, *arguments)
    path.write_text(path.read_text(encoding="utf-8").replace("11 ", "12 "), encoding="utf-8")
    assert given(monkeypatch, schedule_budgets.main, *arguments) != before


def test_files_of_other_kinds_are_said(text, tmp_path, monkeypatch, capsys):
    for name in ("a.csv", "b.bin", "c.tex", "LICENSE", ".hidden"):
        (text / name).write_bytes(b"")
    language_given(monkeypatch, tmp_path, text=text)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert line == f"--text {text}: not read, as of other kinds: 4 files (LICENSE, a.csv, b.bin, ...)"


def test_a_file_at_fault_is_named_once(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.npz"
    path.write_bytes(b"PK")
    for main in (images.main, plasticity.main):
        assert main(["--data", str(path), "--out", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and line.count(str(path)) == 1


def test_data_that_turn_out_to_be_damaged_in_the_middle_of_training(tmp_path, monkeypatch, capsys):
    """One line, and what is saved stays: the same command goes on once the data can be read."""
    path = write_images(tmp_path / "mine.npz")
    monkeypatch.setattr(images, "NETWORKS", {"resnet-8": {"blocks": (1,), "width": 4}})
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    sizes = {"data": path, "updates": 6, "batch-size": 4, "evaluations": 1, "log-every": 2}
    arguments = [*completed((), sizes), "--out", str(tmp_path / "runs")]
    readable = images.training_images

    def damaged(*args, **named) -> Loader:
        loader = readable(*args, **named)

        def batches(position):
            for batch, behind in loader.batches(position):
                if behind[0] > 4:
                    raise BadFile("n01/7.JPEG: damaged, or no image (image file is truncated)")
                yield batch, behind

        return loader._replace(batches=batches)

    with monkeypatch.context() as patch:
        patch.setattr(images, "training_images", damaged)
        assert images.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "n01/7.JPEG: damaged" in errors[0] and "(iteration 4)" in errors[0]
    restored = []
    restore = Run.restore
    monkeypatch.setattr(Run, "restore", lambda run, state: restored.append(restore(run, state)) or restored[-1])
    assert images.main(arguments) == 0
    assert restored[0][0] == 4
