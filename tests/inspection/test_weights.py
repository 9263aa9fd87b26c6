"""Pictures and coverage of one row against dense references."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.inspection import attention
from reformer.ops.attention import sort_by_hash
from reformer.ops.masking import Rule, Window
from reformer.ops.plan import Arrays, Given, Order
from reformer.ops.planned import chunked_plan, full_plan
from tests import references
from tests.ops.cases import CHUNK, FACTORS, Case, make_inputs, window

COUNTS = (1, 2, 3)
NEAR = Window(4, 1, 0)
TOLERANCE = references.VALUE_TOLERANCE["float32"]


def row(kind, case):
    """Plan, arrays and what is given of the first head of the first example, and the inputs they are from."""
    inputs = make_inputs(case)
    arrays = Arrays(inputs.query, None if case.shared else inputs.key, inputs.value)
    arrays = jax.tree.map(lambda x: x[0, :, 0], arrays)
    window = {"before": case.before, "after": case.after, "looks_ahead": case.looks_ahead}
    rule = Rule(case.causal, case.shared, **({} if kind == "full" else window))
    if kind == "full":
        return full_plan(case.length, rule._replace(looks_ahead=case.looks_ahead)), arrays, Given(), inputs
    plan = chunked_plan(case.length, CHUNK, rule, case.correct_duplicates)
    order = None
    if kind == "lsh":
        heads_first = jnp.swapaxes(inputs.query, 1, 2)
        order = sort_by_hash(heads_first, inputs.rotations, FACTORS, keep_buckets=case.within_bucket)
        order = jax.tree.map(lambda x: x[0, 0], order)
    return plan, arrays, Given(order=order), inputs


def dense_weights(kind, case, inputs):
    """Weights of the first head of the first example, summed over rounds."""
    options = {"causal": case.causal, "correct_duplicates": case.correct_duplicates, "looks_ahead": case.looks_ahead}
    key = None if case.shared else inputs.key
    attend = jax.jit(partial(references.attention_weights, **options))
    return np.asarray(attend(inputs.query, key, window(kind, case, inputs))[0, 0].sum(0))


def picture(plan, arrays, given, num_tokens, num_pixels):
    draw = jax.jit(attention.picture, static_argnums=(0, 3, 4))
    return np.asarray(draw(plan, arrays, given, num_tokens, num_pixels))


KINDS = [
    ("full", Case(dtype="float32", rounds=0)),
    ("full", Case(dtype="float32", rounds=0, shared=False, causal=False)),
    ("local", Case(dtype="float32", rounds=0, shared=False)),
    ("lsh", Case(dtype="float32")),
    ("lsh", Case(dtype="float32", causal=False, after=1, length=37)),
    ("lsh", Case(dtype="float32", within_bucket=True)),
    ("lsh", Case(dtype="float32", correct_duplicates=True)),
    ("lsh", Case(dtype="float32", looks_ahead=True)),
    ("full", Case(dtype="float32", rounds=0, looks_ahead=True)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "case"), KINDS)
def test_a_picture_with_a_pixel_per_token_holds_the_weights_of_the_dense_reference(kind, case):
    plan, arrays, given, inputs = row(kind, case)
    actual = picture(plan, arrays, given, case.length, case.length)
    references.assert_close(actual, dense_weights(kind, case, inputs), TOLERANCE)


@pytest.mark.parametrize("kind", ["full", "local", "lsh"])
def test_a_coarse_picture_sums_the_weights_over_its_pixels(kind):
    case = Case(dtype="float32", rounds=2 if kind == "lsh" else 0)
    plan, arrays, given, inputs = row(kind, case)
    pixel = np.arange(case.length) * 7 // case.length
    is_in = (pixel[:, None] == np.arange(7)).astype(np.float32)
    actual = picture(plan, arrays, given, case.length, 7)
    references.assert_close(actual, is_in.T @ dense_weights(kind, case, inputs) @ is_in, TOLERANCE)
    references.assert_close(actual.sum(1), np.bincount(pixel).astype(np.float32), TOLERANCE)


def test_padding_is_left_out_of_a_picture():
    case = Case(dtype="float32")
    plan, arrays, given, _ = row("lsh", case)
    mask = jnp.arange(case.length) < 30
    actual = picture(plan, arrays, given._replace(mask=mask), 30, 30)
    references.assert_close(actual.sum(1), np.ones(30, np.float32), TOLERANCE)


def test_a_picture_of_a_long_input_needs_memory_for_its_length_not_for_its_square():
    length = 16_384
    plan = chunked_plan(length, 64, Rule(True, True, before=1))
    arrays = Arrays(jax.ShapeDtypeStruct((length, 8), jnp.float32), None, None)
    given = Given(order=Order(jax.ShapeDtypeStruct((2, length), jnp.int32)))
    draw = jax.jit(attention.picture, static_argnums=(0, 3, 4))
    memory = draw.lower(plan, arrays, given, length, 512).compile().memory_analysis()
    assert memory.temp_size_in_bytes < length**2 / 4


def measure(plan, arrays, given, queries, counts=COUNTS):
    run = jax.jit(attention.coverage, static_argnums=(0, 3, 5))
    return jax.tree.map(np.asarray, run(plan, arrays, given, counts, jnp.asarray(queries), NEAR))


def dense_coverage(kind, case, inputs, queries):
    """What is seen and random, the same of far keys, near keys, all by number of rounds; effective keys."""
    key = None if case.shared else inputs.key
    options = {"causal": case.causal, "looks_ahead": case.looks_ahead}
    attend = jax.jit(partial(references.attention_weights, **options))
    weights = np.asarray(attend(inputs.query, key, window("full", case, inputs))[0, 0, 0], np.float64)[queries]
    in_window = np.asarray(window(kind, case, inputs))[0, 0]
    can_see = weights > 0
    chunks = np.arange(case.length) // 4
    is_far = (chunks < chunks[queries][:, None] - 1) | (chunks > chunks[queries][:, None])
    seen, random, far_seen, far_random, near = [], [], [], [], []
    for count in COUNTS:
        is_seen = in_window[:count].any(0)[queries] & can_see
        seen.append((weights * is_seen).sum(1).mean())
        random.append((is_seen.sum(1) / can_see.sum(1)).mean())
        far_seen.append((weights * is_seen * is_far).sum() / (weights * is_far).sum())
        shares = [(x & is_far & can_see).sum(1) / can_see.sum(1) for x in (is_seen, can_see)]
        far_random.append(shares[0].sum() / shares[1].sum())
        near.append(1 - shares[0].sum() / (is_seen.sum(1) / can_see.sum(1)).sum())
    entropy = -np.sum(weights * np.log(np.where(can_see, weights, 1)), axis=1)
    return seen, random, far_seen, far_random, near, np.exp(entropy).mean()


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("lsh", Case(dtype="float32", rounds=3)),
        ("lsh", Case(dtype="float32", rounds=3, looks_ahead=True)),
        ("lsh", Case(dtype="float32", rounds=3, within_bucket=True)),
        ("lsh", Case(dtype="float32", rounds=3, causal=False, after=1)),
        ("local", Case(dtype="float32", rounds=0, shared=False)),
        ("local", Case(dtype="float32", rounds=0)),
    ],
)
def test_coverage_is_the_share_of_dense_full_attention_on_the_keys_that_are_seen(kind, case):
    plan, arrays, given, inputs = row(kind, case)
    queries = np.arange(1, case.length, 3)
    actual = measure(plan, arrays, given, queries)
    seen, random, far_seen, far_random, near, num_effective_keys = dense_coverage(kind, case, inputs, queries)
    references.assert_close(actual.seen, np.array(seen), TOLERANCE)
    references.assert_close(actual.random, np.array(random), TOLERANCE)
    references.assert_close(actual.far_seen, np.array(far_seen), TOLERANCE)
    references.assert_close(actual.far_random, np.array(far_random), TOLERANCE)
    references.assert_close(actual.near, np.array(near), TOLERANCE)
    references.assert_close(actual.num_effective_keys, np.array(num_effective_keys), TOLERANCE)


def test_coverage_never_falls_with_more_rounds():
    case = Case(dtype="float32", rounds=4, length=64, before=0)
    plan, arrays, given, _ = row("lsh", case)
    actual = measure(plan, arrays, given, np.arange(case.length), (1, 2, 3, 4))
    for shares in (actual.seen, actual.local, actual.random):
        assert np.all(np.diff(shares) > -1e-6) and shares[-1] > shares[0]


@pytest.mark.parametrize("kind", ["local", "lsh"])
def test_coverage_is_1_where_a_window_holds_everything(kind):
    case = Case(dtype="float32", rounds=3, length=CHUNK)
    actual = measure(*row(kind, case)[:3], np.arange(case.length))
    references.assert_close(actual.seen, np.ones(3), TOLERANCE)
    references.assert_close(actual.random, np.ones(3), TOLERANCE)


def test_a_full_layer_covers_everything():
    actual = measure(*row("full", Case(dtype="float32", rounds=0))[:3], np.arange(4))
    references.assert_close(actual.seen, np.ones(len(COUNTS)), TOLERANCE)


def test_equal_scores_make_all_keys_effective():
    plan, arrays, given, _ = row("full", Case(dtype="float32", rounds=0, shared=False))
    actual = measure(plan, jax.tree.map(jnp.zeros_like, arrays), given, np.array([19]))
    assert math.isclose(actual.num_effective_keys, 20, rel_tol=1e-5)
