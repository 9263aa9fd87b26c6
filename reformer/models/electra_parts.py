"""The two models of ELECTRA: one fills hidden places, the other says of every token whether it was replaced.

Source: Clark et al. 2020, arXiv 2003.10555; how they learn together is in `reformer.models.electra`.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from reformer.config import ReformerConfig
from reformer.layers.embeddings import Embeddings
from reformer.layers.linear import dense
from reformer.models.language import ReformerLM, TokenModel
from reformer.models.trunk import Streams
from reformer.ops.lengthwise import map_length
from reformer.ops.losses import chunked_cross_entropy, chunked_scores
from reformer.ops.replacement import draw_in_chunks


class DrawNoise(NamedTuple):
    """What decides which tokens are drawn: noise, and how much it weighs against the logits."""

    seed: UInt[Array, ""]
    places: UInt[Array, "batch length"]
    temperature: float | int


class Generator(ReformerLM):
    """A masked language model whose embeddings may be those of a wider model, brought to its width by a dense layer."""

    embeddings_config: ReformerConfig

    def setup(self):
        """Declares the parts."""
        super().setup()
        if self._is_projected:
            self.projection = dense(self.config, self.config.embed_dim)

    @property
    def _is_projected(self) -> bool:
        return self.embeddings_config.embed_dim != self.config.embed_dim

    def make_embeddings(self) -> nn.Module:
        """The embeddings before the projection."""
        return Embeddings(self.embeddings_config)

    def embed(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """The vectors that enter the stack, before dropout."""
        embedded = super().embed(tokens)
        if not self._is_projected:
            return embedded
        if self.is_initializing():
            return self.projection(embedded)

        def project(params, x):
            projected: Any = self.projection.clone(parent=None).apply({"params": params}, x)
            return projected.astype(x.dtype)

        return map_length(project, self.variables["params"]["projection"], embedded, None)

    def learn_and_draw(self, tokens, targets, noise: DrawNoise, *, weights, mask, deterministic):
        """`loss` of the targets, and a draw from the softmax of the same logits at every place."""
        streams, dropout_seed = self.run(tokens, mask, None, deterministic)
        logits, chunk_length, params = self._chunk_logits(), self._loss_chunk, self._head_params()
        sums = chunked_cross_entropy(
            logits, chunk_length, params, streams, targets, weights, dropout_seed, self.config.label_smoothing
        )
        return sums, draw_in_chunks(logits, chunk_length, params, streams, *noise, dropout_seed)

    def score_and_draw(self, tokens, targets, noise: DrawNoise, *, weights, mask):
        """What `chunked_scores` sums over the targets, and a draw as in `learn_and_draw`."""
        streams, _ = self.run(tokens, mask)
        logits, chunk_length, params = self._chunk_logits(), self._loss_chunk, self._head_params()
        sums = chunked_scores(logits, chunk_length, params, streams, targets, weights)
        return sums, draw_in_chunks(logits, chunk_length, params, streams, *noise)


class Discriminator(TokenModel):
    """One logit for every token: above 0, it was replaced. The targets of `loss` and `score` are 1 where it was."""

    @property
    def num_outputs(self) -> int:
        """Logits of a token."""
        return 1

    @property
    def target_limit(self) -> tuple[str, int]:
        """Replaced or not."""
        return "num_labels", 2

    def _chunk_logits(self):
        """For the loss the logits 0 and x of two classes, whose cross-entropy is the binary one of x."""
        return partial(_beside_zero, super()._chunk_logits())

    def measure(
        self, streams: Streams, targets: Int[Array, "batch length"], weights: Float[Array, "batch length"]
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Share of unreplaced tokens, which those reach who never suspect one; and recall and precision."""
        replaced = weights * targets
        others = weights - replaced
        logits, chunk_length, params = self._chunk_logits(), self._loss_chunk, self._head_params()
        counted = chunked_scores(logits, chunk_length, params, streams, targets, (replaced, others))
        (_, found, num_replaced), (_, left_alone, num_others) = counted
        return {
            "unreplaced_share": (num_others, num_replaced + num_others),
            "detection_recall": (found, num_replaced),
            "detection_precision": (found, found + num_others - left_alone),
        }


def generator_config(config: ReformerConfig, scale: float | int) -> ReformerConfig:
    """The config of a generator whose widths are `scale` times those of `config`.

    There are fewer heads of the same width where it allows that, and at least one. Axial tables of its own share the
    width of the streams automatically.

    Raises:
      ValueError: such a model cannot be.
    """
    if scale == 1:
        return config

    def scaled(size: int, scale: float | int = scale) -> int:
        return max(1, round(scale * size))

    num_heads = scaled(config.num_heads)
    return dataclasses.replace(
        config,
        embed_dim=scaled(config.embed_dim),
        mlp_dim=scaled(config.mlp_dim),
        num_heads=num_heads,
        head_dim=scaled(config.num_heads * config.head_dim, scale / num_heads),
        axial_dims=None,
    )


def _beside_zero(logits_fn, *args):
    logits = logits_fn(*args)
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
