"""How full buckets are: counted as by hand, the same on eight devices, and blind to padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.layers.kinds import KINDS, num_buckets
from reformer.models.language import ReformerLM
from reformer.ops.hashing import count_buckets
from reformer.ops.plan import Arrays, Given, Order
from reformer.training import occupancy, settings
from tests import small_models as models


def test_tokens_are_counted_by_bucket_and_padding_is_not():
    buckets = jnp.array([[[0, 3, 3, 1, 4, 4]], [[4, 4, 4, 4, 4, 4]]])
    np.testing.assert_array_equal(count_buckets(buckets, 4), [[[1, 1, 0, 2]], [[0, 0, 0, 0]]])


@pytest.fixture
def look(config):
    """`occupancy.look` of the small model, with four buckets, at given bucket ids [batch, heads, rounds, length]."""
    config.model.num_buckets = 4
    model_config = settings.model_config(config)

    def look(buckets):
        query = jnp.zeros((*buckets.shape[:2], buckets.shape[3], 8))
        given, plan = Given(order=Order(buckets, buckets)), KINDS["lsh"].plan(model_config, 32, False)
        sums = occupancy.look(model_config, 0, Arrays(query, None, query), plan, given)
        return occupancy.means({"1": sums})[1]

    return look


def test_even_buckets_are_all_effective(look):
    even = look(jnp.tile(jnp.arange(4), 8)[None, None, None])
    np.testing.assert_allclose(even, (0.25, 4), rtol=1e-5)


def test_one_bucket_for_all_is_one_effective_bucket(look):
    np.testing.assert_allclose(look(jnp.full((1, 1, 1, 32), 2)), (1, 1), rtol=1e-5)


def test_rows_that_are_all_padding_do_not_count(look):
    buckets = jnp.concatenate([jnp.tile(jnp.arange(4), 8)[None, None, None], jnp.full((3, 1, 1, 32), 4)])
    np.testing.assert_allclose(look(buckets), (0.25, 4), rtol=1e-5)


def test_layers_are_numbered_through_the_depth(config):
    config.model.update(num_layers=4, attention_pattern=("local", "lsh"))
    of_blocks = np.array([[3.0, 12.0, 6.0], [6.0, 6.0, 6.0]])
    layers = occupancy.means(occupancy.by_depth(settings.model_config(config), (None, of_blocks)))
    assert layers == {1: (0.5, 2.0), 3: (1.0, 1.0)}
    assert occupancy.record(layers)["layer_3_largest_share"] == 1.0


@pytest.fixture(scope="module")
def observe(make_config):
    """Returns a function that runs a model with one LSH layer on tokens, of which the last row has eight real ones."""
    config = make_config()
    config.model.update(num_layers=1, attention_pattern=("lsh",))
    model_config = settings.model_config(config)
    params = models.init(model_config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 32)), jnp.int32)
    mask = jnp.ones((8, 32), bool).at[7, 8:].set(False)
    look = functools.partial(occupancy.look, model_config)

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, tokens, looks):
        options = {"mask": mask, "rngs": {"hash": jax.random.key(0)}, "method": "observe"}
        return ReformerLM(model_config).apply({"params": params}, tokens, look if looks else lambda *_: None, **options)

    return model_config, lambda looks=True: run(params, tokens, looks)


@pytest.mark.slow
def test_a_layer_has_between_one_and_all_buckets(observe):
    model_config, run = observe
    (layer,) = occupancy.means(occupancy.by_depth(model_config, run()[1])).values()
    total = np.prod(num_buckets(32, model_config))
    assert 1 / total < layer.largest_share < 1 and 1 < layer.num_effective < total


def test_to_observe_changes_nothing(observe):
    jax.tree.map(np.testing.assert_array_equal, observe[1](True)[0], observe[1](False)[0])


@pytest.mark.slow
def test_eight_devices_count_what_one_does(observe):
    one = observe[1]()[1]
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
        eight = observe[1]()[1]
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)
