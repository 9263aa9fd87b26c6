"""What is drawn at the limits of temperature and mass is what the limits say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import sampling

LOGITS = jnp.array([[1.0, 30.0, 29.0, -5.0], [-3.0, -2.0, -900.0, -1.0]])


@pytest.mark.parametrize(
    "limits", [{"temperature": 1e-40}, {"temperature": 1e-37}, {"temperature": 5e-324}, {"top_p": 1e-45}]
)
def test_the_smallest_limits_draw_the_most_likely_id(limits):
    drawn = [sampling.draw(LOGITS, jax.random.key(seed), **limits) for seed in range(5)]
    np.testing.assert_array_equal(drawn, [[1, 3]] * 5)


def test_an_ordinary_temperature_is_the_quotient():
    np.testing.assert_array_equal(sampling.cool(LOGITS, 0.8), LOGITS / 0.8)
