"""Classification: the label of a whole example."""

import dataclasses
from typing import Annotated, Any, ClassVar

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data.data_set import DataSet
from reformer.data.source import Source
from reformer.host.options import Count, one_of
from reformer.models import flops
from reformer.models.heads import SequenceClassifier
from reformer.models.trunk import POOLINGS
from reformer.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Labels(Task):
    """What all classifiers have in common."""

    num_labels: Count = 20  # the data may have fewer
    pooling: Annotated[str, one_of(POOLINGS)] = "mean"  # what the head sees; the 'first' token of images is its own


@dataclasses.dataclass(frozen=True)
class Classification(Labels):
    """Labels of rows of tokens."""

    kinds: ClassVar[tuple[str, ...]] = ("labelled_text",)
    causal: ClassVar[bool] = False

    def make_model(self, model: ReformerConfig) -> nn.Module:
        """As `Task.make_model`."""
        return SequenceClassifier(model, self.num_labels, self.pooling)

    def flops_per_token(self, model: ReformerConfig, length: int) -> float:
        """As `Task.flops_per_token`; the head stands once above a sequence."""
        head = 3 * 2 * model.embed_dim * (model.output_dim + self.num_labels)
        return flops.flops_per_token(model, length, num_outputs=0) + head / length

    def load(self, data: DataSet, length: int) -> Source:
        """As `Task.load`; also raises ValueError if the data have more labels than the model."""
        found: Any = super().load(data, length)
        if len(found.labels) > self.num_labels:
            raise ValueError(
                f"label {self.num_labels} ({found.labels[self.num_labels]!r}) is out of range: "
                f"config.task.num_labels={self.num_labels}, but there are {len(found.labels)} labels. "
                f"Set --config.task.num_labels={len(found.labels)}."
            )
        return found
