"""Which query may attend to which key, and what stands in for the score of a pair that may not."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

# In place of the score of a forbidden pair, and of a token with itself under a shared projection.
# Ours: forbidden weights are exactly zero; -1e3 is far below any score, yet small enough that
# float32 resolves the log-normaliser of a token that has nothing but itself (-1e5 costs 0.2 % of
# the gradient). Hugging Face's and trax's values are needed to reproduce their numbers.
SCORE_FILLS = {"reformer": (-1e30, -1e3), "huggingface": (-1e9, -1e5)}
NO_KEY_BELOW = -1e29  # a log-normaliser below this belongs to a query without a single key


@dataclasses.dataclass(frozen=True)
class Window:
    """The keys that a local layer shows: those of a query's own chunk and of some before and after it. Hashable."""

    chunk_length: int
    before: int
    after: int

    def __call__(self, query: Int[Array, "..."], key: Int[Array, "..."]) -> Bool[Array, "..."]:
        """True where the key is shown to the query, given their positions."""
        distance = key // self.chunk_length - query // self.chunk_length
        return (distance >= -self.before) & (distance <= self.after)


class Rule(NamedTuple):
    """The static part of who attends to whom. Hashable.

    Attributes:
      causal: keys up to the query's own position only.
      shared: query and key share a projection: unit keys, no further scaling, self as a last resort if at all.
      dropout_rate: of the attention weights, after the softmax.
      semantics: 'reformer' or 'huggingface', see `SCORE_FILLS`.
      before: chunks before a query's own that it sees, for counting duplicates.
      after: likewise after.
      looks_ahead: behind a key stands the value of the token after it (`ops.look_ahead`), so that a query sees the
        keys before its own position only, never its own.
      shows: (positions of queries, of keys) -> True where the query may see the key, besides all the above; arrays that
        broadcast, and a function that is hashable. None = every key.
    """

    causal: bool
    shared: bool
    dropout_rate: float = 0.0
    semantics: str = "reformer"
    before: int = 0
    after: int = 0
    looks_ahead: bool = False
    shows: Callable | None = None

    @property
    def replaces_self(self) -> bool:
        """Whether a token attends to itself, but only as a last resort."""
        return self.shared and not self.looks_ahead


class Tokens(NamedTuple):
    """What masks know of some tokens: c chunks of n.

    Attributes:
      position: -1 = an empty slot, never attended, whose own result is discarded.
      mask: True = may be attended; None = all.
      bucket: pairs of different buckets are forbidden; None = no such rule.
      chunks: the number of the token's chunk in each of r rounds, to count how often a pair meets;
        None = duplicates are not corrected.
      buckets: likewise the buckets, where pairs of different buckets do not meet.
      document: pairs of different documents are forbidden; None = all is one.
    """

    position: Int[Array, "*c n"]
    mask: Bool[Array, "*c n"] | None = None
    bucket: Int[Array, "*c n"] | None = None
    chunks: Int[Array, "*c n r"] | None = None
    buckets: Int[Array, "*c n r"] | None = None
    document: Int[Array, "*c n"] | None = None


class Pairs(NamedTuple):
    """The queries and keys of a block, and the seed of its dropout masks."""

    query: Tokens  # c chunks of q
    key: Tokens  # c chunks of k
    seed: UInt[Array, ""] | None = None


def _every_pair(compare, query, key):
    """Compares arrays [c, q] and [c, k] as [c, k, q]."""
    return compare(query[:, None, :], key[:, :, None])


def allowed(rule: Rule, pairs: Pairs) -> Bool[Array, "c k q"]:
    """True where the query may attend to the key, the token itself included unless the rule looks ahead."""
    query, key = pairs.query, pairs.key
    usable = key.position >= 0 if key.mask is None else (key.position >= 0) & key.mask
    if rule.causal:
        in_reach = _every_pair(jnp.greater if rule.looks_ahead else jnp.greater_equal, query.position, key.position)
    else:
        in_reach = jnp.ones_like(query.position, bool)[:, None, :]
    result = in_reach & usable[:, :, None]
    if rule.shows is not None:
        result &= _every_pair(rule.shows, query.position, key.position)
    if query.bucket is not None:
        result &= _every_pair(jnp.equal, query.bucket, key.bucket)
    if query.document is not None:
        result &= _every_pair(jnp.equal, query.document, key.document)
    return result


def is_self(pairs: Pairs) -> Bool[Array, "c k q"]:
    """True where query and key are the same token."""
    return _every_pair(jnp.equal, pairs.query.position, pairs.key.position)


def mask_scores(rule: Rule, pairs: Pairs, scores: Float[Array, "c k q"]) -> Float[Array, "c k q"]:
    """Replaces the scores of forbidden pairs and of tokens with themselves, and corrects duplicates."""
    forbidden_fill, self_fill = SCORE_FILLS[rule.semantics]
    scores = jnp.where(allowed(rule, pairs), scores, forbidden_fill)
    if rule.replaces_self:
        scores = jnp.where(is_self(pairs), self_fill, scores)
    if pairs.query.chunks is not None:
        scores -= jnp.log(count_meetings(rule, pairs).astype(scores.dtype))
    return scores


def mask_score_gradients(rule: Rule, pairs: Pairs, gradients: Float[Array, "c k q"]) -> Float[Array, "c k q"]:
    """The transpose of `mask_scores`: a replaced score has no gradient."""
    may_attend = allowed(rule, pairs)
    if rule.replaces_self:
        may_attend &= ~is_self(pairs)
    return jnp.where(may_attend, gradients, 0)


def count_meetings(rule: Rule, pairs: Pairs) -> Int[Array, "c k q"]:
    """N_ij: in how many rounds the query sees the key, at least 1.

    Source: arXiv 2001.04451, appendix A.
    """
    query, key = pairs.query, pairs.key
    count = 0
    for r in range(query.chunks.shape[-1]):
        distance = _every_pair(lambda q, k: k - q, query.chunks[..., r], key.chunks[..., r])
        meets = (distance >= -rule.before) & (distance <= rule.after)
        if query.buckets is not None:
            meets &= _every_pair(jnp.equal, query.buckets[..., r], key.buckets[..., r])
        count += meets.astype(jnp.int32)
    return jnp.maximum(count, 1)
