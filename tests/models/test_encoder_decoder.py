"""An encoder and a decoder: the function, its gradients, masks, meshes, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig, ReformerEncoderDecoder, ReformerLM, sharding
from reformer.config import derive_encoder_config
from reformer.layers.attention import Fixed
from reformer.layers.cross_attention import cross_attention_residual
from reformer.layers.embeddings import Embeddings
from reformer.layers.feed_forward import gelu
from reformer.models.trunk import Encoded
from tests import references
from tests import small_models as models

CONFIG = dataclasses.replace(models.SMALL, num_layers=2, cross_attention=True, mlp_chunk_length=9, num_buckets=4)
FLOAT64 = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64")
SOURCE_LENGTH, LENGTH = 37, 21
REAL_SOURCE, REAL = np.array([37, 20]), np.array([15, 21])  # tokens of each of the two examples


@functools.cache
def init(config, **options):
    """Random parameters, none of them zero, without compiling the model's own."""
    rng = np.random.default_rng(0)
    scales = {"kernel": 0.2, "bias": 0.1, "scale": 0.1}

    def draw(path, leaf):
        name = path[-1].key
        drawn = scales.get(name, 1.0) * rng.standard_normal(leaf.shape) + (name == "scale")
        return jnp.asarray(drawn, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(config, **options))


def shapes(config, **options):
    model = ReformerEncoderDecoder(config, **options)
    return jax.eval_shape(lambda rng: model.init(rng, method="create"), jax.random.key(0))["params"]


def make_batch(config=CONFIG, batch=2):
    """A batch with both masks; the source is longer than the target."""
    tokens = models.tokens(config, batch, LENGTH, seed=1)
    rows = np.arange(batch) % 2
    return {
        "source": models.tokens(config, batch, SOURCE_LENGTH),
        "tokens": tokens,
        "targets": jnp.roll(tokens, -1, axis=1),
        "source_mask": jnp.asarray(np.arange(SOURCE_LENGTH)[None] < REAL_SOURCE[rows, None]),
        "mask": jnp.asarray(np.arange(LENGTH)[None] < REAL[rows, None]),
    }


def mean_loss(config, **options):
    def loss(params, batch, key):
        rngs = {"hash": key, "dropout": jax.random.fold_in(key, 1)}
        model = ReformerEncoderDecoder(config, **options)
        nats, weight = model.apply({"params": params}, **batch, deterministic=False, rngs=rngs, method="loss")
        return nats / weight

    return loss


def two_gradients(config, **options):
    """The gradient of the reversible stacks, and that of ordinary autodiff of the same function."""
    gradients = []
    for changes in ({}, {"reversible": False, "mlp_chunk_length": None, "loss_chunk_length": None}):
        gradient = jax.jit(jax.grad(mean_loss(dataclasses.replace(config, **changes), **options)))
        gradients.append(gradient(init(config, **options), make_batch(config), jax.random.key(3)))
    return gradients


# The function


def _norm(params, x):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + CONFIG.layer_norm_epsilon)
    return x * params["scale"] + params["bias"]


def _attention(params, x, context, may_attend):
    """[batch, length, embed], attending from `x` to `context` where `may_attend` [batch, length, source]."""
    query, key, value = (
        jnp.einsum("ble,ehd->bhld", y, params[name]["kernel"])
        for name, y in (("query", _norm(params["norm"], x)), ("key", context), ("value", context))
    )
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / CONFIG.head_dim**0.5
    weights = jax.nn.softmax(jnp.where(may_attend[:, None], scores, -jnp.inf))
    return jnp.einsum("bhqk,bhkd,hde->bqe", weights, value, params["output"]["kernel"])


def _feed_forward(params, x):
    hidden = _norm(params["norm"], x) @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    return gelu(hidden) @ params["output"]["kernel"] + params["output"]["bias"]


def _run(config, params, ids, may_attend, encoded=None, source_mask=None):
    """A stack of one layer of full attention, written out; returns the norm of the average of the streams."""
    x = Embeddings(config).apply({"params": params["embeddings"]}, ids)
    layer = jax.tree.map(lambda p: p[0], params["stack"]["layer_0"])
    functions = [lambda x: _attention(layer["attention"], x, _norm(layer["attention"]["norm"], x), may_attend)]
    if encoded is not None:
        every = jnp.broadcast_to(source_mask[:, None], (*ids.shape, source_mask.shape[1]))
        functions.append(lambda x: _attention(layer["cross_attention"], x, encoded, every))
    functions.append(lambda x: _feed_forward(layer["feed_forward"], x))
    if config.num_streams == 1:
        for function in functions:
            x += function(x)
        return _norm(params["norm"], x)
    x1, x2 = references.residual_stack(functions, x, x)
    return _norm(params["norm"], (x1 + x2) / 2)


