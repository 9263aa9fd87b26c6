"""Replaced-token detection on the bytes of a text: every token is real, or one that a small generator put there."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data import load
from reformer.data.masking import Masked
from reformer.data.source import Source
from reformer.models import electra, flops
from reformer.models import electra_parts as electra_models
from reformer.tasks.language import problems_of_data
from reformer.tasks.registry import Group

KINDS = ("text",)
LOWEST_LOSS_IS_BEST = False  # it rises while both models learn: the better the generator, the harder the detection


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


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """As `registry` has it."""
    for problem in electra.problems(model, config.task.generator_scale, config.task.share):
        yield f"config.{'model' if problem.startswith('causal') else 'task'}.{problem}"
    yield from problems_of_data(config, model, length, KINDS)


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """As `registry` has it."""
    return electra.ReformerElectra(
        model,
        generator_scale=task["generator_scale"],
        share=task["share"],
        discriminator_weight=task["discriminator_weight"],
        temperature=task["temperature"],
    )


def load_data(config: Any, length: int) -> Source:
    """As `registry` has it; all that is chosen is hidden, where BERT leaves a tenth and makes another up."""
    text: Any = load.load(config.data, length)
    return Replaced(text, config.task.mask_rate, masked_share=1.0, random_share=0.0)


def companions(task: Group, model: ReformerConfig) -> dict[str, ReformerConfig]:
    """As `registry` has it."""
    return {"generator": electra_models.generator_config(model, task["generator_scale"])}


def flops_per_token(task: Group, model: ReformerConfig, length: int) -> float:
    """As `registry` has it: both models, the projection between their widths, and the logits to draw from."""
    generator = electra_models.generator_config(model, task["generator_scale"])
    is_projected = task["share"] == "embeddings" and generator.embed_dim != model.embed_dim
    projection = 3 * 2 * model.embed_dim * generator.embed_dim if is_projected else 0
    draw = 2 * generator.output_dim * generator.vocab_size
    both = flops.flops_per_token(generator, length) + flops.flops_per_token(model, length, num_outputs=1)
    return both + projection + draw
