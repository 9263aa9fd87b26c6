"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import sys
from datetime import timedelta
from typing import Any

from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from reformer.training import distributed


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
