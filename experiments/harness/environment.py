"""Environment variables that this program or JAX reads: what is wrong with one is told in a line that names it."""

import os
import sys
from collections.abc import Sequence

from experiments.harness.cores import cores_here
from experiments.harness.errors import UserError


def check_environment(argv: Sequence[str]) -> None:
    """Looks at what a command was given, before anything is imported for it. JAX looks at its own variables.

    Raises:
        UserError: an argument is no text, or `PJRT_NPROC`, `NAP_DATA` or `XLA_FLAGS` cannot be meant.
    """
    for argument in argv:
        if any("\udc80" <= letter <= "\udcff" for letter in argument):
            raise UserError(f"{argument!a}: it is not UTF-8, as the names of files and options must be")
    cores_here()
    data = os.environ.get("NAP_DATA", "")
    if os.path.expanduser(data).startswith("~"):
        raise UserError(f"NAP_DATA={data}: there is no such home folder; give the whole path")
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-") and not os.path.isfile(flags):  # XLA would end the process
        raise UserError(f"XLA_FLAGS={flags}: flags begin with --, and there is no file of that name to read them from")


def why_jax_cannot_start(error: Exception) -> str | None:
    """Why JAX could not be imported or finds no device here, with the variables that it was given; None where it runs.

    Args:
        error: something unexpected that was raised: what JAX says of its variables comes as many kinds of exception.
    """
    if "jax" not in sys.modules:
        return f"{_given()}: JAX cannot start: {error}" if "jax._src" in sys.modules else None  # it was broken off
    import jax

    try:
        jax.devices()
    except Exception as reason:
        # For CUDA without a GPU it is an AssertionError without a word.
        return f"{_given()}: JAX cannot start: {str(reason) or 'there is no such device here'}"
    return None


def _given() -> str:
    """The variables that decide how JAX starts, as they are set."""
    given = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("JAX_")]
    return ", ".join(given) or "no variable of JAX's is set"
