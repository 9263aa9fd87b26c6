"""Matrix products and layer normalisation, with gradients in the form that is fast on every backend.

What JAX derives for a matrix product makes the transpose of the kernel's gradient, and for tokens on more than one axis
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
      x: float inputs [*tokens, *contracted].
      kernel: float weights [*contracted, *features], perhaps of a wider type than `x`: they are multiplied in that of
        `x`, and their cotangent is summed in at least float32.
      dimension_numbers: as in `jax.lax.dot_general`: the last axes of `x` with the first of `kernel`, no batch axes.
      precision: only None, the default.

    Returns:
      [*tokens, *features], of the type of `x`.
    """
    (x_axes, kernel_axes), batch = dimension_numbers
    count = len(kernel_axes)
    assert batch == ((), ()) and precision is None, (dimension_numbers, precision)
    assert tuple(kernel_axes) == tuple(range(count)) and tuple(x_axes) == tuple(range(x.ndim - count, x.ndim))
    size = math.prod(kernel.shape[:count])
    out = _multiply(x.reshape(-1, size), kernel.reshape(size, -1))
    return out.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])


@jax.custom_vjp
def _multiply(x: Float[Array, "tokens in"], kernel: Float[Array, "in out"]) -> Float[Array, "tokens out"]:
    return _contract(x, kernel.astype(x.dtype), 1, 0)


def _contract(x, y, x_axis: int, y_axis: int, dtype=None):
    return jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=dtype)


def _multiply_forward(x, kernel):
    return _multiply(x, kernel), (x, kernel)


def _multiply_backward(saved, d_out):
    x, kernel = saved
    d_kernel = _contract(x, d_out, 0, 0, jnp.promote_types(jnp.float32, x.dtype))
    return _contract(d_out, kernel.astype(x.dtype), 1, 1), d_kernel.astype(kernel.dtype)


_multiply.defvjp(_multiply_forward, _multiply_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(
    epsilon: float,
    x: Float[Array, "*tokens features"],
    scale: Float[Array, " features"],
    bias: Float[Array, " features"],
) -> Float[Array, "*tokens features"]:
    """Normalises every token to mean 0 and variance 1, then scales and shifts it.

    Args:
      epsilon: added to the variance.
      x: vectors.
      scale: of every feature.
      bias: of every feature.

    Returns:
      An array like `x`, in at least float32.

    Source: Ba, Kiros, Hinton 2016 (arXiv 1607.06450); epsilon is added to the variance, inside the root.
    """
    normed, _ = _normalize(epsilon, x)
    return normed * _across(scale, x) + _across(bias, x)


def _across(features, x):
    """Lays an array of features beside the tokens of `x`."""
    return features.reshape((1,) * (x.ndim - 1) + features.shape)


def _normalize(epsilon: float, x):
    """Tokens of mean 0 and variance 1, and the factor that made their variance 1."""
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * factor, factor


def _layer_norm_forward(epsilon: float, x, scale, bias):
    return layer_norm(epsilon, x, scale, bias), (x, scale, bias)


def _layer_norm_backward(epsilon: float, saved, d_out):
    x, scale, bias = saved
    normed, factor = _normalize(epsilon, x)
    d_normed = d_out * _across(scale, x)
    mean, slope = (jnp.mean(y, axis=-1, keepdims=True) for y in (d_normed, d_normed * normed))
    tokens = tuple(range(x.ndim - 1))
    d_scale, d_bias = jnp.sum(d_out * normed, axis=tokens), jnp.sum(d_out, axis=tokens)
    d_x = (d_normed - mean - normed * slope) * factor
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
