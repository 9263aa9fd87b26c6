"""How full buckets are: counted as by hand, the same on eight devices, and blind to padding."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.layers.attention import num_buckets
from reformer.model import ReformerLM
from reformer.ops.hashing import count_buckets
from reformer.ops.plan import Arrays, Context, Order
from reformer.training import loop, occupancy, settings
from reformer.training.state import init_params


def test_tokens_are_counted_by_bucket_and_padding_is_not():
    buckets = jnp.array([[[0, 3, 3, 1, 4, 4]], [[4, 4, 4, 4, 4, 4]]])
    np.testing.assert_array_equal(count_buckets(buckets, 4), [[[1, 1, 0, 2]], [[0, 0, 0, 0]]])


@pytest.fixture
def look(config):
    """`occupancy.look` of the small model, with four buckets, at given bucket ids [batch, heads, rounds, length]."""
    config.model.num_buckets = 4

    def look(buckets):
        query = jnp.zeros((*buckets.shape[:2], buckets.shape[3], 8))
        context = Context(order=Order(buckets, buckets))
        sums = occupancy.look(settings.model_config(config), 0, Arrays(query, None, query), None, context)
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


def observed(model_config, tokens, mask, look):
    params = init_params(model_config, 0)
    options = {"mask": mask, "rngs": {"hash": jax.random.key(0)}, "method": "observe"}
    run = jax.jit(lambda: ReformerLM(model_config).apply({"params": params}, tokens, look, **options))
    return run()


@pytest.fixture
def batch(config):
    """A model of four layers, and tokens of which the last row has eight real ones."""
    config.model.update(num_layers=4, attention_pattern=("local", "lsh"))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 32)), jnp.int32)
    mask = jnp.ones((8, 32), bool).at[7, 8:].set(False)
    return settings.model_config(config), tokens, mask


def test_layers_are_counted_from_the_first_and_only_lsh_layers_have_buckets(batch):
    model_config = batch[0]
    _, seen = observed(*batch, functools.partial(occupancy.look, model_config))
    layers = occupancy.means(occupancy.by_depth(model_config, seen))
    assert list(layers) == [1, 3]
    total = np.prod(num_buckets(32, model_config))
    for layer in layers.values():
        assert 1 / total <= layer.largest_share <= 1 and 1 <= layer.num_effective <= total
    assert set(occupancy.record(layers)) == {
        *("layer_1_largest_share", "layer_1_effective_buckets", "layer_3_largest_share", "layer_3_effective_buckets")
    }


def test_to_observe_changes_nothing(batch):
    model_config, tokens, mask = batch
    streams, _ = observed(model_config, tokens, mask, functools.partial(occupancy.look, model_config))
    others, _ = observed(model_config, tokens, mask, lambda *_: None)
    jax.tree.map(np.testing.assert_array_equal, streams, others)


def test_eight_devices_count_what_one_does(batch):
    model_config, tokens, mask = batch
    results = []
    for sizes in ({"devices": jax.devices()[:1]}, {"data": 2, "fsdp": 2, "tensor": 2}):
        with jax.set_mesh(sharding.make_mesh(**sizes)):
            _, seen = observed(model_config, tokens, mask, functools.partial(occupancy.look, model_config))
        results.append(list(occupancy.means(occupancy.by_depth(model_config, seen)).values()))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_every_evaluation_of_a_run_records_the_buckets(config, tmp_path):
    config.training.num_steps = 1
    loop.train(loop.prepare(config, str(tmp_path / "run")))
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (record,) = (record for record in records if record["split"] == "lsh")
    assert record["step"] == 1 and 0 < record["layer_1_largest_share"] < 1
    assert b"lsh/layer_1_effective_buckets" in b"".join(
        path.read_bytes() for path in (tmp_path / "run" / "events").iterdir()
    )
