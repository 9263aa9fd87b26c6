"""Masked language modelling: hidden bytes of a text are predicted from what stands on both sides."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data import load
from reformer.data.masking import Masked
from reformer.data.source import Source
from reformer.models.language import ReformerLM
from reformer.tasks.language import problems_of_data, problems_of_direction
from reformer.tasks.registry import Group

KINDS = ("text",)


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """As `registry` has it."""
    yield from problems_of_direction(config, model, causal=False)
    yield from problems_of_data(config, model, length, KINDS)


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """As `registry` has it."""
    del task
    return ReformerLM(model)


def load_data(config: Any, length: int) -> Source:
    """As `registry` has it."""
    text: Any = load.load(config.data, length)
    return Masked(text, config.task.mask_rate)
