"""The model's configuration: one flat, frozen dataclass that validates itself."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

ATTENTION_KINDS: dict[str, Any] = {}  # by name; `reformer.layers.kinds` registers ours, and whoever has others
POSITION_EMBEDDINGS = ("axial", "learned", "sinusoidal")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
SEMANTICS = ("reformer", "huggingface")
STREAM_MERGES = ("concatenate", "average")
ATTENTION_IMPLEMENTATIONS = ("plain", "pallas")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class ReformerConfig:
    """Hyper-parameters of a Reformer. Lengths are in tokens.

    Every field has a default. What is not allowed is a ValueError at construction, before any device work, with one
    line for each problem. Automatic choices are `None` here and resolved where they are used.
    """

    # Size.
    vocab_size: int = 259  # 256 bytes + padding, begin and mask
    max_length: int = 4096  # longest sequence; bounds the position tables
    num_layers: int = 6  # a multiple of len(attention_pattern)
    embed_dim: int = 256  # width of each of the two residual streams
    mlp_dim: int = 1024  # hidden units of a feed-forward layer
    num_heads: int = 4
    head_dim: int = 64

    # Attention.
    attention_pattern: tuple[str, ...] = ("local", "lsh")  # 'full' | 'local' | 'lsh' | own, repeated over the depth
    causal: bool = True  # False: bidirectional, a masked language model
    num_hashes: int = 2  # rounds of LSH
    num_buckets: int | tuple[int, ...] | None = (
        None  # per round; tuple = factors; None = from the length, padding included
    )
    lsh_chunk_length: int = 64
    lsh_num_chunks_before: int = 1
    lsh_num_chunks_after: int = 0
    lsh_within_bucket: bool = False  # attend only within the same bucket (paper, Eq. 2)
    lsh_correct_duplicates: bool = False  # count a key seen in N rounds once: log N_ij (paper, appendix A)
    local_chunk_length: int = 64
    local_num_chunks_before: int = 1
    local_num_chunks_after: int = 0
    # Where queries and keys share a projection, a key gives a mix of the value of the *next* token and of its own
    # (reformer/ops/look_ahead.py), not its own alone as in the paper; None = True for causal models.
    look_ahead: bool | None = None
    # Full and local attention have the LSH layers' one projection and rules; None = True for models that look ahead.
    share_query_key: bool | None = None
    cross_attention: bool = False  # each layer also attends to a context: the decoder of an encoder-decoder
    attention_implementation: str = "plain"  # 'pallas' = local and LSH attention by a fused GPU kernel

    # Positions.
    position_embedding: str = "axial"  # 'axial' | 'learned' | 'sinusoidal'
    axial_shape: tuple[int, ...] | None = None  # product at least max_length; None = near-square
    axial_dims: tuple[int, ...] | None = None  # sums to embed_dim; None = a quarter and the rest
    position_scale: float = 0.25  # standard deviation of learned and axial embeddings at the start; tokens have 1

    # Residual functions.
    activation: str = "gelu"  # 'gelu' is the exact erf form
    dropout_rate: float = 0.0  # embeddings, attention output, feed-forward, before the head
    attention_dropout_rate: float | None = None  # attention weights; None = dropout_rate
    lsh_attention_dropout_rate: float | None = None  # None = attention_dropout_rate
    layer_norm_epsilon: float = 1e-6
    # None = as many as suit the width and the machine, see reformer/ops/lengthwise.py; those of the length = off.
    mlp_chunk_length: int | None = None  # tokens of a sequence per chunk of feed-forward and projections
    loss_chunk_length: int | None = None  # tokens of a sequence per chunk of the vocabulary loss
    label_smoothing: float = 0.0  # of the training loss: share of a target that is spread over all ids

    # Semantics and numerics.
    semantics: str = "reformer"  # 'huggingface' = wrap-around windows, their masks and fallbacks
    merge_streams: str = "concatenate"  # both streams after the last layer: 'concatenate' | 'average' (trax's decoders)
    num_streams: int = 2  # 1: the residual layers of an ordinary Transformer, to compare with; not reversible
    reversible: bool = True  # False: ordinary autodiff of the same function, where mlp_chunk_length=None is off
    dtype: str = "float32"  # compute type inside the residual functions
    param_dtype: str = "float32"

    def __post_init__(self):
        for name in ("attention_pattern", "axial_shape", "axial_dims", "num_buckets"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        problems = list(_problems_of_fields(self)) or list(_problems_of_combinations(self))
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def num_blocks(self) -> int:
        """Number of repetitions of `attention_pattern`."""
        return self.num_layers // len(self.attention_pattern)

    @property
    def num_lsh_layers(self) -> int:
        """Number of layers over the whole depth that hash."""
        return self.num_blocks * sum(ATTENTION_KINDS[kind].is_hashed for kind in self.attention_pattern)

    @property
    def looks_ahead(self) -> bool:
        """`look_ahead`, or what is used when it is None: nobody has a later token to look at but a causal model."""
        is_possible = self.causal and self.semantics == "reformer"
        return is_possible if self.look_ahead is None else self.look_ahead

    @property
    def shares_query_key(self) -> bool:
        """`share_query_key`, or what is used when it is None."""
        return self.looks_ahead if self.share_query_key is None else self.share_query_key

    @property
    def output_dim(self) -> int:
        """Width of both streams merged, after the last layer; an encoder of this kind gives a context of this width."""
        return self.embed_dim * (2 if self.merge_streams == "concatenate" else 1)

    @property
    def resolved_axial_shape(self) -> tuple[int, ...]:
        """`axial_shape`, or the near-square one that is used when it is None."""
        if self.axial_shape is not None:
            return self.axial_shape
        rows = 2 ** (math.isqrt(self.max_length).bit_length() - 1)
        return (rows, math.ceil(self.max_length / rows))

    @property
    def resolved_axial_dims(self) -> tuple[int, ...]:
        """`axial_dims`, or the split that is used when it is None."""
        if self.axial_dims is not None:
            return self.axial_dims
        num_axes = len(self.resolved_axial_shape)
        first = self.embed_dim // (2 * num_axes)
        return (first,) * (num_axes - 1) + (self.embed_dim - first * (num_axes - 1),)

    @property
    def attention_weights_dropout_rate(self) -> float:
        """`attention_dropout_rate`, or what is used when it is None."""
        return self.dropout_rate if self.attention_dropout_rate is None else self.attention_dropout_rate


def derive_encoder_config(config: ReformerConfig) -> ReformerConfig:
    """The encoder that belongs to a decoder: bidirectional, with as many chunks after a token as before it."""
    return dataclasses.replace(
        config,
        causal=False,
        look_ahead=None,
        cross_attention=False,
        lsh_num_chunks_after=config.lsh_num_chunks_before,
        local_num_chunks_after=config.local_num_chunks_before,
    )


_POSITIVE = (
    "vocab_size",
    "max_length",
    "num_layers",
    "embed_dim",
    "mlp_dim",
    "num_heads",
    "num_streams",
    "head_dim",
    "num_hashes",
    "lsh_chunk_length",
    "local_chunk_length",
)
_NOT_NEGATIVE = (
    "lsh_num_chunks_before",
    "lsh_num_chunks_after",
    "local_num_chunks_before",
    "local_num_chunks_after",
)
_BOOLEANS = (
    "causal",
    "lsh_within_bucket",
    "lsh_correct_duplicates",
    "share_query_key",
    "cross_attention",
    "reversible",
    "look_ahead",
)
_RATES = ("dropout_rate", "attention_dropout_rate", "lsh_attention_dropout_rate", "label_smoothing")
_MAY_BE_NONE = ("attention_dropout_rate", "lsh_attention_dropout_rate", "look_ahead", "share_query_key")
_CHUNKS = ("mlp_chunk_length", "loss_chunk_length")
_SCALES = ("layer_norm_epsilon", "position_scale")


_LARGEST = 2**31 - 1  # indices are int32
_LARGEST_FLOAT = 3.4e38  # of float32


def is_integer(value, lowest: int) -> bool:
    """Whether a value is an integer from `lowest` to the largest int32."""
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= _LARGEST


def is_number(value) -> bool:
    """Whether a value is a number that float32 holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_FLOAT


