"""Language modelling: every token is predicted from those before it."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.models.language import ReformerLM
from reformer.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Language(Task):
    """It has no options."""

    kinds: ClassVar[tuple[str, ...]] = ("text", "images", "tokens")
    causal: ClassVar[bool] = True

    def make_model(self, model: ReformerConfig) -> nn.Module:
        """As `Task.make_model`."""
        return ReformerLM(model)
