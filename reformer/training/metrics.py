"""What a run reports: sums from the devices, read one step late, to its writers and the terminal."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from reformer.training import distributed, memory, writers
from reformer.training.guards import Guard
from reformer.training.writers import Record, Writer

# What depends on the machine and its load. Everything else in a record is repeated exactly by a resumed run.
MACHINE_DEPENDENT = ("time", "seconds_per_step", "tokens_per_second", "peak_memory_bytes")


def read_records(path: Path) -> Iterator[Record]:
    """Yields the records of a JSON-lines file; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class Journal:
    """`metrics.jsonl` in the workdir, and the other writers of the run. Only process 0 writes."""

    def __init__(self, opening: writers.Opening, names: Iterable[str] = (), is_evaluated: bool = True):
        """Opens all and drops the records that the run is about to repeat.

        Args:
          opening: Says where, and the step after which records are dropped.
          names: Of the other writers.
          is_evaluated: The checkpoint of that step has its scores; if not, they are made up for.
        """
        self._writers: list[Writer] = []
        if not distributed.is_writer():
            return
        path, resumed_step = opening.workdir / writers.JSON_LINES, opening.resumed_step
        last_scores = resumed_step if is_evaluated else resumed_step - 1
        last_step = {"valid": last_scores, "lsh": last_scores}
        kept = [r for r in read_records(path) if r["step"] <= last_step.get(r["split"], resumed_step)]
        self._writers.append(writers.JsonLines(path, kept))
        self._writers += [open_writer(opening) for open_writer in writers.find(names)]

    def write(self, record: Record) -> None:
        """Hands every writer a record with the keys `split`, `step` and others, and the time."""
        timed = record | {"time": round(time.time(), 3)}
        for writer in self._writers:
            writer.write(timed)

    def close(self) -> None:
        """Closes all."""
        with contextlib.ExitStack() as stack:  # also those after one that fails
            for writer in self._writers:
                stack.callback(writer.close)


class Progress:
    """Shows the step, the loss, tokens per second and the time left; silent but on process 0."""

    def __init__(self, first_step: int, training: ConfigDict, unit: str):
        """Starts at `first_step`; plain lines appear once in `training.log_every_steps`; `unit` is of the loss."""
        self._unit = unit
        self._is_shown = distributed.is_writer()
        self._num_steps, self._every_steps = training.num_steps, training.log_every_steps
        self._bar = None
        if self._is_shown and sys.stdout.isatty():
            self._bar = Bar(MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._task = self._bar.add_task("compiling", total=self._num_steps, completed=first_step)
            self._bar.start()

    def update(self, record: dict[str, Any]) -> None:
        """Shows the record of a training step."""
        numbers = f"{record[f'bits_per_{self._unit}']:.3f} bits/{self._unit}"
        if "tokens_per_second" in record:
            numbers += f", {record['tokens_per_second']:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=record["step"], description=numbers)
        elif record["step"] % self._every_steps == 0:
            seconds_left = round(record.get("seconds_per_step", 0) * (self._num_steps - record["step"]))
            self.say(f"step {record['step']}/{self._num_steps}: {numbers}, {timedelta(seconds=seconds_left)} left")

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._is_shown:
            print(line, flush=True)

    def close(self) -> None:
        """Stops the bar, which stays on the screen."""
        if self._bar:
            self._bar.stop()


class StepReader:
    """Reads the metrics of a step after the next one was dispatched, so that the devices never wait for the host."""

    def __init__(self, journal: Journal, progress: Progress, guard: Guard, tokens_per_step: int, log_every_steps: int):
        """Every step is shown and checked by `guard`; every `log_every_steps`-th is written to the journal."""
        self._journal, self._progress, self._guard = journal, progress, guard
        self._tokens_per_step = tokens_per_step
        self._log_every_steps = log_every_steps
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._began: float | None = None  # the first step, until it is read
        self._last_read: float | None = None
        self._seconds, self._steps = 0.0, 0
        self._seconds_per_step: float | None = None  # as last known; of the first step what it took in all

    def start(self) -> None:
        """Says that the first step begins: how long it takes is shown."""
        self._began = time.monotonic()

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of `step`, which is still running, and reads those of the step before.

        Raises:
          FloatingPointError: If those are not finite, and the update may not be skipped.
        """
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Waits for the last step and reads it. The time until the next `push` does not count as training.

        Raises:
          FloatingPointError: As `push`.
        """
        if self._pending is not None:
            self._read(*self._pending)
        self._pending = self._last_read = None

    def _read(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in metrics.items() if name != "finite_gradients"}
        self._count_time()
        if reason := self._guard.check_step(step, values, metrics["finite_gradients"]):
            self._skip(step, reason)
            return
        record = step_record(step, values, self._guard.unit)
        if self._steps:
            self._seconds_per_step = self._seconds / self._steps
        if self._seconds_per_step is not None:
            record["seconds_per_step"] = round(self._seconds_per_step, 6)
            record["tokens_per_second"] = round(self._tokens_per_step / self._seconds_per_step, 1)
        self._progress.update(record)
        if step % self._log_every_steps == 0:
            self._journal.write(record | {"peak_memory_bytes": memory.peak_bytes()})
            self._seconds, self._steps = 0.0, 0

    def _skip(self, step: int, reason: str) -> None:
        count = self._guard.num_skipped
        self._progress.say(f"step {step}: update skipped, {count} in a row. {reason}")
        self._journal.write({"split": "skipped", "step": step, "updates_in_a_row": count, "reason": reason})

    def _count_time(self) -> None:
        # The first step after a pause may wait for an evaluation: it is not counted.
        now = time.monotonic()
        if self._began is not None:
            self._seconds_per_step, self._began = now - self._began, None
            self._progress.say(f"the first step took {self._seconds_per_step:.2f} s")
        if self._last_read is not None:
            self._steps += 1
            self._seconds += now - self._last_read
        self._last_read = now


def step_record(step: int, values: dict[str, float], unit: str) -> Record:
    """Returns the record of one step. It is of this step alone, so that a resumed run repeats it exactly.

    Args:
      step: Number of the update, from 1.
      values: The metrics of `step.train_step` as floats.
      unit: What a target is, such as 'byte'.
    """
    loss = values["nats"] / values["weight"]
    norms = {name: values[name] for name in ("learning_rate", "gradient_norm", "update_norm")}
    return {"split": "train", "step": step, "loss": loss, f"bits_per_{unit}": loss / math.log(2), **norms}
