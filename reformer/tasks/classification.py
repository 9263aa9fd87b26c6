"""Classification: the label of a whole example."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data import load
from reformer.data.source import Source
from reformer.models import flops
from reformer.models.heads import SequenceClassifier
from reformer.tasks.language import problems_of_data, problems_of_direction
from reformer.tasks.registry import Group

KINDS = ("packages", "listops")


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """As `registry` has it."""
    yield from problems_of_direction(config, model, causal=False)
    yield from problems_of_data(config, model, length, KINDS)


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """As `registry` has it."""
    return SequenceClassifier(model, task["num_labels"], task["pooling"])


def flops_per_token(task: Group, model: ReformerConfig, length: int) -> float:
    """As `registry` has it; the head stands once above a sequence."""
    head = 3 * 2 * model.embed_dim * (model.output_dim + task["num_labels"])
    return flops.flops_per_token(model, length, num_outputs=0) + head / length


def load_data(config: Any, length: int) -> Source:
    """As `registry` has it; also raises ValueError if the data have more labels than the model."""
    data: Any = load.load(config.data, length)
    if len(data.labels) > config.task.num_labels:
        raise ValueError(
            f"label {config.task.num_labels} ({data.labels[config.task.num_labels]!r}) is out of range: "
            f"config.task.num_labels={config.task.num_labels}, but there are {len(data.labels)} labels. "
            f"Set --config.task.num_labels={len(data.labels)}."
        )
    return data
