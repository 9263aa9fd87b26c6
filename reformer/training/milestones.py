"""What happens after some steps: an evaluation, a checkpoint, and the end of a run that was asked to stop."""

import dataclasses
import functools
import math
from typing import Any

from reformer.layers.kinds import num_buckets
from reformer.tasks import registry
from reformer.training import damage, evaluation, occupancy, settings
from reformer.training.evaluation import Scores
from reformer.training.run import Machinery, Run
from reformer.training.state import TrainState
from reformer.training.stopping import Cut, Stopped

NUM_SKIPPED = "num_skipped"  # of what is kept in a checkpoint: updates in a row that were skipped last


class Milestones:
    """Evaluates and saves a run where its config says so."""

    def __init__(self, run: Run, machinery: Machinery):
        """Evaluates nothing yet."""
        self._run, self._machinery = run, machinery
        self._scores: Scores | None = None  # of the step that was visited last, if it was evaluated
        evaluator = evaluation.make_evaluator(
            run.config,
            run.data,
            "valid",
            run.mesh,
            on_batch=functools.partial(machinery.watchdog.begin, "an evaluation"),
        )
        self._evaluator = dataclasses.replace(evaluator, batches=machinery.stopper.watch(evaluator.batches))

    def is_reached(self, step: int) -> bool:
        """Whether there is something to do after `step`; processes that share a run ask for every step, in order."""
        stops = self._machinery.stopper.requested(step)
        return stops or self._is_evaluated(step) or step % self._run.config.checkpoint.every_steps == 0

    def catch_up(self, train_state: TrainState) -> None:
        """Evaluates a state that was restored, if the run was stopped within its evaluation."""
        step = int(train_state.step)
        if step and self._is_evaluated(step) and not self._machinery.checkpoints.metrics(step):
            self.visit(train_state, step, self._machinery.checkpoints.meta(step).get("config"))

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
        machinery = self._machinery
        self._scores = self._evaluate(train_state.params, step)
        meta = {
            "step": step,
            "data": self._run.data.fingerprint,
            "config": config or settings.as_json(self._run.config),
        }
        meta[NUM_SKIPPED] = machinery.guard.num_skipped
        bits = None if self._scores is None else self._scores.bits
        ranks = registry.lowest_loss_is_best(self._run.config.task)
        self._watch_saving()
        machinery.checkpoints.save(train_state, machinery.batches.get_state(), meta, bits, ranks)
        if machinery.stopper.requested(step):
            machinery.checkpoints.wait()
            raise Stopped(step)

    def finish(self, train_state: TrainState) -> dict[str, Any]:
        """Returns the record of the run after its last step.

        Raises:
          Stopped: If the run is to stop; its last step is saved.
        """
        try:
            result = self._measure_last(train_state)
        except Cut:
            raise Stopped(int(train_state.step)) from None
        self._watch_saving()
        self._machinery.checkpoints.wait()
        return result | {"best_step": self._machinery.checkpoints.best}

    def _is_evaluated(self, step: int) -> bool:
        config = self._run.config
        return step == config.training.num_steps or step % config.evaluation.every_steps == 0

    def _evaluate(self, params: Any, step: int) -> Scores | None:
        """Returns the scores if the whole split is read to its end; a part is read anyway, for the loss is checked."""
        machinery = self._machinery
        is_whole = self._is_evaluated(step) and not machinery.stopper.requested(step)
        machinery.watchdog.begin("the first batch of an evaluation", compiles=True)
        found = self._measure(params) if is_whole else None
        if found is None:
            machinery.guard.check_validation(step, self._evaluator.probe(params, self._hash_seed).bits)
            return None
        scores, buckets = found
        machinery.guard.check_validation(step, scores.bits)
        self._report(step, scores, buckets)
        return scores

    @property
    def _hash_seed(self) -> int:
        return self._run.config.evaluation.hash_seed

    def _measure(self, params: Any) -> tuple[Scores, dict[int, occupancy.Occupancy]] | None:
        try:
            return self._evaluator.measure_with_buckets(params, self._hash_seed)
        except Cut:
            return None

    def _report(self, step: int, scores: Scores, buckets: dict[int, occupancy.Occupancy]) -> None:
        run, journal = self._run, self._machinery.journal
        journal.write({"split": "valid", "step": step, **scores.record(run.data.unit)})
        if buckets:
            factors = num_buckets(settings.window_length(run.config), run.model_config)
            num_of_all = {"num_buckets": math.prod(factors)}
            journal.write({"split": "lsh", "step": step, **num_of_all, **occupancy.record(buckets)})
        self._machinery.progress.say(f"step {step}: validation {scores.describe(run.data.unit)}")

    def _measure_last(self, train_state: TrainState) -> dict[str, Any]:
        config, unit = self._run.config.evaluation, self._run.data.unit
        # None: every step was done before.
        scores = self._scores or self._evaluator.measure(train_state.params, self._hash_seed)
        result = {"split": "valid", "step": int(train_state.step), **scores.record(unit), "hash_seed": self._hash_seed}
        if self._run.model_config.num_lsh_layers:
            spread = evaluation.measure_spread(self._evaluator, train_state.params, scores.bits, config)
            result["hash_spread"] = spread
        return result

    def _watch_saving(self) -> None:
        machinery = self._machinery
        sign = functools.partial(damage.bytes_below, machinery.checkpoints.directory)
        machinery.watchdog.begin("saving a checkpoint", sign=sign)
