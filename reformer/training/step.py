"""One update and one evaluation batch, pure functions of arrays, and the update compiled for a mesh."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from reformer import sharding
from reformer.compilation import compiler_options
from reformer.models.language import Evaluated
from reformer.training import occupancy, settings
from reformer.training.optimizer import make_optimizer, make_schedule
from reformer.training.state import (
    TrainState,
    abstract,
    init_state,
    merge_frozen,
    shardings_of,
    split_frozen,
    split_seed,
)

Batch = dict[str, jax.Array]  # named as the arguments of the model's `loss`, the examples on axis 0


def step_rngs(seed: int, step: jax.Array) -> dict[str, jax.Array]:
    """Returns the keys of one update, the same whether or not the run was interrupted before it."""
    _, steps_rng = split_seed(seed)
    hash_rng, dropout_rng = jax.random.split(jax.random.fold_in(steps_rng, step))
    return {"hash": hash_rng, "dropout": dropout_rng}


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation_steps: int,
    seed: int,
    can_skip: bool = False,
    frozen_patterns: Sequence[str] = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update and its metrics.

    Args:
      state: Before the update.
      batch: Arrays [batch, ...]; batch is a multiple of `accumulation_steps`.
      model: Has a method `loss`, which returns the sums of nats and of weights.
      optimizer: Turns gradients into updates.
      schedule: Is only read here, to report the learning rate.
      accumulation_steps: Micro-batches that the gradient is summed over, one after the other.
      seed: Of the run; every key follows from it and `state.step`.
      can_skip: An update with a number that is not finite changes nothing but the step; False saves the choice.
      frozen_patterns: Of the parameters that stay as they are, as `split_frozen` has them.

    Returns:
      The new state; scalars, of which `nats` and `weight` are sums over the batch, before the update; and
      `finite_gradients`, which says of every trained parameter, in the order of `jax.tree.leaves`, whether its gradient
      is.
    """
    rngs = step_rngs(seed, state.step)
    trained, others = split_frozen(state.params, frozen_patterns)
    gradients, nats, weight = accumulate_gradients(model, trained, batch, rngs, accumulation_steps, others)
    gradients = jax.tree.map(lambda gradient: gradient / weight.astype(gradient.dtype), gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, trained)
    # One number per parameter gives both the norm and where it breaks: the gradients are read once.
    squares = jnp.stack([jnp.sum(jnp.square(gradient.astype(nats.dtype))) for gradient in jax.tree.leaves(gradients)])
    metrics = {
        "nats": nats,
        "weight": weight,
        "gradient_norm": jnp.sqrt(jnp.sum(squares)),
        "update_norm": optax.tree.norm(updates),
        "learning_rate": schedule(state.step),
        "finite_gradients": jnp.isfinite(squares),
    }
    params = merge_frozen(optax.apply_updates(trained, updates), others)
    new = TrainState(state.step + 1, params, optimizer_state)
    if can_skip:
        is_good = jnp.isfinite(nats) & jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(metrics["update_norm"])
        old = TrainState(new.step, state.params, state.optimizer)
        new = jax.tree.map(lambda after, before: jnp.where(is_good, after, before), new, old)
    return new, metrics


def accumulate_gradients(
    model: nn.Module, params: Any, batch: Batch, rngs: dict[str, jax.Array], num_micro_batches: int, others: Any = None
) -> tuple[Any, jax.Array, jax.Array]:
    """Returns the gradient of the sum of nats by `params`, that sum, and the sum of weights.

    `others` are the parameters that the model has beside `params`.

    The micro-batches have the same rotations, which are drawn for a batch of any size, and their own dropout masks:
    without dropout the result is that of one large batch.
    """
    if num_micro_batches == 1:
        return _gradients(model, params, batch, rngs, others)

    def add_micro_batch(sums, index_and_batch):
        index, micro_batch = index_and_batch
        micro_rngs = {**rngs, "dropout": jax.random.fold_in(rngs["dropout"], index)}
        return jax.tree.map(jnp.add, sums, _gradients(model, params, micro_batch, micro_rngs, others)), None

    micro_batches = jax.tree.map(lambda examples: _split_examples(examples, num_micro_batches), batch)
    zeros = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros(()))
    sums, _ = jax.lax.scan(add_micro_batch, zeros, (jnp.arange(num_micro_batches), micro_batches))
    return sums


def _split_examples(examples: jax.Array, num_micro_batches: int) -> jax.Array:
    # Every device keeps its own examples: a micro-batch takes each num_micro_batches-th one and not a block of them.
    return jnp.moveaxis(examples.reshape(-1, num_micro_batches, *examples.shape[1:]), 1, 0)


def _gradients(model, params, batch, rngs, others):
    def nats_and_weight(params):
        arguments: dict[str, Any] = {**batch, "deterministic": False}
        return model.apply({"params": merge_frozen(params, others)}, rngs=rngs, method="loss", **arguments)

    (nats, weight), gradients = jax.value_and_grad(nats_and_weight, has_aux=True)(params)
    return gradients, nats, weight


def evaluation_step(
    params: Any, batch: Batch, hash_seed: int | jax.Array, *, model: nn.Module
) -> tuple[Evaluated, occupancy.Sums]:
    """Evaluates a batch without dropout.

    Returns:
      The sums; and how the tokens of the LSH layers fell into buckets.
    """
    rngs = {"hash": jax.random.key(hash_seed)}
    look = functools.partial(occupancy.look, model.config)
    arguments: dict[str, Any] = {**batch, "look": look}
    found: Any = model.apply({"params": params}, rngs=rngs, method="score", **arguments)
    return found._replace(seen=()), occupancy.by_depth(model.config, found.seen)


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
    init = functools.partial(init_state, model, optimizer, config.seed, config.training.frozen)
    update = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        accumulation_steps=config.training.accumulation_steps,
        seed=config.seed,
        can_skip=config.training.max_skipped_updates > 0,
        frozen_patterns=config.training.frozen,
    )
    target = abstract(init, mesh)
    state_places, everywhere = shardings_of(target), jax.NamedSharding(mesh, jax.P())
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
