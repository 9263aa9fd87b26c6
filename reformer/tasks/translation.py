"""Translation: a text is written token by token while another one is read."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data.data_set import DataSet
from reformer.data.source import Source
from reformer.host.options import Flag, MaybeCount
from reformer.models.encoder_decoder import ReformerEncoderDecoder
from reformer.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Translation(Task):
    """How source and target are related."""

    kinds: ClassVar[tuple[str, ...]] = ("pairs",)
    causal: ClassVar[bool] = True

    source_length: MaybeCount = None  # tokens of a source; None = data.length
    share_embeddings: Flag = False  # source and target have the same embeddings

    def misfits(self, config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
        """As `Task.misfits`."""
        if not model.cross_attention:
            yield (
                "config.model.cross_attention=False: the decoder would not see the source. "
                f"config.task.name={config.task.name!r} needs cross_attention=True."
            )
        if self.source_length is not None and self.source_length > model.max_length:
            yield (
                f"config.task.source_length={self.source_length} exceeds config.model.max_length={model.max_length}. "
                "Raise max_length or shorten the sources."
            )
        if config.sharding.split_length:
            yield (
                "config.sharding.split_length=True: cross attention needs the whole source on every device. Split "
                "examples and heads instead, by sharding.data, fsdp and tensor."
            )

    def make_model(self, model: ReformerConfig) -> nn.Module:
        """As `Task.make_model`."""
        return ReformerEncoderDecoder(model, share_embeddings=self.share_embeddings)

    def load(self, data: DataSet, length: int) -> Source:
        """As `Task.load`."""
        found: Any = super().load(data, length)
        return dataclasses.replace(found, source_length=self.source_length or length)
