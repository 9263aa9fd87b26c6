"""A disk that is full or may not be written to: noticed before a run, and said in one sentence when it happens."""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

PROBE = "probe.tmp"
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
