"""What a run reports: sums from the devices, read one step late, to a JSON-lines file, TensorBoard and the terminal."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from reformer.training import disk, distributed, memory
from reformer.training.guards import Guard
from reformer.training.progress import Progress

Record = dict[str, Any]

# What depends on the machine and its load. Everything else in a record is repeated exactly by a resumed run.
MACHINE_DEPENDENT = ("tokens_per_second", "peak_memory_bytes")


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
    """`metrics.jsonl` and TensorBoard events in the workdir. Only process 0 writes."""

    def __init__(self, workdir: Path, resumed_step: int, is_evaluated: bool = True):
        """Opens both and drops the records that the run is about to repeat.

        Args:
          workdir: Holds both, or will.
          resumed_step: Records after it are dropped.
          is_evaluated: The checkpoint of that step has its scores; if not, they are made up for.
        """
        self._is_writer = distributed.is_writer()
        if not self._is_writer:
            return
        from reformer.training.events import EventFile

        path = workdir / "metrics.jsonl"
        last_scores = resumed_step if is_evaluated else resumed_step - 1
        last_step = {"valid": last_scores, "lsh": last_scores}
        kept = [r for r in read_records(path) if r["step"] <= last_step.get(r["split"], resumed_step)]
        disk.replace(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = path.open("a")
        self._events = EventFile(workdir / "events", purge_step=resumed_step + 1)

    def write(self, record: Record) -> None:
        """Appends a record with the keys `split`, `step` and others; TensorBoard gets the numbers among them."""
        if not self._is_writer:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name not in ("split", "step") and isinstance(value, (int, float)):
                self._events.add_scalar(f"{record['split']}/{name}", float(value), record["step"])
        self._events.flush()

    def close(self) -> None:
        """Closes both."""
        if self._is_writer:
            self._file.close()
            self._events.close()


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
            record["tokens_per_second"] = round(self._steps * self._tokens_per_step / self._seconds, 1)
        self._progress.update(record, self._seconds / max(self._steps, 1))
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
            self._progress.say(f"the first step took {now - self._began:.2f} s")
            self._began = None
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
