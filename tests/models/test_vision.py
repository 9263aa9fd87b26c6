"""The Vision Transformer: its embedding is a convolution, its loss and scores are those of its logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.layers.patches import PatchEmbeddings, to_floats
from reformer.models.vision import ReformerViT
from reformer.ops.patches import visiting_order
from tests import references
from tests import small_models as models

LABELS, SIDE, PATCH = 7, 12, 3
GRID = (4, 4)

CONFIG = dataclasses.replace(
    models.SMALL,
    causal=False,
    vocab_size=1,
    max_length=16,
    num_layers=2,
    lsh_chunk_length=4,
    local_chunk_length=4,
    local_num_chunks_after=1,
    lsh_num_chunks_after=1,
    mlp_chunk_length=None,
)
FULL = dataclasses.replace(CONFIG, attention_pattern=("full",))


def make_model(config=CONFIG, pooling="mean", order="rows"):
    if pooling == "first":
        config = dataclasses.replace(config, max_length=17, axial_shape=(5, 4))
    return ReformerViT(config, LABELS, SIDE, PATCH, pooling, order)


@functools.cache
def init(model):
    return model.init(jax.random.key(0), method="create")["params"]


def images(batch=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (batch, SIDE, SIDE, 3)), jnp.uint8)


def labels(batch=3):
    return jnp.asarray(np.random.default_rng(1).integers(0, LABELS, batch), jnp.int32)


@functools.cache
def compiled(model, method, **options):
    """A function of parameters and arrays."""

    def call(params, *args, **arrays):
        rngs = {"hash": jax.random.key(3), "dropout": jax.random.key(4)}
        return model.apply({"params": params}, *args, rngs=rngs, method=method, **options, **arrays)

    return jax.jit(call)


def apply(model, *args, params=None, method="__call__", **arrays):
    return compiled(model, method)(init(model) if params is None else params, *args, **arrays)


def mean_loss(model):
    def loss(params, pixels, targets):
        nats, weight = compiled(model, "loss", deterministic=False)(params, pixels, targets)
        return nats / weight

    return loss


def _embedder(order="rows", has_class_token=False, **changes):
    config = dataclasses.replace(CONFIG, max_length=17, axial_shape=(5, 4), **changes)
    return PatchEmbeddings(config, GRID, order, has_class_token)


def _by_convolution(params, pixels):
    """Embeds as the ViT does: a convolution whose stride is its width, then the positions of the grid."""
    kernel = params["patch"]["kernel"].reshape(PATCH, PATCH, 3, -1)
    layout = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(pixels, kernel, (PATCH, PATCH), "VALID", dimension_numbers=layout)
    rows, columns = params["axial_0"][:4, None], params["axial_1"][None]
    positions = [jnp.broadcast_to(rows, (4, 4, rows.shape[-1])), jnp.broadcast_to(columns, (4, 4, columns.shape[-1]))]
    return (found + jnp.concatenate(positions, axis=-1)[None]).reshape(len(pixels), 16, -1)


@pytest.mark.parametrize("order", ["rows", "hilbert"])
def test_the_embedding_equals_a_strided_convolution_and_so_do_its_gradients(x64, order):
    model = make_model(dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64"), order=order)
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)))
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((2, 16, 16)))
    patches, _ = model.bind({})._sequence(pixels, None)
    embedder = PatchEmbeddings(model.config, GRID, order, False)
    params = embedder.init(jax.random.key(0), patches)["params"]

    def ours(params, pixels):
        return embedder.apply({"params": params}, model.bind({})._sequence(pixels, None)[0])

    def reference(params, pixels):
        return _by_convolution(params, pixels)[:, visiting_order(GRID, order)]

    found, expected = (references.value_and_vjp(f, cotangent, params, pixels) for f in (ours, reference))
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
    for one, other in zip(*(jax.tree.leaves(gradients) for _, gradients in (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "has_class_token"), [("axial", False), ("axial", True), ("learned", True), ("sinusoidal", True)]
)
def test_positions_of_slots_equal_those_of_the_whole_sequence(kind, has_class_token):
    embedder = _embedder("hilbert", has_class_token, position_embedding=kind)
    length = 16 + has_class_token
    patches = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, length, 27)), jnp.float32)
    variables = jax.jit(embedder.init)(jax.random.key(0), patches)
    embed = jax.jit(embedder.apply)
    slots = jnp.broadcast_to(jnp.arange(length)[None], (2, length))
    whole = embed(variables, patches)
    np.testing.assert_allclose(embed(variables, patches, slots), whole, rtol=0, atol=1e-5)
    part = embed(variables, patches[:, 5:9], slots[:, 5:9])
    np.testing.assert_allclose(part, whole[:, 5:9], rtol=0, atol=1e-5)


def test_the_class_token_stands_first_whatever_is_there():
    embedder = _embedder(has_class_token=True)
    patches = jnp.ones((1, 17, 27))
    params = embedder.init(jax.random.key(0), patches)["params"]
    first = embedder.apply({"params": params}, patches)[0, 0]
    position = jnp.concatenate([params["axial_0"][4], params["axial_1"][0]])
    np.testing.assert_allclose(first, params["class_token"] + position, rtol=0, atol=1e-6)


def test_bytes_are_numbers_from_minus_one_to_one():
    np.testing.assert_allclose(to_floats(jnp.asarray([0, 51, 255], jnp.uint8)), [-1, -0.6, 1], atol=1e-6)
    model = make_model(FULL)
    np.testing.assert_allclose(apply(model, images()), apply(model, to_floats(images())), rtol=0, atol=1e-5)


def test_streams_start_at_about_unit_scale():
    rng = np.random.default_rng(0)
    coarse = (
        rng.uniform(-1, 1, (16, 4, 4, 3)).repeat(3, axis=1).repeat(3, axis=2)
    )  # neighbours are alike, as in photographs
    patches, _ = make_model().bind({})._sequence(jnp.asarray(coarse, jnp.float32), None)
    params = init(make_model())["embeddings"]
    embedded = PatchEmbeddings(CONFIG, GRID, "rows", False).apply({"params": params}, patches)
    assert 0.7 < float(jnp.std(embedded)) < 1.5


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_full_attention_does_not_know_the_order_of_the_patches(pooling):
    rows, hilbert = (make_model(FULL, pooling, order) for order in ("rows", "hilbert"))
    found = apply(hilbert, images(), params=init(rows))
    np.testing.assert_allclose(found, apply(rows, images()), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "order"), [("mean", "hilbert"), ("first", "hilbert")])
def test_what_is_masked_has_no_influence(pooling, order):
    model = make_model(CONFIG, pooling, order)
    mask = np.ones((3, 4, 4), bool)
    mask[1, :, 3] = mask[2, 2:] = False
    pixels = np.asarray(images())
    other = np.where(mask.repeat(PATCH, 1).repeat(PATCH, 2)[..., None], pixels, 255 - pixels)
    logits = [apply(model, jnp.asarray(x), mask=jnp.asarray(mask.reshape(3, 16))) for x in (pixels, other)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    assert np.abs(apply(model, jnp.asarray(other)) - apply(model, jnp.asarray(pixels))).max() > 1e-2


@pytest.mark.slow
def test_all_patches_real_is_as_no_mask():
    model = make_model()
    found = apply(model, images(), mask=jnp.ones((3, 16), bool))
    np.testing.assert_allclose(found, apply(model, images()), rtol=0, atol=1e-5)


def test_the_mean_leaves_out_what_pads_the_windows_of_hugging_face():
    """With chunks of 3, 16 patches are padded to 18; under full attention nothing is."""
    config = dataclasses.replace(FULL, semantics="huggingface")
    padded = dataclasses.replace(
        config, attention_pattern=("local",), local_chunk_length=3, local_num_chunks_before=5, local_num_chunks_after=0
    )
    full = make_model(config)
    found = apply(make_model(padded), images(), params=init(full))
    np.testing.assert_allclose(found, apply(full, images()), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_gradients_match_ordinary_autodiff():
    config = dataclasses.replace(CONFIG, attention_pattern=("lsh",), dropout_rate=0.1)
    pooling = "first"  # with a class token, which learns too; the mean is in test_heads
    model = make_model(config, pooling, "hilbert")
    ordinary = make_model(dataclasses.replace(config, reversible=False), pooling, "hilbert")
    found, expected = (jax.jit(jax.grad(mean_loss(m)))(init(model), images(), labels()) for m in (model, ordinary))
    assert models.relative_error(found, expected) < 1e-5
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found["embeddings"]))


@pytest.mark.slow
def test_the_loss_is_the_weighted_cross_entropy_of_the_logits():
    model, weights = make_model(), jnp.asarray([1.0, 0.0, 2.5])
    logits = np.asarray(apply(model, images()), np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(3), labels()]
    found = apply(model, images(), labels(), weights=weights, method="loss")
    np.testing.assert_allclose(found, (np.sum(nats * weights), 3.5), rtol=1e-5)
    np.testing.assert_allclose(apply(model, images(), labels(), method="loss"), (nats.sum(), 3), rtol=1e-5)
    assert apply(model, images(), labels(), weights=jnp.zeros(3), method="loss") == (0, 0)
    smooth = make_model(dataclasses.replace(CONFIG, label_smoothing=0.3))
    expected = 0.7 * nats + 0.3 * (np.log(np.exp(logits).sum(-1)) - logits.mean(-1))
    np.testing.assert_allclose(apply(smooth, images(), labels(), method="loss"), (expected.sum(), 3), rtol=1e-5)


@pytest.mark.slow
def test_scores_count_the_best_and_the_five_best():
    model, pixels = make_model(), images(8)
    order = np.argsort(-np.asarray(apply(model, pixels)), axis=-1)
    targets = jnp.asarray(order[np.arange(8), np.arange(8) % LABELS], jnp.int32)  # ranks 0 to 6, and 0
    weights = jnp.asarray([1.0, 1, 1, 1, 2, 1, 1, 0.5])
    found = apply(model, pixels, targets, weights=weights, method="score")
    assert (found.right, found.weight) == (1.5, 8.5)
    assert found.others["top_5_accuracy"] == (6.5, 8.5)
    nats, _ = apply(model, pixels, targets, weights=weights, method="loss")
    np.testing.assert_allclose(found.nats, nats, rtol=1e-6)


@pytest.mark.parametrize("method", ["loss", "score"])
def test_a_label_that_does_not_exist_is_refused_before_any_work(method):
    with pytest.raises(ValueError, match=r"targets\[1\]=7 is out of range: num_labels=7 allows 0 to 6"):
        make_model(FULL).apply({"params": {}}, images(2), jnp.asarray([0, LABELS]), method=method)


@pytest.mark.slow
def test_compiled_scores_of_a_label_that_does_not_exist_are_nan():
    found = apply(make_model(FULL), images(2), jnp.asarray([0, LABELS]), method="score")
    assert np.isnan([found.nats, found.right, found.weight, *found.others["top_5_accuracy"]]).all()


def test_of_equal_logits_the_first_label_is_the_answer():
    model = make_model(FULL)
    params = init(model) | {"head": jax.tree.map(jnp.zeros_like, init(model)["head"])}
    found = apply(model, images(2), jnp.asarray([0, 5]), params=params, method="score")
    assert (found.right, found.others["top_5_accuracy"][0]) == (1, 1)


@pytest.mark.slow
def test_an_observer_sees_every_layer_and_changes_nothing():
    model = make_model()

    def look(i, arrays, plan, context):
        del plan, context
        return jnp.asarray([i, arrays.query.shape[2]])

    found = compiled(model, "score", look=look)(init(model), images(), labels())
    assert [layer.tolist() for layer in found.seen] == [[[0, 16]], [[1, 16]]]
    np.testing.assert_allclose(found.nats, apply(model, images(), labels(), method="score").nats, rtol=1e-6)


@pytest.mark.slow
def test_eight_devices_that_split_the_length_equal_one(x64):
    wide = {"dtype": "float64", "param_dtype": "float64", "dropout_rate": 0.1}
    config = dataclasses.replace(CONFIG, attention_pattern=("full",), num_layers=1, **wide)
    model = make_model(config, order="hilbert")
    results = []
    for mesh in (sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(2, 2, 2, split_length=True)):
        with jax.set_mesh(mesh):
            params = jax.device_put(init(model), sharding.parameter_shardings(init(model), mesh))
            batch = jax.device_put((images(8), labels(8)), sharding.batch_sharding(mesh))
            results.append(jax.jit(jax.value_and_grad(mean_loss(model)))(params, *batch))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        ({"max_length": 20}, {}, r"max_length=20 must be 16: images of 12x12 in patches of 3x3 are 4x4 = 16 patches\."),
        ({}, {"pooling": "first"}, r"max_length=16 must be 17: .* 16 patches and the class token of pooling='first'"),
        (
            {"max_length": 17, "axial_shape": (17, 1)},
            {"pooling": "first"},
            r"axial_shape=\(17, 1\) must be \(5, 4\), the rows and columns of patches; the last row is for the class",
        ),
        ({"axial_shape": (2, 8)}, {}, r"axial_shape=\(2, 8\) must be \(4, 4\).*or position_embedding='learned'"),
        ({}, {"patch_size": 5}, r"image_size=12 is not a multiple of patch_size=5"),
        ({"causal": True}, {}, r"causal=True hides from each patch .* needs causal=False"),
        ({}, {"pooling": "max"}, r"pooling='max' must be one of first, mean"),
        ({}, {"patch_order": "snake"}, r"patch_order='snake' must be one of rows, hilbert"),
    ],
)
def test_what_does_not_fit_is_named(changes, fields, message):
    model = dataclasses.replace(make_model(dataclasses.replace(CONFIG, **changes)), **fields)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), method="create")


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images of shape \(1, 15, 12, 3\) are not \[batch, 12, 12, 3\]"):
        apply(make_model(), jnp.zeros((1, 15, 12, 3)))
