"""An encoder and a decoder, both reversible: translation and everything else that turns one sequence into another."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from reformer.config import ReformerConfig, derive_encoder_config
from reformer.layers.stack import Observer
from reformer.models.heads import ReformerEncoder
from reformer.models.language import Evaluated, ReformerLM
from reformer.models.trunk import Encoded, Rotations
from reformer.ops.ids import check_ids


class _Encoder(ReformerEncoder):
    """An encoder that may have the embeddings of another model."""

    shared_embeddings: nn.Module | None = None

    def make_embeddings(self) -> nn.Module:
        """As `Trunk` has it."""
        return super().make_embeddings() if self.shared_embeddings is None else self.shared_embeddings


class ReformerEncoderDecoder(nn.Module):
    """A Reformer that reads a source and writes a target, token by token.

    Every layer of the decoder is self-attention, cross attention and feed-forward, one residual function each. Both
    stacks may have 'full', 'local' and 'lsh' layers. The source may be longer or shorter than the target.

    Attributes:
      config: the decoder's, with `cross_attention=True`.
      encoder_config: None = what `derive_encoder_config` makes of `config`.
      share_embeddings: source and target are ids of one vocabulary and have the same embeddings, the decoder's.

    Source: arXiv 2001.04451, section 5, "Machine translation".
    """

    config: ReformerConfig
    encoder_config: ReformerConfig | None = None
    share_embeddings: bool = False

    def setup(self):
        """Declares the parts; raises ValueError if they do not fit."""
        of_encoder = self.encoder_config or derive_encoder_config(self.config)
        _check(self.config, of_encoder, self.share_embeddings)
        self.decoder = ReformerLM(self.config)
        self.encoder = _Encoder(of_encoder, self.decoder.embeddings if self.share_embeddings else None)

    def create(self) -> None:
        """Visits every parameter, to create them and compute nothing: `model.init(rng, method='create')`."""
        self.decoder.create()
        self.encoder.create()

    def encode(
        self,
        source: Int[Array, "batch source"],
        *,
        source_mask: Bool[Array, "batch source"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """What the decoder attends to.

        Args:
          source: ids of any length up to `max_length` of the encoder.
          source_mask: True = real token; None = all are.
          rotations: of the encoder's LSH layers; None = drawn from the rng named 'hash'.
          deterministic: no dropout.

        Raises:
          ValueError: the source is empty or too long, an id does not exist, or mask or rotations do not fit or are
            missing.
        """
        longest = self.encoder.config.max_length
        if not 1 <= source.shape[1] <= longest:
            raise ValueError(
                f"A source of {source.shape[1]} tokens must have from 1 to max_length={longest}. Raise max_length or "
                "pass another source."
            )
        check_ids("source", source, self.encoder.config.vocab_size, counting=(source_mask,), repair="the source")
        hidden = self.encoder(source, mask=source_mask, rotations=rotations, deterministic=deterministic)
        return Encoded(hidden, source_mask)

    def __call__(
        self,
        source: Int[Array, "batch source"],
        tokens: Int[Array, "batch length"],
        *,
        source_mask: Bool[Array, "batch source"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: tuple[Rotations | None, Rotations | None] = (None, None),
        deterministic: bool = True,
    ) -> Float[Array, "batch length vocab"]:
        """Computes the logits of every position of the target.

        Args:
          source: as in `encode`.
          tokens: the target, moved right by one behind a begin id.
          source_mask: as in `encode`.
          mask: of the target; True = real token, None = all are.
          rotations: of the LSH layers of the encoder and of the decoder; None = drawn from the rng named 'hash'.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.

        Returns:
          Logits, in at least float32; those of masked positions mean nothing.

        Raises:
          ValueError: a sequence is too long, or rotations are wrong or missing.
        """
        options = self._options(source, source_mask, tokens, mask, rotations, deterministic)
        return self.decoder(tokens, mask=mask, deterministic=deterministic, **options)

    def loss(
        self,
        source: Int[Array, "batch source"],
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        source_mask: Bool[Array, "batch source"] | None = None,
        weights: Float[Array, "batch length"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: tuple[Rotations | None, Rotations | None] = (None, None),
        deterministic: bool = True,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Sum of weighted nats of the targets and sum of weights, as `TokenModel.loss`; arguments as in `__call__`."""
        self.decoder.check(tokens, targets, weights, mask)
        options = self._options(source, source_mask, tokens, mask, rotations, deterministic)
        return self.decoder.loss(tokens, targets, weights=weights, mask=mask, deterministic=deterministic, **options)

    def score(
        self,
        source: Int[Array, "batch source"],
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        source_mask: Bool[Array, "batch source"] | None = None,
        weights: Float[Array, "batch length"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: tuple[Rotations | None, Rotations | None] = (None, None),
        look: Observer | None = None,
    ) -> Evaluated:
        """The sums over a batch, as `TokenModel.score`; `look` observes the decoder's self-attention."""
        self.decoder.check(tokens, targets, weights, mask)
        options = self._options(source, source_mask, tokens, mask, rotations, True)
        return self.decoder.score(tokens, targets, weights=weights, mask=mask, look=look, **options)

    def _options(self, source, source_mask, tokens, mask, rotations, deterministic: bool) -> dict[str, Any]:
        """What the decoder needs beside its own arrays, which are checked before the encoder runs."""
        check_ids("tokens", tokens, self.config.vocab_size, counting=(mask,), repair="the tokens")
        of_encoder, of_decoder = rotations
        encoded = self.encode(source, source_mask=source_mask, rotations=of_encoder, deterministic=deterministic)
        return {"encoded": encoded, "rotations": of_decoder}


def _check(decoder: ReformerConfig, encoder: ReformerConfig, share_embeddings: bool) -> None:
    if not decoder.cross_attention or encoder.cross_attention:
        raise ValueError(
            f"cross_attention={decoder.cross_attention} in the decoder and {encoder.cross_attention} in the encoder "
            "must be True and False: --config.model.cross_attention=True."
        )
    if encoder.output_dim != decoder.output_dim:
        raise ValueError(
            f"The encoder gives {encoder.output_dim} features and the decoder takes {decoder.output_dim}. Give both "
            "the same embed_dim and merge_streams."
        )
    if share_embeddings:
        fields = ("vocab_size", "max_length", "embed_dim", "position_embedding", "axial_shape", "axial_dims")
        different = [name for name in fields if getattr(encoder, name) != getattr(decoder, name)]
        if different:
            raise ValueError(f"share_embeddings=True needs equal {', '.join(different)} in encoder and decoder.")