def _problems_of_fields(config: ReformerConfig) -> Iterator[str]:
    """Yields a sentence for each field whose value is wrong by itself."""
    yield from _problems_of_types(config)
    yield from _problems_of_choices(config)
    yield from _problems_of_tuples(config)


def _problems_of_types(config: ReformerConfig) -> Iterator[str]:
    for name in _POSITIVE + _NOT_NEGATIVE + _CHUNKS:
        value, lowest = getattr(config, name), 0 if name in _NOT_NEGATIVE else 1
        if not (value is None and name in _CHUNKS) and not is_integer(value, lowest):
            is_large = isinstance(value, int) and value > _LARGEST
            rule = "at most 2147483647" if is_large else f"an integer of at least {lowest}"
            yield f"{name}={value!r} must be {rule}."
    for name in _BOOLEANS:
        value, may_be_none = getattr(config, name), name in _MAY_BE_NONE
        if not isinstance(value, bool) and not (value is None and may_be_none):
            yield f"{name}={value!r} must be {'True, False or None' if may_be_none else 'True or False'}."
    for name in _RATES:
        value = getattr(config, name)
        if not (value is None and name in _MAY_BE_NONE) and not (is_number(value) and 0 <= value < 1):
            yield f"{name}={value!r} must be a number of at least 0 and below 1."
    for name in _SCALES:
        value = getattr(config, name)
        if not (is_number(value) and value > 0):
            yield f"{name}={value!r} must be a positive number that float32 holds."


