"""What stops a run whose numbers break down, or lets it skip an update, and what is said then."""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

_NUM_REMEMBERED = 8  # losses in the message
_NUM_NAMED = 3  # parameters in the message
_GROUPS_FROM_THE_LOSS = ("head", "norm", "stack", "embeddings")


@dataclasses.dataclass
class Guard:
    """Decides from the metrics of each step, in order, whether the run goes on. The same on every process.

    Attributes:
      unit: What a target is, such as 'byte'.
      parameters: Their names, in the order of `jax.tree.leaves`.
      max_skipped: Updates in a row that may be skipped; 0 = the first one ends the run.
      num_skipped: Updates in a row that were skipped last.
    """

    unit: str
    parameters: Sequence[str]
    max_skipped: int = 0
    num_skipped: int = 0
    _losses: collections.deque = dataclasses.field(default_factory=lambda: collections.deque(maxlen=_NUM_REMEMBERED))

    def check_step(self, step: int, values: dict[str, float], finite_gradients: Any) -> str:
        """Takes the metrics of a step.

        Args:
          step: Number of the update, from 1.
          values: The scalars of `step.train_step`.
          finite_gradients: Of every parameter whether its gradient is; only read if something is wrong.

        Returns:
          Why the update was skipped; '' if it was made.

        Raises:
          FloatingPointError: If a value is not finite and no more updates may be skipped.
        """
        broken = _describe_broken(values)
        if not broken:
            self.num_skipped = 0
            self._losses.append((step, values["nats"] / values["weight"] / math.log(2)))
            return ""
        self.num_skipped += 1
        gradients = self._describe_gradients(np.asarray(finite_gradients))
        if self.num_skipped > self.max_skipped:
            raise FloatingPointError(self._describe_end(step, broken, gradients))
        return f"{broken}. {gradients}"

    def check_validation(self, step: int, bits: float) -> None:
        """Raises a FloatingPointError unless the validation loss after an update is finite."""
        broken = _describe_broken({"validation loss": bits})
        if broken:
            raise FloatingPointError(self._describe_end(step, broken, "The training loss was still finite."))

    def _describe_gradients(self, is_finite: np.ndarray) -> str:
        names = [name for name, finite in zip(self.parameters, is_finite, strict=True) if not finite]
        if not names:
            return "Every gradient is finite."
        names.sort(key=_distance_from_loss)
        share = f"{len(names)} of {len(self.parameters)} parameters"
        more = ", ..." if len(names) > _NUM_NAMED else ""
        return f"Gradients of {share} are not finite, nearest to the loss: {', '.join(names[:_NUM_NAMED])}{more}."

    def _describe_end(self, step: int, broken: str, gradients: str) -> str:
        skipped = f" {self.max_skipped} updates before it were skipped." if self.num_skipped > 1 else ""
        losses = ", ".join(f"{bits:.4f} (step {number})" for number, bits in self._losses) or "none"
        return (
            f"{broken} at step {step}: training broke down between steps {step - 1} and {step}.{skipped}\n"
            f"Bits per {self.unit} before: {losses}.\n{gradients}\n"
            "Earlier checkpoints are intact. Run again with a lower --config.optimizer.learning_rate, with "
            "--config.optimizer.clip_norm, or with --config.training.max_skipped_updates to leave such updates out."
        )


def parameter_names(params: Any) -> list[str]:
    """Returns 'path/to/parameter' for every leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return ["/".join(entry.key for entry in path) for path, _ in leaves]


def _describe_broken(values: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))


def _distance_from_loss(name: str) -> tuple[int, int]:
    # A gradient is computed from the loss backwards: the one that was reached first broke first. A model may stand
    # below the name of its part, and what is in none of the groups belongs to a head.
    groups = (_GROUPS_FROM_THE_LOSS.index(part) for part in name.split("/") if part in _GROUPS_FROM_THE_LOSS)
    layer = re.search(r"layer_(\d+)", name)
    return next(groups, 0), -int(layer.group(1)) if layer else 0
