"""`python -m experiments`: lists the experiments; `python -m experiments NAME ...` runs one."""

import os
import signal
import sys
from typing import NoReturn

from experiments.harness.allocator import keep_freed_memory
from experiments.harness.catalogue import dispatch
from experiments.harness.surroundings import delivered, surroundings
from experiments.harness.watch import end_process


def _stop_at_once(interrupt: BaseException | None) -> NoReturn:
    """Ends the process on a KeyboardInterrupt, which of a run has the signal's number."""
    print("stopped at once; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    # Python would wait for threads: those of a save that was broken off may wait for each other for ever.
    os._exit(128 + next(iter(interrupt.args if interrupt else ()), signal.SIGINT))


def _on_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Stops on an interrupt that came where Python can raise none, such as a weak reference's callback."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _stop_at_once(unraisable.exc_value)
    sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    surroundings()
    keep_freed_memory()
    sys.unraisablehook = _on_unraisable
    try:
        exit_code = delivered(dispatch(sys.argv[1:]))
    except KeyboardInterrupt as interrupt:
        _stop_at_once(interrupt)
    end_process(exit_code)
    sys.exit(exit_code)
