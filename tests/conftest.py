"""Set before JAX is imported: the CPU, as eight devices, quick compilation, a cache; and shapes checked at run time."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation: without LLVM's optimization it takes half as long.
_flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flags}".strip()
_cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "nap-jax-tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["nap", "agents", "envs"], "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def forget_what_was_compiled():
    """What a module's tests compiled is dropped behind them: that of the whole suite would take gigabytes."""
    yield
    jax.clear_caches()
