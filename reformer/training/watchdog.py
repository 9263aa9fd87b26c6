"""Ends a run that makes no more progress, instead of letting it hang."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

EXIT_CODE = 124  # as `timeout` has it; a lost process is another, see distributed.py
COMPILATION_SECONDS = 7200.0  # allowance of what compiles, whatever `training.stall_seconds` is
_LONGEST_TICK = 5.0


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
    os._exit(EXIT_CODE)
