"""`python -m experiments ...` in a process that is told to stop (SIGTERM) when the one that started it dies."""

import ctypes
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":  # elsewhere it goes on alone, and holds its folder as long as it does
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's warning reaches it, but is for the one that started it
    runpy.run_module("experiments", run_name="__main__", alter_sys=True)
