"""`python -m experiments datasets`: what is here, what is not, and a download that fails."""

from experiments import datasets


def test_it_shows_what_is_here_and_how_to_get_the_rest(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NAP_DATA", str(tmp_path))
    assert datasets.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("digits") and "1,500 + 297" in line and "8×8×1" in line for line in lines)
    assert any(line.startswith("  cifar10: ") and "curl" in line for line in lines)
    assert any(
        line.startswith("  imagenet: ") and f"are in {tmp_path / 'imagenet'}: `hf download" in line for line in lines
    )
    assert any(line.startswith("stdlib ") and "million letters" in line for line in lines)
    assert any(line.startswith("  piqa: ") and "its authors have it at" in line for line in lines)


def test_it_finds_images_and_questions_and_tells_of_damage(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NAP_DATA", str(tmp_path))
    for folder in ("imagenet/train", "imagenet/val", "lambada", "siqa"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text('{"text": "he asked the captain"}', encoding="utf-8")
    (tmp_path / "siqa" / "dev.jsonl").write_text("{}", encoding="utf-8")
    assert datasets.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("imagenet ") and f"{tmp_path / 'imagenet' / 'val'}" in line for line in lines)
    assert any(line.startswith("lambada ") and line.split()[1] == "1" for line in lines)
    assert any(line.startswith("  siqa: ") and "line 1 has no text 'context'" in line for line in lines)


def test_a_download_that_fails_is_told_in_a_line(capsys, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert datasets.main(["--download", "fashion-mnist", "--root", str(tmp_path / "new")]) == 2
    assert "could not be downloaded (no network)" in capsys.readouterr().err
