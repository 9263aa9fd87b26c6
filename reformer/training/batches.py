"""From the rows of this process to arrays that are spread over the mesh."""

import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from reformer import sharding
from reformer.data import source
from reformer.data.source import Source
from reformer.training import settings
from reformer.training.step import Batch


@functools.cache
def batch_part(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """Which part of every batch this process reads, and how many parts there are.

    Processes whose devices hold the same examples, because an axis that splits no examples spans them, read the same.

    Raises:
      ValueError: the devices of two processes share some examples and not others.
    """
    held: dict[int, set[int]] = {}
    for number, devices in enumerate(mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(number)
    parts = sorted({tuple(sorted(numbers)) for numbers in held.values()})
    if sum(map(len, parts)) != len({number for part in parts for number in part}) or len(set(map(len, parts))) > 1:
        sizes = ", ".join(f"sharding.{name}={size}" for name, size in mesh.shape.items())
        raise ValueError(
            f"{sizes}: a batch of {len(mesh.devices.flat)} devices does not divide among {len(held)} processes. Let "
            "sharding.tensor and the devices of a process divide one another."
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def training_batches(config: ConfigDict, data: Source, mesh: jax.sharding.Mesh) -> Iterator[dict[str, np.ndarray]]:
    """Returns this process's part of the endless training batches; `get_state` and `set_state` hold the position."""
    index, count = batch_part(mesh)
    return source.training_batches(
        data,
        length=settings.window_length(config),
        batch_size=config.training.batch_size,
        seed=config.seed,
        process_index=index,
        process_count=count,
    )


def evaluation_batches(
    config: ConfigDict, data: Source, split: str, mesh: jax.sharding.Mesh
) -> Sequence[dict[str, np.ndarray]]:
    """Returns this process's part of the examples of a split."""
    index, count = batch_part(mesh)
    return source.evaluation_batches(
        data,
        split,
        length=settings.window_length(config),
        batch_size=config.evaluation.batch_size,
        max_examples=config.evaluation.max_examples,
        process_index=index,
        process_count=count,
    )


def training_shapes(config: ConfigDict, data: Source, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of a global training batch."""
    place, rows = sharding.batch_sharding(mesh), next(training_batches(config, data, mesh))
    return {
        name: jax.ShapeDtypeStruct((config.training.batch_size, *part.shape[1:]), part.dtype, sharding=place)
        for name, part in rows.items()
    }


def to_mesh(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> Batch:
    """Returns the global batch, of which this process holds the rows `batch`."""
    place, (_, count) = sharding.batch_sharding(mesh), batch_part(mesh)

    def spread(rows: np.ndarray) -> jax.Array:
        shape = (count * rows.shape[0], *rows.shape[1:])
        return jax.make_array_from_process_local_data(place, rows, shape)

    return jax.tree.map(spread, batch)
