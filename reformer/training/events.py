"""TensorBoard's event file, written by the thread that asks for it.

tensorboardX's `SummaryWriter` writes in a thread of its own. A full disk ends that thread and not the run, which then
waits for ever as soon as the queue of the thread is full; here it is an OSError where it happens.
"""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class EventFile:
    """An event file in a directory, beside those of earlier starts."""

    def __init__(self, directory: Path, purge_step: int):
        """Opens it, and says that the events of earlier files from `purge_step` on do not count.

        TensorBoard reads the files in the order of their names, which otherwise begin with the time: clocks differ.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / f"{len(list(directory.iterdir())):05d}"))
        self._writer.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float | int, step: int) -> None:
        """Adds a point to the curve `name`."""
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Hands what was added to the system, so that a kill does not lose it."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self._writer.close()
