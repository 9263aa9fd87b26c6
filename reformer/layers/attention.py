"""Full, local and LSH self-attention layers."""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.layers.linear import LayerNorm, dense
from reformer.ops import hashing, look_ahead
from reformer.ops.dropout import dropout, fold
from reformer.ops.masking import Rule
from reformer.ops.plan import Arrays, Plan, chunked_plan, full_plan


class Fixed(NamedTuple):
    """What an attention layer receives and does not differentiate.

    Attributes:
      mask: True = real token; None = all.
      rotations: of an LSH layer.
      seed: of the dropout masks; None = no dropout.
      documents: of every token the number of its document; None = all is one.
    """

    mask: Bool[Array, "batch length"] | None = None
    rotations: Float[Array, "heads head_dim rounds columns"] | None = None
    seed: UInt[Array, ""] | None = None
    documents: Int[Array, "batch length"] | None = None


def num_buckets(length: int, config: ReformerConfig) -> tuple[int, ...]:
    """Factors of the number of buckets that LSH layers use for `length` tokens.

    Under `semantics='huggingface'` an automatic number follows their rule, for the padded length.
    """
    if config.num_buckets is not None:
        return config.num_buckets if isinstance(config.num_buckets, tuple) else (config.num_buckets,)
    chunk_length = config.lsh_chunk_length
    if config.semantics == "reformer":
        return hashing.choose_num_buckets(length, chunk_length)
    bits = max(1, (2 * (padded_length(length, config) // chunk_length)).bit_length() - 1)
    largest = 2 * max(int((config.max_length // chunk_length) ** 0.5), chunk_length)
    return (2**bits,) if 2**bits <= largest else (2 ** (bits // 2), 2 ** (bits - bits // 2))


def fix_num_buckets(config: ReformerConfig, length: int) -> ReformerConfig:
    """Returns `config` with the buckets of `length` tokens for sequences of every length.

    Args:
      config: the model's; its own `num_buckets` stays, if it has one.
      length: tokens, such as those of a training window.
    """
    return dataclasses.replace(config, num_buckets=num_buckets(length, config))


def padded_length(length: int, config: ReformerConfig) -> int:
    """Length that the layers work on: ours any, Hugging Face's a common multiple of the chunk lengths."""
    lengths = {"lsh": config.lsh_chunk_length, "local": config.local_chunk_length}
    chunks = [lengths[kind] for kind in set(config.attention_pattern) & set(lengths)]
    if config.semantics == "reformer" or not chunks or length <= min(chunks):
        return length
    return math.ceil(length / math.lcm(*chunks)) * math.lcm(*chunks)


def is_shared(config: ReformerConfig, kind: str) -> bool:
    """Whether queries and keys of a layer of `kind` share a projection."""
    return kind == "lsh" or config.shares_query_key


def make_rule(config: ReformerConfig, kind: str, dropout_rate: float = 0.0, before: int = 0, after: int = 0) -> Rule:
    """Who attends to whom in a layer of `kind`, whose queries see chunks from `before` before to `after` after."""
    shared = is_shared(config, kind)
    looks_ahead = shared and config.looks_ahead
    return Rule(config.causal, shared, dropout_rate, config.semantics, before, after, looks_ahead)


def plan_attention(config: ReformerConfig, kind: str, length: int, has_dropout: bool) -> Plan:
    """The static plan of a layer of `kind` for `length` tokens."""
    rate = config.attention_weights_dropout_rate(kind) if has_dropout else 0.0
    if kind == "lsh":
        chunk_length, before, after = config.lsh_chunk_length, config.lsh_num_chunks_before, config.lsh_num_chunks_after
    else:
        chunk_length, before, after = (
            config.local_chunk_length,
            config.local_num_chunks_before,
            config.local_num_chunks_after,
        )
    if kind == "full" or falls_back_to_full(config, length, chunk_length):
        return full_plan(length, make_rule(config, kind, rate))
    rule = make_rule(config, kind, rate, before, after)
    correct_duplicates = kind == "lsh" and config.lsh_correct_duplicates
    return chunked_plan(length, chunk_length, rule, correct_duplicates, config.attention_implementation)


def falls_back_to_full(config: ReformerConfig, length: int, chunk_length: int) -> bool:
    """Hugging Face's layers attend to everything where one chunk holds it all."""
    return config.semantics == "huggingface" and length <= chunk_length


def with_taps(params, arrays: Arrays) -> Arrays:
    """The projections of a layer, and the taps by which its values look ahead, if it has them; for every example."""
    if "taps" not in params:
        return arrays
    return arrays._replace(taps=jnp.broadcast_to(params["taps"], (len(arrays.value), *params["taps"].shape)))


def _first_taps(rng, shape: tuple[int, ...], dtype) -> Float[Array, "heads 2"]:
    del rng
    return jnp.broadcast_to(jnp.asarray(look_ahead.FIRST_TAPS, dtype), shape)


class SelfAttention(nn.Module):
    """The parameters and projections of an attention layer; no biases."""

    config: ReformerConfig
    kind: str

    def setup(self):
        """Declares the parts."""
        config = self.config
        heads = (config.num_heads, config.head_dim)
        self.norm = LayerNorm(config)
        if is_shared(config, self.kind):
            self.query_key = dense(config, heads, use_bias=False)
        else:
            self.query = dense(config, heads, use_bias=False)
            self.key = dense(config, heads, use_bias=False)
        self.value = dense(config, heads, use_bias=False)
        if make_rule(config, self.kind).looks_ahead:
            self.taps = self.param("taps", _first_taps, (config.num_heads, 2), jnp.dtype(config.param_dtype))
        self.output = dense(config, config.embed_dim, axis=(-2, -1), use_bias=False)

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Visits every parameter, to create them; the stack runs `project`, attention and `combine`."""
        return self.combine(self.project(x).value, x.dtype)

    def project(self, x: Float[Array, "batch length embed"]) -> Arrays:
        """LayerNorm and the projections to query (and key) and value [batch, heads, length, head_dim]."""
        normed = self.norm(x).astype(self.config.dtype)
        if is_shared(self.config, self.kind):
            projected = Arrays(self.query_key(normed), None, self.value(normed))
        else:
            projected = Arrays(self.query(normed), self.key(normed), self.value(normed))
        heads_first = jax.tree.map(lambda y: jnp.swapaxes(y, 1, 2), projected)
        axes = ("act_batch", "act_heads", "act_length", "act_head_dim")
        return jax.tree.map(lambda y: sharding.constrain(y, *axes), heads_first)

    def combine(
        self,
        attended: Float[Array, "batch heads length head_dim"],
        dtype,
        row: Int[Array, "batch length"] | None = None,
        seed: UInt[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """The output projection and dropout. Linear in `attended`."""
        out = self.output(jnp.swapaxes(attended, 1, 2))
        if seed is not None:
            out = dropout(out, self.config.dropout_rate, fold(seed, 0), row)
        return sharding.constrain(out.astype(dtype), "act_batch", "act_length", "act_embed")
