"""Models with a dense head at every token, the language model among them."""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reformer.config import ReformerConfig
from reformer.layers.linear import LayerNorm, dense
from reformer.layers.stack import Observer
from reformer.models.trunk import Encoded, Rotations, Streams, Trunk, merge_streams
from reformer.ops.dropout import dropout, token_numbers
from reformer.ops.lengthwise import Automatic, ChunkLength
from reformer.ops.losses import check_targets, check_targets_exist, chunked_cross_entropy, chunked_scores, widen
from reformer.sharding import constrain


class Evaluated(NamedTuple):
    """What a model says of a batch, as sums that may be added over batches.

    Attributes:
      nats: weighted cross-entropy.
      right: weights of the targets that have the largest logit.
      weight: of all targets.
      others: of further measures by name, the sum and the weight that it is divided by.
      seen: for every layer of the pattern what the observer returned; () = nobody looked.
    """

    nats: Float[Array, ""]
    right: Float[Array, ""]
    weight: Float[Array, ""]
    others: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    seen: tuple


class TokenModel(Trunk):
    """A trunk and a dense layer over the norm of both streams that gives every token `num_outputs` logits."""

    def setup(self):
        """Declares the parts."""
        super().setup()
        self.head = dense(self.config, self.num_outputs)

    def create_head(self, hidden: Float[Array, "batch length hidden"]) -> None:
        """Visits the parameters of the head."""
        self.head(hidden)

    @property
    def num_outputs(self) -> int:
        """Logits of a token."""
        raise NotImplementedError

    @property
    def target_limit(self) -> tuple[str, int]:
        """What the number of possible targets is called, and how many there are."""
        return "num_labels", self.num_outputs

    @nn.nowrap
    def check(self, tokens, targets, weights, mask) -> None:
        """Raises a ValueError if targets do not fit the tokens, or one that counts is known and does not exist."""
        check_targets(targets, weights, tokens.shape)
        limit, num_outcomes = self.target_limit
        check_targets_exist(targets, weights, num_outcomes, limit, mask)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        encoded: Encoded | None = None,
        documents: Int[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length outputs"]:
        """Computes the logits of every position.

        Args:
          tokens: ids below `vocab_size`, of any length up to `max_length`; see `Trunk.run` for others.
          mask: True = real token; None = all are.
          rotations: for every LSH layer in depth order; None = drawn from the rng named 'hash'.
          encoded: what cross attention attends to; None where there is none.
          documents: of every token the number of its document; see `Trunk.run`.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.

        Returns:
          Logits, in at least float32; those of masked positions mean nothing.

        Raises:
          ValueError: the sequence is too long, an id does not exist, or rotations are wrong or missing.
        """
        streams, seed = self.run(tokens, mask, rotations, deterministic, encoded=encoded, documents=documents)
        return _logits(self.config, self.num_outputs, self._head_params(), streams, token_numbers(tokens), seed)

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        encoded: Encoded | None = None,
        documents: Int[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Computes the weighted cross-entropy, `loss_chunk_length` tokens at a time.

        With `label_smoothing`, it is that of the smoothed targets.

        Args:
          tokens: as in `__call__`.
          targets: the ids to predict, already shifted. One that counts and does not exist is an error; within `jit`,
            where its value is not known, both sums are NaN.
          weights: of the targets; None = 1. A target counts with weight times mask; where that is 0 it is left out, and
            may be any integer, such as -100.
          mask: as in `__call__`.
          rotations: as in `__call__`.
          encoded: as in `__call__`.
          documents: as in `__call__`.
          deterministic: as in `__call__`.

        Returns:
          Sum of weighted nats, and sum of weights; (0, 0) for zero weights.

        Raises:
          ValueError: as in `__call__`.
        """
        self.check(tokens, targets, weights, mask)
        streams, seed = self.run(tokens, mask, rotations, deterministic, encoded=encoded, documents=documents)
        weights = _weights(weights, mask, streams)
        logits, chunk_length = self._chunk_logits(), self._loss_chunk
        return chunked_cross_entropy(
            logits,
            chunk_length,
            self._head_params(),
            streams,
            targets,
            weights,
            seed,
            self.config.label_smoothing,
        )

    def score(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"] | None = None,
        repeats: Float[Array, "batch length"] | None = None,
        num_bytes: Float[Array, "batch length"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        encoded: Encoded | None = None,
        documents: Int[Array, "batch length"] | None = None,
        look: Observer | None = None,
    ) -> Evaluated:
        """The loss without dropout, and how many targets have the largest logit; for evaluation.

        Args:
          tokens: as in `__call__`.
          targets: as in `loss`.
          weights: as in `loss`.
          repeats: 1 for targets whose mean bits are also told alone, as `others['repeats']`; None = there are none.
          num_bytes: of text that every target stands for, to tell `others['bits_per_byte']`; None = that is not told.
          mask: as in `__call__`.
          rotations: as in `__call__`.
          encoded: as in `__call__`.
          documents: as in `__call__`.
          look: as in `observe`; None = nobody looks.

        Raises:
          ValueError: as in `__call__`.
        """
        self.check(tokens, targets, weights, mask)
        streams, seen = self.observe(tokens, look, mask=mask, rotations=rotations, encoded=encoded, documents=documents)
        weights = _weights(weights, mask, streams)
        logits, chunk_length = self._chunk_logits(), self._loss_chunk
        counted = (weights,) if repeats is None else (weights, weights * repeats)
        (nats, right, weight), *marked = chunked_scores(
            logits, chunk_length, self._head_params(), streams, targets, counted
        )
        others = self.measure(streams, targets, weights)
        for of_repeats, _, num_repeats in marked:
            others["repeats"] = (of_repeats / math.log(2), num_repeats)
        if num_bytes is not None:
            others["bits_per_byte"] = (nats / math.log(2), jnp.sum(weights * num_bytes))
        return Evaluated(nats, right, weight, others, seen)

    def measure(
        self, streams: Streams, targets: Int[Array, "batch length"], weights: Float[Array, "batch length"]
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """What `score` tells beside the loss, as `Evaluated.others` has it; `weights` are the effective ones."""
        del streams, targets, weights
        return {}

    def logits(self, streams: Streams) -> Float[Array, "batch length outputs"]:
        """The logits, in at least float32, of the streams after the last layer."""
        return _logits(self.config, self.num_outputs, self._head_params(), streams, None, None)

    @property
    def _loss_chunk(self) -> ChunkLength:
        """`loss_chunk_length`, or what is used when it is None."""
        return self.config.loss_chunk_length or Automatic(max(self.num_outputs, self.config.output_dim))

    def _chunk_logits(self):
        return partial(_logits, self.config, self.num_outputs)

    def _head_params(self):
        if self.is_initializing():
            self.create_head(self.norm(jnp.zeros((1, 1, self.config.output_dim))))
        return {name: self.variables["params"][name] for name in ("norm", "head")}


class ReformerLM(TokenModel):
    """A Reformer language model: causal, or with `config.causal=False` a masked language model.

    Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451.
    """

    @property
    def num_outputs(self) -> int:
        """Logits of a token: one for every id."""
        return self.config.vocab_size

    @property
    def target_limit(self) -> tuple[str, int]:
        """The vocabulary."""
        return "vocab_size", self.config.vocab_size


def _logits(config: ReformerConfig, num_outputs: int, params, streams, row, seed):
    """LayerNorm of the two streams as one, dropout, and the head."""
    hidden: Any = LayerNorm(config, parent=None).apply({"params": params["norm"]}, merge_streams(config, streams))
    if seed is not None:
        hidden = dropout(hidden, config.dropout_rate, seed, row)
    logits: Any = dense(config, num_outputs, parent=None).apply({"params": params["head"]}, hidden)
    return widen(constrain(logits, "act_batch", "act_length", "act_vocab"))


def _weights(weights, mask, streams: Streams):
    """The effective weights of targets."""
    if weights is None:
        weights = jnp.ones(streams[0].shape[:2], streams[0].dtype)
    return weights if mask is None else weights * mask
