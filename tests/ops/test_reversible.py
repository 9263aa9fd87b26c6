"""The reversible stack equals ordinary autodiff of the same function, without storing what it can rebuild."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import dropout, reversible
from tests import references

BATCH, LENGTH, EMBED = 2, 7, 5
STACKS = (reversible.scan_blocks, reversible.reversible_scan_blocks)


def _mix(params, x, context, fixed, saved):
    """Mixes positions, reads the context, drops entries: stands for attention."""
    del saved
    mixed = jnp.tanh(jnp.einsum("blf,lm,fe->bme", x, context["mixing"], params["kernel"])) + context["shift"][:, None]
    row = jnp.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2])
    return dropout.dropout(mixed, 0.3, fixed, row), None


def _feed_forward(params, x, row, fixed):
    """Position by position; the dropout mask depends on the row in the whole array."""
    hidden = dropout.dropout(jax.nn.gelu(x @ params["hidden"]), 0.3, fixed, row)
    return hidden @ params["output"] + params["bias"][None, None]


def _residuals(chunk_length):
    return reversible.residual(_mix), reversible.position_wise(_feed_forward, chunk_length)


def _inputs(num_blocks, dtype="float64"):
    """params, x1, x2, context, fixed."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[-2]), dtype)  # noqa: E731
    params = (
        {"kernel": normal(num_blocks, EMBED, EMBED)},
        {
            "hidden": normal(num_blocks, EMBED, 8),
            "output": normal(num_blocks, 8, EMBED),
            "bias": normal(num_blocks, EMBED),
        },
    )
    x1, x2 = normal(BATCH, LENGTH, EMBED), normal(BATCH, LENGTH, EMBED)
    context = {"mixing": normal(LENGTH, LENGTH), "shift": normal(BATCH, EMBED)}
    seeds = jnp.asarray(rng.integers(0, 2**32, (2, num_blocks)), jnp.uint32)
    return params, x1, x2, context, tuple(seeds)


def _plain(params, x1, x2, context, fixed):
    """The same stack as a Python loop over blocks, differentiated by JAX."""
    row = jnp.arange(BATCH * LENGTH).reshape(BATCH, LENGTH)
    functions = []
    for block in range(len(fixed[0])):
        attention, feed_forward = jax.tree.map(lambda x, block=block: x[block], params)
        functions += [
            lambda x, p=attention, s=fixed[0][block]: _mix(p, x, context, s, None)[0],
            lambda x, p=feed_forward, s=fixed[1][block]: _feed_forward(p, x, row, s),
        ]
    return references.residual_stack(functions, x1, x2)


def _value_and_gradients(stack, params, x1, x2, context, fixed):
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((2, *x1.shape)), x1.dtype)
    run = lambda *args: jnp.stack(stack(*args, fixed))  # noqa: E731
    return references.value_and_vjp(run, cotangent, params, x1, x2, context)


@pytest.mark.parametrize(
    ("stack", "num_blocks", "chunk_length"), [(STACKS[0], 4, None), (STACKS[1], 1, None), (STACKS[1], 4, 3)]
)
def test_values_and_all_gradients_equal_a_plain_loop(x64, stack, num_blocks, chunk_length):
    inputs = _inputs(num_blocks)
    actual = _value_and_gradients(functools.partial(stack, _residuals(chunk_length)), *inputs)
    expected = _value_and_gradients(_plain, *inputs)
    references.assert_close(actual[0], expected[0], references.VALUE_TOLERANCE["float64"])
    references.assert_close(actual[1], expected[1], references.GRADIENT_TOLERANCE["float64"])


