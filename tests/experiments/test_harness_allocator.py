"""The allocator's options: fewer page faults, and the environment's word counts."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments.harness import allocator

# 100 MB, allocated, written and freed again and again.
FAULTS = """
import resource
from experiments.harness.allocator import keep_freed_memory
keep_freed_memory()
for i in range(20):
    bytes([i + 1]) * 100_000_000
    if i in (9, 19):
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(**environment: str) -> int:
    """Page faults of the last ten of twenty allocations."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    done = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, encoding="utf-8", check=True)
    before, after = map(int, done.stdout.split())
    return after - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_page_faults_unless_the_environment_says_otherwise():
    defaults = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    assert page_faults(**defaults) > 20 * (1 + page_faults())  # 20 is enough of a difference for the largest pages, too


def test_processes_that_are_started_later_keep_it_as_well(monkeypatch):
    called = []
    monkeypatch.setattr(
        allocator.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *option: called.append(option))
    )
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "")  # so that it is as before when the test is over
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    allocator.keep_freed_memory()
    assert called == [(-1, 2**31 - 1)]
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == str(2**31 - 1)
    assert os.environ["MALLOC_MMAP_MAX_"] == "7"


def test_where_the_c_library_has_no_such_option_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    allocator.keep_freed_memory()
