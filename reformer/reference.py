"""The Reformer in plain JAX. Read this file first.

It computes what the rest of the package computes, and nothing makes it fast. Attention is dense, and a mask says who
sees whom. The two streams are what the paper defines them to be. Every activation is stored, and the gradient is
`jax.grad` of the loss. Memory is quadratic in the length. Parameters, config and rotations are those of `ReformerLM`;
`tests/test_reference.py` holds the logits and gradients of the model against this file.

Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", arXiv 2001.04451. The sections and
equations named below are the paper's.

Letters of the axes, and the paper's symbols for them:

    l      tokens of a sequence (l): of queries (i) or of keys (j)
    e      width of a stream (d_model)
    h, d   heads, width of a head (d_k)
    r, n   rounds of hashing (n_rounds), columns of the rotations R of a round
    b, v   sequences of a batch, ids of the vocabulary

All functions but the last three take one sequence. Not here, though the package has them: dropout, label smoothing,
cross attention, a single stream, other heads, and `semantics='huggingface'`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from reformer.config import ReformerConfig

Stream = Float[Array, "l e"]
Heads = Float[Array, "l h d"]  # queries, keys or values
Mask = Bool[Array, " l"]  # True = real token, False = padding
Rotations = Float[Array, "h d r n"]
Buckets = Int[Array, "h r l"]
Window = Bool[Array, "heads rounds l l"]  # who sees whom: [.., query, key]; 1 head and 1 round where nothing is hashed
Weights = Float[Array, "h rounds l l"]


# Hashing and sorting (section 2, "Locality sensitive hashing" and "LSH attention")


def choose_num_buckets(config: ReformerConfig, length: int) -> tuple[int, ...]:
    """The number of buckets of a round, as factors; the paper's is 2 l / m, for chunks of m tokens."""
    if config.num_buckets is not None:
        return config.num_buckets if isinstance(config.num_buckets, tuple) else (config.num_buckets,)
    bits = int(math.log2(2 * math.ceil(length / config.lsh_chunk_length)))
    num_factors = math.ceil(bits / 6)  # each at most 64, or hashing itself would be quadratic in the length
    return tuple(2 ** ((bits + i) // num_factors) for i in range(num_factors))


def hash_vectors(x: Heads, rotations: Rotations, factors: tuple[int, ...], mask: Mask) -> Buckets:
    """The bucket of every token in every round, h(x) = argmax([xR; -xR]).

    Each factor of the number of buckets has its own columns of R: bucket = a_0 + f_0 a_1 + f_0 f_1 a_2 + ...
    Padding goes to a bucket of its own, behind all others.
    """
    projected = jnp.einsum("lhd,hdrn->hrln", x, rotations)
    bucket, stride, start = jnp.zeros(projected.shape[:-1], int), 1, 0
    for factor in factors:
        columns = projected[..., start : start + factor // 2]
        bucket += stride * jnp.argmax(jnp.concatenate([columns, -columns], axis=-1), axis=-1)
        stride, start = stride * factor, start + factor // 2
    return jnp.where(mask[None, None, :], bucket, stride)


def sort_by_bucket(buckets: Int[Array, "*rows l"]) -> Int[Array, "*rows l"]:
    """The positions of the tokens, in the order of (bucket, position)."""
    return jnp.argsort(buckets, axis=-1, stable=True)


# Attention (section 2)


def find_window(config: ReformerConfig, kind: str, query: Heads, mask: Mask, rotations: Rotations | None) -> Window:
    """The keys that a query may see, before causality and padding: the sets P_i of the paper.

    Of 'full' attention all; of 'local' attention those in the chunk of the query and in the chunks around it; of 'lsh'
    attention the same in the sorted sequence of every round (Eq. 5), of all buckets or only of the query's own (Eq. 4).
    """
    position = jnp.arange(len(query))[None, None]
    if kind == "full":
        return jnp.ones((1, 1, len(query), len(query)), bool)
    if kind == "local":
        chunk = position // config.local_chunk_length
        before, after = config.local_num_chunks_before, config.local_num_chunks_after
    else:
        buckets = hash_vectors(query, rotations, choose_num_buckets(config, len(query)), mask)
        slot = jnp.argsort(sort_by_bucket(buckets), axis=-1)  # s_i: where token i stands in the sorted sequence
        chunk = slot // config.lsh_chunk_length
        before, after = config.lsh_num_chunks_before, config.lsh_num_chunks_after
    distance = chunk[..., None, :] - chunk[..., :, None]
    window = (distance >= -before) & (distance <= after)
    if kind == "lsh" and config.lsh_within_bucket:
        window &= buckets[..., None, :] == buckets[..., :, None]
    return window


def unit_keys(query: Heads) -> Heads:
    """The keys of a shared projection, k_j = q_j / |q_j| ("Shared-QK Transformer")."""
    return query / jnp.sqrt(query.shape[-1] * (jnp.mean(query**2, axis=-1, keepdims=True) + 1e-6))


def next_token(x: Shaped[Array, "l ..."]) -> Shaped[Array, "l ..."]:
    """What belongs to the next token. The last one has none, but no query sees the last key: any other will do."""
    return jnp.roll(x, -1, axis=0)


def attention_weights(
    query: Heads, key: Heads | None, window: Window, mask: Mask, *, causal: bool, looks_ahead: bool, counts_once: bool
) -> Weights:
    """The weights of all keys: one softmax over the keys of all rounds (Eq. 2, Eq. 6).

    Args:
      query: q_i.
      key: k_j, for scores q_i . k_j / sqrt(d); None = unit vectors of the queries, for scores q_i . k_j.
      window: who sees whom in each round.
      mask: nobody sees padding.
      causal: nobody sees later tokens.
      looks_ahead: a key gives the value of the next token. Both must be real, and nobody sees itself.
      counts_once: count a key that is seen in N_ij rounds once, not N_ij times (appendix A).
    """
    position = jnp.arange(len(query))
    i, j = position[None, None, :, None], position[None, None, None, :]
    sees = window & mask[j]
    if causal:
        sees &= j <= i
    if looks_ahead:
        sees &= (j < i) & next_token(mask)[j]
    scores = jnp.einsum("ihd,jhd->hij", query, unit_keys(query) if key is None else key / math.sqrt(key.shape[-1]))
    scores = scores[:, None]
    if key is None and not looks_ahead:  # a token sees itself, but as a last resort: -1000 is far below other scores
        sees, scores = sees | (i == j), jnp.where(i == j, -1e3, scores)
    if counts_once:
        scores -= jnp.log(jnp.maximum(jnp.sum(window, axis=1, keepdims=True), 1).astype(scores.dtype))
    scores = jnp.broadcast_to(scores, (len(scores), *sees.shape[1:]))
    return jax.nn.softmax(scores, axis=(1, 3), where=sees)  # 0 for a query that sees nothing


def attend(weights: Weights, value: Heads, taps: Float[Array, "h 2"] | None) -> Heads:
    """The weighted sum of what the keys give: v_j, or where they look ahead a v_{j+1} + b v_j with `taps` (a, b).

    Deviation from the paper: it has no look-ahead values (docs/look_ahead.md).
    """
    if taps is not None:
        value = taps[None, :, :1] * next_token(value) + taps[None, :, 1:] * value
    return jnp.einsum("hrij,jhd->ihd", weights, value)


# Layers


def layer_norm(config: ReformerConfig, params, x: Float[Array, "l width"]) -> Float[Array, "l width"]:
    """Every token with mean 0 and variance 1, then scaled and shifted."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    normed = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + config.layer_norm_epsilon)
    return normed * params["scale"][None] + params["bias"][None]


def dense(params, x: Float[Array, "l width"]) -> Float[Array, "l features"]:
    """A linear layer with a bias."""
    return x @ params["kernel"] + params["bias"][None]


def attention_layer(config: ReformerConfig, kind: str, params, x: Stream, mask: Mask, rotations) -> Stream:
    """LayerNorm, projections to heads, attention of a `kind`, and the projection back; no biases."""
    normed = layer_norm(config, params["norm"], x)
    heads = {
        name: jnp.einsum("le,ehd->lhd", normed, params[name]["kernel"])
        for name in params.keys() & {"query_key", "query", "key", "value"}
    }
    query, key, taps = heads.get("query_key", heads.get("query")), heads.get("key"), params.get("taps")
    window = find_window(config, kind, query, mask, rotations)
    once = kind == "lsh" and config.lsh_correct_duplicates
    rules = {"causal": config.causal, "looks_ahead": taps is not None, "counts_once": once}
    weights = attention_weights(query, key, window, mask, **rules)
    return jnp.einsum("lhd,hde->le", attend(weights, heads["value"], taps), params["output"]["kernel"])


def feed_forward_layer(config: ReformerConfig, params, x: Stream) -> Stream:
    """LayerNorm and two linear layers, to d_ff and back, with an activation between them."""
    activations = {"gelu_tanh": jax.nn.gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}
    activations["gelu"] = lambda x: jax.nn.gelu(x, approximate=False)
    hidden = dense(params["hidden"], layer_norm(config, params["norm"], x))
    return dense(params["output"], activations[config.activation](hidden))


def embed(config: ReformerConfig, params, tokens: Int[Array, " l"]) -> Stream:
    """The embedding of every token plus that of its position.

    The axial embedding of a position is a row of the table of each axis, side by side, at its row-major coordinates.
    """
    position, half = jnp.arange(len(tokens)), config.embed_dim // 2
    if config.position_embedding == "learned":
        embedded = params["position"][position]
    elif config.position_embedding == "axial":
        coordinates = jnp.unravel_index(position, config.resolved_axial_shape)
        embedded = jnp.concatenate([params[f"axial_{i}"][c] for i, c in enumerate(coordinates)], axis=-1)
    else:
        angle = position[:, None] / 10_000 ** (jnp.arange(half) / half)[None]
        embedded = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return params["token"][tokens] + embedded


# The model


def run_layers(config: ReformerConfig, params, x: Stream, mask: Mask, rotations: list) -> tuple[Stream, Stream]:
    """Both streams after all layers (section 3, Eq. 9): Y1 = X1 + Attention(X2), Y2 = X2 + FeedForward(Y1).

    For its gradient the model rebuilds X1 and X2 from Y1 and Y2 and stores neither. Here autodiff stores everything.
    The parameters of a layer are stacked over the repetitions of `attention_pattern`.
    """
    x1, x2, rotations = x, x, list(rotations)
    for block in range(config.num_blocks):
        for number, kind in enumerate(config.attention_pattern):
            layer = jax.tree.map(lambda stacked, block=block: stacked[block], params[f"layer_{number}"])
            of_layer = rotations.pop(0) if kind == "lsh" else None
            x1 = x1 + attention_layer(config, kind, layer["attention"], x2, mask, of_layer)
            x2 = x2 + feed_forward_layer(config, layer["feed_forward"], x1)
    return x1, x2


def compute_logits(
    config: ReformerConfig, params, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"] | None, rotations: list
) -> Float[Array, "b l v"]:
    """The logits of a batch, as `ReformerLM(config).apply` computes them.

    Args:
      config: the model's.
      params: the model's.
      tokens: ids.
      mask: True = real token; None = all are. The logits of padding mean nothing.
      rotations: R of every LSH layer, in the order of the depth.
    """

    def of_sequence(tokens: Int[Array, " l"], mask: Mask) -> Float[Array, "l v"]:
        y1, y2 = run_layers(config, params["stack"], embed(config, params["embeddings"], tokens), mask, rotations)
        merged = (y1 + y2) / 2 if config.merge_streams == "average" else jnp.concatenate([y1, y2], axis=-1)
        return dense(params["head"], layer_norm(config, params["norm"], merged))

    return jax.vmap(of_sequence)(tokens, jnp.ones(tokens.shape, bool) if mask is None else mask)


def cross_entropy(
    logits: Float[Array, "b l v"], targets: Int[Array, "b l"], weights: Float[Array, "b l"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The weighted sum of -log softmax(logits)[target] in nats, and the sum of the weights."""
    log_probabilities = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * nats), jnp.sum(weights)


def compute_loss(config: ReformerConfig, params, tokens, targets, mask, rotations) -> tuple[Array, Array]:
    """The sum of the nats of all real tokens, and their number, as `ReformerLM.loss`: here `jax.grad` does the rest.

    Args:
      config: as in `compute_logits`.
      params: likewise.
      tokens: likewise, [b, l].
      targets: the ids to predict [b, l].
      mask: as in `compute_logits`.
      rotations: likewise.
    """
    logits = compute_logits(config, params, tokens, mask, rotations)
    return cross_entropy(logits, targets, jnp.ones(tokens.shape) if mask is None else mask.astype(logits.dtype))
