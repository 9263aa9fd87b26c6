"""What an attention needs to know: its arrays, what is not differentiated, and its static plan."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer import sharding
from reformer.ops import block as block_ops
from reformer.ops.chunking import Geometry
from reformer.ops.masking import Rule

_SCORES_AT_ONCE = 2**25  # an accelerator wants large launches
_SCORES_AT_ONCE_CPU = 2**18  # 1 MB of float32 scores stay in cache
_FULL_SCORES_AT_ONCE_CPU = 2**21
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


class Given(NamedTuple):
    """What attention is given and does not differentiate.

    Attributes:
      mask: True = real token.
      order: of layers that sort.
      seed: of the dropout masks.
      documents: numbers of the documents of the tokens, which attend within their own; None = all is one.
    """

    mask: Bool[Array, "*rows l"] | None = None
    order: Order | None = None
    seed: UInt[Array, "*rows"] | None = None
    documents: Int[Array, "*rows l"] | None = None


class Operation(Protocol):
    """What computes attention of one row, one head of one example: a module of this package, or an object.

    Or of an axis of rows, where `Plan.takes_rows`.

    The log-normaliser is what `backward` wants to know of each query besides the output.
    """

    def forward(self, plan: "Plan", arrays: Arrays, given: Given) -> tuple[Array, Array]:
        """Output [l, e] and log-normaliser [l]."""

    def backward(self, plan: "Plan", arrays: Arrays, given: Given, out, log_normalizer, out_gradient) -> Arrays:
        """The cotangents of the arrays from that of the output."""

    def forward_and_backward(self, plan: "Plan", arrays: Arrays, given: Given, out_gradient) -> tuple[Array, Arrays]:
        """Output and cotangents together."""


class Plan(NamedTuple):
    """The static part of an attention. Hashable.

    Attributes:
      rule: who attends to whom.
      operation: what does the work.
      cut: chunks and blocks; None where a query may see keys of the whole sequence.
      queries_at_once: of full attention.
      correct_duplicates: subtract log N_ij, how many rounds a pair meets in.
      rows_at_once: how many rows are computed together. A function (arrays, given) -> number: the operation takes an
        axis of rows, and says so itself.
      blocks_in_flight: how many blocks are computed side by side; XLA on CPU gives every small matrix product one core.
    """

    rule: Rule
    operation: Operation
    cut: Geometry | None = None
    queries_at_once: int = 1
    correct_duplicates: bool = False
    rows_at_once: int | Callable[[Arrays, Given], int] = 1
    blocks_in_flight: int = 1

    @property
    def takes_rows(self) -> bool:
        """Whether the operation takes an axis of rows, as the fused kernel does."""
        return callable(self.rows_at_once)


@dataclasses.dataclass(frozen=True)
class ByAutodiff:
    """An operation that is given by its value alone: JAX finds the cotangents.

    Attributes:
      attend: (rule, arrays, given) -> output [l, e] of one row. The key of the arrays is there under a shared
        projection too. A function that is hashable, such as one at the top of a module.
      heeds_documents: `attend` lets tokens attend within their document only where `given.documents` are there. Without
        it documents are refused, since it would mix them in silence.
    """

    attend: Callable[[Rule, Arrays, Given], Array]
    heeds_documents: bool = False

    def forward(self, plan: Plan, arrays: Arrays, given: Given) -> tuple[Array, Array]:
        """As `Operation` has it."""
        return self._value(plan, given, arrays), jnp.zeros_like(arrays.query[:, 0])

    def backward(self, plan: Plan, arrays: Arrays, given: Given, out, log_normalizer, out_gradient) -> Arrays:
        """As `Operation` has it."""
        del out, log_normalizer
        return self.forward_and_backward(plan, arrays, given, out_gradient)[1]

    def forward_and_backward(self, plan: Plan, arrays: Arrays, given: Given, out_gradient) -> tuple[Array, Arrays]:
        """As `Operation` has it."""
        out, transpose = jax.vjp(partial(self._value, plan, given), arrays)
        return out, transpose(out_gradient)[0]

    def _value(self, plan: Plan, given: Given, arrays: Arrays) -> Array:
        if given.documents is not None and not self.heeds_documents:
            name = getattr(self.attend, "__name__", self.attend)
            raise ValueError(
                f"ByAutodiff({name}) does not keep documents apart, which data.separate_documents=True asks for. Let "
                f"{name} heed given.documents and say so by ByAutodiff({name}, heeds_documents=True), or join them by "
                "--config.data.separate_documents=False."
            )
        if arrays.key is None:
            arrays = arrays._replace(key=unit_keys(arrays.query))
        return self.attend(plan.rule, arrays, given).astype(arrays.value.dtype)


def scores_at_once() -> int:
    """How many scores local and LSH attention compute at once, about."""
    return _SCORES_AT_ONCE_CPU if sharding.on_cpu() else _SCORES_AT_ONCE


def full_scores_at_once() -> int:
    """How many scores attention to every key computes at once, about."""
    return _FULL_SCORES_AT_ONCE_CPU if sharding.on_cpu() else _SCORES_AT_ONCE


def unit_keys(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Scales vectors to length 1, computed in at least float32.

    Source: arXiv 2001.04451, section 2, "Shared-QK attention"; the epsilon is trax's.
    """
    wide = x.astype(block_ops.accumulation_dtype(x.dtype))
    return (wide * _inverse_root(wide)[..., None] * x.shape[-1] ** -0.5).astype(x.dtype)


def unit_scales(x: Float[Array, "*rows d"]) -> Float[Array, "*rows"]:
    """What `unit_keys` multiplies vectors by, in at least float32."""
    return _inverse_root(x.astype(block_ops.accumulation_dtype(x.dtype))) * x.shape[-1] ** -0.5


def _inverse_root(wide):
    """Of the mean square."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1) + _UNIT_EPSILON)
