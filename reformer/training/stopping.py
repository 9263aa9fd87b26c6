"""Ending a run early and well: SIGTERM or Ctrl-C saves a checkpoint after the running step, Ctrl-C twice ends at once.

With `jax.distributed` the signal may reach any process. JAX's preemption service then finds a step that all of them can
still stop after; its handler and ours exclude each other, so SIGTERM is left to it.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop and did, with everything that was done saved.

    Attributes:
      step: That the next run continues after.
    """

    def __init__(self, step: int):
        """Takes the last step that was saved, 0 if none was done."""
        super().__init__(f"stopped after step {step}")
        self.step = step


class Cut(Exception):
    """An evaluation ended before its last batch."""


class Stopping:
    """Listens for signals while it is entered, even while the main thread is inside a compilation."""

    def __init__(self) -> None:
        """Listens to nothing yet."""
        self._is_shared = jax.distributed.is_initialized()
        self._signalled = threading.Event()
        self._previous: dict[signal.Signals, Any] = {}
        self._asked, self._num_asked, self._answer = -1, 0, False

    def __enter__(self) -> "Stopping":
        """Starts to listen; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return self
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        threading.Thread(target=self._listen, args=(read_end,), daemon=True).start()
        self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        # Python calls a handler only between two steps of the main thread; the number is in the pipe at once.
        for number in SIGNALS[1:] if self._is_shared else SIGNALS:
            self._previous[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: Any) -> None:
        """Gives the signals back to those who had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._write_end)
        self._previous = {}

    def _listen(self, read_end: int) -> None:
        num_interrupts = 0
        while number := os.read(read_end, 1):
            num_interrupts += number[0] == signal.SIGINT
            if num_interrupts > 1:
                os._exit(128 + signal.SIGINT)  # checkpoints are whole or absent whenever a process ends
            if not self._signalled.is_set():
                print("stopping after the running step; Ctrl-C twice ends at once", file=sys.stderr, flush=True)
            self._signalled.set()
            if self._is_shared:
                os.kill(os.getpid(), signal.SIGTERM)
        os.close(read_end)

    @property
    def is_immediate(self) -> bool:
        """Whether a signal came to this process and no other has to be asked."""
        return self._signalled.is_set() and not self._is_shared

    def requested(self, step: int) -> bool:
        """Returns whether all processes stop after `step`; each of them has to ask for every step, in order."""
        if not self._is_shared:
            return self._signalled.is_set()
        if step != self._asked:
            # Not the step: a signal before the first question makes JAX choose 1, and a run that continues is past it.
            self._asked, self._num_asked = step, self._num_asked + 1
            self._answer = multihost_utils.reached_preemption_sync_point(self._num_asked)
        return self._answer

    def check(self, step: int) -> None:
        """Raises Stopped if a signal came before the first step; processes that share one stop after that step."""
        if self.is_immediate:
            raise Stopped(step)

    def watch(self, batches: Sequence[Any]) -> "WatchedBatches":
        """Returns `batches`, of which no more are given once a signal came."""
        return WatchedBatches(self, batches)


class WatchedBatches(Sequence):
    """Batches of an evaluation; raises Cut between two of them if the run is to stop.

    Not with several processes, which would have to agree on the batch: they finish the evaluation.
    """

    def __init__(self, stopping: Stopping, batches: Sequence[Any]):
        """Takes what is asked and what is given."""
        self._stopping, self._batches = stopping, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Any:  # type: ignore[override]  # no slices
        return self._batches[number]

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self._stopping.is_immediate:
                raise Cut
            yield batch
