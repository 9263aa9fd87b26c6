"""Hugging Face's Reformer as a plain function of their own files, in float64, independent of ours.

Written from what transformers 4.57.1 computes, and compared with it in test_parity: positions are explicit, every
window is gathered, nothing is fused or reversible. `jax.grad` of it is the reference for gradients.
Letters: b batch, h heads, r rounds, n chunks, q/k positions in a chunk or window, d head_dim.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def logits(weights, fields, tokens, mask, rotations):
    """What a head gives, from a state dict, the fields of a `config.json` and rotations per LSH layer.

    Logits [b, length, vocab] of a language model, [b, labels] of a classifier, [b, length, start or end] of a question
    answerer; the hidden states [b, length, features] of a bare model.
    """
    with jax.numpy_rank_promotion("allow"):
        is_bare = "embeddings.word_embeddings.weight" in weights
        trunk = {f"reformer.{name}": array for name, array in weights.items()} if is_bare else weights
        return _head(weights, _hidden_states(trunk, fields, tokens, mask, rotations))


def _head(weights, hidden):
    if "lm_head.bias" in weights:
        return hidden @ weights["lm_head.decoder.weight"].T + weights["lm_head.bias"]
    if "qa_outputs.bias" in weights:
        return hidden @ weights["qa_outputs.weight"].T + weights["qa_outputs.bias"]
    if "classifier.dense.bias" in weights:
        first = jnp.tanh(hidden[:, 0] @ weights["classifier.dense.weight"].T + weights["classifier.dense.bias"])
        return first @ weights["classifier.out_proj.weight"].T + weights["classifier.out_proj.bias"]
    return hidden


def _hidden_states(weights, fields, tokens, mask, rotations):
    length = tokens.shape[1]
    chunk_lengths = {fields[f"{kind}_attn_chunk_length"] for kind in fields["attn_layers"]}
    padding = -length % math.lcm(*chunk_lengths) if length > min(chunk_lengths) else 0
    tokens, mask = (jnp.pad(jnp.asarray(array), ((0, 0), (0, padding))) for array in (tokens, mask))
    embedded = (
        weights["reformer.embeddings.word_embeddings.weight"][tokens] + _positions(weights, fields)[: tokens.shape[1]]
    )
    rotations = iter(rotations)
    attended = hidden = embedded
    for depth, kind in enumerate(fields["attn_layers"]):
        layer = _Scope(weights, f"reformer.encoder.layers.{depth}.")
        normed = _layer_norm(layer, "attention.layer_norm", hidden, fields)
        heads = (
            _lsh(layer, normed, mask, next(rotations, None), fields)
            if kind == "lsh"
            else _local(layer, normed, mask, fields)
        )
        attended = attended + _merge_heads(heads) @ layer["attention.output.dense.weight"].T
        hidden = hidden + _feed_forward(layer, _layer_norm(layer, "feed_forward.layer_norm", attended, fields), fields)
    both = jnp.concatenate([attended, hidden], axis=-1)
    return _layer_norm(_Scope(weights, "reformer.encoder."), "layer_norm", both, fields)[:, :length]


def automatic_num_buckets(fields, length):
    """Their `num_buckets=None` at a (padded) length."""
    chunk_length = fields["lsh_attn_chunk_length"]
    power = int(math.log2(2 * (length // chunk_length)))
    limit = 2 * max(int(math.sqrt(fields["max_position_embeddings"] // chunk_length)), chunk_length)
    return [2**power] if 2**power <= limit else [2 ** (power // 2), 2 ** (power - power // 2)]


class _Scope:
    def __init__(self, weights, prefix):
        self.weights, self.prefix = weights, prefix

    def __getitem__(self, name):
        return self.weights[self.prefix + name]


def _positions(weights, fields):
    prefix = "reformer.embeddings.position_embeddings."
    if not fields["axial_pos_embds"]:
        return weights[f"{prefix}embedding.weight"]
    shape, dims = fields["axial_pos_shape"], fields["axial_pos_embds_dim"]
    tables = [jnp.broadcast_to(weights[f"{prefix}weights.{axis}"], (*shape, dim)) for axis, dim in enumerate(dims)]
    return jnp.concatenate(tables, axis=-1).reshape(math.prod(shape), -1)


def _layer_norm(scope, name, x, fields):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + fields["layer_norm_eps"])
    return scaled * scope[f"{name}.weight"] + scope[f"{name}.bias"]


def _feed_forward(layer, x, fields):
    x = x @ layer["feed_forward.dense.dense.weight"].T + layer["feed_forward.dense.dense.bias"]
    x = _ACTIVATIONS[fields["hidden_act"]](x)
    return x @ layer["feed_forward.output.dense.weight"].T + layer["feed_forward.output.dense.bias"]


def _heads(layer, name, x, fields):
    x = x @ layer[f"attention.self_attention.{name}.weight"].T
    return x.reshape(*x.shape[:2], fields["num_attention_heads"], -1).swapaxes(1, 2)


def _merge_heads(heads):
    merged = heads.swapaxes(1, 2)
    return merged.reshape(*merged.shape[:2], -1)


def _local(layer, x, mask, fields):
    query, key, value = (_heads(layer, name, x, fields) for name in ("query", "key", "value"))
    order = jnp.broadcast_to(jnp.arange(x.shape[1]), query.shape[:3])
    output, _ = _attend(query, key / math.sqrt(key.shape[-1]), value, order, mask, "local", fields)
    return output


def _lsh(layer, x, mask, rotations, fields):
    query, value = (_heads(layer, name, x, fields) for name in ("query_key", "value"))
    key = query / jnp.sqrt((query**2).mean(-1, keepdims=True) + 1e-6) / math.sqrt(query.shape[-1])
    batch, heads, length, _ = query.shape
    if length <= fields["lsh_attn_chunk_length"]:
        order = jnp.broadcast_to(jnp.arange(length), query.shape[:3])
        return _attend(query, key, value, order, mask, "lsh", fields)[0]
    buckets = _buckets(jax.lax.stop_gradient(query), mask, rotations, fields)
    order = jnp.argsort(buckets, axis=-1, stable=True)
    output, normalizer = _attend(query, key, value, order % length, mask, "lsh", fields)
    undo = jnp.argsort(order, axis=-1)
    output = jnp.take_along_axis(output, undo[..., None], axis=2).reshape(batch, heads, -1, length, output.shape[-1])
    normalizer = jnp.take_along_axis(normalizer, undo, axis=2).reshape(batch, heads, -1, length)
    return (output * jax.nn.softmax(normalizer, axis=2)[..., None]).sum(2)


def _buckets(query, mask, rotations, fields):
    """Buckets [b, h, rounds * length], distinct between rounds, in the order round, position."""
    factors = fields["num_buckets"] or automatic_num_buckets(fields, query.shape[2])
    factors = [factors] if isinstance(factors, int) else factors
    rotated = jnp.einsum("bhld,hdrn->bhrln", query, rotations)
    bucket, column, stride = 0, 0, 1
    for factor in factors:
        part = rotated[..., column : column + factor // 2]
        bucket += stride * jnp.argmax(jnp.concatenate([part, -part], axis=-1), axis=-1)
        column, stride = column + factor // 2, stride * factor
    bucket = jnp.where(mask[:, None, None, :], bucket, stride)
    bucket += (stride + 1) * np.arange(rotated.shape[2])[:, None]
    return bucket.reshape(*bucket.shape[:2], -1)


def _attend(query, key, value, positions, mask, kind, fields):
    """Output [b, h, slots, d] and log-normaliser [b, h, slots] for slots that hold the given positions."""
    length, chunk_length = query.shape[2], fields[f"{kind}_attn_chunk_length"]
    neighbours = range(-fields[f"{kind}_num_chunks_before"], fields[f"{kind}_num_chunks_after"] + 1)
    if length <= chunk_length:
        chunk_length, neighbours = length, range(1)

    def chunks(x):
        return x.reshape(*x.shape[:2], -1, chunk_length, *x.shape[3:])

    def windows(x):
        # Their roll does nothing for an offset beyond the number of chunks.
        offsets = (offset if abs(offset) < x.shape[2] else 0 for offset in neighbours)
        return jnp.concatenate([jnp.roll(x, -offset, axis=2) for offset in offsets], axis=3)

    query, key, value = (chunks(jnp.take_along_axis(x, positions[..., None], axis=2)) for x in (query, key, value))
    mask = jnp.broadcast_to(mask[:, None], (*mask.shape[:1], query.shape[1], length))
    allowed = windows(chunks(jnp.take_along_axis(mask, positions, axis=2)))[:, :, :, None]
    query_position, key_position = chunks(positions)[..., None], windows(chunks(positions))[:, :, :, None]
    if fields.get("is_decoder", False):  # they do not write it when it is False
        allowed = allowed & (query_position >= key_position)
    scores = jnp.where(allowed, jnp.einsum("bhnqd,bhnkd->bhnqk", query, windows(key)), -1e9)
    if kind == "lsh":
        scores = jnp.where(query_position == key_position, -1e5, scores)
    normalizer = jax.nn.logsumexp(scores, axis=-1)
    output = jnp.einsum("bhnqk,bhnkd->bhnqd", jnp.exp(scores - normalizer[..., None]), windows(value))
    return output.reshape(*positions.shape, -1), normalizer.reshape(positions.shape)
