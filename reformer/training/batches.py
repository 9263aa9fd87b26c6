"""From the rows of this process to arrays that are spread over the mesh."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from reformer import sharding
from reformer.data import text
from reformer.training import settings
from reformer.training.step import Batch


def training_batches(config: ConfigDict, data: text.TextData) -> Iterator[dict[str, np.ndarray]]:
    """Returns this process's part of the endless training batches; `get_state` and `set_state` hold the position."""
    return text.train_iterator(
        data,
        length=settings.window_length(config),
        batch_size=config.training.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def evaluation_batches(config: ConfigDict, split: np.ndarray) -> Sequence[dict[str, np.ndarray]]:
    """Returns this process's part of the windows that cover `split`, uint8 [bytes]."""
    return text.eval_batches(
        split,
        length=settings.window_length(config),
        batch_size=config.evaluation.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def to_mesh(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> Batch:
    """Returns the global batch, of which this process holds the rows `batch`."""
    place = sharding.batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(place, rows) for name, rows in batch.items()}
