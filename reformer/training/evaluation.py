"""Loss and accuracy over a split."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from reformer import sharding
from reformer.compilation import compiler_options
from reformer.config import ReformerConfig
from reformer.data.source import Source
from reformer.tasks import registry
from reformer.training import batches, checkpoint, distributed, occupancy, settings, step
from reformer.training.state import abstract_params, param_shapes
from reformer.training.workdir import check_assets, with_own_vocabulary

# What may differ from training when a checkpoint is evaluated; within `model`, what leaves the parameters as they are.
GROUPS = ("model", "data", "evaluation", "sharding")


class Scores(NamedTuple):
    """Means over the targets of a split.

    Attributes:
      bits: Cross-entropy of a target.
      accuracy: Share of the targets that have the largest logit.
      num_targets: Sum of the weights.
      others: Further means by name, of what a model measures beside these.
    """

    bits: float
    accuracy: float
    num_targets: float
    others: Mapping[str, float] = MappingProxyType({})

    def record(self, unit: str) -> dict[str, float]:
        """Returns what is reported; `unit` is what a target is, such as 'byte'."""
        return {f"bits_per_{unit}": self.bits, "accuracy": self.accuracy, **self.others}

    def describe(self, unit: str) -> str:
        """Returns the same for people."""
        others = "".join(f", {name} {value:.4f}" for name, value in self.others.items())
        return f"{self.bits:.4f} bits/{unit}, accuracy {self.accuracy:.2%}{others}"


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Measures parameters on the examples of a split.

    Attributes:
      mesh: Where the parameters lie.
      batches: Of this process.
      evaluation_step: Compiled `step.evaluation_step`.
      on_batch: Called after each batch, as a sign of life.
    """

    mesh: jax.sharding.Mesh
    batches: Sequence[dict[str, np.ndarray]]
    evaluation_step: Callable[..., Any]
    on_batch: Callable[[], None] = lambda: None

    def measure(self, params: Any, hash_seed: int) -> Scores:
        """Returns the means over all examples, with the same rotations for each."""
        return self.measure_with_buckets(params, hash_seed)[0]

    def measure_with_buckets(self, params: Any, hash_seed: int) -> tuple[Scores, dict[int, occupancy.Occupancy]]:
        """Returns the means over all examples, and how full the buckets of the LSH layers are, by depth."""
        return self._mean(self.batches, params, hash_seed)

    def probe(self, params: Any, hash_seed: int) -> Scores:
        """Returns the means over the first batch alone: enough to see that the loss is finite."""
        return self._mean([self.batches[0]], params, hash_seed)[0]

    def _mean(
        self, some: Iterable[dict[str, np.ndarray]], params: Any, hash_seed: int
    ) -> tuple[Scores, dict[int, occupancy.Occupancy]]:
        total = previous = None
        for batch in some:
            current = self.evaluation_step(params, batches.to_mesh(batch, self.mesh), hash_seed)
            total = _add(total, previous)  # read while the current batch is computed
            previous = current
            self.on_batch()
        sums, buckets = _add(total, previous)
        # A share of what did not occur, such as the precision of what was never said, is left out.
        others = {name: float(of_all / weight) for name, (of_all, weight) in sums.others.items() if weight}
        bits, accuracy = float(sums.nats / sums.weight / math.log(2)), float(sums.right / sums.weight)
        return Scores(bits, accuracy, float(sums.weight), others), occupancy.means(buckets)


def _add(total: Any, results: Any) -> Any:
    """Adds what the devices returned to sums in float64; None is nothing."""
    if results is None:
        return total
    arrays = jax.tree.map(lambda x: np.asarray(x, np.float64), results)
    return arrays if total is None else jax.tree.map(np.add, total, arrays)


def make_evaluator(
    config: ConfigDict,
    data: Source,
    split: str,
    mesh: jax.sharding.Mesh,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluator:
    """Returns an evaluator on a split of parameters of the model that `config` describes."""
    evaluation_step = jax.jit(
        functools.partial(step.evaluation_step, model=settings.make_model(config)),
        in_shardings=(None, sharding.batch_sharding(mesh), None),
        out_shardings=jax.NamedSharding(mesh, jax.P()),
        compiler_options=compiler_options(),
    )
    return Evaluator(mesh, batches.evaluation_batches(config, data, split, mesh), evaluation_step, on_batch)


def measure_spread(evaluator: Evaluator, params: Any, bits: float, config: ConfigDict) -> dict[str, Any]:
    """Returns how far other hash seeds differ.

    Args:
      evaluator: Its split is read once for each further seed.
      params: Of the model.
      bits: With `hash_seed`.
      config: The `evaluation` group; the seeds are hash_seed, hash_seed + 1, ...
    """
    seeds = range(config.hash_seed + 1, config.hash_seed + config.num_hash_seeds)
    values = [bits, *(evaluator.measure(params, seed).bits for seed in seeds)]
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
    data: Source
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
    stored = settings.in_new_place(settings.read(workdir), config)
    changes = settings.differences(stored, config)
    check_changes(changes, stored, config)
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        chosen = distributed.on_process_0(lambda: checkpoint.choose(checkpoints, wanted))
    data = registry.load_data(with_own_vocabulary(workdir, config), settings.window_length(config))
    check_assets(workdir, data)
    mesh = sharding.make_mesh(**config.sharding)
    settings.check_sharding(config, mesh)
    batches.evaluation_batches(config, data, split, mesh)
    return Evaluation(config, model_config, changes, workdir, chosen, split, data, mesh)


def check_changes(
    changes: dict[str, tuple[Any, Any]],
    trained: settings.Config,
    wanted: settings.Config,
    groups: tuple[str, ...] = GROUPS,
) -> None:
    """Raises a ValueError if trained parameters do not fit the wanted model, or a change is in none of the groups."""
    useless = {name: values for name, values in changes.items() if name.split(".")[0] not in groups}
    if useless:
        raise ValueError(f"{settings.describe(useless)}: this has no effect here. Leave it out.")
    old, new = (param_shapes(settings.make_model(config)) for config in (trained, wanted))
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
        target = abstract_params(settings.make_model(evaluation.config), evaluation.mesh)
        with checkpoint.Checkpoints(evaluation.workdir, read_only=True) as checkpoints:
            params = checkpoints.restore_params(evaluation.step, target)
        data, split = evaluation.data, evaluation.split
        evaluator = make_evaluator(evaluation.config, data, split, evaluation.mesh)
        scores = evaluator.measure(params, config.hash_seed)
        record = {"split": split, "step": evaluation.step, **scores.record(data.unit)}
        record |= {f"num_{data.unit}s": round(scores.num_targets), "hash_seed": config.hash_seed}
        if evaluation.model_config.num_lsh_layers:
            record["hash_spread"] = measure_spread(evaluator, params, scores.bits, config)
    return record | {"changes": {name: new for name, (_, new) in evaluation.changes.items()}}
