"""Who is attended: causality, padding, self as a last resort; and what must not change the result."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import attention
from reformer.ops.masking import Rule
from reformer.ops.plan import Arrays
from tests import references
from tests.ops.cases import BATCH, CHUNK, HEADS, Case, arguments, call, cases, grid, make_inputs

KINDS = pytest.mark.parametrize("kind", ["lsh", "local", "full"])
FLOAT32, GRADIENT = references.VALUE_TOLERANCE["float32"], references.GRADIENT_TOLERANCE["float32"]


def _weights(kind, case):
    """Attention weights [b, h, q, k], once from the forward pass (value = identity), once from the value's gradient."""
    inputs = make_inputs(case)
    query, key, _ = arguments(case, inputs)
    eye = jnp.broadcast_to(jnp.eye(case.length)[None, :, None], (BATCH, case.length, HEADS, case.length))
    op = call(kind, case, inputs)
    out, (gradient,) = references.value_and_vjp(lambda value: op(query, key, value), eye, eye)
    return [np.asarray(out).swapaxes(1, 2), np.asarray(gradient).transpose(0, 2, 3, 1)]


@KINDS
@cases(
    Case(length=24, after=1, rounds=3, rate=0.3, masked=True, dtype="float32"),
    slow=(
        Case(length=24, after=1, rounds=3, dtype="float32"),
        Case(length=24, after=1, shared=False, dtype="float32"),
    ),
)
def test_future_keys_get_exactly_zero_weight(kind, case):
    forwards, backwards = _weights(kind, case)
    assert np.all(np.triu(forwards, 1) == 0)
    assert np.all(np.triu(backwards, 1) == 0)
    if not case.rate:
        np.testing.assert_allclose(forwards.sum(-1), 1, atol=FLOAT32)
        np.testing.assert_allclose(backwards.sum(-1), 1, atol=GRADIENT)


@KINDS
@cases(*(Case(length=24, causal=c, shared=c, masked=True, dtype="float32") for c in (True, False)))
def test_masked_keys_get_exactly_zero_weight(kind, case):
    mask = np.asarray(make_inputs(case).mask)
    for weights in _weights(kind, case):
        for row in range(BATCH):
            assert np.all(weights[row][:, mask[row]][:, :, ~mask[row]] == 0)


@KINDS
@cases(*grid(length=(24,), before=(0,), within_bucket=(True, False), dtype=("float32",)))
def test_a_token_attends_to_itself_exactly_when_it_has_nothing_else(kind, case):
    for weights, tolerance in zip(_weights(kind, case), (FLOAT32, GRADIENT), strict=True):
        own = np.diagonal(weights, axis1=-2, axis2=-1)
        has_others = np.any(weights * (1 - np.eye(case.length)) != 0, axis=-1)
        assert np.any(has_others)
        assert not np.any(has_others[:, :, 0]), "the first token has nothing else"
        assert np.all(own[has_others] == 0)
        np.testing.assert_allclose(own[~has_others], 1, atol=tolerance)


@pytest.mark.parametrize("kind", ["local", "full"])
def test_a_query_without_a_key_gets_zero(kind):
    case = Case(length=16, shared=False, masked=True, dtype="float32")
    inputs = make_inputs(case)
    inputs.mask = jnp.arange(16)[None] >= jnp.array([[3], [16]])
    args = arguments(case, inputs)
    out, gradients = references.value_and_vjp(call(kind, case, inputs), inputs.cotangent, *args)
    assert np.all(np.asarray(out)[0, 3:] != 0)
    for array in (out, *gradients):
        assert np.all(np.isfinite(array))
        assert np.all(np.asarray(array)[0, :3] == 0)
        assert np.all(np.asarray(array)[1] == 0)


def test_unit_keys_and_raw_queries_give_the_hand_computed_weights():
    # Token 0 = (3, 4) scores 3 with the unit key of (1, 0), 4 with that of (0, 2), and not itself.
    query = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])[None, :, None]
    value = jnp.array([[100.0, 100.0], [1.0, 0.0], [0.0, 1.0]])[None, :, None]
    out = attention.full_attention(query, None, value, causal=False)
    weight = 1 / (1 + math.e)
    np.testing.assert_allclose(out[0, 0, 0], [weight, 1 - weight], rtol=FLOAT32)
    out = attention.full_attention(query, None, value, causal=True)
    np.testing.assert_allclose(out[0, :2, 0], [[100, 100], [100, 100]], rtol=FLOAT32)


