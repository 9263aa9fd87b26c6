"""Maps over chunks equal the map over everything, whatever the size of the chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import chunking


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("chunk_length", [None, 1, 3, 7, 20])
def test_results_are_added_onto_the_given_parts_only(chunk_length):
    x, onto = _normal(0, 2, 7, 4), _normal(1, 2, 7, 4)

    def run(x, onto):
        return chunking.map_chunks(
            lambda x: (2 * x, {"negated": -x, "shifted": x + 1}),
            x,
            chunk_length,
            in_axis=1,
            out_axis=1,
            onto=(onto, {"negated": onto, "shifted": None}),
        )

    doubled, others = jax.jit(run)(x, onto)
    np.testing.assert_allclose(doubled, onto + 2 * x, rtol=1e-6)
    np.testing.assert_allclose(others["negated"], onto - x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(others["shifted"], x + 1, rtol=1e-6)


@pytest.mark.parametrize("chunk_length", [None, 3])
def test_terms_are_summed_over_chunks_in_a_wide_type(chunk_length):
    x = jnp.ones((1000, 2), jnp.bfloat16)

    def run(x):
        return chunking.map_chunks(
            lambda x: (2 * x, (jnp.sum(x, axis=0),)), x, chunk_length, in_axis=0, out_axis=0, has_sums=True
        )

    doubled, (total,) = jax.jit(run)(x)
    np.testing.assert_array_equal(doubled, 2 * x)
    assert total.dtype == jnp.float32
    np.testing.assert_array_equal(total, [1000, 1000])


@pytest.mark.parametrize("chunk_length", [None, 2])
def test_arrays_of_other_lengths_are_refused(chunk_length):
    with pytest.raises(ValueError, match=r"arrays of \[4, 5\] elements along the axis of chunks"):
        chunking.map_chunks(sum, (_normal(0, 5), _normal(1, 4)), chunk_length, in_axis=0, out_axis=0)


@pytest.mark.parametrize("chunk_length", [1, 2, 5, 9])
def test_replaced_chunks_equal_the_map(chunk_length):
    x, fixed = (_normal(0, 5, 3), _normal(1, 5)), _normal(2, 5)

    def fn(pair, fixed):
        return pair[0] * fixed[:, None], pair[1] + fixed

    actual = jax.jit(lambda x: chunking.replace_chunks(fn, x, fixed, chunk_length))(x)
    for one, other in zip(actual, fn(x, fixed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 0), (2, 1), (1, 3)])
@pytest.mark.parametrize("length", [12, 10, 1])
def test_slots_in_natural_order_hold_the_tokens_of_their_positions(length, before, after, block):
    cut = chunking.Geometry(2, before, after, -(-length // 2), block)
    position = chunking.extend(jnp.arange(length), cut, chunking.NO_POSITION)
    x = jnp.arange(length)
    for i in range(cut.num_blocks):
        size = (cut.block + before + after) * 2
        expected = position[i * cut.block * 2 :][:size]
        actual = chunking.read_in_order(x, cut, i)
        assert actual.shape == (size,)
        is_token = expected >= 0
        np.testing.assert_array_equal(actual[is_token], expected[is_token])
