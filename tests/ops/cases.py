"""Cases that the attention tests share: their options, inputs, the op they call and the dense reference."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.config import ReformerConfig
from reformer.ops import attention, dropout, hashing
from tests import references

BATCH, HEADS, HEAD_DIM = 2, 2, 4
FACTORS = (2, 4)
CHUNK = 8
LENGTHS = (1, 2, 7, 8, 9, 40, 64)
WINDOWS = ((1, 0), (1, 1), (0, 0), (2, 1))
DROPOUT_RNG = jax.random.key(42)


@dataclasses.dataclass(frozen=True)
class Case:
    """One combination of options; `rounds` is 0 for local and full attention."""

    length: int = 40
    causal: bool = True
    masked: bool = False
    shared: bool = True
    before: int = 1
    after: int = 0
    rounds: int = 2
    within_bucket: bool = False
    correct_duplicates: bool = False
    looks_ahead: bool = False
    rate: float = 0.0
    dtype: str = "float64"


def _name(case):
    changed = [field.name for field in dataclasses.fields(case) if getattr(case, field.name) != field.default]
    return "-".join(f"{name}={getattr(case, name)}" for name in changed) or "default"


def cases(*cases, slow=()):
    """Parametrize a test by cases, named by what differs from the default; `slow` ones are marked so."""
    slow = [pytest.param(case, marks=pytest.mark.slow) for case in slow]
    return pytest.mark.parametrize("case", [*cases, *slow], ids=_name)


def grid(**axes):
    """All combinations of the given values of the fields of `Case`."""
    cases = [{}]
    for name, values in axes.items():
        cases = [{**case, name: value} for case in cases for value in values]
    return [Case(**case) for case in cases]


@dataclasses.dataclass
class Inputs:
    """Arrays [batch, length, heads, head_dim], mask [batch, length] and rotations of a case."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    cotangent: jax.Array
    mask: jax.Array | None
    rotations: jax.Array


def make_inputs(case):
    """Random inputs of about unit scale, the same for every case of a length."""
    arrays = np.random.default_rng(0).standard_normal((4, BATCH, case.length, HEADS, HEAD_DIM))
    rotations = hashing.draw_rotations(jax.random.key(3), HEADS, HEAD_DIM, max(case.rounds, 1), FACTORS)
    mask = None
    if case.masked:  # one row with holes, one with padding on the right
        holes = np.random.default_rng(1).random(case.length) < 0.7
        mask = jnp.stack([jnp.asarray(holes), jnp.arange(case.length) < math.ceil(0.6 * case.length)])
    return Inputs(*(jnp.asarray(x, case.dtype) for x in arrays), mask, rotations)


def _dropout_options(case):
    return {"dropout_rate": case.rate, "dropout_rng": DROPOUT_RNG} if case.rate else {}


def lsh(case, inputs):
    """`lsh_attention` as a function of query_key and value."""
    return functools.partial(
        attention.lsh_attention,
        rotations=inputs.rotations,
        num_buckets=FACTORS,
        chunk_length=CHUNK,
        num_chunks_before=case.before,
        num_chunks_after=case.after,
        causal=case.causal,
        mask=inputs.mask,
        within_bucket=case.within_bucket,
        correct_duplicates=case.correct_duplicates,
        looks_ahead=case.looks_ahead,
        **_dropout_options(case),
    )


def local(case, inputs):
    """`local_attention` as a function of query, key and value."""
    return functools.partial(
        attention.local_attention,
        chunk_length=CHUNK,
        num_chunks_before=case.before,
        num_chunks_after=case.after,
        causal=case.causal,
        mask=inputs.mask,
        looks_ahead=case.looks_ahead,
        **_dropout_options(case),
    )


def full(case, inputs):
    """`full_attention` as a function of query, key and value."""
    options = dict(causal=case.causal, mask=inputs.mask, looks_ahead=case.looks_ahead)
    return functools.partial(attention.full_attention, **options, **_dropout_options(case))


def dropout_mask(case):
    """The mask of the attention weights as bool [b, h, r, q, k], True = keep."""
    rounds, positions = jnp.arange(max(case.rounds, 1)), jnp.arange(case.length)
    seeds = attention.dropout_seeds(dropout.draw_seed(DROPOUT_RNG), BATCH, HEADS).reshape(-1)
    masks = [
        dropout.keep_mask(seed, positions[:, None], positions[None, :], case.rate)
        for row in seeds
        for seed in dropout.fold(row, rounds)
    ]
    return jnp.stack(masks).reshape(BATCH, HEADS, len(rounds), case.length, case.length)


def dense(case, inputs, window):
    """The reference with the options of a case, as a function of query, key (None = shared) and value."""
    options = dict(causal=case.causal, mask=inputs.mask, correct_duplicates=case.correct_duplicates)
    options |= dict(looks_ahead=case.looks_ahead)
    if case.rate:
        options |= dict(dropout_mask=dropout_mask(case), dropout_rate=case.rate)
    return functools.partial(references.attention, window=window, **options)


def call(kind, case, inputs):
    """The op of a kind ('lsh', 'local' or 'full') as a function of query, key (None if shared) and value."""
    if kind == "lsh":
        return lambda query, key, value, **taps: lsh(case, inputs)(query, value, **taps)
    return {"local": local, "full": full}[kind](case, inputs)


def window(kind, case, inputs):
    """Which keys lie in the window of which query, [b, h or 1, r, q, k]."""
    chunks = {"chunk_length": CHUNK, "num_chunks_before": case.before, "num_chunks_after": case.after}
    fields = {f"{name}_{field}": value for name in ("local", "lsh") for field, value in chunks.items()}
    config = ReformerConfig(**fields, num_buckets=FACTORS, lsh_within_bucket=case.within_bucket)
    return references.find_window(config, kind, inputs.query, inputs.mask, inputs.rotations)


def arguments(case, inputs):
    """(query, key, value), with None for the key of a shared projection."""
    return inputs.query, None if case.shared else inputs.key, inputs.value


def check(kind, case):
    """Assert that the value and all gradients of an op equal those of the dense reference."""
    inputs = make_inputs(case)
    args = arguments(case, inputs)
    actual = references.value_and_vjp(call(kind, case, inputs), inputs.cotangent, *args)
    reference = dense(case, inputs, window(kind, case, inputs))
    expected = references.value_and_vjp(reference, inputs.cotangent, *args)
    references.assert_close(actual[0], expected[0], references.VALUE_TOLERANCE[case.dtype])
    references.assert_close(actual[1], expected[1], references.GRADIENT_TOLERANCE[case.dtype])
