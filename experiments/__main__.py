"""`python -m experiments`: lists the experiments; `python -m experiments NAME ...` runs one."""

import os
import signal
import sys

from experiments.harness.allocator import keep_freed_memory
from experiments.harness.catalogue import dispatch

if __name__ == "__main__":
    keep_freed_memory()
    try:
        exit_code = dispatch(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it flushes at exit
        exit_code = 128 + signal.SIGPIPE
    except KeyboardInterrupt as interrupt:  # of a run: with the signal's number
        print("stopped at once; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        # Python would wait for threads: those of a save that was broken off may wait for each other for ever.
        os._exit(128 + next(iter(interrupt.args), signal.SIGINT))
    sys.exit(exit_code)
