"""Training: the only file in which the order of side effects matters."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.data.source import Source
from reformer.host import paths
from reformer.tasks import registry
from reformer.training import (
    batches,
    continuation,
    disk,
    evaluation,
    fine_tuning,
    metrics,
    profiling,
    report,
    settings,
    stopping,
    workdir,
    writers,
)
from reformer.training.checkpoint import Checkpoints
from reformer.training.guards import Guard, Watchdog, parameter_names
from reformer.training.milestones import NUM_SKIPPED, Milestones, Saving, Validation
from reformer.training.state import TrainState, check_frozen, param_shapes, split_frozen
from reformer.training.step import CompiledStep, Programs, compile_step, make_programs


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment whose config, data, devices and workdir were checked."""

    config: ConfigDict
    model_config: ReformerConfig
    data: Source
    mesh: jax.sharding.Mesh
    workdir: Path
    profile_steps: profiling.Steps | None = None
    origin: fine_tuning.Origin | None = None  # of the parameters of a run that begins; None = random


def prepare(config: ConfigDict, directory: str | Path, profile_steps: str = "") -> Run:
    """Checks everything that a user can get wrong, and writes nothing.

    Args:
      config: With every field of configs/base.py.
      directory: The workdir.
      profile_steps: FIRST:LAST, the steps to trace; '' = none.

    Raises:
      ValueError: If something is wrong; the message says what, and how to repair it.
    """
    directory, model_config = paths.local(directory), settings.validate(config)
    writers.find(config.training.writers)
    workdir.check(directory, config)
    if config.training.frozen:
        check_frozen(config.training.frozen, param_shapes(settings.make_model(config)))
    finished_step = workdir.latest_step(directory)
    data = registry.load_data(workdir.with_own_vocabulary(directory, config), settings.window_length(config))
    workdir.check_data(directory, data)
    origin = None if finished_step else fine_tuning.find(config, data)
    mesh = sharding.make_mesh(**config.sharding)
    settings.check_sharding(config, mesh, is_trained=True)
    batches.training_batches(config, data, mesh)
    batches.evaluation_batches(config, data, "valid", mesh)
    workdir.check_others(config, data)
    steps = profiling.parse_steps(profile_steps, config.training.num_steps, finished_step)
    return Run(config, model_config, data, mesh, directory, steps, origin)


def dry_run(run: Run) -> report.Summary:
    """Compiles the training step and returns what is known before the first one; nothing is allocated or written."""
    with jax.set_mesh(run.mesh):
        programs = make_programs(run.config, run.mesh)
        return report.summarize(run.config, run.mesh, programs.target, _compile(run, programs))


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
    config, mesh = run.config, run.mesh
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(disk.explained(run.workdir))
        stopper = enter(stopping.Stopping())
        enter(workdir.claimed(run.workdir, config, run.data))
        enter(jax.set_mesh(mesh))
        watchdog = enter(contextlib.closing(Watchdog(config.training.stall_seconds)))
        programs = make_programs(config, mesh)
        checkpoints = enter(workdir.open_checkpoints(run.workdir, config.checkpoint, programs.target))
        iterator = batches.training_batches(config, run.data, mesh)
        train_state = _start(run, checkpoints, programs, iterator)
        num_done = int(train_state.step)
        progress = enter(contextlib.closing(metrics.Progress(num_done, config.training, run.data.unit)))
        journal = enter(contextlib.closing(_open_journal(run, checkpoints, num_done)))
        progress.say(_introduction(run, train_state))
        for line in continuation.describe(config, checkpoints, num_done):
            progress.say(line)
        stopper.check(num_done)
        guard = _make_guard(run, checkpoints, train_state)
        evaluator = _make_evaluator(run, watchdog, stopper)
        validation = Validation(config, evaluator, guard, watchdog, journal, progress)
        saving = Saving(config, run.data, iterator, guard, watchdog, checkpoints)
        milestones = Milestones(config, validation, saving, stopper)
        milestones.catch_up(train_state)
        if num_done < config.training.num_steps:
            train_step = _compile_and_say(run, programs, watchdog, progress)
            stopper.check(num_done)
            continuation.keep(run.workdir, config, checkpoints, journal, num_done)
            reader = metrics.StepReader(
                journal, progress, guard, config.training.batch_size * settings.window_length(config),
                config.training.log_every_steps,
            )  # fmt: skip
            profiler = enter(
                contextlib.closing(profiling.Profiler(run.profile_steps, run.workdir / "profile", progress.say))
            )
            train_state = _run_steps(run, train_state, train_step, iterator, watchdog, profiler, reader, milestones)
        return milestones.finish(train_state)


