"""What an attention needs to know: its arrays, what is not differentiated, and its static plan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer.ops import block as block_ops
from reformer.ops import chunking
from reformer.ops.chunking import Geometry
from reformer.ops.masking import Rule

_SCORES_AT_ONCE_CPU = 2**18  # 1 MB of float32 scores stay in cache
_BLOCKS_IN_FLIGHT_CPU = 4
_SCORES_AT_ONCE = 2**25  # an accelerator wants large launches
_FULL_SCORES_AT_ONCE_CPU = 2**21
IMPLEMENTATIONS = ("plain", "pallas")
_UNIT_EPSILON = 1e-6  # inside the root, as trax and Hugging Face have it


class Arrays(NamedTuple):
    """What attention differentiates. `key` is None under a shared projection; `taps` are those of `look_ahead`."""

    query: Float[Array, "*rows l d"]
    key: Float[Array, "*rows l d"] | None
    value: Float[Array, "*rows l e"]
    taps: Float[Array, "*rows 2"] | None = None


class Order(NamedTuple):
    """How the tokens of a row are sorted in every round. `buckets` only where masks need them."""

    permutation: Int[Array, "*rows r l"]
    buckets: Int[Array, "*rows r l"] | None = None


class Context(NamedTuple):
    """What attention does not differentiate: mask (True = real token), order, dropout seed and numbers of documents."""

    mask: Bool[Array, "*rows l"] | None = None
    order: Order | None = None
    seed: UInt[Array, "*rows"] | None = None
    documents: Int[Array, "*rows l"] | None = None


class Plan(NamedTuple):
    """The static part of an attention. Hashable.

    Attributes:
      rule: who attends to whom.
      cut: chunks and blocks; for full attention a chunk is a block of queries that sees every key.
      is_full: full attention.
      correct_duplicates: subtract log N_ij, how many rounds a pair meets in.
      rows_at_once: how many rows are computed together.
      blocks_in_flight: how many blocks are computed side by side; XLA on CPU gives every small matrix product one core.
      is_fused: by the kernel of `reformer.ops.kernels`, all rows at once.
    """

    rule: Rule
    cut: Geometry
    is_full: bool = False
    correct_duplicates: bool = False
    rows_at_once: int = 1
    is_fused: bool = False
    blocks_in_flight: int = 1

    @property
    def wraps(self) -> bool:
        """Whether the windows at the edges wrap around."""
        return self.rule.semantics == "huggingface" and not self.is_full

    @property
    def missing_in_kernel(self) -> list[str]:
        """The options asked for that the fused kernel does not have."""
        options = {
            "full attention": self.is_full,
            f"semantics={self.rule.semantics!r}": self.rule.semantics != "reformer",
            "correct_duplicates=True": self.correct_duplicates,
        }
        return [name for name, is_asked_for in options.items() if is_asked_for]


def full_plan(length: int, rule: Rule) -> Plan:
    """The plan of full attention over `length` tokens."""
    most = full_scores_at_once()
    num_queries = min(length, max(64, most // length))
    cut = chunking.Geometry(num_queries, 0, 0, -(-length // num_queries), 1)
    return Plan(rule, cut, is_full=True, rows_at_once=max(1, most // length**2))


def chunked_plan(
    length: int, chunk_length: int, rule: Rule, correct_duplicates: bool = False, implementation: str = "plain"
) -> Plan:
    """The plan of local and LSH attention over `length` tokens."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} must be one of {', '.join(IMPLEMENTATIONS)}.")
    if rule.semantics == "huggingface" and length % chunk_length:
        raise ValueError(
            f"length={length} is not a multiple of chunk_length={chunk_length}, which windows that wrap around "
            "(semantics='huggingface') need. Pad and mask the input."
        )
    most = _SCORES_AT_ONCE_CPU if _on_cpu() else _SCORES_AT_ONCE
    cut = chunking.geometry(length, chunk_length, rule.before, rule.after, most)
    scores_per_row = cut.num_chunks * chunk_length * cut.window
    plan = Plan(
        rule,
        cut,
        correct_duplicates=correct_duplicates,
        rows_at_once=max(1, most // scores_per_row),
        blocks_in_flight=min(_BLOCKS_IN_FLIGHT_CPU, cut.num_blocks) if _on_cpu() else 1,
        is_fused=implementation == "pallas",
    )
    if plan.is_fused and plan.missing_in_kernel:
        missing = " and ".join(plan.missing_in_kernel)
        raise ValueError(f"implementation='pallas' does not have {missing}. Use implementation='plain'.")
    return plan


def full_scores_at_once() -> int:
    """How many scores attention to every key computes at once, about."""
    return _FULL_SCORES_AT_ONCE_CPU if _on_cpu() else _SCORES_AT_ONCE


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def unit_keys(x: Float[Array, "*rows d"], size: int | None = None) -> Float[Array, "*rows d"]:
    """Scales vectors to length 1, computed in at least float32.

    Args:
      x: vectors.
      size: how many of their entries count, where the others are padding with zeros.

    Source: arXiv 2001.04451, section 2, "Shared-QK attention"; the epsilon is trax's.
    """
    wide = x.astype(block_ops.accumulation_dtype(x.dtype))
    size = size or x.shape[-1]
    mean_square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True) / size
    return (wide * jax.lax.rsqrt(mean_square + _UNIT_EPSILON) * size**-0.5).astype(x.dtype)
