"""Training: the only file in which the order of side effects matters."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.data.load import load
from reformer.data.source import Source
from reformer.layers.attention import num_buckets
from reformer.training import (
    batches,
    checkpoint,
    disk,
    evaluation,
    faults,
    metrics,
    occupancy,
    profiling,
    settings,
    state,
    stopping,
    summary,
    workdir,
)
from reformer.training.checkpoint import Checkpoints
from reformer.training.evaluation import Scores
from reformer.training.guards import Guard, parameter_names
from reformer.training.programs import CompiledStep, Programs, compile_step, make_programs
from reformer.training.progress import Progress
from reformer.training.watchdog import Watchdog, bytes_below


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment whose config, data, devices and workdir were checked."""

    config: ConfigDict
    model_config: ReformerConfig
    data: Source
    mesh: jax.sharding.Mesh
    workdir: Path
    profile_steps: profiling.Steps | None = None


@dataclasses.dataclass(frozen=True)
class Machinery:
    """What the steps of a run need beside its state."""

    programs: Programs
    evaluator: evaluation.Evaluator
    batches: Any  # training batches of this process, with get_state and set_state
    checkpoints: Checkpoints
    journal: metrics.Journal
    progress: Progress
    profiler: profiling.Profiler
    guard: Guard
    watchdog: Watchdog
    stopper: stopping.Stopping


def prepare(config: ConfigDict, directory: str, profile_steps: str = "") -> Run:
    """Checks everything that a user can get wrong, and writes nothing.

    Args:
      config: With every field of configs/base.py.
      directory: The workdir.
      profile_steps: FIRST:LAST, the steps to trace; '' = none.

    Raises:
      ValueError: If something is wrong; the message says what, and how to repair it.
    """
    model_config = settings.validate(config)
    workdir.check(Path(directory), config)
    data = load(config.data, settings.window_length(config))
    workdir.check_data(Path(directory), data)
    mesh = sharding.make_mesh(**config.sharding)
    settings.check_sharding(config, mesh, is_trained=True)
    batches.training_batches(config, data, mesh)
    batches.evaluation_batches(config, data, "valid", mesh)
    finished_step = workdir.latest_step(Path(directory))
    steps = profiling.parse_steps(profile_steps, config.training.num_steps, finished_step)
    return Run(config, model_config, data, mesh, Path(directory), steps)


def dry_run(run: Run) -> summary.Summary:
    """Compiles the training step and returns what is known before the first one; nothing is allocated or written."""
    with jax.set_mesh(run.mesh):
        programs = make_programs(run.config, run.model_config, run.mesh)
        return summary.summarize(run, programs.target, _compile(run, programs))


