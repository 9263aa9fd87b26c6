"""What training carries from step to step, where it lies on the mesh, and which parameters are not trained."""

import functools
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from reformer import sharding

Params = dict[str, Any]


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
    trained, _ = split_frozen(params, frozen_patterns)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, optimizer=optimizer.init(trained))


def abstract(function: Callable[[], Any], mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes, dtypes and shardings of what `function()` returns, without computing it."""
    shapes = jax.eval_shape(function)
    places = sharding.parameter_shardings(shapes, mesh)
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places)


def abstract_params(model: nn.Module, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes, dtypes and shardings of a model's parameters."""
    with jax.set_mesh(mesh):
        return abstract(functools.partial(init_params, model, 0), mesh)


def param_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns {'path/to/parameter': shape} of a model."""
    params = jax.eval_shape(functools.partial(init_params, model, 0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def shardings_of(tree: Any) -> Any:
    """Returns the sharding of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches full names of a path: 'norm' is every norm, '^norm' only that above the stack."""
    return any(re.search(rf"(^|/)({pattern})(/|$)", path) for pattern in patterns)


def split_frozen(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Returns the parameters that are trained and the others, each in the same nesting; {} = there are none.

    The others have no gradient, no optimizer state and no weight decay.
    """
    if not patterns:
        return params, {}
    parts: tuple[Params, Params] = {}, {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        parts[is_frozen("/".join(path), patterns)][path] = leaf
    trained, others = map(traverse_util.unflatten_dict, parts)
    return trained, others


def merge_frozen(trained: Params, others: Params | None) -> Params:
    """Returns what `split_frozen` was given; None = there are no others."""
    if not others:
        return trained
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(others)
    return traverse_util.unflatten_dict(flat)


def check_frozen(patterns: Sequence[str], paths: Collection[str]) -> None:
    """Raises a ValueError if a pattern matches no path of a parameter, or together they match all."""
    for pattern in patterns:
        if not any(is_frozen(path, (pattern,)) for path in paths):
            groups = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise ValueError(
                f"config.training.frozen: {pattern!r} matches no parameter. They lie under {groups}; quote each name: "
                "--config.training.frozen=\"('embeddings','stack')\"."
            )
    if patterns and all(is_frozen(path, patterns) for path in paths):
        raise ValueError(f"config.training.frozen={tuple(patterns)!r} leaves nothing to train. Take some of it out.")
