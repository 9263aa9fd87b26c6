"""The fused kernel equals the plain path, interpreted here, and lowers for accelerators, where it cannot run here."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.models.language import ReformerLM
from reformer.ops import attention, fused, planned
from reformer.ops.kernels import tiles
from reformer.ops.masking import Rule
from reformer.ops.plan import Arrays, Given, Order
from reformer.ops.planned import IMPLEMENTATIONS
from tests import references
from tests.ops.cases import BATCH, CHUNK, FACTORS, HEADS, Case, arguments, cases, local, lsh, make_inputs

SMALL = Case(length=24, dtype="float32")


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """Rows of these tests have several tiles and steps, as those of real lengths do."""
    monkeypatch.setattr(tiles, "_TILE", 16)


def _op(kind, case, inputs, implementation):
    """The op as a function of query, key (None if shared) and value."""
    if kind == "local":
        return functools.partial(local(case, inputs), implementation=implementation)
    return lambda query, _, value: lsh(case, inputs)(query, value, implementation=implementation)


def _value_and_gradients(kind, case, implementation, mask=None):
    inputs = make_inputs(case)
    inputs.mask = inputs.mask if mask is None else mask
    op = _op(kind, case, inputs, implementation)
    return references.value_and_vjp(op, inputs.cotangent, *arguments(case, inputs))


def _check(kind, case, mask=None):
    (out, gradients), expected = (_value_and_gradients(kind, case, name, mask) for name in ("pallas", "plain"))
    assert out.dtype == case.dtype
    references.assert_close(out, expected[0], references.VALUE_TOLERANCE[case.dtype])
    tolerance = (references.GRADIENT_TOLERANCE | {"bfloat16": references.VALUE_TOLERANCE["bfloat16"]})[case.dtype]
    references.assert_close(gradients, expected[1], tolerance)


def _change(case, **changes):
    return dataclasses.replace(case, **changes)


# Values and gradients


@cases(
    _change(SMALL, length=21, rounds=1, causal=False, masked=True, before=0, after=1, within_bucket=True),
    slow=(
        _change(SMALL, masked=True, rounds=3, rate=0.3),
        _change(SMALL, before=2, after=2, causal=False, rounds=1),
        _change(SMALL, length=20, before=2, rounds=3),
        _change(SMALL, before=0, masked=True, rate=0.3, within_bucket=True),
        _change(SMALL, length=1),
        _change(SMALL, looks_ahead=True, length=1),
        _change(SMALL, looks_ahead=True, masked=True, rate=0.3, within_bucket=True, after=1),
    ),
)
def test_lsh_by_the_kernel_equals_the_plain_path(case):
    _check("lsh", case)


@cases(
    _change(SMALL, rounds=0, shared=False, causal=False, before=1, after=2, masked=True, rate=0.3),
    _change(SMALL, rounds=0, length=19),
    slow=(
        _change(SMALL, rounds=0, before=0, masked=True),
        _change(SMALL, rounds=0, length=9, before=2, shared=False),
        _change(SMALL, rounds=0, length=7, after=1, rate=0.3),
        _change(SMALL, rounds=0, looks_ahead=True, masked=True, rate=0.3),
    ),
)
def test_local_by_the_kernel_equals_the_plain_path(case):
    _check("local", case)


@pytest.mark.slow
def test_the_kernel_equals_the_plain_path_in_float64(x64):
    _check("lsh", Case(length=21, after=1, masked=True, rounds=2, rate=0.3))


@pytest.mark.parametrize("kind", ["lsh", pytest.param("local", marks=pytest.mark.slow)])
def test_bfloat16_by_the_kernel_is_close_to_the_plain_path(kind):
    _check(kind, _change(SMALL, rounds=1, masked=True, dtype="bfloat16", shared=kind == "lsh"))


@pytest.mark.slow
@pytest.mark.parametrize("chunk_length", [3, 16, 17, 32])
def test_chunks_of_any_length_by_the_kernel_equal_the_plain_path(chunk_length, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.CHUNK", chunk_length)
    _check("lsh", _change(SMALL, length=70, rounds=1, masked=True, after=1))


@pytest.mark.parametrize(
    "kind, case",
    [
        ("lsh", _change(SMALL, masked=True, after=1, within_bucket=True, rate=0.3)),
        pytest.param("lsh", _change(SMALL, before=2, causal=False, rounds=1), marks=pytest.mark.slow),
        pytest.param("local", _change(SMALL, rounds=0, shared=False, masked=True), marks=pytest.mark.slow),
    ],
)
def test_the_kernel_for_a_tpu_equals_the_plain_path(kind, case, monkeypatch):
    monkeypatch.setattr(tiles, "_LANES", 8)
    monkeypatch.setattr(sharding, "target_platform", lambda: "tpu")
    _check(kind, case)


@pytest.mark.slow
def test_groups_of_rows_give_what_all_rows_give_where_values_look_ahead(monkeypatch):
    case = _change(SMALL, rounds=2, looks_ahead=True)
    inputs = make_inputs(case)
    query, value, out_gradient = (jnp.swapaxes(x, 1, 2) for x in (inputs.query, inputs.value, inputs.cotangent))
    permutation = jax.vmap(lambda rng: jax.random.permutation(rng, case.length))(jax.random.split(jax.random.key(0), 8))
    given = Given(order=Order(permutation.astype(jnp.int32).reshape(BATCH, HEADS, 2, -1)))

    taps = jax.random.normal(jax.random.key(5), (BATCH, HEADS, 2))
    arrays, rule = Arrays(query, None, value, taps), Rule(True, True, before=1, looks_ahead=True)

    def run(implementation):
        plan = planned.chunked_plan(case.length, CHUNK, rule, implementation=implementation)
        out, transpose = jax.vjp(lambda arrays: planned.attend(plan, arrays, given), arrays)
        together = jax.jit(functools.partial(planned.attend_with_gradients, plan))(arrays, given, out_gradient)
        return together, (out, *transpose(out_gradient))

    expected = run("plain")
    for num_rows in (1, 3):  # of four: groups of one size, and two of two
        monkeypatch.setattr(fused, "_BYTES_AT_ONCE", num_rows * 2 * (2 * query[0, 0].nbytes + taps[0, 0].nbytes))
        references.assert_close(run("pallas"), expected, references.GRADIENT_TOLERANCE["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_dropout_by_the_kernel_drops_the_very_weights_of_the_plain_path(masked):
    case = _change(SMALL, length=16, rounds=1, rate=0.5, after=1, masked=masked)
    inputs = make_inputs(case)
    eye = jnp.broadcast_to(jnp.eye(case.length)[None, :, None], (BATCH, case.length, HEADS, case.length))
    dropped = [
        np.asarray(jax.jit(_op("lsh", case, inputs, name))(inputs.query, None, eye)) == 0
        for name in ("plain", "pallas")
    ]
    np.testing.assert_array_equal(*dropped)


def test_a_query_without_a_key_gets_zero_from_the_kernel():
    case = _change(SMALL, length=16, shared=False, masked=True)
    inputs = make_inputs(case)
    inputs.mask = jnp.arange(16)[None] >= jnp.array([[3], [16]])
    op = _op("local", case, inputs, "pallas")
    out, gradients = references.value_and_vjp(op, inputs.cotangent, *arguments(case, inputs))
    assert np.all(np.asarray(out)[0, 3:] != 0)
    for array in (out, *gradients):
        assert np.all(np.isfinite(array))
        assert np.all(np.asarray(array)[0, :3] == 0)
        assert np.all(np.asarray(array)[1] == 0)


def test_a_row_of_nothing_but_padding_gets_the_same_from_the_kernel():
    case = _change(SMALL, rounds=1)
    _check("lsh", case, mask=jnp.broadcast_to(jnp.array([[True], [False]]), (BATCH, case.length)))


# Where it runs


@pytest.mark.slow
def test_the_kernel_under_vmap_equals_a_loop():
    case = _change(SMALL, masked=True, rounds=1, rate=0.3)
    inputs = make_inputs(case)
    op = _op("lsh", case, inputs, "pallas")
    queries = jnp.stack([inputs.query, inputs.key])
    gradient = jax.jit(jax.grad(lambda query: jnp.sum(op(query, None, inputs.value) ** 2)))
    looped = jnp.stack([gradient(query) for query in queries])
    references.assert_close(jax.vmap(gradient)(queries), looped, references.GRADIENT_TOLERANCE["float32"])


@pytest.mark.slow
def test_the_kernel_on_eight_devices_equals_one():
    case = _change(SMALL, length=16, rounds=2)
    inputs = make_inputs(case)
    query, value = (jnp.concatenate([x] * 2) for x in (inputs.query, inputs.value))

    def gradient(query, value, rotations):
        options = dataclasses.replace(inputs, rotations=rotations)
        op = _op("lsh", case, options, "pallas")
        out, transpose = jax.vjp(lambda query, value: op(query, None, value), query, value)
        return out, transpose(out)

    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    tokens = P("data", None, "tensor")
    specs = {"in_specs": (tokens, tokens, P("tensor")), "out_specs": (tokens, (tokens, tokens))}
    sharded = jax.shard_map(gradient, mesh=mesh, check_vma=False, **specs)
    actual, expected = (jax.jit(run)(query, value, inputs.rotations) for run in (sharded, gradient))
    references.assert_close(actual, expected, references.VALUE_TOLERANCE["float32"])


@pytest.mark.slow
def test_a_model_with_the_kernel_on_a_mesh_has_the_loss_and_gradients_of_the_plain_one():
    options = dict(num_layers=2, embed_dim=16, mlp_dim=16, num_heads=2, head_dim=8, max_length=32, vocab_size=16)
    options |= dict(num_buckets=4, lsh_chunk_length=8, local_chunk_length=8, attention_dropout_rate=0.1)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 29)))
    variables = ReformerLM(ReformerConfig(**options)).init({"params": jax.random.key(0)}, tokens)

    def loss(params, implementation):
        model = ReformerLM(ReformerConfig(**options, attention_implementation=implementation))
        rngs = {"hash": jax.random.key(1), "dropout": jax.random.key(2)}
        sums = model.apply({"params": params}, tokens, tokens, method="loss", deterministic=False, rngs=rngs)
        return sums[0] / sums[1]

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected = run(variables["params"], "plain")
    with jax.set_mesh(sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])):
        actual = run(variables["params"], "pallas")
    references.assert_close(actual, expected, references.GRADIENT_TOLERANCE["float32"])


# What is refused


def test_an_unknown_implementation_is_refused():
    x = jnp.zeros((1, 8, 1, 4))
    with pytest.raises(ValueError, match="implementation='triton' must be one of plain, pallas"):
        attention.local_attention(x, x, x, chunk_length=4, implementation="triton")


def test_options_that_the_kernel_does_not_have_are_refused_by_name():
    x = jnp.zeros((1, 8, 1, 4))
    with pytest.raises(ValueError, match="does not have semantics='huggingface'"):
        attention.local_attention(x, x, x, chunk_length=4, semantics="huggingface", implementation="pallas")
    case = _change(SMALL, correct_duplicates=True)
    with pytest.raises(ValueError, match="does not have correct_duplicates=True"):
        _value_and_gradients("lsh", case, "pallas")


@pytest.mark.parametrize(("head_dim", "dtype"), [(257, "bfloat16"), (16, "float64")])
def test_what_a_gpu_has_no_room_for_is_refused_before_it_is_compiled(head_dim, dtype, x64):
    x = jnp.zeros((1, 8, 1, head_dim), dtype)
    with sharding.compiling_for("cuda"), pytest.raises(ValueError, match=f"head_dim={head_dim} of {dtype} .*'plain'"):
        attention.local_attention(x, x, x, chunk_length=4, implementation="pallas")


@pytest.mark.parametrize("option", [{"semantics": "huggingface"}, {"lsh_correct_duplicates": True}])
def test_a_config_that_the_kernel_cannot_compute_is_refused(option):
    with pytest.raises(ValueError, match="attention_implementation='pallas' has neither"):
        ReformerConfig(attention_implementation="pallas", **option)


# Accelerators

IGNORE_DEPRECATION = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")  # JAX 0.11
DEVICES = {"cuda": ("NVIDIA H200", None, "gpu"), "tpu": ("TPU v5 lite", 1, "tpu")}
CALLS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}


def _lower(platform, function, *args):
    """The StableHLO of a function for a platform that this machine need not have."""
    device = AbstractDevice(*DEVICES[platform])
    mesh = AbstractMesh((1,), ("devices",), (AxisType.Explicit,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def _lower_gradient(platform, kind, case, implementation):
    inputs = make_inputs(case)
    op = _op(kind, case, inputs, implementation)

    def gradient(cotangent, *args):
        out, transpose = jax.vjp(op, *args)
        return out, transpose(cotangent)

    return _lower(platform, gradient, inputs.cotangent, *arguments(case, inputs))


@IGNORE_DEPRECATION
@pytest.mark.parametrize("platform", DEVICES)
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("lsh", _change(SMALL, rounds=1, masked=True, rate=0.1, after=1, within_bucket=True, dtype="bfloat16")),
        ("local", _change(SMALL, shared=False, causal=False)),
    ],
)
def test_the_kernels_lower_for_accelerators(platform, kind, case):
    program = _lower_gradient(platform, kind, case, "pallas")
    assert program.count(CALLS[platform]) == 2, "a forward and a backward kernel"


@IGNORE_DEPRECATION
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_on_a_gpu_the_gradient_of_lsh_attention_has_no_scatter_add(implementation):
    program = _lower_gradient("cuda", "lsh", _change(SMALL, rounds=3, after=1, masked=True), implementation)
    bodies = re.findall(r'"stablehlo\.scatter".*?stablehlo\.return', program, flags=re.DOTALL)
    assert bodies or implementation == "pallas", "the inverse permutation is a scatter of iota"
    assert not any("stablehlo.add" in body for body in bodies)


@IGNORE_DEPRECATION
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("num_buckets", "operands"), [(FACTORS, "{n}xui32"), ((2**15, 2**10), "{n}xui32, {n}xi32")])
def test_on_a_gpu_all_rows_are_sorted_at_once_by_an_unsigned_key(implementation, num_buckets, operands):
    case = _change(SMALL, rounds=2)
    inputs = make_inputs(case)
    rotations = jnp.zeros((HEADS, inputs.query.shape[-1], case.rounds, sum(num_buckets) // 2))
    op = functools.partial(attention.lsh_attention, rotations=rotations, num_buckets=num_buckets, chunk_length=CHUNK)
    run = functools.partial(op, implementation=implementation)
    program = _lower("cuda", jax.grad(lambda *args: jnp.sum(run(*args))), inputs.query, inputs.value)
    sorts = re.findall(r'"stablehlo\.sort".*?\}\) : \((.*?)\)', program, flags=re.DOTALL)
    num_keys = BATCH * HEADS * case.rounds * case.length
    assert [re.sub(r"tensor<(.*?)>", r"\1", types) for types in sorts] == [operands.format(n=num_keys)]
