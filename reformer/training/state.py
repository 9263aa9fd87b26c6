"""What training carries from step to step, and where it lies on the mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from reformer import sharding
from reformer.training import frozen


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state and the number of updates done; or the shapes or shardings of these.

    Random keys are no part of it: they follow from the seed and `step`.
    """

    step: Any
    params: Any
    optimizer: Any


def split_seed(seed: int) -> tuple[jax.Array, jax.Array]:
    """Returns the key of the initial parameters and the key that the steps fold their number into."""
    init_rng, steps_rng = jax.random.split(jax.random.key(seed))
    return init_rng, steps_rng


def init_params(model: nn.Module, seed: int) -> Any:
    """Returns the initial parameters."""
    init_rng, _ = split_seed(seed)
    return model.init(init_rng, method="create")["params"]


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, frozen_patterns: Sequence[str] = ()
) -> TrainState:
    """Returns the state before the first update; the optimizer knows nothing of what is frozen."""
    params = init_params(model, seed)
    trained, _ = frozen.split(params, frozen_patterns)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, optimizer=optimizer.init(trained))


def abstract(function: Callable[[], Any], mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes, dtypes and shardings of what `function()` returns, without computing it."""
    shapes = jax.eval_shape(function)
    places = sharding.parameter_shardings(shapes, mesh)
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places)


def shardings_of(tree: Any) -> Any:
    """Returns the sharding of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
