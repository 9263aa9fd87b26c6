"""Ids that do not exist are named where they are known, and NaN where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import ids, losses


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            jnp.array([[0, 49], [50, -1]]),
            r"tokens\[1, 0\]=50 is out of range: vocab_size=50 allows 0 to 49\. Correct it or",
        ),
        (np.array([3, -1, 99]), r"tokens\[1\]=-1 is out"),
        (np.array(50, np.uint8), "tokens=50 is out"),
    ],
)
def test_the_first_id_that_does_not_exist_is_named(found, message):
    with pytest.raises(ValueError, match=message):
        ids.check_ids("tokens", found, 50)
    ids.check_ids("tokens", found * 0, 50)


def test_an_id_counts_where_no_weight_and_no_mask_is_zero():
    found = jnp.array([-100, 3, 99])
    ids.check_ids("targets", found, 50, counting=(jnp.array([0.0, 1, 1]), jnp.array([True, True, False])))
    ids.check_ids("targets", found, 50, counting=(jnp.array([0.0, 1, 0]), None))
    with pytest.raises(ValueError, match=r"targets\[2\]=99"):
        ids.check_ids("targets", found, 50, counting=(jnp.array([0.0, 1, 0.5]), None))


def test_arrays_whose_values_are_not_known_are_not_refused():
    jax.make_jaxpr(lambda x: ids.check_ids("tokens", x, 50))(jnp.array([99]))
    jax.make_jaxpr(lambda x: ids.check_ids("tokens", jnp.array([99]), 50, counting=(x,)))(jnp.ones(1))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_ids_of_every_type_exist_below_the_limit(dtype):
    found = jnp.array([0, 100, -1]).astype(dtype)
    assert ids.exist(found, 259).tolist() == [True, True, dtype == "uint8"]
    assert ids.exist(found, 100).tolist() == [True, False, False]


def test_vectors_of_right_ids_and_of_hidden_tokens_keep_every_bit():
    x = jnp.array([[0.0], [-0.0], [1e-37], [3.0]])
    spoiled = ids.spoil_missing(x, jnp.array([0, 1, -1, 9]), jnp.array([True, True, False, True]), 9)
    assert np.isnan(spoiled[3, 0])
    np.testing.assert_array_equal(np.asarray(spoiled[:3]).view(np.int32), np.asarray(x[:3]).view(np.int32))


def test_weights_are_nan_for_targets_that_count_and_do_not_exist():
    targets, weights = jnp.array([0, 5, -100, -100, 9]), jnp.array([0.5, 2, 0, 1, 1])
    np.testing.assert_array_equal(losses.weigh(targets, weights, 9, "float32"), [0.5, 2, 0, np.nan, np.nan])
    np.testing.assert_array_equal(losses.weigh(targets, None, 9, "float32"), [1, 1, np.nan, np.nan, np.nan])