def _run_steps(
    run: Run,
    train_state: TrainState,
    train_step: jax.stages.Compiled,
    iterator: Any,
    watchdog: Watchdog,
    profiler: profiling.Profiler,
    reader: metrics.StepReader,
    milestones: Milestones,
) -> TrainState:
    """Returns the state after the last step."""
    reader.start()
    for number in range(int(train_state.step) + 1, run.config.training.num_steps + 1):
        watchdog.begin(f"step {number} or the one before it")
        profiler.before(number)
        batch = batches.to_mesh(next(iterator), run.mesh)
        train_state, step_metrics = train_step(train_state, batch)
        profiler.after(number, step_metrics)
        reader.push(number, step_metrics)
        if milestones.is_reached(number):
            reader.flush()
            milestones.visit(train_state, number)
    return train_state


def _start(run: Run, checkpoints: Checkpoints, programs: Programs, iterator: Any) -> TrainState:
    """Returns the state to continue from, and moves `iterator` to its position."""
    if checkpoints.latest is None:
        new = programs.init()
        return new if run.origin is None else run.origin.begin(new, programs.target, run.mesh)
    train_state, data_state = checkpoints.restore(checkpoints.latest, programs.target)
    iterator.set_state(data_state)
    return train_state


def _open_journal(run: Run, checkpoints: Checkpoints, num_done: int) -> metrics.Journal:
    opening = writers.Opening(run.workdir, num_done, settings.as_json(run.config))
    is_evaluated = not num_done or bool(checkpoints.metrics(num_done))
    return metrics.Journal(opening, run.config.training.writers, is_evaluated)


def _make_guard(run: Run, checkpoints: Checkpoints, train_state: TrainState) -> Guard:
    num_done, training = int(train_state.step), run.config.training
    trained, _ = split_frozen(train_state.params, training.frozen)
    num_skipped = checkpoints.meta(num_done).get(NUM_SKIPPED, 0) if num_done else 0
    return Guard(run.data.unit, parameter_names(trained), training.max_skipped_updates, num_skipped)


def _make_evaluator(run: Run, watchdog: Watchdog, stopper: stopping.Stopping) -> evaluation.Evaluator:
    """Returns an evaluator on the validation split that shows signs of life and can be cut between two batches."""
    on_batch = functools.partial(watchdog.begin, "an evaluation")
    evaluator = evaluation.make_evaluator(run.config, run.data, "valid", run.mesh, on_batch)
    return dataclasses.replace(evaluator, batches=stopper.watch(evaluator.batches))


def _introduction(run: Run, train_state: TrainState) -> str:
    num_params, num_frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(params))
        for params in (train_state.params, split_frozen(train_state.params, run.config.training.frozen)[1])
    )
    count = f"{num_params:,} parameters" + f", of which {num_frozen:,} stay as they are" * bool(num_frozen)
    places = ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    start = f"continuing after step {train_state.step}" if train_state.step else "starting"
    if run.origin is not None:
        start += f"\n{run.origin.describe()}"
    return f"{run.data.description}\n{count}; {run.mesh.size} devices ({places}); {start}"


def _compile(run: Run, programs: Programs) -> CompiledStep:
    return compile_step(programs, batches.training_shapes(run.config, run.data, run.mesh))


def _compile_and_say(
    run: Run, programs: Programs, watchdog: Watchdog, progress: metrics.Progress
) -> jax.stages.Compiled:
    watchdog.begin("the compilation", compiles=True)
    progress.say("compiling the training step ...")
    compiled = _compile(run, programs)
    progress.say(report.summarize(run.config, run.mesh, programs.target, compiled).text)
    return compiled.call
