"""The Reformer language model."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reformer.config import ReformerConfig
from reformer.layers import stack
from reformer.layers.attention import Fixed, falls_back_to_full, num_buckets, padded_length
from reformer.layers.embeddings import Embeddings
from reformer.layers.linear import LayerNorm, dense
from reformer.ops import hashing
from reformer.ops.dropout import draw_seed, dropout, fold, rows
from reformer.ops.lengthwise import map_length
from reformer.ops.losses import chunked_cross_entropy, chunked_scores
from reformer.sharding import constrain, splits_length

Rotations = Sequence[Float[Array, "heads head_dim rounds columns"]]
Streams = tuple[Float[Array, "batch length embed"], Float[Array, "batch length embed"]]


class ReformerLM(nn.Module):
    """A Reformer language model: causal, or with `config.causal=False` a masked language model.

    Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451.
    """

    config: ReformerConfig

    def setup(self):
        """Declares the parts."""
        config = self.config
        self.embeddings = Embeddings(config)
        self.stack = stack.stacked_blocks(config)
        self.norm = LayerNorm(config)
        self.head = dense(config, config.vocab_size)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length vocab"]:
        """Computes the logits of every position.

        Args:
          tokens: ids below `vocab_size`, of any length up to `max_length`.
          mask: True = real token; None = all are.
          rotations: for every LSH layer in depth order; None = drawn from the rng named 'hash'.
          deterministic: no dropout; False needs an rng named 'dropout' if a rate is positive.

        Returns:
          Logits, in at least float32; those of masked positions mean nothing.

        Raises:
          ValueError: the sequence is too long, or rotations are wrong or missing.
        """
        streams, seed = self._run(tokens, mask, rotations, deterministic)
        return _logits(self.config, self._head_params(), streams, rows(tokens), seed)

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Computes the weighted cross-entropy, `loss_chunk_length` tokens at a time.

        Args:
          tokens: as in `__call__`.
          targets: the ids to predict, already shifted.
          weights: of the targets; None = 1. A target counts with weight times mask.
          mask: as in `__call__`.
          rotations: as in `__call__`.
          deterministic: as in `__call__`.

        Returns:
          Sum of weighted nats, and sum of weights; (0, 0) for zero weights.

        Raises:
          ValueError: as in `__call__`.
        """
        streams, seed = self._run(tokens, mask, rotations, deterministic)
        weights = _weights(weights, mask, streams)
        logits, chunk_length = partial(_logits, self.config), self.config.loss_chunk_length
        return chunked_cross_entropy(logits, chunk_length, self._head_params(), streams, targets, weights, seed)

    def score(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """The loss without dropout, and how many targets have the largest logit; for evaluation.

        Args:
          tokens: as in `__call__`.
          targets: as in `loss`.
          weights: as in `loss`.
          mask: as in `__call__`.
          rotations: as in `__call__`.

        Returns:
          Sums over all targets: weighted nats, weights of those with the largest logit, weights.

        Raises:
          ValueError: as in `__call__`.
        """
        streams, _ = self._run(tokens, mask, rotations, deterministic=True)
        return self.score_streams(streams, targets, weights=weights, mask=mask)

    def observe(
        self,
        tokens: Int[Array, "batch length"],
        look: stack.Observer,
        *,
        mask: Bool[Array, "batch length"] | None = None,
        rotations: Rotations | None = None,
    ) -> tuple[Streams, tuple]:
        """Runs the model without dropout and looks into the attention of every layer.

        Args:
          tokens: as in `__call__`.
          look: called with the number of the layer within `attention_pattern`, its projections, plan and context;
            what it returns, a pytree of arrays, is collected. The order of an LSH layer's context holds the buckets.
          mask: as in `__call__`.
          rotations: as in `__call__`.

        Returns:
          Both streams after the last layer, for `logits`, and for every layer of the pattern what `look` returned,
          stacked over blocks.

        Raises:
          ValueError: as in `__call__`.
        """
        seen: list = []

        def run(config, params, x, fixed):
            streams, collected = stack.observe_stack(config, params, x, fixed, look)
            seen.extend(collected)
            return streams

        streams, _ = self._run(tokens, mask, rotations, deterministic=True, run_stack=run)
        return streams, tuple(seen)

    def score_streams(
        self,
        streams: Streams,
        targets: Int[Array, "batch length"],
        *,
        weights: Float[Array, "batch length"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """What `score` returns, from the streams after the last layer."""
        weights = _weights(weights, mask, streams)
        logits, chunk_length = partial(_logits, self.config), self.config.loss_chunk_length
        return chunked_scores(logits, chunk_length, self._head_params(), streams, targets, weights)

    def logits(self, streams: Streams) -> Float[Array, "batch length vocab"]:
        """The logits, in at least float32, of the streams after the last layer."""
        return _logits(self.config, self._head_params(), streams, None, None)

    def _head_params(self):
        return {name: self.variables["params"][name] for name in ("norm", "head")}

    def _run(self, tokens, mask, rotations, deterministic, run_stack=stack.run_stack):
        """Embeds and runs the stack; returns the two streams and the dropout seed of the head."""
        config = self.config
        length = tokens.shape[1]
        if length > config.max_length:
            raise ValueError(
                f"length={length} exceeds max_length={config.max_length}. Raise max_length or shorten the input."
            )
        seed = self._dropout_seed(deterministic)
        tokens, mask = _pad(tokens, mask, padded_length(length, config))
        x = self._embed(tokens)
        if seed is not None:
            x = dropout(x, config.dropout_rate, fold(seed, 0), rows(tokens))
        x = constrain(x, "act_batch", "act_length", "act_embed")
        if self.is_initializing():
            self.stack(x[:1, :1])
            self.head(self.norm(jnp.concatenate([x[:1, :1]] * 2, axis=-1)))
            return (x[:, :length], x[:, :length]), None
        fixed = self._fixed(tokens.shape[1], mask, rotations, seed)
        streams = run_stack(config, self.variables["params"]["stack"], x, fixed)
        return jax.tree.map(lambda y: y[:, :length], streams), None if seed is None else fold(seed, 1)

    def _embed(self, tokens):
        if self.is_initializing() or not splits_length():
            return self.embeddings(tokens)
        # The position embeddings of the whole length, which are the same for all examples, would exist on every device.
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)

        def embed(params, ids):
            return Embeddings(self.config, parent=None).apply({"params": params}, *ids)

        return map_length(embed, self.variables["params"]["embeddings"], (tokens, positions), None)

    def _dropout_seed(self, deterministic: bool):
        config = self.config
        rates = [config.dropout_rate, *map(config.attention_weights_dropout_rate, config.attention_pattern)]
        if deterministic or not any(rates) or self.is_initializing():
            return None
        if not self.has_rng("dropout"):
            raise ValueError("deterministic=False with dropout needs rngs={'dropout': key}.")
        return draw_seed(self.make_rng("dropout"))

    def _fixed(self, length: int, mask, rotations, seed):
        """The fixed inputs of the residual functions, stacked over blocks."""
        config = self.config
        pattern, num_blocks = config.attention_pattern, config.num_blocks
        per_layer = iter(self._rotations(length, rotations))
        seeds = None
        if seed is not None:
            seeds = fold(seed, jnp.arange(2, 2 + 2 * config.num_layers)).reshape(num_blocks, 2 * len(pattern))
        fixed = []
        for i, kind in enumerate(pattern):
            of_attention, of_mlp = (None, None) if seeds is None else (seeds[:, 2 * i], seeds[:, 2 * i + 1])
            of_layer = next(per_layer) if kind == "lsh" else None
            fixed += [Fixed(stack.stack_over_blocks(mask, num_blocks), of_layer, of_attention), of_mlp]
        return tuple(fixed)

    def _rotations(self, length: int, rotations: Rotations | None) -> list:
        """For every LSH layer of the pattern the rotations of all blocks, stacked."""
        config = self.config
        num_in_pattern = config.attention_pattern.count("lsh")
        if not num_in_pattern or falls_back_to_full(config, length, config.lsh_chunk_length):
            return [None] * num_in_pattern
        factors = num_buckets(length, config)
        if rotations is None:
            if not self.has_rng("hash"):
                raise ValueError("LSH layers need rngs={'hash': key}, also when deterministic, or explicit rotations.")
            drawn = draw_rotations(config, factors, self.make_rng("hash"))
            return [drawn[i::num_in_pattern] for i in range(num_in_pattern)]
        if len(rotations) != config.num_lsh_layers:
            raise ValueError(f"{len(rotations)} rotations for {config.num_lsh_layers} LSH layers. Pass one for each.")
        for array in rotations:
            hashing.check_rotations(array.shape, (config.num_heads, config.head_dim), factors)
            if array.shape[2] != config.num_hashes:
                raise ValueError(
                    f"rotations of shape {array.shape} have {array.shape[2]} rounds, num_hashes={config.num_hashes}. "
                    "Make them equal."
                )
        return [jnp.stack(rotations[i::num_in_pattern]) for i in range(num_in_pattern)]


def draw_rotations(
    config: ReformerConfig, factors: tuple[int, ...], rng: PRNGKeyArray
) -> Float[Array, "layers heads head_dim rounds columns"]:
    """Draws the rotations of all LSH layers at once: a draw for each would make the program grow with the depth."""
    dtype = jnp.promote_types(jnp.float32, config.dtype)
    num_heads = config.num_lsh_layers * config.num_heads
    drawn = hashing.draw_rotations(rng, num_heads, config.head_dim, config.num_hashes, factors, dtype)
    return drawn.reshape(config.num_lsh_layers, config.num_heads, *drawn.shape[1:])


def _logits(config: ReformerConfig, params, streams, row, seed):
    """LayerNorm of the two streams side by side, dropout, and the projection to the vocabulary."""
    hidden: Any = LayerNorm(config, parent=None).apply({"params": params["norm"]}, jnp.concatenate(streams, axis=-1))
    if seed is not None:
        hidden = dropout(hidden, config.dropout_rate, seed, row)
    logits: Any = dense(config, config.vocab_size, parent=None).apply({"params": params["head"]}, hidden)
    logits = constrain(logits, "act_batch", "act_length", "act_vocab")
    return logits.astype(jnp.promote_types(jnp.float32, logits.dtype))


def _weights(weights, mask, streams: Streams):
    """The effective weights of targets."""
    if weights is None:
        weights = jnp.ones(streams[0].shape[:2], streams[0].dtype)
    return weights if mask is None else weights * mask


def _pad(tokens, mask, length: int):
    """Pads to `length` with masked tokens, as Hugging Face's windows need it."""
    missing = length - tokens.shape[1]
    if not missing:
        return tokens, mask
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    return jnp.pad(tokens, ((0, 0), (0, missing))), jnp.pad(mask, ((0, 0), (0, missing)))
