"""Language modelling: every token is predicted from those before it."""

from collections.abc import Collection, Iterator
from typing import Any

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data import load
from reformer.data.source import Source
from reformer.models.language import ReformerLM
from reformer.tasks.registry import Group

KINDS = ("text", "images", "duplication", "recall")


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """As `registry` has it."""
    yield from problems_of_direction(config, model, causal=True)
    yield from problems_of_data(config, model, length, KINDS)


def problems_of_direction(config: Any, model: ReformerConfig, causal: bool) -> Iterator[str]:
    """Yields a sentence if tokens see what they should not, or do not see what they should."""
    if model.causal == causal:
        return
    effect = "would show the model what it predicts" if causal else "hides from each token what stands after it"
    yield f"config.model.causal={model.causal} {effect}. config.task.name={config.task.name!r} needs causal={causal}."


def problems_of_data(config: Any, model: ReformerConfig, length: int, kinds: Collection[str]) -> Iterator[str]:
    """Yields a sentence for each thing that keeps a task from data of which it takes those `kinds`."""
    data = config.data
    if load.kind(data.name) not in kinds:
        names = ", ".join(name for name in load.MODULES if load.kind(name) in kinds)
        task = f"config.task.name={config.task.name!r}"
        yield f"config.data.name={data.name!r} is nothing for {task}. Choose from {names}."
        return
    if model.vocab_size < load.vocab_size(data):
        yield (
            f"config.model.vocab_size={model.vocab_size} is too small: config.data.name={data.name!r} and the "
            f"reserved ids need {load.vocab_size(data)}. Raise vocab_size."
        )
    try:
        load.check_length(data, length)
    except ValueError as error:
        yield f"config.data: {error}"


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """As `registry` has it."""
    del task
    return ReformerLM(model)


def load_data(config: Any, length: int) -> Source:
    """As `registry` has it."""
    return load.load(config.data, length)