def _written_out(config, params, batch):
    mask, source_mask = batch["mask"], batch["source_mask"]
    in_source = jnp.broadcast_to(source_mask[:, None], (len(source_mask), SOURCE_LENGTH, SOURCE_LENGTH))
    encoded = _run(config, params["encoder"], batch["source"], in_source)
    in_target = np.tri(LENGTH, dtype=bool)[None] & mask[:, None]
    hidden = _run(config, params["decoder"], batch["tokens"], in_target, encoded, source_mask)
    head = params["decoder"]["head"]
    return hidden @ head["kernel"] + head["bias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"num_streams": 1, "reversible": False}], ids=["two streams", "one stream, a plain Transformer"]
)
def test_the_logits_equal_an_encoder_and_a_decoder_written_out(x64, changes):
    plain = {"attention_pattern": ("full",), "merge_streams": "average", "look_ahead": False}
    config = dataclasses.replace(FLOAT64, num_layers=1, **plain, **changes)
    batch = make_batch(config)
    with jax.numpy_rank_promotion("allow"):
        expected = _written_out(config, init(config), batch)
    options = {name: batch[name] for name in ("source_mask", "mask")}
    apply = jax.jit(ReformerEncoderDecoder(config).apply)
    actual = apply({"params": init(config)}, batch["source"], batch["tokens"], **options)
    real = np.asarray(batch["mask"])
    references.assert_close(actual[real], expected[real], 1e-10)


@functools.cache
def compiled_logits():
    """A compiled function of a batch and the rotations of both stacks."""
    model, params = ReformerEncoderDecoder(FLOAT64), init(FLOAT64)

    def logits(batch, rotations):
        options = {"source_mask": batch["source_mask"], "mask": batch["mask"], "rotations": rotations}
        return model.apply({"params": params}, batch["source"], batch["tokens"], **options)

    return jax.jit(logits)


def make_rotations():
    """Those of the encoder and of the decoder."""
    shape = (FLOAT64.num_heads, FLOAT64.head_dim, FLOAT64.num_hashes, 2)
    return tuple([jax.random.normal(jax.random.key(seed), shape)] for seed in (1, 2))


