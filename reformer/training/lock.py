"""One run at a time in a workdir.

The lock is the kernel's (`flock`): it ends with the process that holds it, however that ends, so there is never a stale
one to remove. It holds among the processes of one machine, and among machines on file systems that pass it on: NFS from
version 4 (and 3 with its lock service), Lustre mounted with `flock`, CephFS, GPFS. There a machine that vanished keeps
its locks until the server notices, after a minute or two: the lock of another machine is waited for. Where a file
system has no locks the run goes on without one and says so.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

NAME = "lock"
VANISHED_SECONDS = 150.0  # NFS 4 gives a lock up after a lease of 90 s
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Holds the lock of an existing workdir; its file stays and names the latest holder.

    Raises:
      OSError: If another run holds it, or the file cannot be written.
    """
    # Not closed and opened again between the two: closing would release the lock.
    with (workdir / NAME).open("a+") as file:
        try:
            _lock(file, workdir)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            print(f"warning: the file system of {workdir} has no locks; start no other run there.", file=sys.stderr)
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        yield


def _lock(file: TextIO, workdir: Path) -> None:
    end = None
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = " ".join(file.read(200).split()) or "it has not said which"
        is_here = f"host {socket.gethostname()}," in holder
        if is_here or (end is not None and time.monotonic() > end):
            raise OSError(
                f"workdir={workdir} is in use by another run ({holder}). Wait for it, stop it, or use another workdir."
            )
        if end is None:
            end = time.monotonic() + VANISHED_SECONDS
            print(f"{workdir} is locked ({holder}): waiting {VANISHED_SECONDS:.0f} s, for that machine may be gone.")
        time.sleep(min(2.0, VANISHED_SECONDS))
