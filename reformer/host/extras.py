"""Packages that only some uses need, and what to say where one is missing."""

import contextlib
from collections.abc import Iterator


class MissingPackageError(ImportError):
    """A package of an extra is not installed; the message says how to install it."""


@contextlib.contextmanager
def needed_for(use: str, extra: str) -> Iterator[None]:
    """Says, where an import within it fails, what it is needed for and how it is installed.

    Args:
      use: What the package is for, such as 'BLEU'.
      extra: Of pyproject.toml, that has the package.

    Raises:
      MissingPackageError: If the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("reformer"):
            raise
        raise MissingPackageError(
            f"{use} needs the package {error.name!r}, which is not installed. Run: pip install 'reformer[{extra}]', or "
            f"in the clone: pip install -e '.[{extra}]'."
        ) from error
