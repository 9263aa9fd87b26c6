"""Replaced-token detection on the bytes of a text: every token is real, or one that a small generator put there."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data.data_set import DataSet
from reformer.data.masking import Masked
from reformer.data.source import Source
from reformer.host.options import Positive, one_of
from reformer.models import electra, flops
from reformer.models.electra_parts import generator_config
from reformer.tasks.masked import MaskedLanguage


class Replaced(Masked):
    """Masked data for two models, whose common loss is per token and has nothing to be compared with."""

    @property
    def unit(self) -> str:
        """What the discriminator judges."""
        return "token"

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """None: what the simplest discriminator reaches is the `unreplaced_share` of each evaluation."""
        del split, length, max_examples
        return {}


@dataclasses.dataclass(frozen=True)
class Electra(MaskedLanguage):
    """The generator beside the discriminator, and what it makes up."""

    causal: ClassVar[bool | None] = None  # said by `misfits`
    lowest_loss_is_best: ClassVar[bool] = False  # it rises while both learn: the better one, the harder for the other

    generator_scale: Positive = 0.25  # widths of the generator relative to the discriminator's
    # What both use: 'all' needs generator_scale=1.0.
    share: Annotated[str, one_of(electra.SHARED_PARTS)] = "embeddings"
    discriminator_weight: Positive = 50.0  # of the discriminator's loss, beside 1 for the generator's
    temperature: Positive = 1.0  # the generator's logits are divided by it before a token is drawn

    def misfits(self, config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
        """As `Task.misfits`."""
        for problem in electra.problems(model, self.generator_scale, self.share):
            yield f"config.{'model' if problem.startswith('causal') else 'task'}.{problem}"

    def make_model(self, model: ReformerConfig) -> nn.Module:
        """As `Task.make_model`."""
        return electra.ReformerElectra(
            model,
            generator_scale=self.generator_scale,
            share=self.share,
            discriminator_weight=self.discriminator_weight,
            temperature=self.temperature,
        )

    def load(self, data: DataSet, length: int) -> Source:
        """As `Task.load`; all that is chosen is hidden, where BERT leaves a tenth and makes another up."""
        text: Any = data.load(length)
        return Replaced(text, self.mask_rate, masked_share=1.0, random_share=0.0)

    def companions(self, model: ReformerConfig) -> dict[str, ReformerConfig]:
        """As `Task.companions`."""
        return {"generator": generator_config(model, self.generator_scale)}

    def flops_per_token(self, model: ReformerConfig, length: int) -> float:
        """As `Task.flops_per_token`: both models, the projection between their widths, and the logits to draw from."""
        generator = generator_config(model, self.generator_scale)
        is_projected = self.share == "embeddings" and generator.embed_dim != model.embed_dim
        projection = 3 * 2 * model.embed_dim * generator.embed_dim if is_projected else 0
        draw = 2 * generator.output_dim * generator.vocab_size
        both = flops.flops_per_token(generator, length) + flops.flops_per_token(model, length, num_outputs=1)
        return both + projection + draw
