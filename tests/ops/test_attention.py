"""Full, local and LSH attention equal one dense softmax over explicit masks, in value and in every gradient."""

import jax.numpy as jnp
import pytest

from tests import references
from tests.ops.cases import LENGTHS, WINDOWS, Case, arguments, call, cases, check, grid, make_inputs

# Values and gradients in float64


@cases(
    Case(length=1, masked=True),
    Case(length=9, causal=False, masked=True),
    slow=grid(length=LENGTHS[1:], masked=(True,)),
)
def test_lsh_equals_dense_attention_at_any_length(x64, case):
    check("lsh", case)


@cases(slow=[Case(before=b, after=a, causal=c, rounds=3 if c else 1) for b, a in WINDOWS for c in (True, False)])
def test_lsh_equals_dense_attention_in_any_window(x64, case):
    check("lsh", case)


@cases(
    slow=grid(
        rounds=(3,),
        after=(1,),
        causal=(True, False),
        masked=(True,),
        within_bucket=(True, False),
        correct_duplicates=(True, False),
    )
)
def test_lsh_equals_dense_attention_with_every_option(x64, case):
    check("lsh", case)


@cases(
    Case(rate=0.3, correct_duplicates=True),
    slow=(
        Case(rate=0.3),
        *grid(rate=(0.3,), causal=(False,), correct_duplicates=(True, False)),
        Case(length=9, rounds=1, rate=0.3),
    ),
)
def test_lsh_equals_dense_attention_with_the_same_dropout_mask(x64, case):
    check("lsh", case)


@cases(
    Case(rounds=0, length=9, masked=True),
    slow=[
        *(Case(rounds=0, length=n, masked=True) for n in LENGTHS if n != 9),
        *(Case(rounds=0, length=n, masked=True, shared=False, causal=False) for n in LENGTHS),
    ],
)
def test_local_equals_dense_attention_at_any_length(x64, case):
    check("local", case)


@cases(
    Case(rounds=0, after=1, shared=False, causal=False),
    slow=(
        *(Case(rounds=0, before=b, after=a, rate=0.3) for b, a in WINDOWS),
        *(Case(rounds=0, before=b, after=a, shared=False, causal=False) for b, a in WINDOWS if (b, a) != (1, 1)),
    ),
)
def test_local_equals_dense_attention_in_any_window(x64, case):
    check("local", case)


@cases(*grid(rounds=(0,), length=(1, 40), causal=(True, False), masked=(True,), shared=(True, False)))
def test_full_equals_dense_attention(x64, case):
    check("full", case)


@cases(*(Case(rounds=0, causal=c, shared=c, rate=0.3) for c in (True, False)))
def test_full_equals_dense_attention_with_the_same_dropout_mask(x64, case):
    check("full", case)


# Other precisions


@pytest.mark.parametrize("kind", ["lsh", "local", "full"])
@cases(Case(masked=True, correct_duplicates=True, dtype="float32"))
def test_float32_equals_dense_attention(kind, case):
    check(kind, case)


@pytest.mark.parametrize("kind", ["lsh", "local", "full"])
@cases(Case(masked=True, dtype="bfloat16"), Case(masked=True, rounds=4, after=1, dtype="bfloat16"))
def test_bfloat16_stays_bfloat16_and_close_to_float32(kind, case):
    inputs = make_inputs(case)
    op, args = call(kind, case, inputs), arguments(case, inputs)
    out, gradients = references.value_and_vjp(op, inputs.cotangent, *args)
    exact = [None if x is None else x.astype(jnp.float32) for x in args]
    expected, expected_gradients = references.value_and_vjp(op, inputs.cotangent, *exact)
    assert out.dtype == jnp.bfloat16
    assert all(gradient.dtype == jnp.bfloat16 for gradient in gradients if gradient is not None)
    references.assert_close(out, expected, references.VALUE_TOLERANCE["bfloat16"])
    references.assert_close(gradients, expected_gradients, references.VALUE_TOLERANCE["bfloat16"])
