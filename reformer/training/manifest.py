"""What a checkpoint consists of: the size and the checksum of every file, written last and compared before it is read.

Orbax commits a checkpoint by renaming a temporary directory. The manifest is written into that directory just before,
so that a checkpoint has a complete manifest from the moment it exists, and no older one is deleted earlier.

A checksum is the CRC-32 of zlib, which is compiled in everywhere and outruns the disk. Any change of up to 32 bits in a
row is found for certain, any other with a probability of 1 - 2**-32; it is no protection against forgery.
"""

import argparse
import json
import os
import zlib
from collections.abc import Collection
from pathlib import Path

from orbax.checkpoint.path import atomicity

from reformer.host import paths
from reformer.training import disk, faults

NAME = "manifest.json"
_BLOCK_BYTES = 2**22


def write(directory: Path) -> None:
    """Writes the manifest of all files in `directory`, whole or not at all; they are on the disk before it is."""
    entries = [path for path in sorted(directory.rglob("*")) if path != directory / NAME]
    for path in entries:
        disk.sync(path)
    files = {
        path.relative_to(directory).as_posix(): [path.stat().st_size, _checksum(path)]
        for path in entries
        if path.is_file()
    }
    disk.replace(directory / NAME, json.dumps({"files": files}, indent=1).encode())


def problem(directory: Path, items: Collection[str] | None = None) -> str | None:
    """Returns what is wrong with a checkpoint, in a few words, or None if it is whole.

    Args:
      directory: Of the checkpoint.
      items: The contents are compared of the files in these subdirectories only; None = of all. The existence and
        size of every file are compared in any case.
    """
    try:
        files = json.loads((directory / NAME).read_bytes())["files"]
        expected = {name: (int(size), int(checksum)) for name, (size, checksum) in files.items()}
    except FileNotFoundError:
        return f"it has no {NAME}"
    except OSError as error:
        return f"{NAME} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} is damaged"
    for name, (size, checksum) in expected.items():
        is_read = items is None or name.split("/")[0] in items
        found = _problem_of_file(directory / name, size, checksum if is_read else None)
        if found:
            return f"{name} {found}"
    return None


def _problem_of_file(path: Path, size: int, checksum: int | None) -> str | None:
    try:
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes instead of {size}"
        return "has other contents" if checksum is not None and _checksum(path) != checksum else None
    except (OSError, ValueError) as error:  # ValueError: a damaged name that no path can have
        return f"cannot be read ({error})"


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            value = zlib.crc32(block, value)  # releases the interpreter's lock: training goes on meanwhile
    return value


class ManifestedPath(atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary directory of a checkpoint, which gets its manifest before it becomes the checkpoint.

    Orbax makes one for each item of a checkpoint too; those are left as they are.
    """

    async def create(self):
        """Creates the directory."""
        path = await super().create()
        if self._is_of_step():
            faults.watch_files(Path(path))
        return path

    async def finalize(self):
        """Lets Orbax complete the directory under a second temporary name, adds the manifest, renames it."""
        if not self._is_of_step():
            return await super().finalize()
        final = self._final_path
        # Still a temporary name in the eyes of Orbax, so that a later run removes what a kill leaves here.
        self._final_path = final.parent / (self.get().name + "-complete")
        faults.passes("save_files")
        await super().finalize()
        faults.passes("save_manifest")
        write(Path(self._final_path))
        faults.passes("save_commit")
        os.rename(self._final_path, final)
        disk.sync(Path(final.parent))
        self._final_path = final
        faults.passes("save_committed")

    def _is_of_step(self) -> bool:
        return self._final_path.name.isdecimal()


def main() -> None:
    """Gives a manifest to a checkpoint that has none: python -m reformer.training.manifest WORKDIR/checkpoints/STEP."""
    parser = argparse.ArgumentParser(description="Accepts the files of a checkpoint as they are and writes a manifest.")
    parser.add_argument("checkpoint", type=paths.argument, help="WORKDIR/checkpoints/STEP")
    directory = parser.parse_args().checkpoint
    if not directory.is_dir() or (directory / NAME).exists():
        parser.error(
            f"{directory} must be a checkpoint without {NAME}. One that has a manifest and is damaged is lost."
        )
    write(directory)


if __name__ == "__main__":
    main()
