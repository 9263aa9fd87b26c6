"""Paths as people write them: every path of a flag, a config or a call goes through `local`."""

import argparse
import os
import re
from pathlib import Path

# Two letters at least, for drives have one; one slash is what is left of two in a `Path`.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
RULE = (
    "a path on a file system: addresses such as gs:// and s3:// can neither be read nor written. Mount the bucket "
    "(gcsfuse, mount-s3) and name a folder of the mount, or copy it here and back."
)


def is_address(path: str | os.PathLike) -> bool:
    """Whether it names something on the network, such as gs://bucket/run."""
    return bool(_ADDRESS.match(os.fspath(path)))


def local(path: str | os.PathLike) -> Path:
    """Returns a path with `~` and `~user` expanded, as a shell does it.

    Raises:
      ValueError: If it is an address on the network, or there is no such user.
    """
    if is_address(path):
        raise ValueError(f"{os.fspath(path)!r} must be {RULE}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{os.fspath(path)!r} begins with the home of a user who does not exist. Write the whole path, or ./~ for "
            "a folder of that name."
        ) from None


def argument(text: str) -> Path:
    """Returns `local` of what was given for a flag, as the `type` of an `argparse` argument.

    Raises:
      argparse.ArgumentTypeError: With the sentence of `local`, which argparse would drop.
    """
    try:
        return local(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
