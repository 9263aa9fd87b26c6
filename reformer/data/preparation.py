"""Data sets that are prepared once in a cache, which several processes may want at the same time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def one_at_a_time(cache_dir: Path) -> Iterator[None]:
    """Waits until no other process prepares something there; it then finds what that one has prepared.

    Where there are no locks, or nothing can be written, the process goes on by itself.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            cache_dir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((cache_dir / "preparing.lock").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
