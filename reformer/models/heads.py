"""The trunk as an encoder, and heads for what is known of a whole sequence, of each token, or of a span.

Their parameters below the head have the names of the language model's, so that fine-tuning is a copy by path.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from reformer.layers.linear import dense
from reformer.layers.stack import Observer
from reformer.models.language import Evaluated, TokenModel
from reformer.models.trunk import POOLINGS, Rotations, Streams, Trunk, merge_streams
from reformer.ops.dropout import dropout, fold, token_numbers
from reformer.ops.ids import check_ids
from reformer.ops.losses import check_targets, check_targets_exist, cross_entropy, weigh, weight_of, widen


class ReformerEncoder(Trunk):
    """The trunk alone: a vector for every token, bidirectional with `config.causal=False`."""

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length hidden"]:
        """Computes the norm of both streams merged, what every head begins with.

        Args:
          tokens: ids below `vocab_size`, of any length up to `max_length`.
          mask: True = real token; None = all are.
          rotations: for every LSH layer in depth order; None = drawn from the rng named 'hash'.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.

        Returns:
          Vectors of `config.output_dim`, 2 `embed_dim` unless the streams are averaged, in at least float32; those of
          masked positions mean nothing.

        Raises:
          ValueError: the sequence is too long, or rotations are wrong or missing.
        """
        streams, seed = self.run(tokens, mask, rotations, deterministic)
        hidden = self.norm(merge_streams(self.config, streams))
        return hidden if seed is None else dropout(hidden, self.config.dropout_rate, seed, token_numbers(hidden))


class TokenClassifier(TokenModel):
    """A label for every token: targets [batch, length] are labels, and weights say which of them count."""

    num_labels: int

    @property
    def num_outputs(self) -> int:
        """Logits of a token: one for every label."""
        return self.num_labels


class SequenceClassifier(Trunk):
    """A label for a whole sequence, by a hidden layer over the first token or over the mean of all.

    Source: Hugging Face's ReformerForSequenceClassification (with `pooling='first'`).
    """

    num_labels: int
    pooling: str = "first"

    def setup(self):
        """Declares the parts."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} must be one of {', '.join(POOLINGS)}.")
        if self.num_labels < 1:
            raise ValueError(f"num_labels={self.num_labels} must be at least 1.")
        super().setup()
        self.head_hidden = dense(self.config, self.config.embed_dim)
        self.head = dense(self.config, self.num_labels)

    def create_head(self, hidden: Float[Array, "batch length hidden"]) -> None:
        """Visits the parameters of the head."""
        self.head(self.head_hidden(hidden))

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch labels"]:
        """Computes the logits of every sequence; arguments and errors as in `ReformerEncoder`."""
        streams, seed = self.run(tokens, mask, rotations, deterministic)
        return self._logits(streams, mask, seed)

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, " batch"],
        *,
        weights: Float[Array, " batch"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Computes the weighted cross-entropy.

        Args:
          tokens: as in `ReformerEncoder`.
          targets: labels from 0 to `num_labels` - 1. Another one is an error, and within `jit`, where its value is not
            known, both sums are NaN.
          weights: of the sequences; None = 1. The target of one of weight 0 may be any integer.
          mask: as in `ReformerEncoder`.
          rotations: as there.
          deterministic: as there.

        Returns:
          Sum of weighted nats, and sum of weights; (0, 0) for zero weights.

        Raises:
          ValueError: as in `ReformerEncoder`.
        """
        check_targets_exist(targets, weights, self.num_labels)
        streams, seed = self.run(tokens, mask, rotations, deterministic)
        smoothing = self.config.label_smoothing
        nats, _, weight = label_sums(self._logits(streams, mask, seed), targets, weights, smoothing)
        return nats, weight

    def score(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, " batch"],
        *,
        weights: Float[Array, " batch"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        look: Observer | None = None,
    ) -> Evaluated:
        """The loss without dropout, and how many labels are right; `look` as in `TokenModel.score`."""
        check_targets_exist(targets, weights, self.num_labels)
        streams, seen = self.observe(tokens, look, mask=mask, rotations=rotations)
        sums = label_sums(self._logits(streams, mask, None), targets, weights)
        return Evaluated(*sums, others={}, seen=seen)

    def _logits(self, streams: Streams, mask, seed):
        pooled = self.pool(streams, mask, self.pooling)
        if seed is not None:
            pooled = _dropout(self.config, pooled, fold(seed, 0))
        hidden = jnp.tanh(self.head_hidden(pooled))
        if seed is not None:
            hidden = _dropout(self.config, hidden, fold(seed, 1))
        return widen(self.head(hidden))


class QuestionAnswerer(Trunk):
    """The first and the last token of a span, such as an answer in a text behind its question.

    `label_smoothing` has no effect here: places that hold no real token cannot be the answer.

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 4.2; Hugging Face's ReformerForQuestionAnswering.
    """

    def setup(self):
        """Declares the parts."""
        super().setup()
        self.head = dense(self.config, 2)

    def create_head(self, hidden: Float[Array, "batch length hidden"]) -> None:
        """Visits the parameters of the head."""
        self.head(hidden)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Computes for every token the logit that the span starts there, and that it ends there.

        Arguments and errors are as in `ReformerEncoder`; logits of masked positions mean nothing.
        """
        streams, seed = self.run(tokens, mask, rotations, deterministic)
        logits = self._logits(streams, seed)
        return logits[:, 0], logits[:, 1]

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch 2"],
        *,
        weights: Float[Array, " batch"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Computes the weighted cross-entropy of starts and ends among the real tokens.

        Args:
          tokens: as in `ReformerEncoder`.
          targets: position of the first and of the last token of the span. A position that holds no real token, such as
            -1 or one that was cut off, does not count.
          weights: of the examples, for each of the two; None = 1.
          mask: as in `ReformerEncoder`.
          rotations: as there.
          deterministic: as there.

        Returns:
          Sum of weighted nats, and sum of weights, which is 2 for an example of weight 1; (0, 0) for zero weights.

        Raises:
          ValueError: as in `ReformerEncoder`.
        """
        streams, seed = self.run(tokens, mask, rotations, deterministic)
        logits, weights = self._real_logits(streams, mask, seed), _span_weights(targets, weights, tokens, mask)
        nats, _, weight = label_sums(logits, targets, weights)
        return nats, weight

    def score(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch 2"],
        *,
        weights: Float[Array, " batch"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        look: Observer | None = None,
    ) -> Evaluated:
        """The loss without dropout, how many starts and ends are right, and as `exact` how many whole spans are."""
        streams, seen = self.observe(tokens, look, mask=mask, rotations=rotations)
        logits, weights = self._real_logits(streams, mask, None), _span_weights(targets, weights, tokens, mask)
        weight_of_both = jnp.min(weights, axis=1)
        are_right = jnp.all(jnp.argmax(logits, axis=-1) == targets, axis=1)
        others = {"exact": (jnp.sum(weight_of_both * are_right), jnp.sum(weight_of_both))}
        return Evaluated(*label_sums(logits, targets, weights), others=others, seen=seen)

    def _logits(self, streams: Streams, seed) -> Float[Array, "batch 2 length"]:
        hidden = self.norm(merge_streams(self.config, streams))
        if seed is not None:
            hidden = dropout(hidden, self.config.dropout_rate, seed, token_numbers(hidden))
        return jnp.moveaxis(widen(self.head(hidden)), -1, 1)

    def _real_logits(self, streams: Streams, mask, seed) -> Float[Array, "batch 2 length"]:
        logits = self._logits(streams, seed)
        return logits if mask is None else jnp.where(mask[:, None], logits, jnp.finfo(logits.dtype).min / 2)


def check_labels(labels: Any, num_labels: int, what: str = "label") -> None:
    """Raises a ValueError that names the first of `labels`, an array on the host, that is none.

    So does a loss; one that is compiled cannot, and is NaN instead.

    Args:
      labels: integers of any shape.
      num_labels: of the model.
      what: they are called in the message.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels of type {labels.dtype} must be integers from 0 to {num_labels - 1}.")
    check_ids(what, labels, num_labels, "num_labels", repair="the labels")


def _dropout(config, x: Float[Array, "batch features"], seed):
    return dropout(x, config.dropout_rate, seed, jnp.arange(len(x)))


def label_sums(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None, smoothing: float = 0.0
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Sums of weighted nats, of the weights of right targets, and of weights, for logits [*targets, outcomes].

    `smoothing` is that of `losses.cross_entropy`. All are NaN if a target that counts does not exist (`losses.weigh`).
    """
    check_targets(targets, weights, logits.shape[:-1])
    num_outcomes = logits.shape[-1]
    weights = weigh(targets, weights, num_outcomes, logits.dtype)
    nats = cross_entropy(logits.reshape(len(logits), -1, num_outcomes), targets.reshape(len(targets), -1), smoothing)
    is_first = jnp.argmax(logits, axis=-1) == targets
    return jnp.sum(nats.reshape(targets.shape) * weights), weight_of(is_first, weights), jnp.sum(weights)


def _span_weights(targets, weights, tokens, mask) -> Float[Array, "batch 2"]:
    """The weight of each start and end; 0 where its position holds no real token."""
    length = tokens.shape[1]
    is_inside = (targets >= 0) & (targets < length)
    if mask is not None:
        is_inside &= jnp.take_along_axis(mask, jnp.clip(targets, 0, length - 1), axis=1)
    weights = jnp.ones(len(targets)) if weights is None else widen(weights)
    return is_inside * weights[:, None]
