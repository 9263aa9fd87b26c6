"""Full, local and LSH self-attention layers."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.layers.feed_forward import layer_norm
from reformer.ops import attention as ops
from reformer.ops import hashing
from reformer.ops.chunking import map_chunks
from reformer.ops.dropout import dropout, fold, rows
from reformer.ops.masking import Rule
from reformer.ops.plan import Arrays, Context, Order, Plan
from reformer.ops.reversible import Residual, chunked_vjp


class Fixed(NamedTuple):
    """What an attention layer receives and does not differentiate.

    Attributes:
      mask: True = real token; None = all.
      rotations: of an LSH layer.
      seed: of the dropout masks; None = no dropout.
    """

    mask: Bool[Array, "batch length"] | None = None
    rotations: Float[Array, "heads head_dim rounds columns"] | None = None
    seed: UInt[Array, ""] | None = None


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


def padded_length(length: int, config: ReformerConfig) -> int:
    """Length that the layers work on: ours any, Hugging Face's a common multiple of the chunk lengths."""
    lengths = {"lsh": config.lsh_chunk_length, "local": config.local_chunk_length}
    chunks = [lengths[kind] for kind in set(config.attention_pattern) & set(lengths)]
    if config.semantics == "reformer" or not chunks or length <= min(chunks):
        return length
    return math.ceil(length / math.lcm(*chunks)) * math.lcm(*chunks)


def is_shared(config: ReformerConfig, kind: str) -> bool:
    """Whether queries and keys of a layer of `kind` share a projection."""
    return kind == "lsh" or config.share_query_key


def plan_attention(config: ReformerConfig, kind: str, length: int, has_dropout: bool) -> Plan:
    """The static plan of a layer of `kind` for `length` tokens."""
    rate = config.attention_weights_dropout_rate(kind) if has_dropout else 0.0
    shared = is_shared(config, kind)
    if kind == "lsh":
        chunk_length, before, after = config.lsh_chunk_length, config.lsh_num_chunks_before, config.lsh_num_chunks_after
    else:
        chunk_length, before, after = (
            config.local_chunk_length,
            config.local_num_chunks_before,
            config.local_num_chunks_after,
        )
    if kind == "full" or falls_back_to_full(config, length, chunk_length):
        return ops.full_plan(length, config.causal, shared, rate, config.semantics)
    rule = Rule(config.causal, shared, rate, config.semantics, before, after)
    return ops.chunked_plan(length, chunk_length, rule, kind == "lsh" and config.lsh_correct_duplicates)


def falls_back_to_full(config: ReformerConfig, length: int, chunk_length: int) -> bool:
    """Hugging Face's layers attend to everything where one chunk holds it all."""
    return config.semantics == "huggingface" and length <= chunk_length


class SelfAttention(nn.Module):
    """The parameters and projections of an attention layer; no biases."""

    config: ReformerConfig
    kind: str

    def setup(self):
        """Declares the parts."""
        config = self.config
        kinds = {
            "use_bias": False,
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
            "kernel_init": nn.initializers.glorot_uniform(),
        }
        heads = (config.num_heads, config.head_dim)
        self.norm = layer_norm(config)
        if is_shared(config, self.kind):
            self.query_key = nn.DenseGeneral(heads, **kinds)
        else:
            self.query = nn.DenseGeneral(heads, **kinds)
            self.key = nn.DenseGeneral(heads, **kinds)
        self.value = nn.DenseGeneral(heads, **kinds)
        self.output = nn.DenseGeneral(config.embed_dim, axis=(-2, -1), **kinds)

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


