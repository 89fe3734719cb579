"""JAX's persistent compilation cache: the second start of a program does not compile again."""

import errno
import os
import sys
from pathlib import Path

from experiments.harness.errors import UserError


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs in the user's cache folder, and starts JAX; call it before the first jitted call.

    The folder is `JAX_COMPILATION_CACHE_DIR` where that is set, else `nap-jax` in `XDG_CACHE_HOME` or `~/.cache`. Every
    program is kept, however quickly it compiled: a start-up is made of many small ones.

    Returns:
        The folder; None, after a line on stderr, where nobody's home is known or nothing can be written there.

    Raises:
        UserError: JAX is set to compute in 64 bits.
        RuntimeError, AssertionError: JAX has no device; `environment.why_jax_cannot_start` has the words for it.
    """
    import jax

    if jax.dtypes.canonicalize_dtype("float64") == "float64":
        raise UserError("JAX_ENABLE_X64 is set: the experiments compute in 32 bits, as what they repeat did; unset it")
    jax.devices()  # so that a device that is not there is told before anything is written
    try:
        folder = _folder()
    except OSError as error:
        print(f"compiled programs are not kept: {error.filename or 'their folder'}: {error.strerror}", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _folder() -> Path:
    """The folder, which is there. Raises OSError where it cannot be."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = named or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "nap-jax")
    path = Path(os.path.expanduser(folder))
    if path.parts[0].startswith("~"):
        raise FileNotFoundError(errno.ENOENT, "no such home folder is known (HOME)", folder)
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    return path
