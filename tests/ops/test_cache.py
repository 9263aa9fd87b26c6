"""Cached attention of single tokens: the same as attention over the whole sequence, as far as that can be."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import bucket_table, hashing
from reformer.ops import cache as ops
from reformer.ops.attention import full_attention, local_attention, lsh_attention
from reformer.ops.cache import Cache, CachePlan
from reformer.ops.masking import Rule, Window
from reformer.ops.plan import Arrays

BATCH, HEADS, LENGTH, DIM, CHUNK = 3, 2, 40, 8, 8
PROMPTS = np.array([1, 9, 24], np.int32)  # of one token, and beyond one chunk and the window
FACTORS = (2, 8)


def draw(seed=0):
    """Query, key and value [batch, length, heads, dim] in the current default float type."""
    draws = np.random.default_rng(seed).normal(size=(3, BATCH, LENGTH, HEADS, DIM))
    return tuple(jnp.asarray(x) for x in draws)


def rotations(num_hashes=2):
    return jnp.asarray(np.random.default_rng(1).normal(size=(HEADS, DIM, num_hashes, sum(FACTORS) // 2)))


def heads_first(x):
    return jnp.swapaxes(x, 1, 2)


TAPS = jnp.broadcast_to(jnp.array([[0.7, -0.3], [1.2, 0.4]]), (BATCH, HEADS, 2))


def token_by_token(plan, arrays, prompts, of_layer=None):
    """Fills the second of two blocks with the prompts and decodes the rest: output at the place of every token.

    Values that look ahead do so by `TAPS`.
    """
    taps = TAPS if plan.rule.looks_ahead else None
    arrays = jax.tree.map(heads_first, arrays)
    steps = LENGTH - int(prompts.max())

    @jax.jit
    def run(arrays):
        prompt = jax.tree.map(lambda x: x[:, :, : prompts.max()], arrays)
        filled = ops.fill(plan, prompt._replace(taps=taps), jnp.asarray(prompts), of_layer)
        caches = Cache(*(None if x is None else jnp.stack([jnp.zeros_like(x), x]) for x in filled))

        def step(state, _):
            caches, position = state
            one = jax.tree.map(lambda x: jnp.take_along_axis(x, position[:, None, None, None], axis=2), arrays)
            out, caches = ops.attend_next(plan, caches, 1, one._replace(taps=taps), position, of_layer)
            return (caches, position + 1), out[:, :, 0]

        return jax.lax.scan(step, (caches, jnp.asarray(prompts)), None, length=steps)[1]

    return np.moveaxis(np.asarray(run(arrays)), 0, 1)  # [batch, steps, heads, dim]


def at_steps(out, prompts):
    """What `token_by_token` returns, read from an output [batch, length, heads, dim] over the whole sequence."""
    steps = LENGTH - int(prompts.max())
    return np.stack([np.asarray(row)[start : start + steps] for row, start in zip(out, prompts, strict=True)])


def table(num_members=LENGTH, before=0, after=0, correct_duplicates=False):
    return bucket_table.TablePlan(FACTORS, num_members, before, after, correct_duplicates)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "options", [{}, {"semantics": "huggingface"}, {"looks_ahead": True}], ids=["plain", "huggingface", "looks_ahead"]
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("before", [None, 0, 1, 2])
def test_full_and_local_attention_equal_that_of_the_whole_sequence(before, shared, options):
    query, key, value = draw()
    key = None if shared else key
    rule = Rule(True, shared, **options)
    if rule.looks_ahead:
        options = options | {"taps": TAPS[0]}
    if before is None:
        plan = CachePlan(rule, LENGTH)
        expected = full_attention(query, key, value, **options)
    else:
        plan = CachePlan(rule._replace(shows=Window(CHUNK, before, 0)), (1 + before) * CHUNK)
        expected = local_attention(query, key, value, chunk_length=CHUNK, num_chunks_before=before, **options)
    out = token_by_token(plan, Arrays(query, key, value), PROMPTS)
    np.testing.assert_allclose(out, at_steps(expected, PROMPTS), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("looks_ahead", [False, True])
@pytest.mark.parametrize("correct_duplicates", [False, True])
@pytest.mark.parametrize("num_hashes", [1, 2])
def test_lsh_attention_within_buckets_equals_that_of_the_whole_sequence(num_hashes, correct_duplicates, looks_ahead):
    query, _, value = draw()
    of_layer = rotations(num_hashes)
    options = {"num_buckets": FACTORS, "chunk_length": 20, "within_bucket": True}
    buckets = hashing.hash_vectors(heads_first(query), of_layer, FACTORS)
    assert max(np.bincount(row).max() for row in np.asarray(buckets).reshape(-1, LENGTH)) <= 20  # a bucket fits
    options |= {"correct_duplicates": correct_duplicates, "looks_ahead": looks_ahead}
    options |= {"taps": TAPS[0]} if looks_ahead else {}
    expected = lsh_attention(query, value, rotations=of_layer, **options)
    rule = Rule(True, True, looks_ahead=looks_ahead)
    plan = CachePlan(rule, LENGTH, table(correct_duplicates=correct_duplicates))
    out = token_by_token(plan, Arrays(query, None, value), PROMPTS, of_layer)
    np.testing.assert_allclose(out, at_steps(expected, PROMPTS), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("correct_duplicates", [False, True])
def test_an_lsh_query_attends_to_the_latest_members_of_its_bucket_and_those_beside_it(correct_duplicates):
    query, _, value = draw()
    of_layer, num_members, before, after = rotations(), 3, 2, 1
    buckets = np.asarray(hashing.hash_vectors(heads_first(query), of_layer, FACTORS))
    unit = np.asarray(query) / np.linalg.norm(query, axis=-1, keepdims=True)
    expected = np.zeros((BATCH, LENGTH, HEADS, DIM))
    for b, p, h in np.ndindex(BATCH, LENGTH, HEADS):
        seen = []
        for of_round in buckets[b, h]:
            near = range(of_round[p] - before, of_round[p] + after + 1)
            members = [[j for j in range(p + 1) if of_round[j] == bucket][-num_members:] for bucket in near]
            seen += itertools.chain(*members)
        scores = np.array([-1e3 if j == p else query[b, p, h] @ unit[b, j, h] for j in seen])
        weights = np.exp(scores - scores.max())
        if correct_duplicates:
            weights /= [seen.count(j) for j in seen]
        expected[b, p, h] = weights @ np.asarray(value)[b, seen, h] / weights.sum()
    plan = CachePlan(Rule(True, True), LENGTH, table(num_members, before, after, correct_duplicates))
    out = token_by_token(plan, Arrays(query, None, value), PROMPTS, of_layer)
    np.testing.assert_allclose(out, at_steps(expected, PROMPTS), rtol=1e-5, atol=1e-5)  # `unit_keys` has an epsilon


@pytest.mark.slow
def test_a_table_made_at_once_is_the_table_made_token_by_token():
    query = heads_first(draw()[0])
    plan, of_layer = table(num_members=3), jnp.asarray(rotations(), query.dtype)
    empty = bucket_table.fill(plan, query, jnp.zeros(BATCH, jnp.int32), of_layer)
    assert (np.asarray(empty) == -1).all()

    @jax.jit
    def insert_all(members):
        def insert(members, p):
            one = jax.lax.dynamic_slice_in_dim(query, p, 1, axis=2)
            return bucket_table.insert(plan, members, 0, one, jnp.full(BATCH, p), of_layer)[0], None

        return jax.lax.scan(insert, members, jnp.arange(PROMPTS.max(), dtype=jnp.int32))[0][0]

    at_once = jax.jit(lambda lengths: bucket_table.fill(plan, query, lengths, of_layer))(PROMPTS)
    np.testing.assert_array_equal(insert_all(empty[None])[2], at_once[2])
    assert (np.asarray(at_once[0]) >= 0).sum() == HEADS * 2  # one token, in two rounds


@pytest.mark.parametrize(
    ("length", "chunks", "expected"),
    [
        (1024, (1, 0), (2, 0)),  # automatic: half a chunk per bucket
        (1024, (0, 0), (0, 0)),
        (1024, (2, 1), (4, 2)),
        (16_384, (1, 0), (0, 0)),  # a bucket larger than the window
        (64, (1, 0), (2, 0)),  # nearly empty buckets are not made up for
    ],
)
def test_the_table_shows_as_many_buckets_as_the_window_of_chunks_holds(length, chunks, expected):
    plan = bucket_table.table_plan((64,), length, 32, *chunks)
    assert (plan.before, plan.after) == expected
    assert bucket_table.table_plan((64,), length, 32, *chunks, within_bucket=True)[2:4] == (0, 0)


@pytest.mark.parametrize(
    ("rule", "slots", "message"),
    [
        (Rule(False, False), 8, "causal=False has no next token"),
        (Rule(True, False, 0.1), 8, "dropout_rate=0.1 must be 0"),
        (Rule(True, False), 0, "num_slots=0 must be at least 1"),
    ],
)
def test_impossible_caches_are_named(rule, slots, message):
    with pytest.raises(ValueError, match=message):
        ops.check_plan(CachePlan(rule, slots))