@pytest.mark.slow
def test_masked_source_tokens_change_nothing_and_real_ones_do(x64):
    batch, rotations = make_batch(FLOAT64), make_rotations()
    before = compiled_logits()(batch, rotations)
    for position, is_read in ((REAL_SOURCE[1], False), (0, True)):
        source = batch["source"].at[1, position].add(1)
        after = compiled_logits()(batch | {"source": source}, rotations)
        assert (np.abs(after[1] - before[1]).max() > 1e-6) == is_read
        np.testing.assert_allclose(after[0], before[0], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_more_padding_of_both_sequences_changes_nothing(x64):
    batch = make_batch(FLOAT64)
    longer = {name: jnp.pad(batch[name], ((0, 0), (0, 11))) for name in ("source", "source_mask", "tokens", "mask")}
    before, after = (compiled_logits()(rows, make_rotations()) for rows in (batch, longer))
    real = np.asarray(batch["mask"])
    np.testing.assert_allclose(after[:, :LENGTH][real], before[real], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_both_stacks_hash_with_the_rotations_that_are_given(x64):
    batch, (of_encoder, of_decoder) = make_batch(FLOAT64), make_rotations()
    given = compiled_logits()(batch, (of_encoder, of_decoder))
    for others in ((of_decoder, of_decoder), (of_encoder, of_encoder)):
        assert np.abs(compiled_logits()(batch, others) - given).max() > 1e-6


def test_the_derived_encoder_looks_as_far_ahead_as_back():
    config = dataclasses.replace(CONFIG, lsh_num_chunks_before=2, local_num_chunks_before=3)
    encoder = derive_encoder_config(config)
    assert (encoder.causal, encoder.cross_attention) == (False, False)
    assert (encoder.lsh_num_chunks_after, encoder.local_num_chunks_after) == (2, 3)


def test_shared_embeddings_exist_once():
    assert set(shapes(CONFIG)["encoder"]) == {"embeddings", "stack", "norm"}
    shared = shapes(CONFIG, share_embeddings=True)
    assert set(shared["encoder"]) == {"stack", "norm"}
    assert set(shared["decoder"]) == {"embeddings", "stack", "norm", "head"}


# Gradients


@pytest.mark.slow
def test_reversible_gradients_equal_ordinary_autodiff_with_dropout(x64):
    config = dataclasses.replace(
        FLOAT64, attention_pattern=("lsh",), merge_streams="average", dropout_rate=0.2, label_smoothing=0.1
    )
    reversible, ordinary = two_gradients(config, share_embeddings=True)
    assert models.relative_error(reversible, ordinary) < 1e-12
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(reversible["encoder"]["stack"]))


@pytest.mark.slow
def test_float32_gradients_equal_ordinary_autodiff_with_dropout():
    simple = {"attention_pattern": ("full",), "mlp_chunk_length": None, "loss_chunk_length": None}
    config = dataclasses.replace(CONFIG, num_layers=6, dropout_rate=0.2, **simple)
    assert models.relative_error(*two_gradients(config)) < 1e-5


@pytest.mark.slow
def test_undoing_cross_attention_gives_its_value_and_the_gradients_of_autodiff(x64):
    config = dataclasses.replace(FLOAT64, dropout_rate=0.2)
    residual = cross_attention_residual(config)
    params = jax.tree.map(lambda p: p[0], init(config)["decoder"]["stack"]["layer_0"]["cross_attention"])
    x, onto, cotangent, onto_cotangent = jax.random.normal(jax.random.key(0), (4, 2, LENGTH, config.embed_dim))
    context = jax.random.normal(jax.random.key(1), (2, SOURCE_LENGTH, config.output_dim))
    fixed = Fixed(make_batch()["source_mask"], None, jnp.uint32(5))
    undone = jax.jit(residual.undo)(params, x, onto, context, fixed, (), cotangent, onto_cotangent)
    run = lambda *args: residual.apply(args[0], args[1], 0 * x, args[2], fixed)[0]  # noqa: E731
    value, (of_params, of_x, of_context) = references.value_and_vjp(run, cotangent, params, x, context)
    references.assert_close(undone, (onto - value, of_params, onto_cotangent + of_x, of_context), 1e-10)


@pytest.mark.slow
def test_scratch_does_not_grow_with_the_depth_of_encoder_and_decoder():
    shape = {"max_length": 1024, "embed_dim": 128, "mlp_dim": 256, "num_heads": 2, "head_dim": 64, "num_hashes": 1}
    shape |= {"mlp_chunk_length": 256, "loss_chunk_length": 256}
    activation_bytes = 4 * shape["max_length"] * shape["embed_dim"]

    def scratch_bytes(depth):
        config = dataclasses.replace(CONFIG, attention_pattern=("local",), num_layers=depth, **shape)
        params = shapes(config)
        ids, mask = (jax.ShapeDtypeStruct((1, config.max_length), dtype) for dtype in (jnp.int32, bool))
        batch = {"source": ids, "tokens": ids, "targets": ids, "source_mask": mask}
        lowered = jax.jit(jax.value_and_grad(mean_loss(config))).lower(params, batch, jax.random.key(0))
        compiled = lowered.compile(compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""})
        permutations = 2 * 4 * config.num_lsh_layers * config.num_heads * config.max_length  # of both stacks
        return compiled.memory_analysis().temp_size_in_bytes - permutations

    assert scratch_bytes(24) - scratch_bytes(4) < 0.5 * activation_bytes


# Meshes

# Chunks, and local and LSH attention, are on meshes in test_sharding.
FOR_MESHES = dataclasses.replace(
    FLOAT64, attention_pattern=("full",), num_layers=1, mlp_chunk_length=None, dropout_rate=0.1
)


def _loss_and_gradients(mesh):
    params, batch = init(FOR_MESHES), make_batch(FOR_MESHES, batch=4)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, sharding.parameter_shardings(params, mesh))
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        return jax.jit(jax.value_and_grad(mean_loss(FOR_MESHES)))(params, batch, jax.random.key(0))


@pytest.mark.slow
def test_many_devices_equal_one(x64):
    found = _loss_and_gradients(sharding.make_mesh(data=2, fsdp=2, tensor=2))
    expected = _loss_and_gradients(sharding.make_mesh(devices=jax.devices()[:1]))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


