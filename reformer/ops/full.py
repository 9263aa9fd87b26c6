"""Full attention of one row, one head of one example: a block of queries at a time."""

import jax
import jax.numpy as jnp

from reformer.ops import block as block_ops
from reformer.ops import chunking
from reformer.ops.block import Block
from reformer.ops.chunking import NO_POSITION
from reformer.ops.dropout import fold
from reformer.ops.masking import Pairs, Tokens
from reformer.ops.plan import Arrays, Given, Plan, unit_keys


def forward(plan: Plan, arrays: Arrays, given: Given):
    """Full attention of a row, a block of queries at a time. Returns as `chunked.forward`."""
    length = arrays.query.shape[0]
    make_block = _blocks(plan, arrays, given)

    def attend_block(i):
        return block_ops.forward(plan.rule, make_block(i))

    out, log_normalizer = jax.lax.map(attend_block, _block_numbers(plan, length))
    return chunking.flatten(out)[:length].astype(arrays.value.dtype), chunking.flatten(log_normalizer)[:length]


def backward(plan: Plan, arrays: Arrays, given: Given, out, log_normalizer, out_gradient) -> Arrays:
    """Cotangents of a row of full attention, as `chunked.backward`."""
    delta = jnp.sum(out.astype(log_normalizer.dtype) * out_gradient, axis=-1)

    def differentiate(block: Block, i):
        at_queries = (_query_slice(plan, x, i) for x in (out_gradient, delta, log_normalizer))
        return (), block_ops.backward(plan.rule, block, *at_queries)

    return _gradients(plan, arrays, given, differentiate)[1]


def forward_and_backward(plan: Plan, arrays: Arrays, given: Given, out_gradient):
    """Output and cotangents of a row of full attention in one pass over its blocks."""

    def differentiate(block: Block, i):
        return block_ops.forward_and_backward(plan.rule, block, _query_slice(plan, out_gradient, i))

    return _gradients(plan, arrays, given, differentiate)


def _block_numbers(plan: Plan, length: int):
    return jnp.arange(-(-length // plan.queries_at_once))


def _query_slice(plan: Plan, x, i, fill=0):
    """The queries of block `i` of an array over positions, as one chunk [1, q, ...]."""
    padded = jnp.pad(x, [(0, -len(x) % plan.queries_at_once)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return jax.lax.dynamic_slice_in_dim(padded, i * plan.queries_at_once, plan.queries_at_once)[None]


def _blocks(plan: Plan, arrays: Arrays, given: Given):
    """Returns a function that makes block `i`: some queries and all keys."""
    position = jnp.arange(arrays.query.shape[0], dtype=jnp.int32)
    mask, documents = (None if x is None else x[None] for x in (given.mask, given.documents))
    key_tokens = Tokens(position[None], mask, document=documents)
    seed = None if given.seed is None else fold(given.seed, 0)
    key = (unit_keys(arrays.query) if arrays.key is None else arrays.key)[None]

    def make_block(i) -> Block:
        document = None if given.documents is None else _query_slice(plan, given.documents, i)
        query_tokens = Tokens(_query_slice(plan, position, i, NO_POSITION), document=document)
        pairs = Pairs(query_tokens, key_tokens, seed)
        return Block(_query_slice(plan, arrays.query, i), key, arrays.value[None], pairs)

    return make_block


def _gradients(plan: Plan, arrays: Arrays, given: Given, differentiate):
    make_block = _blocks(plan, arrays, given)
    length = arrays.query.shape[0]

    def visit_block(total, i):
        out, gradients = differentiate(make_block(i), i)
        total = jax.tree.map(lambda sum_, new: sum_ + new[0], total, (gradients.key, gradients.value))
        return total, (out, gradients.query)

    dtype = block_ops.accumulation_dtype(arrays.value.dtype)
    zeros = tuple(chunking.constant(x.shape, 0, dtype, x) for x in (arrays.query, arrays.value))
    (key, value), (out, query) = jax.lax.scan(visit_block, zeros, _block_numbers(plan, length))
    out, query = jax.tree.map(lambda x: chunking.flatten(x)[:length], (out, query))
    if arrays.key is None:
        (through_key,) = jax.vjp(unit_keys, arrays.query.astype(dtype))[1](key)
        query, key = query + through_key, None
    gradients = jax.tree.map(lambda g, x: g.astype(x.dtype), Arrays(query, key, value), arrays)
    return jax.tree.map(lambda x: x.astype(arrays.value.dtype), out), gradients
