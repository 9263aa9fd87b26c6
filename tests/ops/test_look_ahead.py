"""Look-ahead values: a key gives the value of the token after it, to later tokens only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import attention
from tests import references
from tests.ops.cases import (
    BATCH,
    LENGTHS,
    WINDOWS,
    Case,
    arguments,
    call,
    cases,
    check,
    dense,
    grid,
    make_inputs,
    window,
)

KINDS = pytest.mark.parametrize("kind", ["lsh", "local", "full"])
AHEAD = Case(looks_ahead=True)


def _ahead(**changes):
    return dataclasses.replace(AHEAD, **changes)


def _grid(**axes):
    return grid(looks_ahead=(True,), **axes)


@KINDS
@cases(_ahead(length=9, masked=True), slow=_grid(length=LENGTHS, masked=(True,)))
def test_value_and_gradients_equal_dense_attention_at_any_length(x64, kind, case):
    check(kind, case)


@cases(slow=[_ahead(before=b, after=a, rounds=3) for b, a in WINDOWS])
def test_lsh_equals_dense_attention_in_any_window(x64, case):
    check("lsh", case)


@cases(
    _ahead(rounds=3, masked=True, within_bucket=True, correct_duplicates=True, rate=0.3),
    slow=_grid(rounds=(1, 3), after=(1,), within_bucket=(True, False), correct_duplicates=(True, False)),
)
def test_lsh_equals_dense_attention_with_every_option(x64, case):
    check("lsh", case)


@pytest.mark.parametrize("kind", ["local", "full"])
@cases(_ahead(shared=False, masked=True, rounds=0, rate=0.3))
def test_separate_projections_look_ahead_too(x64, kind, case):
    check(kind, case)


@KINDS
@cases(_ahead(masked=True), slow=(_ahead(masked=True, rounds=1, rate=0.3), _ahead(length=1)))
def test_taps_and_their_gradients_equal_those_of_dense_attention(x64, kind, case):
    case = dataclasses.replace(case, rounds=case.rounds if kind == "lsh" else 0)
    inputs = make_inputs(case)
    taps = jnp.array([[0.7, -0.3], [1.2, 0.4]])
    attend, reference = call(kind, case, inputs), dense(case, inputs, window(kind, case, inputs))

    def op(query, value, taps):
        return attend(query, None, value, taps=taps)

    def expected_op(query, value, taps):
        return reference(query, None, value, taps=taps)

    args = (inputs.cotangent, inputs.query, inputs.value, taps)
    actual, expected = (references.value_and_vjp(run, *args) for run in (op, expected_op))
    references.assert_close(actual, expected, references.VALUE_TOLERANCE["float64"])


@KINDS
@cases(_ahead(masked=True, dtype="float32"))
def test_float32_equals_dense_attention(kind, case):
    check(kind, case)


# Nothing of the future


@KINDS
def test_a_token_sees_the_value_after_an_earlier_key_and_never_beyond_its_own_position(kind):
    case = _ahead(length=24, rounds=3, dtype="float32")
    inputs = make_inputs(case)
    eye = jnp.broadcast_to(jnp.eye(case.length)[None, :, None], (BATCH, case.length, inputs.query.shape[2], 24))
    op = jax.jit(call(kind, case, inputs))
    weights = np.asarray(op(inputs.query, None, eye)).swapaxes(1, 2)  # [b, h, i, j]: what i takes of value j
    assert np.all(np.triu(weights, 1) == 0), "no value of a later token"
    assert np.all(weights[..., 0] == 0), "no key stands before the first value"
    np.testing.assert_allclose(weights[:, :, 1:].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["local", "full"])
def test_later_tokens_have_no_gradient_from_earlier_outputs(kind):
    case = _ahead(length=20, dtype="float32")
    inputs = make_inputs(case)
    op = call(kind, case, inputs)
    jacobians = jax.jit(jax.jacrev(lambda query, value: op(query, None, value)[0, :, 0].sum(-1), argnums=(0, 1)))
    for jacobian in jacobians(inputs.query, inputs.value):
        by_token = np.abs(np.asarray(jacobian[:, 0])).sum((-1, -2))  # [i, j]
        assert np.all(np.triu(by_token, 1) == 0)
        assert np.any(np.diagonal(by_token)[1:] > 0), "its own value, behind the key before it, it may see"


@KINDS
def test_a_token_without_an_earlier_key_gets_zero_and_so_do_its_gradients(kind):
    case = _ahead(length=8, rounds=2, masked=True, dtype="float32")
    inputs = make_inputs(case)
    inputs.mask = jnp.arange(8)[None] >= jnp.array([[3], [8]])  # the second row is nothing but padding
    args = arguments(case, inputs)
    out, gradients = references.value_and_vjp(call(kind, case, inputs), inputs.cotangent, *args)
    for array in (out, *jax.tree.leaves(gradients)):
        assert np.all(np.isfinite(array))
        assert np.all(np.asarray(array)[0, :3] == 0)
        assert np.all(np.asarray(array)[1] == 0)
    assert np.all(np.asarray(out)[0, 3] == 0), "the first real token has no key before it"
    assert np.all(np.asarray(out)[0, 4:] != 0)


def test_a_key_whose_next_token_is_hidden_is_not_used():
    query = jnp.ones((1, 4, 1, 2))
    value = jnp.array([1.0, 10.0, 100.0, 1000.0])[None, :, None, None]
    hole = jnp.array([[True, False, True, True]])
    out = attention.full_attention(query, None, value, looks_ahead=True, mask=hole)
    np.testing.assert_allclose(out.ravel(), [0, 0, 0, 1000], rtol=1e-6)  # of keys 0, 1, 2 only the last has both
    out = attention.full_attention(query, None, value, looks_ahead=True)
    np.testing.assert_allclose(out.ravel(), [0, 10, 55, 370], rtol=1e-6)


@pytest.mark.parametrize("options", [{"causal": False}, {"semantics": "huggingface"}])
def test_attention_that_may_not_look_ahead_refuses(options):
    x = jnp.zeros((1, 8, 1, 4))
    with pytest.raises(ValueError, match="looks_ahead=True needs causal=True and semantics='reformer'"):
        attention.local_attention(x, x, x, chunk_length=4, looks_ahead=True, **options)
