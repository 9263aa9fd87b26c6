"""Translation: a text is written token by token while another one is read."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data import pairs
from reformer.data.source import Source
from reformer.models.encoder_decoder import ReformerEncoderDecoder
from reformer.tasks.language import problems_of_data, problems_of_direction
from reformer.tasks.registry import Group

KINDS = ("pairs",)


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """As `registry` has it."""
    yield from problems_of_direction(config, model, causal=True)
    yield from problems_of_data(config, model, length, KINDS)
    if not model.cross_attention:
        yield (
            "config.model.cross_attention=False: the decoder would not see the source. config.task.name='translation' "
            "needs cross_attention=True."
        )
    source_length = config.task.source_length
    if source_length is not None and source_length > model.max_length:
        yield (
            f"config.task.source_length={source_length} exceeds config.model.max_length={model.max_length}. Raise "
            "max_length or shorten the sources."
        )
    if config.data.name == "pairs" and not config.data.path:
        yield (
            "config.data.path is empty. Name what the names of two text files begin with, such as data/multi30k for "
            "data/multi30k.train.en: --config.data.path=PREFIX."
        )
    if config.sharding.split_length:
        yield (
            "config.sharding.split_length=True: cross attention needs the whole source on every device. Split examples "
            "and heads instead, by sharding.data, fsdp and tensor."
        )


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """As `registry` has it."""
    return ReformerEncoderDecoder(model, share_embeddings=task["share_embeddings"])


def load_data(config: Any, length: int) -> Source:
    """As `registry` has it."""
    found = pairs.load(config.data, length)
    return dataclasses.replace(found, source_length=config.task.source_length or length)
