"""What a run learns: a model, the data that it takes, and what of a config does not fit them.

A new task is a subclass with a `make_model`, in any file: in a table of `registry`, or in a config file of the user.
"""

import abc
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data.data_set import DataSet
from reformer.data.source import Source
from reformer.host.options import Options
from reformer.models import flops


@dataclasses.dataclass(frozen=True)
class Task(Options, abc.ABC):
    """The `task` group of a config, of which a task declares the fields that it reads."""

    GROUP: ClassVar[str] = "config.task"
    kinds: ClassVar[Collection[str] | None] = None  # of data (`DataSet.kind`) that it takes; None = any
    causal: ClassVar[bool | None] = None  # what the model must be; None = either, or `misfits` says it
    lowest_loss_is_best: ClassVar[bool] = True  # False: the best checkpoint is the latest

    @abc.abstractmethod
    def make_model(self, model: ReformerConfig) -> nn.Module:
        """Returns a Linen module with three methods.

        `create()` visits every parameter. `loss(**batch, deterministic)` returns the sums of weighted nats and of
        weights. `score(**batch, look)` returns a `models.language.Evaluated`; `look` observes attention, or is None.
        A batch holds the arrays of `Source.to_row`, by name.
        """

    def load(self, data: DataSet, length: int) -> Source:
        """Reads the data, and makes of them what the task takes.

        Args:
          data: of a kind that the task takes.
          length: tokens of an example.

        Raises:
          ValueError: the data are missing, too few or not what they should be.
        """
        return data.load(self.data_length(length))

    def data_length(self, length: int) -> int:
        """Returns what the data know as the length of an example of `length` tokens."""
        return length

    def misfits(self, config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
        """Yields a sentence for each thing of a whole config that does not fit this task; it reads nothing."""
        del config, model, length
        yield from ()

    def companions(self, model: ReformerConfig) -> dict[str, ReformerConfig]:
        """Returns the configs of smaller models within the task's model, by name: they have to fit the mesh too."""
        del model
        return {}

    def flops_per_token(self, model: ReformerConfig, length: int) -> float:
        """Returns the operations per token of a training step of the whole model, as `models.flops` counts them."""
        return flops.flops_per_token(model, length)
