"""Whether a checkpoint is intact, and what is done if it is not.

Its manifest has the size and the checksum of every file, is written last and compared before anything is read. Orbax
commits a checkpoint by renaming a temporary directory. The manifest is written into that directory just before, so that
a checkpoint has a complete manifest from the moment it exists, and no older one is deleted earlier.

A checksum is the CRC-32 of zlib, which is compiled in everywhere and outruns the disk. Any change of up to 32 bits in a
row is found for certain, any other with a probability of 1 - 2**-32; it is no protection against forgery.

A damaged checkpoint is named, and set aside by a run that continues; nothing is deleted.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from orbax.checkpoint.path import atomicity

from reformer.host import paths
from reformer.training import disk

NAME = "manifest.json"
DAMAGED = "damaged"  # the directory of those that were set aside
_BLOCK_BYTES = 2**22


def write(directory: Path) -> None:
    """Writes the manifest of all files in `directory`, complete or not at all; they are on the disk before it is."""
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
    """Returns what is wrong with a checkpoint, in a few words, or None if it is intact.

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

    async def finalize(self):
        """Lets Orbax complete the directory under a second temporary name, adds the manifest, renames it."""
        if not self._is_of_step():
            return await super().finalize()
        final = self.get_final()
        # Still a temporary name in the eyes of Orbax, so that a later run removes what a kill leaves here.
        self._final_path = final.parent / (self.get().name + "-complete")
        await super().finalize()
        write(Path(self.get_final()))
        os.rename(self.get_final(), final)
        disk.sync(Path(final.parent))
        self._final_path = final

    def _is_of_step(self) -> bool:
        return self.get_final().name.isdecimal()


def hide_unfinished_writes() -> None:
    """Hides what TensorStore prints for each write that a failed save leaves unfinished, for the rest of the program.

    Orbax closes the event loop that these writes report to, and raises the error of the save itself.
    """
    previous = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook


def set_aside(directory: Path) -> int | None:
    """Finds the newest intact checkpoint and moves the damaged ones to `damaged/`.

    Of those older than it only the sizes and the losses are verified, which Orbax reads to choose what it keeps.

    Args:
      directory: Of the checkpoints; need not exist.

    Returns:
      The step of the newest intact checkpoint, None if there are no checkpoints.

    Raises:
      OSError: If there are checkpoints and none is intact; nothing was moved then.
    """
    problems: dict[int, str] = {}
    intact = None
    for step in sorted(steps_in(directory), reverse=True):
        found = problem(directory / str(step), None if intact is None else ["metrics"])
        if found:
            problems[step] = found
        elif intact is None:
            intact = step
    if problems and intact is None:
        raise OSError(none_is_intact(directory, problems))
    report(directory, problems, f"moved to {directory / DAMAGED}; the newest intact checkpoint is {intact}")
    for step in problems:
        _move(directory, step)
    return intact


def put_back(directory: Path, removed: Path) -> None:
    """Puts the checkpoints back whose successors are not there: one that was replaced, or that damage followed."""
    if not steps_in(removed):
        return
    newest_first = sorted(steps_in(directory), reverse=True)
    newest_intact = next((step for step in newest_first if not problem(directory / str(step))), -1)
    for step in steps_in(removed):
        if step > newest_intact:
            if step in newest_first:
                _move(directory, step)
            os.rename(removed / str(step), directory / str(step))


def bytes_of_leftovers(directory: Path) -> int:
    """Returns the bytes below the directory of checkpoints that a run which opens it will remove."""
    if not directory.is_dir():
        return 0
    kept = {DAMAGED, *map(str, steps_in(directory))}
    return sum(disk.bytes_below(path) for path in directory.iterdir() if path.name not in kept and path.is_dir())


def steps_in(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in a directory, damaged or not."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]


def _move(directory: Path, step: int) -> None:
    (directory / DAMAGED).mkdir(exist_ok=True)
    names = (f"{step}{suffix}" for suffix in ("", *(f".{number}" for number in range(1, 1000))))
    os.rename(directory / str(step), next(path for name in names if not (path := directory / DAMAGED / name).exists()))


def report(directory: Path, problems: Mapping[int, str], outcome: str) -> None:
    """Names each damaged checkpoint on stderr, and what was done about it."""
    for step, found in problems.items():
        print(f"warning: {sentence(directory / str(step), found)} {outcome[:1].upper()}{outcome[1:]}.", file=sys.stderr)


def sentence(checkpoint: Path, found: str) -> str:
    """Returns the `problem` that was found of a checkpoint as a sentence."""
    return f"checkpoint {checkpoint} is damaged: {found}."


def none_is_intact(directory: Path, problems: Mapping[int, str]) -> str:
    """Returns the message for a directory, or a choice, of which every checkpoint is damaged."""
    listed = "; ".join(f"{step}: {found}" for step, found in problems.items())
    adopt = f" (python -m reformer.training.manifest {directory}/STEP accepts one without a manifest as it is)"
    has_old = any(NAME in found for found in problems.values())
    return (
        f"no checkpoint in {directory} that could be used is intact ({listed}). Choose another, put back a copy, or "
        f"start anew in another workdir{adopt if has_old else ''}."
    )


def _is_no_echo(record: logging.LogRecord) -> bool:
    return not record.exc_info


def silence_echoes() -> None:
    """Keeps Orbax and its threads from printing tracebacks of what they raise as well, and we explain."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_no_echo)


@contextlib.contextmanager
def explained_save(directory: Path) -> Iterator[None]:
    """Turns what Orbax raises for a save, often in another thread, into a sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise OSError(
            f"a checkpoint could not be saved in {directory}: {reason}. Earlier checkpoints are intact. Free space or "
            "allow writing, and run the same command again."
        ) from error


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
