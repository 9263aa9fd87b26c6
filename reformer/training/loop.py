"""Training: the only file in which the order of side effects matters."""

import contextlib
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from reformer import sharding
from reformer.host import paths
from reformer.tasks import registry
from reformer.training import (
    batches,
    checkpoint,
    continuation,
    disk,
    faults,
    fine_tuning,
    frozen,
    metrics,
    profiling,
    settings,
    stopping,
    summary,
    workdir,
    writers,
)
from reformer.training.checkpoint import Checkpoints
from reformer.training.guards import Guard, parameter_names
from reformer.training.milestones import NUM_SKIPPED, Milestones
from reformer.training.programs import CompiledStep, Programs, compile_step, make_programs
from reformer.training.progress import Progress
from reformer.training.run import Machinery, Run
from reformer.training.state import TrainState
from reformer.training.watchdog import Watchdog


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
        frozen.check(config.training.frozen, checkpoint.param_shapes(settings.make_model(config)))
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


def dry_run(run: Run) -> summary.Summary:
    """Compiles the training step and returns what is known before the first one; nothing is allocated or written."""
    with jax.set_mesh(run.mesh):
        programs = make_programs(run.config, run.mesh)
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
        stack.enter_context(workdir.claimed(run.workdir, run.config, run.data))
        stack.enter_context(jax.set_mesh(run.mesh))
        watchdog = stack.enter_context(contextlib.closing(Watchdog(run.config.training.stall_seconds)))
        programs = make_programs(run.config, run.mesh)
        checkpoints = stack.enter_context(checkpoint.open_to_write(run.workdir, run.config.checkpoint, programs.target))
        iterator = batches.training_batches(run.config, run.data, run.mesh)
        train_state = _start(run, checkpoints, programs, iterator)
        first_step = int(train_state.step)
        progress = stack.enter_context(contextlib.closing(Progress(first_step, run.config.training, run.data.unit)))
        journal = stack.enter_context(contextlib.closing(_open_journal(run, checkpoints, first_step)))
        profiler = profiling.Profiler(run.profile_steps, run.workdir / "profile", progress.say)
        stack.enter_context(contextlib.closing(profiler))
        trained, _ = frozen.split(train_state.params, run.config.training.frozen)
        num_skipped = checkpoints.meta(first_step).get(NUM_SKIPPED, 0) if first_step else 0
        guard = Guard(run.data.unit, parameter_names(trained), run.config.training.max_skipped_updates, num_skipped)
        machinery = Machinery(iterator, checkpoints, journal, progress, profiler, guard, watchdog, stopper)
        progress.say(_introduction(run, train_state))
        for line in continuation.describe(run, checkpoints, first_step):
            progress.say(line)
        stopper.check(first_step)
        milestones = Milestones(run, machinery)
        milestones.catch_up(train_state)
        return milestones.finish(_run_steps(run, machinery, milestones, programs, train_state))


def _start(run: Run, checkpoints: Checkpoints, programs: Programs, iterator: Any) -> TrainState:
    """Returns the state to continue from, and moves `iterator` to its position."""
    if checkpoints.latest is None:
        new = programs.init()
        return new if run.origin is None else run.origin.begin(new, programs.target, run.mesh)
    train_state, data_state = checkpoints.restore(checkpoints.latest, programs.target)
    iterator.set_state(data_state)
    return train_state


def _open_journal(run: Run, checkpoints: Checkpoints, first_step: int) -> metrics.Journal:
    opening = writers.Opening(run.workdir, first_step, settings.as_json(run.config))
    is_evaluated = not first_step or bool(checkpoints.metrics(first_step))
    return metrics.Journal(opening, run.config.training.writers, is_evaluated)


def _introduction(run: Run, train_state: TrainState) -> str:
    num_params, num_frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(params))
        for params in (train_state.params, frozen.split(train_state.params, run.config.training.frozen)[1])
    )
    count = f"{num_params:,} parameters" + f", of which {num_frozen:,} stay as they are" * bool(num_frozen)
    places = ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    start = f"continuing after step {train_state.step}" if train_state.step else "starting"
    if run.origin is not None:
        start += f"\n{run.origin.describe()}"
    return f"{run.data.description}\n{count}; {run.mesh.size} devices ({places}); {start}"


def _run_steps(
    run: Run, machinery: Machinery, milestones: Milestones, programs: Programs, train_state: TrainState
) -> TrainState:
    config, first = run.config.training, int(train_state.step) + 1
    if first > config.num_steps:
        return train_state
    train_step = _compile_and_say(run, machinery, programs)
    machinery.stopper.check(first - 1)
    continuation.keep(run, machinery.checkpoints, machinery.journal, first - 1)
    tokens_per_step = config.batch_size * settings.window_length(run.config)
    reader = metrics.StepReader(
        machinery.journal, machinery.progress, machinery.guard, tokens_per_step, config.log_every_steps
    )
    reader.start()
    for number in range(first, config.num_steps + 1):
        machinery.watchdog.begin(f"step {number} or the one before it")
        machinery.profiler.before(number)
        batch = batches.to_mesh(next(machinery.batches), run.mesh)
        faults.passes("train")
        train_state, step_metrics = train_step(train_state, batch)
        machinery.profiler.after(number, step_metrics)
        reader.push(number, step_metrics)
        if number % config.log_every_steps == 0:
            machinery.checkpoints.raise_if_failed()
        if milestones.is_reached(number):
            reader.flush()
            milestones.visit(train_state, number)
    return train_state


def _compile(run: Run, programs: Programs) -> CompiledStep:
    return compile_step(programs, batches.training_shapes(run.config, run.data, run.mesh))


def _compile_and_say(run: Run, machinery: Machinery, programs: Programs) -> jax.stages.Compiled:
    machinery.watchdog.begin("the compilation", compiles=True)
    machinery.progress.say("compiling the training step ...")
    compiled = _compile(run, programs)
    machinery.progress.say(summary.summarize(run, programs.target, compiled).text)
    return compiled.call
