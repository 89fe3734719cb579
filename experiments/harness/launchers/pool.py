"""Processes on this machine, one a slot: see `slots`."""

import collections
import time
from collections.abc import Sequence

from experiments.harness.cores import cores_here
from experiments.harness.errors import Interrupted
from experiments.harness.interrupt import InterruptFlag
from experiments.harness.jobs import Job, Started, look, settle, start, tell
from experiments.harness.launchers import Options
from experiments.harness.launchers.slots import gpus_here, pinned, slots_of

_POLL_SECONDS = 0.1


def launch(jobs: Sequence[Job], options: Options) -> None:
    """Runs the jobs, as many at once as there are slots.

    Raises:
        Interrupted: SIGINT or SIGTERM came: the runs were asked to stop, and have. A second one kills them.
    """
    slots = slots_of(options.workers, cores_here(), gpus_here())
    waiting, running = collections.deque(jobs), dict[int, Started]()
    stopping = False
    with InterruptFlag() as interrupt:
        try:
            while waiting or running:
                for number in [number for number, started in running.items() if started.process.poll() is not None]:
                    settle(running[number])
                    tell(running.pop(number).job)
                if interrupt.received and not stopping:
                    stopping = True
                    waiting.clear()
                    for started in running.values():
                        started.process.terminate()
                for number, slot in enumerate(slots):
                    if waiting and number not in running:
                        job = waiting.popleft()
                        if look(job).state in ("waiting", "failed"):  # by now another process may have it
                            with pinned(slot.cores):
                                running[number] = start(job, slot.environment)
                time.sleep(_POLL_SECONDS)
        finally:
            for started in running.values():
                started.process.kill()
                started.process.wait()
    if interrupt.received:
        raise Interrupted(f"stopped by {interrupt.received.name}; the same command goes on", interrupt.received)
