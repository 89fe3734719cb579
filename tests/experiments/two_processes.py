"""Two processes on loopback, with a CPU device each, as tests of runs over several hosts need them."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_two(script: Path, *arguments: str) -> list[tuple[int, str]]:
    """Runs `script process port arguments` as processes 0 and 1 until both have ended.

    Returns:
        The exit code and the end of stderr of each.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = re.sub("device_count=8", "device_count=1", os.environ["XLA_FLAGS"])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(process), str(port), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            encoding="utf-8",
        )
        for process in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, errors[-3000:]) for process, errors in zip(processes, said, strict=True)]
