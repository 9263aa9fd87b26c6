"""Matrix products and layer normalisation, with gradients in the form that is fast on every backend.

What JAX derives for a matrix product makes the transpose of the kernel's gradient, and for rows with more than one axis
XLA on CPU copies the operands first. What it derives for a layer normalisation differentiates through the root.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dot_general(x, kernel, dimension_numbers, precision=None):
    """`jax.lax.dot_general` for dense layers, whose gradients are matrix products without a transpose.

    Args:
      x: inputs [*rows, *contracted].
      kernel: weights [*contracted, *features].
      dimension_numbers: as in `jax.lax.dot_general`: the last axes of `x` with the first of `kernel`, no batch axes.
      precision: only None, the default.

    Returns:
      [*rows, *features].
    """
    (of_x, of_kernel), batch = dimension_numbers
    count = len(of_kernel)
    assert batch == ((), ()) and precision is None, (dimension_numbers, precision)
    assert tuple(of_kernel) == tuple(range(count)) and tuple(of_x) == tuple(range(x.ndim - count, x.ndim))
    size = math.prod(kernel.shape[:count])
    out = _multiply(x.reshape(-1, size), kernel.reshape(size, -1))
    return out.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])


@jax.custom_vjp
def _multiply(x: Float[Array, "rows in"], kernel: Float[Array, "in out"]) -> Float[Array, "rows out"]:
    return _contract(x, kernel, 1, 0)


def _contract(x, y, of_x: int, of_y: int):
    return jax.lax.dot_general(x, y, (((of_x,), (of_y,)), ((), ())))


def _multiply_forward(x, kernel):
    return _multiply(x, kernel), (x, kernel)


def _multiply_backward(saved, gradient):
    x, kernel = saved
    return _contract(gradient, kernel, 1, 1), _contract(x, gradient, 0, 0)


_multiply.defvjp(_multiply_forward, _multiply_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(
    epsilon: float, x: Float[Array, "*rows features"], scale: Float[Array, " features"], bias: Float[Array, " features"]
) -> Float[Array, "*rows features"]:
    """Normalises every row to mean 0 and variance 1, then scales and shifts it, in at least float32.

    Source: Ba, Kiros, Hinton 2016 (arXiv 1607.06450); epsilon is added to the variance, inside the root.
    """
    normed, _ = _normalize(epsilon, x)
    return normed * _across(scale, x) + _across(bias, x)


def _across(features, x):
    """Lays an array of features beside the rows of `x`."""
    return features.reshape((1,) * (x.ndim - 1) + features.shape)


def _normalize(epsilon: float, x):
    """Rows of mean 0 and variance 1, and the factor that made their variance 1."""
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * factor, factor


def _layer_norm_forward(epsilon: float, x, scale, bias):
    return layer_norm(epsilon, x, scale, bias), (x, scale, bias)


def _layer_norm_backward(epsilon: float, saved, gradient):
    x, scale, bias = saved
    normed, factor = _normalize(epsilon, x)
    through = gradient * _across(scale, x)
    mean, slope = (jnp.mean(y, axis=-1, keepdims=True) for y in (through, through * normed))
    rows = tuple(range(x.ndim - 1))
    of_scale, of_bias = jnp.sum(gradient * normed, axis=rows), jnp.sum(gradient, axis=rows)
    of_x = (through - mean - normed * slope) * factor
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