@pytest.mark.parametrize("num_residuals", [1, 3])
def test_an_odd_number_of_residual_functions_swaps_the_streams_correctly(x64, num_residuals):
    scale = jnp.linspace(0.2, 0.9, 4 * num_residuals).reshape(num_residuals, 4)
    x1, x2 = np.random.default_rng(0).standard_normal((2, BATCH, LENGTH, EMBED))
    tanh = reversible.residual(lambda p, x, context, fixed, saved: (jnp.tanh(p * x), None))

    def plain(scale, x1, x2):
        order = [p for block in zip(*scale, strict=True) for p in block]
        return jnp.stack(references.residual_stack([lambda x, p=p: jnp.tanh(p * x) for p in order], x1, x2))

    def stack(scale, x1, x2):
        fixed = (None,) * num_residuals
        return jnp.stack(reversible.reversible_scan_blocks((tanh,) * num_residuals, tuple(scale), x1, x2, (), fixed))

    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((2, *x1.shape)))
    actual, expected = (references.value_and_vjp(f, cotangent, scale, x1, x2) for f in (stack, plain))
    references.assert_close(actual, expected, references.GRADIENT_TOLERANCE["float64"])


@pytest.mark.slow
def test_float32_gradients_stay_close_to_a_plain_loop():
    inputs = _inputs(4, "float32")
    actual = _value_and_gradients(functools.partial(reversible.reversible_scan_blocks, _residuals(3)), *inputs)
    expected = _value_and_gradients(_plain, *inputs)
    references.assert_close(actual[0], expected[0], references.VALUE_TOLERANCE["float32"])
    references.assert_close(actual[1], expected[1], references.GRADIENT_TOLERANCE["float32"])


def test_discrete_decisions_are_saved_and_not_taken_again_on_rebuilt_inputs():
    def apply(params, x, context, fixed, saved):
        is_positive = x > 0 if saved is None else saved
        return jnp.where(is_positive, params, -2 * params) * x, is_positive

    def gradients(stack, x1, x2):
        run = lambda x1, x2: stack((reversible.residual(apply),), params, x1, x2, (), (None,))[1]  # noqa: E731
        return references.value_and_vjp(run, jnp.ones_like(x1), x1, x2)[1]

    # The first stream is so large that the second is rebuilt with an error that flips the sign of many entries.
    params = (jnp.array([0.5, -0.25, 0.125]),)
    x1, x2 = np.random.default_rng(0).standard_normal((2, BATCH, 64, EMBED)).astype(np.float32)
    rebuilt, plain = (gradients(stack, 1e4 * x1, 1e-4 * x2) for stack in STACKS[::-1])
    references.assert_close(rebuilt, plain, references.GRADIENT_TOLERANCE["float32"])


def test_undoing_a_residual_function_equals_autodiff_and_subtraction(x64):
    params, x, other, context, fixed = _inputs(1)
    params = jax.tree.map(lambda p: p[0], params)
    cotangent, onto_cotangent = other, 2 * other
    for index, residual in enumerate(_residuals(3)):
        seed = fixed[index][0]
        undone, *gradients = residual.undo(params[index], x, other, context, seed, None, cotangent, onto_cotangent)
        run = lambda p, x, c, i=index, s=seed: _residuals(None)[i].apply(p, x, 0 * x, c, s)[0]  # noqa: E731
        value, expected = references.value_and_vjp(run, cotangent, params[index], x, context)
        expected = (expected[0], onto_cotangent + expected[1], expected[2])
        references.assert_close(undone, other - value, references.VALUE_TOLERANCE["float64"])
        references.assert_close(tuple(gradients), expected, references.GRADIENT_TOLERANCE["float64"])


def _scratch_bytes(stack, num_blocks):
    length, embed = 256, 64
    apply = reversible.residual(lambda p, x, context, fixed, saved: (jnp.tanh(x @ p), None))

    def loss(params, x1, x2):
        return jnp.sum(stack((apply, apply), (params, params), x1, x2, (), (None, None))[0] ** 2)

    shapes = (num_blocks, embed, embed), (1, length, embed), (1, length, embed)
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=1)).lower(*abstract).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_depth_as_autodiff_does():
    plain, rebuilt = ([_scratch_bytes(stack, depth) for depth in (2, 32)] for stack in STACKS)
    activations = 256 * 64 * 4
    assert plain[1] - plain[0] > 30 * activations
    # One layer's parameter gradient is a quarter of an activation; grad(argnums=1) keeps none of them.
    assert rebuilt[1] - rebuilt[0] < 2 * activations
