"""What happens after some steps: an evaluation, a checkpoint, and the end of a run that was asked to stop."""

import functools
import math
from typing import Any

from ml_collections import ConfigDict

from reformer.data.source import Source
from reformer.layers.kinds import num_buckets
from reformer.tasks import registry
from reformer.training import disk, evaluation, occupancy, settings
from reformer.training.checkpoint import Checkpoints
from reformer.training.evaluation import Evaluator, Scores
from reformer.training.guards import Guard, Watchdog
from reformer.training.metrics import Journal, Progress
from reformer.training.state import TrainState
from reformer.training.stopping import Cut, Stopped, Stopping

NUM_SKIPPED = "num_skipped"  # of what is kept in a checkpoint: updates in a row that were skipped last


class Validation:
    """Measures a run on its validation split, and says what it found."""

    def __init__(
        self,
        config: ConfigDict,
        evaluator: Evaluator,
        guard: Guard,
        watchdog: Watchdog,
        journal: Journal,
        progress: Progress,
    ):
        """Measures nothing yet."""
        self._config, self._evaluator, self._guard, self._watchdog = config, evaluator, guard, watchdog
        self._journal, self._progress = journal, progress
        self._hash_seed = config.evaluation.hash_seed

    def measure(self, params: Any, step: int) -> Scores | None:
        """Returns the scores on the split after `step`; None if a signal came before its end.

        Raises:
          FloatingPointError: If the loss is not finite.
        """
        self._watch()
        try:
            scores, buckets = self._evaluator.measure_with_buckets(params, self._hash_seed)
        except Cut:
            return None
        self._guard.check_validation(step, scores.bits)
        self._report(step, scores, buckets)
        return scores

    def probe(self, params: Any, step: int) -> None:
        """Raises a FloatingPointError if the loss of the first batch is not finite."""
        self._watch()
        self._guard.check_validation(step, self._evaluator.probe(params, self._hash_seed).bits)

    def measure_last(self, params: Any, step: int, scores: Scores | None) -> dict[str, Any]:
        """Returns the record of the run after its last step.

        Args:
          params: After that step.
          step: Its number.
          scores: Of it; None = not known, for the step was done by an earlier start.

        Raises:
          Cut: If a signal came.
        """
        scores = scores or self._evaluator.measure(params, self._hash_seed)
        result = {"split": "valid", "step": step, **scores.record(self._guard.unit), "hash_seed": self._hash_seed}
        if settings.model_config(self._config).num_lsh_layers:
            spread = evaluation.measure_spread(self._evaluator, params, scores.bits, self._config.evaluation)
            result["hash_spread"] = spread
        return result

    def _watch(self) -> None:
        self._watchdog.begin("the first batch of an evaluation", compiles=True)

    def _report(self, step: int, scores: Scores, buckets: dict[int, occupancy.Occupancy]) -> None:
        unit = self._guard.unit
        self._journal.write({"split": "valid", "step": step, **scores.record(unit)})
        if buckets:
            factors = num_buckets(settings.window_length(self._config), settings.model_config(self._config))
            num_of_all = {"num_buckets": math.prod(factors)}
            self._journal.write({"split": "lsh", "step": step, **num_of_all, **occupancy.record(buckets)})
        self._progress.say(f"step {step}: validation {scores.describe(unit)}")


class Saving:
    """Saves a run, with everything that it needs to continue.

    Attributes:
      checkpoints: Where it is saved.
    """

    def __init__(
        self,
        config: ConfigDict,
        data: Source,
        iterator: Any,
        guard: Guard,
        watchdog: Watchdog,
        checkpoints: Checkpoints,
    ):
        """Saves nothing yet; `iterator` gives the training batches and has `get_state`."""
        self.checkpoints = checkpoints
        self._config, self._data, self._iterator, self._guard, self._watchdog = config, data, iterator, guard, watchdog

    def save(self, train_state: TrainState, step: int, scores: Scores | None, config: dict[str, Any] | None) -> None:
        """Starts to save the state after `step`; `scores` and `config` are of that step, None = the run's config."""
        meta = {
            "step": step,
            "data": self._data.fingerprint,
            "config": config or settings.as_json(self._config),
            NUM_SKIPPED: self._guard.num_skipped,
        }
        bits, ranks = None if scores is None else scores.bits, registry.lowest_loss_is_best(self._config.task)
        self._watch()
        self.checkpoints.save(train_state, self._iterator.get_state(), meta, bits, ranks)

    def wait(self) -> None:
        """Waits until what was saved is complete."""
        self._watch()
        self.checkpoints.wait()

    def _watch(self) -> None:
        sign = functools.partial(disk.bytes_below, self.checkpoints.directory)
        self._watchdog.begin("saving a checkpoint", sign=sign)


class Milestones:
    """Evaluates and saves a run where its config says so."""

    def __init__(self, config: ConfigDict, validation: Validation, saving: Saving, stopper: Stopping):
        """Evaluates nothing yet."""
        self._config, self._validation, self._saving, self._stopper = config, validation, saving, stopper
        self._scores: Scores | None = None  # of the step that was visited last, if it was evaluated

    def is_reached(self, step: int) -> bool:
        """Whether there is something to do after `step`; processes that share a run ask for every step, in order.

        Raises:
          OSError: If what was saved last could not be; noticed where metrics are logged.
        """
        if step % self._config.training.log_every_steps == 0:
            self._saving.checkpoints.raise_if_failed()
        stops = self._stopper.requested(step)
        return stops or self._is_evaluated(step) or step % self._config.checkpoint.every_steps == 0

    def catch_up(self, train_state: TrainState) -> None:
        """Evaluates a state that was restored, if the run was stopped within its evaluation."""
        step, checkpoints = int(train_state.step), self._saving.checkpoints
        if step and self._is_evaluated(step) and not checkpoints.metrics(step):
            self.visit(train_state, step, checkpoints.meta(step).get("config"))

    def visit(self, train_state: TrainState, step: int, config: dict[str, Any] | None = None) -> None:
        """Evaluates the state if it is the step for it, and saves a checkpoint with the scores.

        Args:
          train_state: After `step`.
          step: Its number.
          config: Of that step; None = the run's.

        Raises:
          FloatingPointError: If the loss is not finite. Nothing is saved.
          Stopped: After the checkpoint, if the run is to stop.
        """
        self._scores = None
        if self._is_evaluated(step) and not self._stopper.requested(step):
            self._scores = self._validation.measure(train_state.params, step)
        if self._scores is None:
            self._validation.probe(train_state.params, step)
        self._saving.save(train_state, step, self._scores, config)
        if self._stopper.requested(step):
            self._saving.wait()
            raise Stopped(step)

    def finish(self, train_state: TrainState) -> dict[str, Any]:
        """Returns the record of the run after its last step.

        Raises:
          Stopped: If the run is to stop; its last step is saved.
        """
        step = int(train_state.step)
        try:
            result = self._validation.measure_last(train_state.params, step, self._scores)
        except Cut:
            raise Stopped(step) from None
        self._saving.wait()
        return result | {"best_step": self._saving.checkpoints.best}

    def _is_evaluated(self, step: int) -> bool:
        return step == self._config.training.num_steps or step % self._config.evaluation.every_steps == 0