def attention_residual(config: ReformerConfig, kind: str) -> Residual:
    """An attention layer as a residual function of a reversible stack; its fixed input is a `Fixed`.

    Projections are computed in chunks of `mlp_chunk_length`, in both passes. An LSH layer saves its
    sort: a bucket that flipped between the passes would make the reverse sweep subtract another
    function's value.
    """
    layer = SelfAttention(config, kind, parent=None)
    chunk_length = config.mlp_chunk_length

    def project(params, x):
        return layer.apply({"params": params}, x, method="project")

    def combine(params, attended, row, dtype, seed):
        return layer.apply({"params": params}, attended, dtype, row, seed, method="combine")

    def prepare(projected: Arrays, fixed: Fixed, order: Order | None) -> tuple[Plan, Context]:
        batch, num_heads, length, _ = projected.query.shape
        plan = plan_attention(config, kind, length, fixed.seed is not None)
        if order is None and kind == "lsh" and not plan.is_full:
            order = _sort(config, projected.query, fixed)
        seeds = None
        if plan.rule.dropout_rate:
            seeds = ops.dropout_seeds(fold(fixed.seed, 1), batch, num_heads)
        return plan, Context(fixed.mask, order, seeds)

    def project_all(params, x):
        return map_chunks(lambda x: project(params, x), x, chunk_length, in_axis=1, out_axis=2)

    def apply(params, x, context, fixed: Fixed, order: Order | None):
        del context
        projected = project_all(params, x)
        plan, attention_context = prepare(projected, fixed, order)
        attended = _attend(plan, projected, attention_context)
        value = map_chunks(
            lambda pair: combine(params, pair[0], pair[1], x.dtype, fixed.seed),
            (attended, rows(x)),
            chunk_length,
            in_axis=(2, 1),
            out_axis=1,
        )
        return value, attention_context.order

    def value_and_vjp(params, x, context, fixed: Fixed, order: Order | None, cotangent):
        projected = project_all(params, x)
        plan, attention_context = prepare(projected, fixed, order)

        def transpose_combine(chunk):
            # Linear in its input: the cotangent is known before the attention is.
            cotangent, row = chunk
            batch, length = row.shape
            shape = (batch, config.num_heads, length, config.head_dim)
            like = jax.ShapeDtypeStruct(shape, projected.value.dtype)
            (of_attended,) = jax.linear_transpose(lambda y: combine(params, y, row, x.dtype, fixed.seed), like)(
                cotangent
            )
            return of_attended

        of_attended = map_chunks(transpose_combine, (cotangent, rows(x)), chunk_length, in_axis=1, out_axis=2)
        attended, of_projected = _attend_with_gradients(plan, projected, attention_context, of_attended)
        value, of_output, _ = chunked_vjp(
            lambda params, attended, row: combine(params, attended, row, x.dtype, fixed.seed),
            params,
            (attended, cotangent, rows(x)),
            chunk_length,
            in_axis=(2, 1, 1),
            out_axis=(1, 2),
        )
        _, of_projections, of_x = chunked_vjp(
            project, params, (x, of_projected), chunk_length, in_axis=(1, 2), out_axis=(2, 1)
        )
        of_params = jax.tree.map(jnp.add, of_output, of_projections)
        return value, of_params, of_x, jax.tree.map(jnp.zeros_like, context)

    return Residual(apply, value_and_vjp)


_CONTEXT_SPEC = Context._make([sharding.BATCH, sharding.BATCH_HEADS, sharding.BATCH_HEADS])


def _sort(config: ReformerConfig, query_key, fixed: Fixed) -> Order:
    """Hashes and sorts, every head and example on its own device."""
    factors = num_buckets(query_key.shape[2], config)

    def sort(query_key, rotations, mask):
        return ops.sort_by_hash(query_key, rotations, factors, mask, keep_buckets=config.lsh_within_bucket)

    specs = (sharding.BATCH_HEADS, sharding.HEADS, sharding.BATCH)
    return sharding.shard_map(sort, specs, sharding.BATCH_HEADS)(query_key, fixed.rotations, fixed.mask)


def _attend(plan: Plan, projected: Arrays, context: Context):
    run = sharding.shard_map(
        lambda arrays, context: ops.attend(plan, arrays, context),
        (sharding.BATCH_HEADS, _CONTEXT_SPEC),
        sharding.BATCH_HEADS,
    )
    return run(projected, context)


def _attend_with_gradients(plan: Plan, projected: Arrays, context: Context, out_gradient):
    run = sharding.shard_map(
        lambda arrays, context, gradient: ops.attend_with_gradients(plan, arrays, context, gradient),
        (sharding.BATCH_HEADS, _CONTEXT_SPEC, sharding.BATCH_HEADS),
        sharding.BATCH_HEADS,
    )
    return run(projected, context, out_gradient)