def test_cross_attention_is_split_over_heads():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    places = sharding.parameter_shardings(shapes(CONFIG), mesh)
    found = places["decoder"]["stack"]["layer_0"]["cross_attention"]
    assert found["query"]["kernel"].spec == found["value"]["kernel"].spec == jax.P(None, ("fsdp",), ("tensor",), None)
    assert found["output"]["kernel"].spec == jax.P(None, ("tensor",), None, ("fsdp",))


# What is refused


def test_dropout_of_cross_attention_alone_wants_its_key():
    config = dataclasses.replace(CONFIG, attention_pattern=("lsh",), dropout_rate=0.0, attention_dropout_rate=0.1)
    config = dataclasses.replace(config, lsh_attention_dropout_rate=0.0)
    batch = {name: array for name, array in make_batch(config).items() if name in ("source", "tokens")}
    apply = functools.partial(ReformerEncoderDecoder(config).apply, deterministic=False)
    with pytest.raises(ValueError, match="deterministic=False with dropout needs rngs"):
        jax.eval_shape(apply, {"params": init(config)}, **batch, rngs={"hash": jax.random.key(0)})


def test_a_source_longer_than_the_maximum_is_refused():
    source, tokens = jnp.zeros((1, 97), jnp.int32), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"A source of 97 tokens must have from 1 to max_length=96"):
        ReformerEncoderDecoder(CONFIG).apply({"params": init(CONFIG)}, source, tokens)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (models.SMALL, {}, "cross_attention=False in the decoder .* --config.model.cross_attention=True"),
        (CONFIG, {"encoder_config": CONFIG}, "cross_attention=True in the decoder and True in the encoder"),
        (
            CONFIG,
            {"encoder_config": dataclasses.replace(models.SMALL, merge_streams="average")},
            "The encoder gives 16 features and the decoder takes 32. Give both the same embed_dim and merge_streams",
        ),
        (
            CONFIG,
            {"encoder_config": dataclasses.replace(models.SMALL, vocab_size=7), "share_embeddings": True},
            "share_embeddings=True needs equal vocab_size",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        ReformerEncoderDecoder(config, **options).init(jax.random.key(0), method="create")


@pytest.mark.parametrize(
    ("config", "encoded", "message"),
    [
        (CONFIG, None, "cross_attention=True needs an `encoded`"),
        (models.SMALL, Encoded(jnp.zeros((1, 5, 32))), "cross_attention=False needs no `encoded`"),
        (CONFIG, Encoded(jnp.zeros((1, 5, 16))), r"\(1, 5, 16\) must be \[batch=1, source, 32\]"),
    ],
)
def test_a_decoder_refuses_what_it_cannot_attend_to(config, encoded, message):
    params = init(CONFIG)["decoder"] if config.cross_attention else models.init(config)
    with pytest.raises(ValueError, match=message):
        ReformerLM(config).apply({"params": params}, jnp.zeros((1, 4), jnp.int32), encoded=encoded)


@pytest.mark.parametrize("changes", [{"reversible": True}, {"merge_streams": "concatenate"}, {"num_streams": 3}])
def test_one_stream_is_neither_reversible_nor_two(changes):
    fields = {"num_streams": 1, "reversible": False, "merge_streams": "average"} | changes
    with pytest.raises(ValueError, match=r"num_streams=[13] .*reversible=.*merge_streams="):
        ReformerConfig(**fields)


def test_hugging_face_semantics_have_no_cross_attention():
    with pytest.raises(ValueError, match="cross_attention and merge_streams='average' do not exist under semantics"):
        ReformerConfig(semantics="huggingface", cross_attention=True)


IDS = [(name, method) for name in ("source", "tokens", "targets") for method in ("__call__", "loss", "score")]


@pytest.mark.parametrize(("name", "method"), [x for x in IDS if x != ("targets", "__call__")])
def test_ids_that_do_not_exist_are_refused_before_any_work(name, method):
    batch = make_batch()
    batch[name] = batch[name].at[1, 2].set(50)
    if method == "__call__":
        del batch["targets"]
    with pytest.raises(ValueError, match=rf"{name}\[1, 2\]=50 is out of range: vocab_size=50 allows 0 to 49"):
        ReformerEncoderDecoder(CONFIG).apply({"params": {}}, **batch, method=method)
