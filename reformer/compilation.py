"""How XLA should compile these models, and where what it compiled is kept."""

import contextlib
import hashlib
import platform
import time
from pathlib import Path
from typing import Any

import jax

from reformer import sharding
from reformer.host import paths

CACHE_DIR = "~/.cache/reformer/compiled"
_CACHE_BYTES = 2**31  # beyond it what was not used for the longest time goes
_SECONDS_TO_WRITE = 60  # an entry, at most
_CACHE_SECONDS = 0.2  # a program that takes less to compile is not kept; JAX's own limit would miss some of each start


def compiler_options() -> dict[str, str] | None:
    """Returns options for `jax.jit(..., compiler_options=...)`; None = JAX's defaults.

    They are for the devices of the current mesh, else for the default device. On CPU: without XLA's YNN fusions, which
    keep scratch memory of their own (`memory_analysis` does not show it) and make a step of these models about 7 %
    slower; see docs/performance.md.
    """
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if sharding.on_cpu() else None


def keep_compiled(directory: str) -> None:
    """Keeps what is compiled from now on in a folder, where the next start finds it.

    Does nothing where JAX has a folder already (`JAX_COMPILATION_CACHE_DIR`), where its cache is off
    (`JAX_ENABLE_COMPILATION_CACHE=false`), or where the folder cannot be made.

    Args:
      directory: Holds a folder for each kind of processor: what was compiled for one may crash on another.
    """
    known: Any = jax.config  # its attributes are made at run time
    if known.jax_compilation_cache_dir or not known.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError, ValueError):  # the second: there is no home directory
        folder = paths.local(directory) / _processor()
        folder.mkdir(parents=True, exist_ok=True)
        _drop_unfinished(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _CACHE_SECONDS)


def _drop_unfinished(folder: Path) -> None:
    """Deletes entries that a killed process left half-written: JAX could neither replace them nor add others."""
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may be at it
            is_old = time.time() - entry.stat().st_mtime > _SECONDS_TO_WRITE
            if is_old and not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink()


def _processor() -> str:
    """Returns a name for the kind of this machine's processor, with what it can do."""
    abilities = platform.processor()
    with contextlib.suppress(OSError):  # there is such a file on Linux only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        abilities = next((line for line in lines if line.startswith(("flags", "Features"))), abilities)
    return f"{platform.machine()}-{hashlib.sha256(abilities.encode()).hexdigest()[:8]}"
