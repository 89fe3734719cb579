"""JAX's persistent compilation cache: the second start of a program does not compile again."""

import os
from pathlib import Path


def enable_compilation_cache() -> Path:
    """Keeps compiled programs in the user's cache folder; call it before the first jitted call.

    The folder is `JAX_COMPILATION_CACHE_DIR` where that is set, else `nap-jax` in `XDG_CACHE_HOME` or `~/.cache`. Every
    program is kept, however quickly it compiled: a start-up is made of many small ones.

    Returns:
        The folder.
    """
    import jax

    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or base / "nap-jax")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
