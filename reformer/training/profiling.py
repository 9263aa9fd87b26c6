"""A trace of some training steps, for the profiler's viewers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from reformer.training import distributed


class Steps(NamedTuple):
    """The steps to trace, both included."""

    first: int
    last: int


def parse_steps(text: str, num_steps: int, finished_step: int) -> Steps | None:
    """Returns the steps that `--profile_steps=FIRST:LAST` names; None if it is empty.

    Args:
      text: From the command line.
      num_steps: Of the whole run.
      finished_step: The run continues after it.

    Raises:
      ValueError: If these are no steps, or the run does not come to them.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise ValueError(f"--profile_steps={text} must be two numbers, the first and the last step, such as 10:15.")
    steps = Steps(int(match[1]), int(match[2]))
    if not 1 <= steps.first <= steps.last <= num_steps:
        raise ValueError(f"--profile_steps={text} must name steps from 1 to {num_steps}, the first one first.")
    if steps.first <= finished_step:
        raise ValueError(
            f"--profile_steps={text}: this run continues after step {finished_step}. Name later steps, from "
            f"{finished_step + 1} to {num_steps}."
        )
    return steps


class Profiler:
    """Writes a trace of some steps into a directory, on process 0."""

    def __init__(self, steps: Steps | None, directory: Path, say: Callable[[str], None]):
        """`say` is told where the trace is."""
        self._steps = steps if distributed.is_writer() else None
        self._directory, self._say = directory, say
        self._is_running = False

    def before(self, step: int) -> None:
        """Starts with the first of the steps."""
        if self._steps and step == self._steps.first:
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._is_running = True

    def after(self, step: int, results: Any) -> None:
        """Ends with the last of the steps, when its `results` are there."""
        if self._is_running and step == self._steps.last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes what was traced so far."""
        if not self._is_running:
            return
        self._is_running = False
        jax.profiler.stop_trace()
        traces = sorted(self._directory.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
        self._say(
            f"trace of steps {self._steps.first} to {self._steps.last}: open {traces[-1]} at ui.perfetto.dev, "
            f"or run: tensorboard --logdir {self._directory}"
        )
