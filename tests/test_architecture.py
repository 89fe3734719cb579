"""The arrows between the packages, the size and the text of a file; that our packages are imported, and idly."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nap", "agents", "envs", "experiments")
MAY_IMPORT = {
    "nap": {"nap"},
    "agents": {"agents", "nap"},
    "envs": {"envs", "nap"},
    "experiments": {"experiments", "agents", "envs", "nap"},
}
LONGEST_FILE = 400


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(source: str, module: list[str]) -> Iterator[tuple[str, int]]:
    """Top-level names that a file imports, anywhere in it, with the line; `module`: the package that the file is in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            inside = module[: len(module) - node.level + 1] if node.level else []
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield ".".join([*inside, name]).split(".")[0], node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value).split(".")[0], node.lineno


def wrong_arrows(package: str, source: str, file: Path) -> list[str]:
    forbidden = set(PACKAGES) - MAY_IMPORT[package]
    module = list(file.relative_to(ROOT).parent.parts)
    return [
        f"{file.relative_to(ROOT)}:{line} imports {name}, which {package} may not"
        for name, line in imported(source, module)
        if name in forbidden
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrows(package):
    assert files(package), f"{package} has no files: this test would hold of anything"
    assert [
        wrong for file in files(package) for wrong in wrong_arrows(package, file.read_text(encoding="utf-8"), file)
    ] == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("nap", "import jax\ndef later():\n    from agents.dqn import Agent\n"),
        ("nap", "import experiments.harness as harness\n"),
        ("agents", "if TYPE_CHECKING:\n    from envs import atari\n"),
        ("envs", "from .. import agents\n"),
        ("envs", "import importlib\nimportlib.import_module('experiments.atari')\n"),
    ],
)
def test_a_wrong_arrow_would_be_found_wherever_it_stands(package, source):
    assert len(wrong_arrows(package, source, ROOT / package / "made_up.py")) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_ours(package):
    module = importlib.import_module(package)
    found = Path(module.__file__ or next(iter(module.__path__))).resolve()
    assert found.is_relative_to(ROOT / package), (
        f"`import {package}` finds {found}, not {ROOT / package}: another distribution called '{package}' stands first "
        f"on the path; uninstall it (`pip uninstall {package}`) or run from {ROOT}"
    )


def test_a_file_is_one_room():
    ours = [file for package in (*PACKAGES, "tests") for file in files(package)]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in ours}
    too_long = {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    assert not too_long, f"longer than {LONGEST_FILE} lines; make a folder of each: {too_long}"


def by_the_locale(source: str) -> list[str]:
    """Calls that read or write text in the encoding of whoever runs them, of those that ruff's PLW1514 does not see."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and "encoding" not in (
            words := {w.arg: ast.unparse(w.value) for w in node.keywords}
        ):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            mode = node.args[0] if node.args else ast.Constant("r")
            on_a_path = name == "open" and not ast.unparse(node.func).startswith("tarfile.")
            opens = (
                on_a_path
                and isinstance(mode, ast.Constant)
                and "b" not in (mode.value if isinstance(mode.value, str) else "b")
            )
            if opens or name in ("read_text", "write_text") or words.get("text") == "True":
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_text_is_utf_8_whatever_the_locale(package):
    found = {str(file.relative_to(ROOT)): by_the_locale(file.read_text(encoding="utf-8")) for file in files(package)}
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_text_by_the_locale_would_be_found():
    wrong = "p.read_text(); p.write_text(''); p.open(); p.open('w'); subprocess.run(words, text=True)"
    assert len(by_the_locale(wrong)) == 5
    assert by_the_locale("p.read_text(encoding='utf-8'); p.open('rb'); tarfile.open(p); os.open(p, 0)") == []


def test_importing_uses_no_device():
    """Which devices there are may be said until JAX is first used: `plasticity` makes each core one."""
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for file in files(package)
        if file.name not in ("__main__.py", "in_torch.py")
    ]
    source = f"""
import importlib, jax
for module in {modules}:
    importlib.import_module(module)
jax.config.update("jax_num_cpu_devices", 3)
assert jax.device_count() == 3
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
