"""Masked language modelling: hidden bytes of a text are predicted from what stands on both sides."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data.data_set import DataSet
from reformer.data.masking import Masked
from reformer.data.source import Source
from reformer.host.options import PositiveShare
from reformer.models.language import ReformerLM
from reformer.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class MaskedLanguage(Task):
    """Which bytes are hidden."""

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    causal: ClassVar[bool] = False

    mask_rate: PositiveShare = 0.15  # share of the tokens that are hidden

    def make_model(self, model: ReformerConfig) -> nn.Module:
        """As `Task.make_model`."""
        return ReformerLM(model)

    def load(self, data: DataSet, length: int) -> Source:
        """As `Task.load`."""
        text: Any = super().load(data, length)
        return Masked(text, self.mask_rate)
