"""Damaged checkpoints: found before they are read, named, set aside by a run that continues, never deleted."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from reformer.training import manifest

NAME = "damaged"


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
        problem = manifest.problem(directory / str(step), None if intact is None else ["metrics"])
        if problem:
            problems[step] = problem
        elif intact is None:
            intact = step
    if problems and intact is None:
        raise OSError(none_is_intact(directory, problems))
    report(directory, problems, f"moved to {directory / NAME}; the newest intact checkpoint is {intact}")
    for step in problems:
        _move(directory, step)
    return intact


def put_back(directory: Path, removed: Path) -> None:
    """Puts the checkpoints back whose successors are not there: one that was replaced, or that damage followed."""
    if not steps_in(removed):
        return
    newest_first = sorted(steps_in(directory), reverse=True)
    newest_intact = next((step for step in newest_first if not manifest.problem(directory / str(step))), -1)
    for step in steps_in(removed):
        if step > newest_intact:
            if step in newest_first:
                _move(directory, step)
            os.rename(removed / str(step), directory / str(step))


def bytes_of_leftovers(directory: Path) -> int:
    """Returns the bytes below the directory of checkpoints that a run which opens it will remove."""
    if not directory.is_dir():
        return 0
    kept = {NAME, *map(str, steps_in(directory))}
    return sum(bytes_below(path) for path in directory.iterdir() if path.name not in kept and path.is_dir())


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


def steps_in(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in a directory, damaged or not."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]


def _move(directory: Path, step: int) -> None:
    (directory / NAME).mkdir(exist_ok=True)
    names = (f"{step}{suffix}" for suffix in ("", *(f".{number}" for number in range(1, 1000))))
    os.rename(directory / str(step), next(path for name in names if not (path := directory / NAME / name).exists()))


def report(directory: Path, problems: Mapping[int, str], outcome: str) -> None:
    """Names each damaged checkpoint on stderr, and what was done about it."""
    for step, problem in problems.items():
        print(
            f"warning: {sentence(directory / str(step), problem)} {outcome[:1].upper()}{outcome[1:]}.", file=sys.stderr
        )


def sentence(checkpoint: Path, problem: str) -> str:
    """Returns what is wrong with a checkpoint as a sentence."""
    return f"checkpoint {checkpoint} is damaged: {problem}."


def none_is_intact(directory: Path, problems: Mapping[int, str]) -> str:
    """Returns the message for a directory, or a choice, of which every checkpoint is damaged."""
    listed = "; ".join(f"{step}: {problem}" for step, problem in problems.items())
    adopt = f" (python -m reformer.training.manifest {directory}/STEP accepts one without a manifest as it is)"
    has_old = any(manifest.NAME in problem for problem in problems.values())
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
