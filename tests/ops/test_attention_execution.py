"""How attention runs must not change what it computes: dropout replay, blocks, vmap, devices, memory."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from reformer.ops import attention, dropout, hashing, masking, plan, planned
from tests import references
from tests.ops.cases import (
    BATCH,
    CHUNK,
    DROPOUT_RNG,
    FACTORS,
    HEAD_DIM,
    HEADS,
    Case,
    arguments,
    call,
    cases,
    check,
    dropout_mask,
    lsh,
    make_inputs,
)

KINDS = pytest.mark.parametrize("kind", ["lsh", "local", "full"])
FLOAT32 = references.VALUE_TOLERANCE["float32"]


OPS = {"lsh": attention.lsh_attention, "local": attention.local_attention}


def _with_blocks_of(scores, monkeypatch):
    for name in ("_SCORES_AT_ONCE_CPU", "_FULL_SCORES_AT_ONCE_CPU", "_SCORES_AT_ONCE"):
        monkeypatch.setattr(plan, name, scores)


@pytest.mark.parametrize(("before", "after"), [(2, 0), (1, 2)])
def test_blocks_shorter_than_their_windows_see_the_right_chunks(before, after, monkeypatch):
    case = Case(length=60, before=before, after=after, causal=not after, masked=True, rounds=0, shared=False)
    _with_blocks_of(1, monkeypatch)
    check("local", dataclasses.replace(case, dtype="float32"))


@pytest.mark.parametrize("kind", ["lsh", pytest.param("local", marks=pytest.mark.slow)])
def test_blocks_that_do_not_divide_windows_that_wrap_around_count_them_once(kind, monkeypatch):
    case = Case(length=5 * CHUNK, after=1, causal=False, masked=True, rounds=2, dtype="float32")
    inputs = make_inputs(case)
    monkeypatch.setattr(attention, f"{kind}_attention", functools.partial(OPS[kind], semantics="huggingface"))
    op, args = call(kind, case, inputs), arguments(case, inputs)
    expected = references.value_and_vjp(op, inputs.cotangent, *args)
    _with_blocks_of(2 * 3 * CHUNK**2, monkeypatch)  # 2, 2 and 1 chunks
    actual = references.value_and_vjp(op, inputs.cotangent, *args)
    references.assert_close(actual, expected, FLOAT32)


@pytest.mark.slow
@KINDS
def test_attention_dropout_is_replayed_by_the_same_key_and_changes_with_it(kind, monkeypatch):
    case = Case(rate=0.3, dtype="float32")
    inputs = make_inputs(case)
    args = arguments(case, inputs)
    first = call(kind, case, inputs)(*args)
    np.testing.assert_array_equal(first, call(kind, case, inputs)(*args))
    # Another program may round otherwise, but another mask would be far away.
    np.testing.assert_allclose(first, jax.jit(call(kind, case, inputs))(*args), rtol=FLOAT32, atol=FLOAT32)
    monkeypatch.setattr("tests.ops.cases.DROPOUT_RNG", jax.random.key(43))
    assert np.any(first != call(kind, case, inputs)(*args))


def test_attention_dropout_masks_of_rounds_heads_and_examples_are_independent():
    masks = np.asarray(dropout_mask(Case(length=128, rounds=2, rate=0.5))).reshape(-1, 128 * 128) - 0.5
    correlations = np.corrcoef(masks)[np.triu_indices(len(masks), 1)]
    assert np.max(np.abs(correlations)) < 5 / 128
    assert abs(masks.mean()) < 5 * 0.5 / np.sqrt(masks.size)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scores"), [("lsh", 1), ("lsh", 600), ("local", 600), ("full", 300)])
def test_blocked_execution_equals_unblocked(kind, scores, monkeypatch):
    case = Case(length=60, after=1, masked=True, correct_duplicates=True, within_bucket=True, rate=0.3, dtype="float32")
    inputs = make_inputs(case)
    args = arguments(case, inputs)
    expected = references.value_and_vjp(call(kind, case, inputs), inputs.cotangent, *args)
    _with_blocks_of(scores, monkeypatch)
    actual = references.value_and_vjp(call(kind, case, inputs), inputs.cotangent, *args)
    references.assert_close(actual, expected, FLOAT32)


@pytest.mark.slow
@KINDS
def test_vmap_equals_a_loop(kind):
    case = Case(length=20, masked=True, rate=0.3, dtype="float32")
    inputs = make_inputs(case)
    op = call(kind, case, inputs)
    query, value = jnp.stack([inputs.query, inputs.key]), jnp.stack([inputs.value, inputs.cotangent])
    step = jax.jit(lambda q, v: jax.value_and_grad(lambda q, v: jnp.sum(op(q, None, v) ** 2), argnums=(0, 1))(q, v))
    looped = jax.tree.map(lambda *x: jnp.stack(x), *[step(q, v) for q, v in zip(query, value, strict=True)])
    references.assert_close(jax.vmap(step)(query, value), looped, references.GRADIENT_TOLERANCE["float32"])


# The form for code with its own backward pass


def _plan(kind, case):
    if kind == "full":
        return planned.full_plan(
            case.length, masking.Rule(case.causal, case.shared, case.rate, looks_ahead=case.looks_ahead)
        )
    window = {"before": case.before, "after": case.after, "looks_ahead": case.looks_ahead}
    rule = masking.Rule(case.causal, case.shared, case.rate, **window)
    return planned.chunked_plan(case.length, CHUNK, rule, case.correct_duplicates and kind == "lsh")


def swap_heads(tree):
    return jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), tree)


@pytest.mark.slow
@KINDS
@cases(
    Case(masked=True, rounds=3, correct_duplicates=True),
    Case(masked=True, rounds=1, rate=0.3, after=1),
    Case(masked=True, rounds=1, looks_ahead=True),
    Case(masked=True, rounds=3, looks_ahead=True),
)
def test_output_and_gradients_together_equal_autodiff_of_the_public_op(x64, kind, case):
    inputs = make_inputs(case)
    args = arguments(case, inputs)
    order, seeds = None, None
    if kind == "lsh":
        order = attention.sort_by_hash(jnp.swapaxes(inputs.query, 1, 2), inputs.rotations, FACTORS, inputs.mask)
        if not case.correct_duplicates:
            order = order._replace(buckets=None)
    if case.rate:
        seeds = attention.dropout_seeds(dropout.draw_seed(DROPOUT_RNG), BATCH, HEADS)
    given = plan.Given(inputs.mask, order, seeds)
    run = jax.jit(functools.partial(planned.attend_with_gradients, _plan(kind, case)))
    out, gradients = swap_heads(run(swap_heads(plan.Arrays(*args)), given, swap_heads(inputs.cotangent)))
    expected = references.value_and_vjp(call(kind, case, inputs), inputs.cotangent, *args)
    references.assert_close((out, gradients), expected, references.VALUE_TOLERANCE["float64"])


@pytest.mark.parametrize("kind", ["lsh", "local"])
def test_output_and_gradients_together_count_chunks_that_wrap_around_once(kind, monkeypatch):
    case = Case(length=5 * CHUNK, after=1, causal=False, masked=True, rounds=1, dtype="float32")
    inputs = make_inputs(case)
    arrays, out_gradient = swap_heads(plan.Arrays(*arguments(case, inputs))), swap_heads(inputs.cotangent)
    order = None
    if kind == "lsh":
        order = attention.sort_by_hash(arrays.query, inputs.rotations, FACTORS, inputs.mask)._replace(buckets=None)
    given = plan.Given(inputs.mask, order)
    _with_blocks_of(2 * 3 * CHUNK**2, monkeypatch)  # 2, 2 and 1 chunks
    in_blocks = _plan(kind, case)
    in_blocks = in_blocks._replace(rule=in_blocks.rule._replace(semantics="huggingface"))
    out, transpose = jax.vjp(lambda arrays: planned.attend(in_blocks, arrays, given), arrays)
    together = jax.jit(functools.partial(planned.attend_with_gradients, in_blocks))(arrays, given, out_gradient)
    references.assert_close(together, (out, *transpose(out_gradient)), FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [1, 3])  # of four
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_rows_after_each_other_give_what_rows_together_give(x64, num_rows, dtype):
    case = Case(masked=True, rounds=3, looks_ahead=True, dtype=dtype)
    inputs = make_inputs(case)
    query, value, out_gradient = swap_heads((inputs.query, inputs.value, inputs.cotangent))
    taps = jax.random.normal(jax.random.key(5), (BATCH, HEADS, 2), query.dtype)
    order = attention.sort_by_hash(query, inputs.rotations, FACTORS, inputs.mask)
    arrays, given = plan.Arrays(query, None, value, taps), plan.Given(inputs.mask, order._replace(buckets=None))
    together = _plan("lsh", case)
    assert together.rows_at_once >= BATCH * HEADS == 4
    expected = jax.jit(functools.partial(planned.attend_with_gradients, together))(arrays, given, out_gradient)
    after_each_other = together._replace(rows_at_once=num_rows)
    actual = jax.jit(functools.partial(planned.attend_with_gradients, after_each_other))(arrays, given, out_gradient)
    tolerance = references.VALUE_TOLERANCE[dtype]
    references.assert_close(actual, expected, tolerance)
    out, transpose = jax.vjp(lambda arrays: planned.attend(after_each_other, arrays, given), arrays)
    references.assert_close((out, *transpose(out_gradient)), expected, tolerance)


# Devices


def _mesh():
    return jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


TOKENS = P("data", None, "tensor")
SPECS = (TOKENS, TOKENS, P("tensor"), P("data"))


def _device_arguments():
    """Query, value, rotations, mask of 8 examples and 2 heads."""
    rng = np.random.default_rng(0)
    query, value = rng.standard_normal((2, 8, 40, 2, HEAD_DIM)).astype(np.float32)
    rotations = hashing.draw_rotations(jax.random.key(3), 2, HEAD_DIM, 2, FACTORS)
    return query, value, rotations, rng.random((8, 40)) < 0.8


def _attend(query, value, rotations, mask):
    case = Case(dtype="float32")
    inputs = make_inputs(case)
    inputs.rotations, inputs.mask = rotations, mask
    return lsh(case, inputs)(query, value)


def _loss_and_gradients(attend):
    def loss(query, value, *others):
        out = attend(query, value, *others)
        return jnp.sum(out**2), out

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.slow
def test_eight_devices_equal_one():
    sharded = jax.shard_map(_attend, mesh=_mesh(), in_specs=SPECS, out_specs=TOKENS, check_vma=False)
    arguments = _device_arguments()
    actual, expected = (_loss_and_gradients(attend)(*arguments) for attend in (sharded, _attend))
    references.assert_close(actual, expected, FLOAT32)


def test_eight_devices_do_not_communicate():
    shardings = [NamedSharding(_mesh(), spec) for spec in SPECS]
    arguments = jax.tree.map(jax.device_put, _device_arguments(), tuple(shardings))
    sharded = jax.shard_map(_attend, mesh=_mesh(), in_specs=SPECS, out_specs=TOKENS, check_vma=False)
    program = _loss_and_gradients(sharded).lower(*arguments).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", program)


# The compiled program


def _scatters(function, *args):
    """How many scatters add, and how many there are, in the program before any optimization."""
    text = jax.jit(function).lower(*args).as_text()
    bodies = re.findall(r'"stablehlo\.scatter".*?stablehlo\.return', text, flags=re.DOTALL)
    return sum("stablehlo.add" in body for body in bodies), len(bodies)


@cases(
    Case(rounds=3, after=1, masked=True, dtype="float32"),
    Case(rounds=3, after=1, correct_duplicates=True, within_bucket=True, rate=0.3, dtype="float32"),
)
def test_the_gradient_of_lsh_attention_has_no_scatter_add(case):
    inputs = make_inputs(case)
    op = lsh(case, inputs)
    gradient = jax.grad(lambda query, value: jnp.sum(op(query, value) ** 2), argnums=(0, 1))
    adding, all_scatters = _scatters(gradient, inputs.query, inputs.value)
    assert all_scatters > 0, "the inverse permutation is a scatter of iota"
    assert adding == 0
    plain_gather = jax.grad(lambda x: jnp.sum(x[jnp.array([2, 0, 1])] ** 2))
    assert _scatters(plain_gather, jnp.ones(3)) == (1, 1), "the counter does see a scatter-add"


def _scratch_bytes(kind, length):
    case = Case(length=length, dtype="float32")
    inputs = make_inputs(case)
    op = call(kind, case, inputs)
    gradient = jax.jit(jax.grad(lambda query, value: jnp.sum(op(query, None, value) ** 2), argnums=(0, 1)))
    lowered = gradient.lower(inputs.query, inputs.value)
    # Without the option XLA:CPU hides the scratch of fused attention.
    compiled = lowered.compile(compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""})
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", ["lsh", "full"])
def test_scratch_memory_grows_no_faster_than_the_length(kind):
    short, long = _scratch_bytes(kind, 4096), _scratch_bytes(kind, 16384)
    assert short > 0
    assert long <= 4.1 * short