def test_separate_keys_are_scaled_by_the_root_of_head_dim():
    query, key = jnp.array([[4.0, 0, 0, 0], [4.0, 0, 0, 0]]), jnp.array([[1.0, 0, 0, 0], [2.0, 0, 0, 0]])
    value = jnp.array([[1.0], [0.0]])
    arrays = (x[None, :, None] for x in (query, key, value))
    out = attention.full_attention(*arrays, causal=True)
    np.testing.assert_allclose(out[0, :, 0, 0], [1, 1 / (1 + math.exp(2))], rtol=FLOAT32)


@pytest.mark.parametrize("kind", ["lsh", "local"])
@cases(Case(length=CHUNK, rounds=3, masked=True, dtype="float32"))
def test_one_chunk_equals_full_attention(kind, case):
    inputs = make_inputs(case)
    args = arguments(case, inputs)
    chunked, full = (jax.jit(call(name, case, inputs))(*args) for name in (kind, "full"))
    references.assert_close(chunked, full, FLOAT32)


@KINDS
@cases(*(Case(after=1, causal=c, shared=c, correct_duplicates=c, dtype="float32") for c in (True, False)))
def test_padding_on_the_right_does_not_change_real_tokens(kind, case):
    real = 21
    padded, short = make_inputs(case), make_inputs(case)
    padded.mask = jnp.broadcast_to(jnp.arange(case.length)[None] < real, (BATCH, case.length))
    short_case = dataclasses.replace(case, length=real)
    short_args = jax.tree.map(lambda x: x[:, :real], arguments(case, short))
    out = jax.jit(call(kind, case, padded))(*arguments(case, padded))
    references.assert_close(out[:, :real], jax.jit(call(kind, short_case, short))(*short_args), FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shared"), [("lsh", True), ("local", True), ("local", False), ("full", False)])
def test_a_row_of_nothing_but_padding_is_finite_and_has_no_gradient(kind, shared):
    case = Case(shared=shared, dtype="float32")
    inputs = make_inputs(case)
    inputs.mask = jnp.broadcast_to(jnp.array([[True], [False]]), (BATCH, case.length))
    args = arguments(case, inputs)
    out, gradients = references.value_and_vjp(call(kind, case, inputs), inputs.cotangent, *args)
    assert all(np.all(np.isfinite(x)) for x in (out, *jax.tree.leaves(gradients)))
    assert np.all(np.asarray(gradients[0])[1] == 0), "whoever has nothing but itself to attend to has nothing to learn"
    cotangent = inputs.cotangent.at[1].set(0)  # what a loss that ignores padding sends back
    _, gradients = references.value_and_vjp(call(kind, case, inputs), cotangent, *args)
    assert all(np.all(np.asarray(x)[1] == 0) for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_length": 0}, "chunk_length=0 must be an integer of at least 1"),
        ({"num_chunks_before": -1}, "num_chunks_before=-1 must be an integer of at least 0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0 must be at least 0 and below 1"),
        ({"semantics": "trax"}, "semantics='trax' must be one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    x = jnp.zeros((1, 8, 1, 4))
    with pytest.raises(ValueError, match=message):
        attention.local_attention(x, x, x, **{"chunk_length": 4, **changes})


@pytest.mark.parametrize(
    ("key", "value", "mask", "message"),
    [
        (
            (1, 8, 1, 4),
            (1, 8, 1, 4),
            None,
            r"query \(1, 8, 2, 4\), key \(1, 8, 1, 4\), .* heads must be the same",
        ),
        ((1, 8, 2, 4), (1, 6, 2, 4), None, r"value \(1, 6, 2, 4\): batch, length and heads"),
        ((1, 8, 2, 3), (1, 8, 2, 4), None, "head_dim in query and key"),
        (None, (1, 8, 2, 4), (1, 7), r"mask \(1, 7\) of float32 must be \[batch, length\] = \(1, 8\) of bool"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(key, value, mask, message):
    # Not by the public functions, whose annotations are checked in tests.
    key, mask = (None if shape is None else jnp.zeros(shape) for shape in (key, mask))
    with pytest.raises(ValueError, match=message):
        attention._check(Arrays(jnp.zeros((1, 8, 2, 4)), key, jnp.zeros(value)), mask, Rule(True, False))


def test_mixed_types_are_refused():
    x = jnp.zeros((1, 8, 1, 4))
    with pytest.raises(ValueError, match="must be equal"):
        attention.full_attention(x, x, x.astype(jnp.bfloat16))
