"""A command line with repeated options, as the command lines of a grid."""

import pytest

from experiments.harness.grid import cells


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", [""]),
        ("--method nap --hidden 100 50 --fresh", ["--method nap --hidden 100 50 --fresh"]),
        ("--method a --method b --seeds 3", ["--method a --seeds 3", "--method b --seeds 3"]),
        ("--hidden 9 9 --lr 1 --hidden 8", ["--hidden 9 9 --lr 1", "--hidden 8 --lr 1"]),
        ("--method=a --lr=1 --method=b", ["--method=a --lr=1", "--method=b --lr=1"]),
        ("--method a --seeds 2 --method a", ["--method a --seeds 2"]),
        ("--a 1 --b x --a 2 --b y", ["--a 1 --b x", "--a 1 --b y", "--a 2 --b x", "--a 2 --b y"]),
        ("--offset -3 --offset -4", ["--offset -3", "--offset -4"]),
    ],
)
def test_cells(command, expected):
    assert [" ".join(cell) for cell in cells(command.split())] == expected
