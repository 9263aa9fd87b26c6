"""Where the records of a run go beside the terminal: a file of JSON lines, and whatever else its config names."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from reformer.host import extras
from reformer.training import disk

Record = dict[str, Any]  # with the keys 'split', 'step' and 'time', seconds since 1970

JSON_LINES = "metrics.jsonl"


class Writer(Protocol):
    """What takes the records of a run."""

    def write(self, record: Record) -> None:
        """Takes a record, which is lost to no kill from then on if the writer can help it."""

    def close(self) -> None:
        """Writes what is left."""


class Opening(NamedTuple):
    """What a writer may want to know.

    Attributes:
      workdir: Of the run.
      resumed_step: The run continues after it; 0 = from the start. Later records that a writer has are repeated.
      config: Of the run, as plain JSON values.
    """

    workdir: Path
    resumed_step: int
    config: dict[str, Any]


def numbers(record: Record) -> dict[str, float]:
    """Returns what can be drawn as a curve: {'split/name': number}."""
    named = {name: value for name, value in record.items() if name not in ("split", "step", "time")}
    return {f"{record['split']}/{name}": float(x) for name, x in named.items() if isinstance(x, (int, float))}


class JsonLines:
    """A file with one JSON object per line."""

    def __init__(self, path: Path, kept: Iterable[Record]):
        """Begins the file anew with the records that are kept."""
        disk.replace(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file: IO[str] = path.open("a")

    def write(self, record: Record) -> None:
        """As `Writer` has it."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """As `Writer` has it."""
        self._file.close()


class TensorBoard:
    """Event files in the folder `events` of the workdir, each beside those of earlier starts.

    The thread that asks for it writes. tensorboardX's `SummaryWriter` has a thread of its own: a full disk ends that
    thread and not the run, which then waits for ever as soon as the queue of the thread is full; here it is an OSError
    where it happens.
    """

    def __init__(self, opening: Opening):
        """Opens a new one, and says that the events of earlier files after the resumed step do not count.

        TensorBoard reads the files in the order of their names, which otherwise begin with the time: clocks differ.
        """
        from tensorboardX import event_file_writer, summary  # protocol buffers: only who writes needs them
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event, self._scalar = Event, summary.scalar
        directory = opening.workdir / "events"
        directory.mkdir(parents=True, exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(directory / f"{len(list(directory.iterdir())):05d}"))
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(step=opening.resumed_step + 1, session_log=start))

    def write(self, record: Record) -> None:
        """As `Writer` has it."""
        for name, value in numbers(record).items():
            point = self._scalar(name, value)
            self._file.write_event(self._event(wall_time=time.time(), step=record["step"], summary=point))
        self._file.flush()  # so that a kill does not lose it

    def close(self) -> None:
        """As `Writer` has it."""
        self._file.close()


class Service:
    """A writer that hands the records to a service, which may be out of reach: the run goes on without it.

    Attributes:
      name: In the config, and of the extra that has the package.
    """

    name: str

    def __init__(self, opening: Opening):
        """Begins, or continues what an earlier start of the run in this workdir began.

        Raises:
          OSError: If the service refuses.
        """
        self._has_failed = False
        file = opening.workdir / f"{self.name}_run"
        try:
            known = self.begin(opening, file.read_text().strip() if file.is_file() else None)
        except Exception as error:  # the package may raise anything
            raise OSError(f"config.training.writers: {self.name!r} cannot begin ({_in_a_line(error)}).") from error
        disk.replace(file, known.encode())

    def begin(self, opening: Opening, known: str | None) -> str:
        """Begins a run, or continues the one that is `known`, and returns the service's name for it."""
        raise NotImplementedError

    def send(self, values: dict[str, float], step: int) -> None:
        """Hands the numbers of a record to the service."""
        raise NotImplementedError

    def end(self) -> None:
        """Ends the run."""
        raise NotImplementedError

    def write(self, record: Record) -> None:
        """As `Writer` has it."""
        self._try(lambda: self.send(numbers(record), record["step"]))

    def close(self) -> None:
        """As `Writer` has it."""
        self._try(self.end)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if not self._has_failed:
                said = f"{self.name} does not take the metrics ({_in_a_line(error)})"
                print(f"{said}: the run goes on, and {JSON_LINES} has all of them.", file=sys.stderr)
            self._has_failed = True


class WeightsAndBiases(Service):
    """A run of wandb, in the project `WANDB_PROJECT` ('reformer' if there is none)."""

    name = "wandb"

    def begin(self, opening: Opening, known: str | None) -> str:
        """As `Service` has it."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "reformer"),
            dir=str(opening.workdir),
            name=opening.workdir.absolute().name,
            config=opening.config,
            id=known,
            resume="allow",
        )
        return self._run.id

    def send(self, values: dict[str, float], step: int) -> None:
        """As `Service` has it."""
        self._run.log(values, step=step)

    def end(self) -> None:
        """As `Service` has it."""
        self._run.finish()


class MLflow(Service):
    """A run of mlflow; `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say where."""

    name = "mlflow"

    def begin(self, opening: Opening, known: str | None) -> str:
        """As `Service` has it."""
        import mlflow

        self._mlflow = mlflow
        run = mlflow.start_run(run_id=known, run_name=None if known else opening.workdir.absolute().name)
        if known is None:
            mlflow.log_dict(opening.config, "config.json")
        return run.info.run_id

    def send(self, values: dict[str, float], step: int) -> None:
        """As `Service` has it."""
        self._mlflow.log_metrics(values, step=step)

    def end(self) -> None:
        """As `Service` has it."""
        self._mlflow.end_run()


WRITERS: dict[str, type[TensorBoard] | type[Service]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def _are_names(value: Any) -> bool:
    known = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return known and all(name in WRITERS or ":" in name for name in value)


# What the field of the config must be; MODULE:NAME is of anything that takes an `Opening` and returns a `Writer`.
RULE = (f"a tuple of {', '.join(WRITERS)} or MODULE:NAME, each in quotes", _are_names)


def find(names: Iterable[str]) -> list[Callable[[Opening], Writer]]:
    """Returns what opens the writers; writes nothing.

    Raises:
      ValueError: If a MODULE:NAME does not exist.
      MissingPackageError: If the package of a service is not installed.
    """
    return [_find(name) for name in names]


def _find(name: str) -> Callable[[Opening], Writer]:
    if name not in WRITERS:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"config.training.writers: {name!r} cannot be found ({_in_a_line(error)}). "
                "Install its module, or set PYTHONPATH to the folder where it lies."
            ) from error
    if issubclass(WRITERS[name], Service):
        with extras.needed_for(f"config.training.writers: {name!r}", name):
            importlib.import_module(name)
    return WRITERS[name]


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
