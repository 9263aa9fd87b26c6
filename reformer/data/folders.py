"""The files below a folder: the one walk for text, images and labelled folders."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def file_sizes(
    root: Path,
    suffixes: tuple[str, ...] = ("",),
    is_skipped: Callable[[str], bool] = _is_hidden,
    leave_out_broken_links: bool = False,
) -> dict[str, int]:
    """Finds the files below a folder, at any depth, which are not hidden.

    Links to files and folders are followed. A link to a folder that holds the link itself is not: it leads to nothing
    that is not found without it.

    Args:
        root: the folder.
        suffixes: of the files, in lower case, with one of which their name must end in any case.
        is_skipped: whether folders of a name are left out.
        leave_out_broken_links: of a folder that the user neither chose nor can repair.

    Returns:
        Bytes of each file, by its path below the root, with `/` and as it was walked, that is with the names of links.

    Raises:
        ValueError: something cannot be read, or a link leads nowhere.
    """
    sizes = {}
    try:
        for entry in _entries(root, is_skipped, above=()):
            is_broken = leave_out_broken_links and not os.path.exists(entry.path)
            if entry.name.lower().endswith(suffixes) and not is_broken:
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    sizes[Path(entry.path).relative_to(root).as_posix()] = status.st_size
    except OSError as error:
        raise ValueError(
            f"data.path={str(root)!r} cannot be read ({error}). Make it readable, or remove a link that leads nowhere, "
            "or change --config.data.path."
        ) from error
    return sizes


def _entries(folder: Path, is_skipped: Callable[[str], bool], above: tuple[Path, ...]) -> Iterator[os.DirEntry]:
    """What is no folder, in the order of names; `above` are the folders on the way here, without links."""
    here = folder.resolve()
    # A folder that holds one on the way to it would be walked without end: a link to a parent, also of the root, or two
    # folders that link to each other. Every step leads to a folder that is none of these, so the walk ends.
    if any(other.is_relative_to(here) for other in above):
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            if not is_skipped(entry.name):
                yield from _entries(Path(entry.path), is_skipped, (*above, here))
        elif not _is_hidden(entry.name):
            yield entry
