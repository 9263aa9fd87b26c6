"""What ends a run that goes wrong, and what is said then: numbers that break down, and progress that ends."""

import collections
import dataclasses
import faulthandler
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

STALL_EXIT_CODE = 124  # as `timeout` has it; a lost process is another, see distributed.py
COMPILATION_SECONDS = 7200.0  # allowance of what compiles, whatever `training.stall_seconds` is
_NUM_REMEMBERED = 8  # losses in the message
_NUM_NAMED = 3  # parameters in the message
_GROUPS_FROM_THE_LOSS = ("head", "norm", "stack", "embeddings")
_LONGEST_TICK = 5.0


@dataclasses.dataclass
class Guard:
    """Decides from the metrics of each step, in order, whether the run goes on. The same on every process.

    Attributes:
      unit: What a target is, such as 'byte'.
      parameters: Their names, in the order of `jax.tree.leaves`.
      max_skipped: Updates in a row that may be skipped; 0 = the first one ends the run.
      num_skipped: Updates in a row that were skipped last.
    """

    unit: str
    parameters: Sequence[str]
    max_skipped: int = 0
    num_skipped: int = 0
    _losses: collections.deque = dataclasses.field(default_factory=lambda: collections.deque(maxlen=_NUM_REMEMBERED))

    def check_step(self, step: int, values: dict[str, float], finite_gradients: Any) -> str:
        """Takes the metrics of a step.

        Args:
          step: Number of the update, from 1.
          values: The scalars of `step.train_step`.
          finite_gradients: Of every parameter whether its gradient is; only read if something is wrong.

        Returns:
          Why the update was skipped; '' if it was made.

        Raises:
          FloatingPointError: If a value is not finite and no more updates may be skipped.
        """
        broken = _describe_broken(values)
        if not broken:
            self.num_skipped = 0
            self._losses.append((step, values["nats"] / values["weight"] / math.log(2)))
            return ""
        self.num_skipped += 1
        gradients = self._describe_gradients(np.asarray(finite_gradients))
        if self.num_skipped > self.max_skipped:
            raise FloatingPointError(self._describe_end(step, broken, gradients))
        return f"{broken}. {gradients}"

    def check_validation(self, step: int, bits: float) -> None:
        """Raises a FloatingPointError unless the validation loss after an update is finite."""
        broken = _describe_broken({"validation loss": bits})
        if broken:
            raise FloatingPointError(self._describe_end(step, broken, "The training loss was still finite."))

    def _describe_gradients(self, is_finite: np.ndarray) -> str:
        names = [name for name, finite in zip(self.parameters, is_finite, strict=True) if not finite]
        if not names:
            return "Every gradient is finite."
        names.sort(key=_distance_from_loss)
        share = f"{len(names)} of {len(self.parameters)} parameters"
        more = ", ..." if len(names) > _NUM_NAMED else ""
        return f"Gradients of {share} are not finite, nearest to the loss: {', '.join(names[:_NUM_NAMED])}{more}."

    def _describe_end(self, step: int, broken: str, gradients: str) -> str:
        skipped = f" {self.max_skipped} updates before it were skipped." if self.num_skipped > 1 else ""
        losses = ", ".join(f"{bits:.4f} (step {number})" for number, bits in self._losses) or "none"
        return (
            f"{broken} at step {step}: training broke down between steps {step - 1} and {step}.{skipped}\n"
            f"Bits per {self.unit} before: {losses}.\n{gradients}\n"
            "Earlier checkpoints are intact. Run again with a lower --config.optimizer.learning_rate, with "
            "--config.optimizer.clip_norm, or with --config.training.max_skipped_updates to leave such updates out."
        )


def parameter_names(params: Any) -> list[str]:
    """Returns 'path/to/parameter' for every leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return ["/".join(entry.key for entry in path) for path, _ in leaves]


def _describe_broken(values: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))


def _distance_from_loss(name: str) -> tuple[int, int]:
    # A gradient is computed from the loss backwards: the one that was reached first broke first. A model may stand
    # below the name of its part, and what is in none of the groups belongs to a head.
    groups = (_GROUPS_FROM_THE_LOSS.index(part) for part in name.split("/") if part in _GROUPS_FROM_THE_LOSS)
    layer = re.search(r"layer_(\d+)", name)
    return next(groups, 0), -int(layer.group(1)) if layer else 0


class _Activity(NamedTuple):
    name: str
    since: str
    seconds: float
    sign: Callable[[], Any] | None


class Watchdog:
    """A daemon thread that ends the process when nothing was begun for too long.

    It counts its own ticks and does not read a clock: while the process is stopped or the machine sleeps, nothing
    ages, and a run that is woken up has its whole allowance left.
    """

    def __init__(self, stall_seconds: int | float | None, on_stall: Callable[[str], None] | None = None):
        """None = it never fires. `on_stall` is given the message; None = it is printed and the process ends."""
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall or _end_process
        self._is_closed = threading.Event()
        self._idle = 0.0
        self._activity = _Activity("the start", _now(), COMPILATION_SECONDS, None)
        self._sign: Any = None
        if stall_seconds is not None:
            self._tick = min(stall_seconds / 4, _LONGEST_TICK)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            threading.Thread(target=self._read_signs, name="watchdog's reader", daemon=True).start()

    def begin(self, name: str, *, compiles: bool = False, sign: Callable[[], Any] | None = None) -> None:
        """Says what is done from now on; the time until the next call counts.

        Args:
          name: For the message.
          compiles: It gets the time that a compilation may take.
          sign: Whenever what it returns has changed, there was progress; it may hang.
        """
        seconds = max(COMPILATION_SECONDS, self._stall_seconds or 0) if compiles else self._stall_seconds
        self._activity = _Activity(name, _now(), seconds, sign)
        self._idle = 0.0

    def close(self) -> None:
        """Stops watching."""
        self._is_closed.set()

    def _watch(self) -> None:
        last_sign = None
        while not self._is_closed.wait(self._tick):
            activity = self._activity
            self._idle += self._tick
            if (sign := self._sign) != last_sign:
                last_sign, self._idle = sign, 0.0
            if self._idle >= activity.seconds and self._activity is activity:
                self._on_stall(
                    f"error: no progress for {self._idle:.0f} s in {activity.name}, which began at {activity.since}. "
                    "A device, another process or the file system hangs. Run the same command again: it continues "
                    "from the latest checkpoint. --config.training.stall_seconds sets the time, None = never."
                )
                return

    def _read_signs(self) -> None:
        # In a thread of its own: a file system that hangs must not stop the one that notices it.
        while not self._is_closed.wait(self._tick):
            if (sign := self._activity.sign) is not None:
                self._sign = sign()


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _end_process(message: str) -> None:
    # Not by `print`: whatever hangs may hold the lock of a stream.
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # the progress bar hides it
    os.write(2, f"{show_cursor}\n{message}\n".encode())
    faulthandler.dump_traceback(file=2, all_threads=True)
    flushing = threading.Thread(target=lambda: (sys.stdout.flush(), sys.stderr.flush()), daemon=True)
    flushing.start()
    flushing.join(timeout=2)
    os._exit(STALL_EXIT_CODE)
