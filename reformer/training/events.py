"""TensorBoard's event file, written by the thread that asks for it.

tensorboardX's `SummaryWriter` writes in a thread of its own. A full disk ends that thread and not the run, which then
waits for ever as soon as the queue of the thread is full; here it is an OSError where it happens.
"""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

_FLUSH_SECONDS = 30.0


class EventFile:
    """An event file in a directory, beside those of earlier starts."""

    def __init__(self, directory: Path, purge_step: int):
        """Opens it, and says that the events of earlier files from `purge_step` on do not count."""
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        self._writer.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self._flushed = time.monotonic()

    def add_scalar(self, name: str, value: float | int, step: int) -> None:
        """Adds a point to the curve `name`; on the disk it is after half a minute at the latest."""
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self._writer.close()
