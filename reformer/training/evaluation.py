"""Bits per byte over a whole split."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.data import text
from reformer.model import ReformerLM
from reformer.training import batches, checkpoint, settings, step

# What may differ from training when a checkpoint is evaluated; within `model`, what leaves the parameters as they are.
GROUPS = ("model", "data", "evaluation", "sharding")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Measures parameters on the windows that cover a split.

    Attributes:
      mesh: Where the parameters lie.
      windows: Batches of this process; together their weights count every byte once.
      evaluation_step: Compiled `step.evaluation_step`.
    """

    mesh: jax.sharding.Mesh
    windows: Sequence[dict[str, np.ndarray]]
    evaluation_step: Callable[..., tuple[jax.Array, jax.Array]]

    def bits_per_byte(self, params: Any, hash_seed: int) -> float:
        """Returns the mean over the whole split, with the same rotations for every window."""
        return self._mean_bits(self.windows, params, hash_seed)

    def probe(self, params: Any, hash_seed: int) -> float:
        """Returns the mean over the first batch alone: enough to see that the loss is finite."""
        return self._mean_bits([self.windows[0]], params, hash_seed)

    def _mean_bits(self, windows: Iterable[dict[str, np.ndarray]], params: Any, hash_seed: int) -> float:
        sums = np.zeros(2)
        previous: Sequence[jax.Array | float] = (0.0, 0.0)
        for window in windows:
            current = self.evaluation_step(params, batches.to_mesh(window, self.mesh), hash_seed)
            sums += [float(value) for value in previous]  # read while the current batch is computed
            previous = current
        nats, weight = sums + [float(value) for value in previous]
        return float(nats / weight / math.log(2))


def make_evaluator(
    config: ConfigDict, model_config: ReformerConfig, split: np.ndarray, mesh: jax.sharding.Mesh
) -> Evaluator:
    """Returns an evaluator on `split`, uint8 [bytes], of parameters that `model_config` fits."""
    evaluation_step = jax.jit(
        functools.partial(step.evaluation_step, model=ReformerLM(model_config)),
        in_shardings=(None, sharding.batch_sharding(mesh), None),
        out_shardings=jax.NamedSharding(mesh, jax.P()),
    )
    return Evaluator(mesh, batches.evaluation_batches(config, split), evaluation_step)


def measure_spread(evaluator: Evaluator, params: Any, bits_per_byte: float, config: ConfigDict) -> dict[str, Any]:
    """Returns how far other hash seeds differ.

    Args:
      evaluator: Its split is read once for each further seed.
      params: Of the model.
      bits_per_byte: With `hash_seed`.
      config: The `evaluation` group; the seeds are hash_seed, hash_seed + 1, ...
    """
    seeds = range(config.hash_seed + 1, config.hash_seed + config.num_hash_seeds)
    values = [bits_per_byte, *(evaluator.bits_per_byte(params, seed) for seed in seeds)]
    return {"num_hash_seeds": len(values), "lowest": min(values), "highest": max(values)}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A checkpoint and a split, with everything checked that a user can get wrong."""

    config: ConfigDict
    model_config: ReformerConfig
    changes: dict[str, tuple[Any, Any]]  # from the stored config
    workdir: Path
    step: int
    split: str
    array: np.ndarray
    mesh: jax.sharding.Mesh


def prepare(config: ConfigDict, workdir: Path, wanted: str, split: str) -> Evaluation:
    """Checks a config against the stored one and finds the checkpoint and the data.

    Args:
      config: The stored config with overrides.
      workdir: Of the training run.
      wanted: The checkpoint: 'best', 'latest' or a step.
      split: 'train', 'valid' or 'test'.

    Raises:
      ValueError: If something is wrong; the message says what, and how to repair it.
    """
    model_config = settings.validate(config)
    stored = settings.read(workdir)
    changes = settings.differences(stored, config)
    check_changes(changes, settings.model_config(stored), model_config)
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        chosen = checkpoint.choose(checkpoints, wanted)
    array = getattr(text.load(config.data), split)
    mesh = sharding.make_mesh(**config.sharding)
    sharding.validate(model_config, config.evaluation.batch_size, dict(mesh.shape))
    batches.evaluation_batches(config, array)
    return Evaluation(config, model_config, changes, workdir, chosen, split, array, mesh)


def check_changes(changes: dict[str, tuple[Any, Any]], trained: ReformerConfig, wanted: ReformerConfig) -> None:
    """Raises a ValueError if trained parameters do not fit the wanted model, or a change would have no effect."""
    useless = {name: values for name, values in changes.items() if name.split(".")[0] not in GROUPS}
    if useless:
        raise ValueError(f"{settings.describe(useless)}: this has no effect on an evaluation. Leave it out.")
    old, new = checkpoint.param_shapes(trained), checkpoint.param_shapes(wanted)
    misfits = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if misfits:
        name = misfits[0]
        model_changes = {field: values for field, values in changes.items() if field.startswith("model.")}
        raise ValueError(
            f"{settings.describe(model_changes)}: the trained parameters do not allow this; {name} is "
            f"{old.get(name, 'absent')} in the checkpoint and would have to be {new.get(name, 'absent')}."
        )


def evaluate(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the record of an evaluation.

    Raises:
      OSError: If the checkpoint is damaged.
    """
    config = evaluation.config.evaluation
    with jax.set_mesh(evaluation.mesh):
        target = checkpoint.abstract_params(evaluation.model_config, evaluation.mesh)
        with checkpoint.Checkpoints(evaluation.workdir, read_only=True) as checkpoints:
            params = checkpoints.restore_params(evaluation.step, target)
        evaluator = make_evaluator(evaluation.config, evaluation.model_config, evaluation.array, evaluation.mesh)
        bits = evaluator.bits_per_byte(params, config.hash_seed)
        record = {"split": evaluation.split, "step": evaluation.step, "bits_per_byte": bits}
        record |= {"num_bytes": len(evaluation.array), "hash_seed": config.hash_seed}
        if evaluation.model_config.num_lsh_layers:
            record["hash_spread"] = measure_spread(evaluator, params, bits, config)
    return record | {"changes": {name: new for name, (_, new) in evaluation.changes.items()}}
