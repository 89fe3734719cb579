"""Folders of runs with something wrong in one of their files, drawn by a seed: what `report` must have an answer to."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 0.5, 1e308, -1e308, 1e-320, 10**30, 2**63, 10**500, "", "x", "$\\frac{$", "$x_{$", "\ud800",
    "a\0b", "<b>&", "l" * 3000, [], {}, [1], ["a", {}], {"a": 1}, {"a": {"b": [None]}},
)  # fmt: skip
TEXTS: tuple[bytes, ...] = (
    b"", b"null", b"5", b"[]", b"{}", b'"text"', b"NaN", b"1e400", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 5000,
    b'{"a":' * 900 + b"1" + b"}" * 900, b'{"updates":null}', b'{"updates":"3"}', b'{"updates":-1}', b'{"updates":1e9}',
    b'{"updates":' + b"9" * 600 + b"}", b"1" * 5000, b"\0",
)  # fmt: skip


def damage(folders: Sequence[Path], seed: int) -> str:
    """Damages a file of one of some run folders; returns what was done to it, in words."""
    rng = random.Random(seed)
    folder = rng.choice(folders)
    name = rng.choice(["metrics.jsonl"] * 5 + ["config.json"] * 5 + ["DIVERGED"] * 2 + ["summary.json"])
    path = folder / name
    if name in ("DIVERGED", "summary.json") or rng.random() < 0.1:
        content = rng.choice(TEXTS)
        path.write_bytes(content)
        return f"{name} of {folder.name} is {content[:40]!r}"
    if name == "config.json":
        tree = json.loads(path.read_text(encoding="utf-8"))
        what = _change(tree, rng)
        path.write_text(json.dumps(tree), encoding="utf-8")
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        what = _change_lines(lines, rng)
        path.write_text("\n".join(lines) + "\n", errors="surrogatepass", encoding="utf-8")
    return f"{name} of {folder.name}: {what}"


def _change(tree: Any, rng: random.Random) -> str:
    """Exchanges, renames or takes away something at a random place of a tree of objects."""
    names = []
    while True:
        name = rng.choice(list(tree))
        names.append(name)
        if not (isinstance(tree[name], dict) and tree[name]) or rng.random() < 0.2:
            break
        tree = tree[name]
    act, place = rng.random(), ".".join(names)
    if act < 0.15:
        del tree[names[-1]]
        return f"without {place}"
    value = rng.choice(VALUES)
    if act < 0.25:
        tree[str(value)[:200]] = tree.pop(names[-1])
        return f"{place} is called {str(value)[:40]!r}"
    tree[names[-1]] = value
    return f"{place} is {str(value)[:40]!r}"


def _change_lines(lines: list[str], rng: random.Random) -> str:
    place, act = rng.randrange(len(lines)), rng.random()
    if act < 0.6:
        row = json.loads(lines[place])
        what = _change(row, rng)
        lines[place] = json.dumps(row)
        if rng.random() < 0.3:  # in all of them
            name = what.partition(" is ")[0]
            rows = [json.loads(line) for line in lines]
            lines[:] = [json.dumps({**each, name: row[name]} if name in row else each) for each in rows]
            return f"{what}, in all records"
        return f"record {place}: {what}"
    if act < 0.7:
        lines[place] = rng.choice(
            ["{}", "", "[]", "null", "5", '"a"', lines[place][: len(lines[place]) // 2], "{" * 2000]
        )
        return f"record {place} is {lines[place][:40]!r}"
    if act < 0.8:
        del lines[rng.randrange(len(lines)) :]
        return f"{len(lines)} records are left"
    if act < 0.9:
        lines.insert(place, lines[rng.randrange(len(lines))])
        return f"a copy of another record before {place}"
    rng.shuffle(lines)
    return "records in another order"