def _problems_of_choices(config: ReformerConfig) -> Iterator[str]:
    choices = {
        "position_embedding": POSITION_EMBEDDINGS,
        "activation": ACTIVATIONS,
        "semantics": SEMANTICS,
        "merge_streams": STREAM_MERGES,
        "attention_implementation": ATTENTION_IMPLEMENTATIONS,
        "dtype": DTYPES,
        "param_dtype": DTYPES,
    }
    for name, allowed in choices.items():
        value = getattr(config, name)
        if not isinstance(value, str) or value not in allowed:
            yield f"{name}={value!r} must be one of {', '.join(allowed)}."


def _problems_of_tuples(config: ReformerConfig) -> Iterator[str]:
    pattern, num_buckets = config.attention_pattern, config.num_buckets
    if not isinstance(pattern, tuple) or not pattern or any(kind not in list(ATTENTION_KINDS) for kind in pattern):
        yield (
            f"attention_pattern={pattern!r} must be a tuple of {', '.join(map(repr, ATTENTION_KINDS))}. "
            "On the command line quote each name: --config.model.attention_pattern=\"('local','lsh')\"."
        )
    for name in ("axial_shape", "axial_dims"):
        value = getattr(config, name)
        if value is not None and not (
            isinstance(value, tuple) and value and all(is_integer(size, 1) for size in value)
        ):
            yield f"{name}={value!r} must be None or a tuple of positive integers."
    factors = num_buckets if isinstance(num_buckets, tuple) else (num_buckets,)
    if num_buckets is not None and not (factors and all(is_integer(f, 2) and f % 2 == 0 for f in factors)):
        yield (
            f"num_buckets={num_buckets!r} must be None, an even positive integer, or a tuple of them "
            "(the factors of the number of buckets)."
        )


def _problems_of_combinations(config: ReformerConfig) -> Iterator[str]:
    """Yields a sentence for each set of fields, right by themselves, that do not fit together."""
    period = len(config.attention_pattern)
    if config.num_layers % period:
        yield (
            f"num_layers={config.num_layers} is not a multiple of the {period} layers of "
            f"attention_pattern={config.attention_pattern!r}. Change one of the two."
        )
    yield from _problems_of_semantics(config)
    is_plain = not config.reversible and config.merge_streams == "average"
    if config.num_streams not in (1, 2) or (config.num_streams == 1 and not is_plain):
        yield (
            f"num_streams={config.num_streams} must be 2, or 1 with reversible=False and merge_streams='average'; "
            f"found reversible={config.reversible} and merge_streams={config.merge_streams!r}."
        )
    if config.attention_implementation == "pallas" and (
        config.semantics == "huggingface" or config.lsh_correct_duplicates
    ):
        yield (
            "attention_implementation='pallas' has neither semantics='huggingface' nor lsh_correct_duplicates. "
            "Use attention_implementation='plain'."
        )
    yield from _problems_of_positions(config)
    factors = config.num_buckets if isinstance(config.num_buckets, tuple) else (config.num_buckets or 1,)
    if math.prod(factors) >= _LARGEST:
        yield f"num_buckets={config.num_buckets!r} multiply to {math.prod(factors)}; keep them below 2**31 - 1."


def _problems_of_semantics(config: ReformerConfig) -> Iterator[str]:
    if config.semantics == "huggingface" and (config.lsh_within_bucket or config.lsh_correct_duplicates):
        yield (
            "lsh_within_bucket and lsh_correct_duplicates do not exist under semantics='huggingface'. "
            "Set them to False or use semantics='reformer'."
        )
    for kind in sorted(set(config.attention_pattern)):
        yield from ATTENTION_KINDS[kind].problems(config)
    if config.look_ahead and not (config.causal and config.semantics == "reformer"):
        yield (
            f"look_ahead=True needs causal=True and semantics='reformer'; found causal={config.causal} and "
            f"semantics={config.semantics!r}. Use look_ahead=None, which looks ahead where that is possible."
        )
    if config.semantics == "huggingface" and (config.cross_attention or config.merge_streams != "concatenate"):
        yield (
            "cross_attention and merge_streams='average' do not exist under semantics='huggingface'. "
            "Leave them out or use semantics='reformer'."
        )


def _problems_of_positions(config: ReformerConfig) -> Iterator[str]:
    if config.position_embedding == "sinusoidal" and config.embed_dim % 2:
        yield f"embed_dim={config.embed_dim} must be even for position_embedding='sinusoidal'."
    if config.position_embedding != "axial":
        return
    shape, dims = config.resolved_axial_shape, config.resolved_axial_dims
    if len(shape) != len(dims):
        yield f"axial_shape={shape} and axial_dims={dims} must have the same number of axes."
    if math.prod(shape) < config.max_length:
        yield (
            f"axial_shape={shape} holds {math.prod(shape)} positions, fewer than max_length={config.max_length}. "
            "Enlarge axial_shape or lower max_length."
        )
    if sum(dims) != config.embed_dim or min(dims) < 1:
        yield f"axial_dims={dims} sum to {sum(dims)}, which must equal embed_dim={config.embed_dim}, each at least 1."
