"""What kinds of self-attention there are, and all that they differ in: a record for each.

`attention_pattern` names them. A kind of your own is a subclass of `Kind` with what differs from full attention, and a
call of `register`; docs/design.md has an example.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
from jaxtyping import Array, Bool, Float, Int

from reformer.config import ATTENTION_KINDS, ReformerConfig
from reformer.ops import hashing
from reformer.ops.attention import sort_by_hash
from reformer.ops.bucket_table import TablePlan, table_plan
from reformer.ops.cache import CachePlan
from reformer.ops.masking import Rule, Window
from reformer.ops.plan import Order, Plan
from reformer.ops.planned import chunked_plan, full_plan


class Kind:
    """Full attention, and what a kind of self-attention may do otherwise. Hashable, such as a frozen dataclass.

    Attributes:
      is_hashed: its layers receive rotations, by which `sort` orders the tokens.
      shows: (positions of queries, of keys) -> True where the query may see the key; arrays that broadcast. With
        `causal=True` it need not look at keys behind the query. None = every key.
    """

    is_hashed: bool = False
    shows: Callable[[Array, Array], Array] | None = None

    def problems(self, config: ReformerConfig) -> Iterator[str]:
        """Yields a sentence for each thing in a config that does not fit a layer of this kind."""
        yield from ()

    def shares_query_key(self, config: ReformerConfig) -> bool:
        """Whether queries and keys share a projection."""
        return config.shares_query_key

    def dropout_rate(self, config: ReformerConfig) -> float:
        """Dropout rate of the attention weights."""
        return config.attention_weights_dropout_rate

    def chunk_length(self, config: ReformerConfig) -> int | None:
        """Tokens per chunk; the length is a multiple of it where windows wrap around. None = no chunks."""
        return None

    def within_bucket(self, config: ReformerConfig) -> bool:
        """Whether tokens of different buckets never meet."""
        return False

    def rule(self, config: ReformerConfig, has_dropout: bool = False) -> Rule:
        """Who attends to whom."""
        rate, shared = self.dropout_rate(config) if has_dropout else 0.0, self.shares_query_key(config)
        looks_ahead = shared and config.looks_ahead
        return Rule(config.causal, shared, rate, config.semantics, looks_ahead=looks_ahead, shows=self.shows)

    def plan(self, config: ReformerConfig, length: int, has_dropout: bool) -> Plan:
        """The static plan for `length` tokens: which operation does the work, and how."""
        return full_plan(length, self.rule(config, has_dropout))

    def sort(
        self,
        config: ReformerConfig,
        query: Float[Array, "batch heads length head_dim"],
        rotations: Float[Array, "heads head_dim rounds columns"],
        mask: Bool[Array, "batch length"] | None,
        keep_buckets: bool,
        documents: Int[Array, "batch length"] | None = None,
    ) -> Order:
        """How the tokens are ordered in every round, if `is_hashed`.

        Args:
          config: the model's.
          query: the projection that is hashed.
          rotations: of the layer.
          mask: True = real token; None = all are.
          keep_buckets: whether the order holds the buckets, which then is a rule: tokens of different ones do not meet.
          documents: numbers of the documents, whose tokens should lie together; None = all is one.
        """
        raise NotImplementedError

    def cache(self, config: ReformerConfig, capacity: int) -> CachePlan:
        """What decoding keeps of up to `capacity` tokens, and which of them a new one sees."""
        return CachePlan(self.rule(config), capacity)

    def keys_per_query(self, config: ReformerConfig, length: int) -> float | int:
        """How many keys a query is multiplied with, on average, in all rounds: to count operations."""
        return length / 2 if config.causal else length


KINDS: dict[str, Kind] = ATTENTION_KINDS


def register(name: str, kind: Kind) -> None:
    """Makes a kind known by the name that `attention_pattern` holds; one that had the name before is replaced.

    A process that loads a stored model with such layers registers the kind first.
    """
    if name in KINDS:
        jax.clear_caches()  # what was compiled is known by the name
    KINDS[name] = kind


@dataclasses.dataclass(frozen=True)
class Local(Kind):
    """Attention within a chunk of neighbouring tokens and the chunks around it."""

    def problems(self, config: ReformerConfig) -> Iterator[str]:
        """As `Kind` has it."""
        yield from _problems_of_wrapping("local_num_chunks_after", config)

    def chunk_length(self, config: ReformerConfig) -> int:
        """As `Kind` has it."""
        return config.local_chunk_length

    def plan(self, config: ReformerConfig, length: int, has_dropout: bool) -> Plan:
        """As `Kind` has it."""
        if falls_back_to_full(self, config, length):
            return super().plan(config, length, has_dropout)
        before, after = config.local_num_chunks_before, config.local_num_chunks_after
        rule = self.rule(config, has_dropout)._replace(before=before, after=after)
        return chunked_plan(length, config.local_chunk_length, rule, implementation=config.attention_implementation)

    def cache(self, config: ReformerConfig, capacity: int) -> CachePlan:
        """As `Kind` has it."""
        del capacity
        before, chunk_length = config.local_num_chunks_before, config.local_chunk_length
        return CachePlan(self.rule(config)._replace(shows=Window(chunk_length, before, 0)), (1 + before) * chunk_length)

    def keys_per_query(self, config: ReformerConfig, length: int) -> float | int:
        """As `Kind` has it: whole windows."""
        return config.local_chunk_length * (1 + config.local_num_chunks_before + config.local_num_chunks_after)


@dataclasses.dataclass(frozen=True)
class Lsh(Kind):
    """Attention among tokens that hash alike, with a shared query-key projection."""

    is_hashed = True

    def problems(self, config: ReformerConfig) -> Iterator[str]:
        """As `Kind` has it."""
        yield from _problems_of_wrapping("lsh_num_chunks_after", config)

    def shares_query_key(self, config: ReformerConfig) -> bool:
        """As `Kind` has it."""
        return True

    def dropout_rate(self, config: ReformerConfig) -> float:
        """As `Kind` has it."""
        rate = config.lsh_attention_dropout_rate
        return super().dropout_rate(config) if rate is None else rate

    def chunk_length(self, config: ReformerConfig) -> int:
        """As `Kind` has it: of the sorted list."""
        return config.lsh_chunk_length

    def within_bucket(self, config: ReformerConfig) -> bool:
        """As `Kind` has it."""
        return config.lsh_within_bucket

    def plan(self, config: ReformerConfig, length: int, has_dropout: bool) -> Plan:
        """As `Kind` has it."""
        if falls_back_to_full(self, config, length):
            return super().plan(config, length, has_dropout)
        before, after = config.lsh_num_chunks_before, config.lsh_num_chunks_after
        rule = self.rule(config, has_dropout)._replace(before=before, after=after)
        options = (config.lsh_correct_duplicates, config.attention_implementation)
        return chunked_plan(length, config.lsh_chunk_length, rule, *options)

    def sort(self, config: ReformerConfig, query, rotations, mask, keep_buckets: bool, documents=None) -> Order:
        """As `Kind` has it."""
        factors = num_buckets(query.shape[2], config)
        return sort_by_hash(query, rotations, factors, mask, keep_buckets=keep_buckets, documents=documents)

    def cache(self, config: ReformerConfig, capacity: int) -> CachePlan:
        """As `Kind` has it."""
        return super().cache(config, capacity)._replace(table=_plan_table(config, capacity))

    def keys_per_query(self, config: ReformerConfig, length: int) -> float | int:
        """As `Kind` has it: whole windows."""
        num_chunks = 1 + config.lsh_num_chunks_before + config.lsh_num_chunks_after
        return config.num_hashes * config.lsh_chunk_length * num_chunks


register("full", Kind())
register("local", Local())
register("lsh", Lsh())


def _plan_table(config: ReformerConfig, capacity: int) -> TablePlan | None:
    """None where one chunk of the sorted list holds the whole sequence: a query sees all before it, in every round."""
    is_one_chunk = min(capacity, config.max_length) <= config.lsh_chunk_length
    if is_one_chunk and not config.lsh_within_bucket:
        return None
    factors = num_buckets(config.max_length, config)
    plan = table_plan(
        factors,
        config.max_length,
        config.lsh_chunk_length,
        config.lsh_num_chunks_before,
        config.lsh_num_chunks_after,
        config.lsh_within_bucket,
        config.lsh_correct_duplicates,
    )
    return plan._replace(num_members=max(plan.num_members, capacity)) if is_one_chunk else plan


def _problems_of_wrapping(name: str, config: ReformerConfig) -> Iterator[str]:
    """Of windows that wrap around and reach `name` chunks behind a token's own."""
    num_chunks_after = getattr(config, name)
    if config.semantics == "huggingface" and config.causal and num_chunks_after:
        yield (
            f"{name}={num_chunks_after} with causal=True and semantics='huggingface': the last chunk "
            "would see the first. Use 0, as Hugging Face requires."
        )


def falls_back_to_full(kind: Kind, config: ReformerConfig, length: int) -> bool:
    """Hugging Face's layers attend to everything where one chunk holds it all."""
    chunk_length = kind.chunk_length(config)
    return config.semantics == "huggingface" and chunk_length is not None and length <= chunk_length


def padded_length(length: int, config: ReformerConfig) -> int:
    """Length that the layers work on: ours any, Hugging Face's a common multiple of the chunk lengths."""
    of_kinds = {KINDS[name].chunk_length(config) for name in config.attention_pattern}
    chunks = [chunk_length for chunk_length in of_kinds if chunk_length is not None]
    if config.semantics == "reformer" or not chunks or length <= min(chunks):
        return length
    return math.ceil(length / math.lcm(*chunks)) * math.lcm(*chunks)


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