def train(run: Run) -> dict[str, Any]:
    """Trains from the latest checkpoint, or from the start, to the last step.

    Returns:
      The record of the final evaluation.

    Raises:
      FloatingPointError: If a loss or gradient is not finite, more often than may be skipped. No checkpoint of it is
        saved.
      OSError: If no checkpoint is intact, the workdir is in use or cannot be written to.
      stopping.Stopped: If a signal asked for it; what was done is saved.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk.explained(run.workdir))
        stopper = stack.enter_context(stopping.Stopping())
        stack.enter_context(workdir.claimed(run.workdir, run.config))
        stack.enter_context(jax.set_mesh(run.mesh))
        watchdog = stack.enter_context(contextlib.closing(Watchdog(run.config.training.stall_seconds)))
        programs = make_programs(run.config, run.model_config, run.mesh)
        checkpoints = stack.enter_context(checkpoint.open_to_write(run.workdir, run.config.checkpoint, programs.target))
        iterator = batches.training_batches(run.config, run.data, run.mesh)
        train_state = _start(checkpoints, programs, iterator)
        first_step = int(train_state.step)
        progress = stack.enter_context(contextlib.closing(Progress(first_step, run.config.training, run.data.unit)))
        journal = stack.enter_context(contextlib.closing(metrics.Journal(run.workdir, first_step)))
        profiler = profiling.Profiler(run.profile_steps, run.workdir / "profile", progress.say)
        stack.enter_context(contextlib.closing(profiler))
        guard = Guard(run.data.unit, parameter_names(train_state.params), run.config.training.max_skipped_updates)
        evaluator = evaluation.make_evaluator(
            run.config, run.model_config, run.data, "valid", run.mesh, lambda: watchdog.begin("an evaluation")
        )
        evaluator = dataclasses.replace(evaluator, batches=stopper.watch(evaluator.batches))
        machinery = Machinery(
            programs, evaluator, iterator, checkpoints, journal, progress, profiler, guard, watchdog, stopper
        )
        progress.say(_introduction(run, train_state))
        stopper.check(first_step)
        try:
            return _finish(run, machinery, *_run_steps(run, machinery, train_state))
        except stopping.Cut:  # after the last step, which is saved
            raise stopping.Stopped(run.config.training.num_steps) from None


def _compile(run: Run, programs: Programs) -> CompiledStep:
    return compile_step(programs, batches.training_shapes(run.config, run.data, run.mesh))


def _run_steps(run: Run, machinery: Machinery, train_state: state.TrainState) -> tuple[state.TrainState, Scores | None]:
    config, scores, first = run.config, None, int(train_state.step)
    if first and _is_evaluated(config, first) and not machinery.checkpoints.metrics(first):
        scores = _evaluate_and_save(run, machinery, train_state, first)  # the run was stopped in its evaluation
    if first >= config.training.num_steps:
        return train_state, scores
    machinery.watchdog.begin("the compilation", compiles=True)
    train_step = _compile_and_say(run, machinery)
    machinery.stopper.check(first)
    tokens_per_step = config.training.batch_size * settings.window_length(config)
    reader = metrics.StepReader(
        machinery.journal, machinery.progress, machinery.guard, tokens_per_step, config.training.log_every_steps
    )
    reader.start()
    for number in range(first + 1, config.training.num_steps + 1):
        machinery.watchdog.begin(f"step {number} or the one before it")
        machinery.profiler.before(number)
        batch = batches.to_mesh(next(machinery.batches), run.mesh)
        faults.passes("train")
        train_state, step_metrics = train_step(train_state, batch)
        machinery.profiler.after(number, step_metrics)
        reader.push(number, step_metrics)
        stops = machinery.stopper.requested(number)
        if stops or _is_evaluated(config, number) or number % config.checkpoint.every_steps == 0:
            reader.flush()
            scores = _evaluate_and_save(run, machinery, train_state, number)
    return train_state, scores


def _is_evaluated(config: ConfigDict, number: int) -> bool:
    return number == config.training.num_steps or number % config.evaluation.every_steps == 0


def _compile_and_say(run: Run, machinery: Machinery) -> jax.stages.Compiled:
    machinery.progress.say("compiling the training step ...")
    compiled = _compile(run, machinery.programs)
    machinery.progress.say(summary.summarize(run, machinery.programs.target, compiled).text)
    return compiled.call


def _saved_bytes(machinery: Machinery) -> Callable[[], int]:
    return functools.partial(bytes_below, machinery.checkpoints.directory)


def _evaluate_and_save(run: Run, machinery: Machinery, train_state: state.TrainState, number: int) -> Scores | None:
    """Saves a checkpoint with the scores, if the step has some; raises Stopped after it if the run is to stop."""
    whole = _is_evaluated(run.config, number) and not machinery.stopper.requested(number)
    scores = _evaluate(run, machinery, train_state.params, number, whole)
    meta = {"step": number, "data": run.data.fingerprint, "config": settings.as_json(run.config)}
    bits = None if scores is None else scores.bits
    machinery.watchdog.begin("saving a checkpoint", sign=_saved_bytes(machinery))
    machinery.checkpoints.save(train_state, machinery.batches.get_state(), meta, bits)
    if machinery.stopper.requested(number):
        machinery.checkpoints.wait()
        raise stopping.Stopped(number)
    return scores


def _evaluate(run: Run, machinery: Machinery, params: Any, number: int, whole: bool) -> Scores | None:
    """Returns the scores if the whole split is read to its end, else None; a loss that is not finite is an error."""
    machinery.watchdog.begin("the first batch of an evaluation", compiles=True)
    hash_seed = run.config.evaluation.hash_seed
    buckets: dict[int, occupancy.Occupancy] = {}
    try:
        if whole:
            scores, buckets = machinery.evaluator.measure_with_buckets(params, hash_seed)
    except stopping.Cut:
        whole = False
    if not whole:
        scores = machinery.evaluator.probe(params, hash_seed)
    machinery.guard.check_validation(number, scores.bits)
    if not whole:
        return None
    machinery.journal.write({"split": "valid", "step": number, **scores.record(run.data.unit)})
    if buckets:
        factors = num_buckets(settings.window_length(run.config), run.model_config)
        num_of_all = {"num_buckets": math.prod(factors)}
        machinery.journal.write({"split": "lsh", "step": number, **num_of_all, **occupancy.record(buckets)})
    machinery.progress.say(f"step {number}: validation {scores.describe(run.data.unit)}")
    return scores


def _finish(run: Run, machinery: Machinery, train_state: state.TrainState, scores: Scores | None) -> dict[str, Any]:
    config, unit = run.config.evaluation, run.data.unit
    if scores is None:  # every step was done before
        scores = machinery.evaluator.measure(train_state.params, config.hash_seed)
    result = {"split": "valid", "step": int(train_state.step), **scores.record(unit), "hash_seed": config.hash_seed}
    if run.model_config.num_lsh_layers:
        result["hash_spread"] = evaluation.measure_spread(machinery.evaluator, train_state.params, scores.bits, config)
    machinery.watchdog.begin("saving the last checkpoint", sign=_saved_bytes(machinery))
    machinery.checkpoints.wait()
    return result | {"best_step": machinery.checkpoints.best}


def _start(checkpoints: Checkpoints, programs: Programs, iterator: Any) -> state.TrainState:
    """Returns the state to continue from, and moves `iterator` to its position."""
    if checkpoints.latest is None:
        return programs.init()
    train_state, data_state = checkpoints.restore(checkpoints.latest, programs.target)
    iterator.set_state(data_state)
    return train_state


def _introduction(run: Run, train_state: state.TrainState) -> str:
    num_params = sum(leaf.size for leaf in jax.tree.leaves(train_state.params))
    places = ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    start = f"continuing after step {train_state.step}" if train_state.step else "starting"
    return f"{run.data.description}\n{num_params:,} parameters; {run.mesh.size} devices ({places}); {start}"
