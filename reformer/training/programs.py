"""The compiled functions of a run and where their arrays lie on the mesh."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from reformer import sharding
from reformer.compilation import compiler_options
from reformer.training import settings, state, step
from reformer.training.optimizer import make_optimizer, make_schedule
from reformer.training.state import TrainState


class Programs(NamedTuple):
    """What a run compiles.

    Attributes:
      init: Returns the state before the first update.
      train_step: Takes a state, which it consumes, and a batch; returns the next state and the metrics.
      target: Shapes, dtypes and shardings of the state.
    """

    init: Callable[[], TrainState]
    train_step: jax.stages.Wrapped
    target: TrainState


class CompiledStep(NamedTuple):
    """A compiled `Programs.train_step`.

    Attributes:
      call: Takes and returns what `train_step` does.
      seconds: That compiling took.
    """

    call: jax.stages.Compiled
    seconds: float


def compile_step(programs: Programs, batch: Mapping[str, jax.ShapeDtypeStruct]) -> CompiledStep:
    """Compiles the training step for batches like `batch`."""
    began = time.monotonic()
    compiled = programs.train_step.lower(programs.target, batch).compile()
    return CompiledStep(compiled, time.monotonic() - began)


def make_programs(config: ConfigDict, mesh: jax.sharding.Mesh) -> Programs:
    """Returns the programs of a run; call it, and them, within `jax.set_mesh(mesh)`."""
    schedule = make_schedule(config.optimizer, config.training.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    model = settings.make_model(config)
    init = functools.partial(state.init_state, model, optimizer, config.seed, config.training.frozen)
    update = functools.partial(
        step.train_step,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        accumulation_steps=config.training.accumulation_steps,
        seed=config.seed,
        can_skip=config.training.max_skipped_updates > 0,
        frozen_patterns=config.training.frozen,
    )
    target = state.abstract(init, mesh)
    state_places, everywhere = state.shardings_of(target), jax.NamedSharding(mesh, jax.P())
    return Programs(
        init=jax.jit(init, out_shardings=state_places),
        train_step=jax.jit(
            update,
            donate_argnums=0,
            in_shardings=(state_places, sharding.batch_sharding(mesh)),
            out_shardings=(state_places, everywhere),
            compiler_options=compiler_options(),
        ),
        target=target,
    )
