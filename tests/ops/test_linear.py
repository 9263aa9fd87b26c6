"""Matrix products and LayerNorm equal what JAX derives, and the compiled gradient copies no operand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import linear
from tests import references


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "num_contracted"),
    [((2, 7, 6), (6, 5), 1), ((2, 7, 6), (6, 3, 4), 1), ((2, 7, 3, 4), (3, 4, 5), 2), ((6,), (6, 5), 1)],
)
def test_products_and_their_gradients_equal_those_of_jax(x64, x_shape, kernel_shape, num_contracted):
    x, kernel = _normal(0, *x_shape), _normal(1, *kernel_shape)
    of_x = tuple(range(x.ndim - num_contracted, x.ndim))
    numbers = ((of_x, tuple(range(num_contracted))), ((), ()))
    cotangent = _normal(2, *x_shape[:-num_contracted], *kernel_shape[num_contracted:])
    actual, expected = (
        references.value_and_vjp(lambda x, kernel, op=op: op(x, kernel, numbers), cotangent, x, kernel)
        for op in (linear.dot_general, jax.lax.dot_general)
    )
    references.assert_close(actual, expected, references.GRADIENT_TOLERANCE["float64"])


def test_layer_norm_and_its_gradients_equal_the_formula(x64):
    x, scale, bias, cotangent = _normal(0, 2, 7, 6), _normal(1, 6), _normal(2, 6), _normal(3, 2, 7, 6)

    def formula(x, scale, bias):
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-3)
        return normed * scale[None, None] + bias[None, None]

    actual = references.value_and_vjp(lambda *args: linear.layer_norm(1e-3, *args), cotangent, x, scale, bias)
    expected = references.value_and_vjp(formula, cotangent, x, scale, bias)
    references.assert_close(actual, expected, references.GRADIENT_TOLERANCE["float64"])


def test_layer_norm_of_a_narrow_type_is_computed_in_float32():
    x = _normal(0, 3, 64).astype(jnp.bfloat16)
    normed = linear.layer_norm(1e-6, x, jnp.ones(64), jnp.zeros(64))
    assert normed.dtype == jnp.float32
    np.testing.assert_allclose(normed.mean(axis=-1), 0, atol=1e-6)


def test_the_gradient_of_a_product_copies_no_operand():
    def gradients(x, kernel, cotangent):
        numbers = (((2,), (0,)), ((), ()))
        return jax.vjp(lambda x, kernel: linear.dot_general(x, kernel, numbers), x, kernel)[1](cotangent)

    shapes = [(2, 128, 64), (64, 96), (2, 128, 96)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(gradients).lower(*arguments).compile().as_text()
    assert " copy(" not in text and " transpose(" not in text


def test_the_gradient_of_a_wider_kernel_is_not_rounded_to_the_type_of_the_inputs():
    x, kernel = jnp.ones((257, 2), jnp.bfloat16), jnp.ones((2, 3), jnp.float32)
    out, vjp = jax.vjp(lambda x, kernel: linear.dot_general(x, kernel, (((1,), (0,)), ((), ()))), x, kernel)
    d_x, d_kernel = vjp(jnp.ones_like(out))
    assert (out.dtype, d_x.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(d_kernel, 257)  # bfloat16 counts to 256
