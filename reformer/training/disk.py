"""What a run asks of its disk: room, files that are never half-written, and a workdir that no other run uses.

A disk that is full or may not be written to is noticed before a run, and said in one sentence when it happens.

The lock of a workdir is the kernel's (`flock`): it ends with the process that holds it, however that ends, so there is
never a stale one to remove. It holds among the processes of one machine, and among machines on file systems that pass
it on: NFS from version 4 (and 3 with its lock service), Lustre mounted with `flock`, CephFS, GPFS. There a machine that
vanished keeps its locks until the server notices, after a minute or two: the lock of another machine is waited for.
Where a file system has no locks the run goes on without one and says so.
"""

import contextlib
import errno
import fcntl
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import jax

PROBE = "probe.tmp"
LOCK = "lock"
VANISHED_SECONDS = 150.0  # NFS 4 gives a lock up after a lease of 90 s
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_OF_DISKS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
)
# Of the manifest, metadata and journal of a small run.
_OVERHEAD_BYTES = 2**18


def check_writable(workdir: Path) -> None:
    """Creates `workdir` and writes a file into it.

    Raises:
      OSError: If that cannot be done.
    """
    probe = workdir / PROBE
    with explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"x" * 4096)
        finally:
            probe.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, would survive a power cut, where that can be waited for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # of directories, some
            raise
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Writes a file: a reader, or what comes after a power cut, sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def check_space(workdir: Path, state: Any, num_checkpoints: int, num_reclaimable: int = 0) -> None:
    """Compares the free space with what checkpoints will need.

    Args:
      workdir: Exists.
      state: Arrays, or their shapes and dtypes.
      num_checkpoints: How many more there may be at a time.
      num_reclaimable: Bytes that will be freed before the first of them.

    Raises:
      OSError: If there is not enough.
    """
    size = _OVERHEAD_BYTES + sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(workdir).free + num_reclaimable
    if free < size * num_checkpoints:
        raise OSError(
            f"workdir={workdir} has {free / 1e9:.3g} GB free, and {num_checkpoints} checkpoints of {size / 1e9:.3g} GB "
            f"need {size * num_checkpoints / 1e9:.3g} GB. Free space, use another workdir, or lower "
            "--config.checkpoint.keep_latest."
        )


def bytes_below(directory: Path) -> int:
    """Returns the bytes of all files below a directory: they grow while something is saved there."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # renamed or deleted in the meantime
                continue
    return total


@contextlib.contextmanager
def explained(workdir: Path) -> Iterator[None]:
    """Turns an error of the system about disks into a sentence that says what to do; leaves all others."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        place = f" ({error.filename})" if error.filename else ""
        raise OSError(
            f"workdir={workdir} cannot be used: {error.strerror}{place}. Checkpoints that were complete are intact. "
            "Free space or allow writing, and run the same command again."
        ) from error


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of an existing workdir; its file stays and names the latest holder.

    Raises:
      OSError: If another run holds it, or the file cannot be written.
    """
    # Not closed and opened again between the two: closing would release the lock.
    with (workdir / LOCK).open("a+") as file:
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
