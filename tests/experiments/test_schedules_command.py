"""`python -m experiments schedules`: every schedule is listed, and drawn into one picture."""

import pytest

from experiments import schedules as command
from nap import schedules
from nap.schedules import profiles


def test_all_of_nap_schedules_is_listed_and_drawn(capsys, tmp_path):
    picture = tmp_path / "all.svg"
    assert command.main(["--plot", "--out", str(picture)]) == 0
    *table, path = capsys.readouterr().out.splitlines()
    listed = {line.split(" ")[0] for line in table[2:]}
    public = {name for name, value in vars(profiles).items() if getattr(value, "__module__", "") == profiles.__name__}
    everything = set(schedules.__all__) | {name for name in public if not name.startswith("_")}
    assert listed == everything - {"profiles", "warmup"}
    drawn = picture.read_text(encoding="utf-8")
    assert [name for name in listed if f"<!-- {name} -->" not in drawn] == []
    assert path == str(picture)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("picture", "error: --out picture: a file that ends in .png, .pdf or .svg; try picture.png"),
        ("no/such/folder.png", "error: --out no/such/folder.png: there is no folder no/such"),
    ],
)
def test_a_picture_that_cannot_be_written_is_told_in_a_line(capsys, out, words):
    assert command.main(["--plot", "--out", out]) == 2
    assert capsys.readouterr().err == f"{words}\n"
