"""Replaced-token detection: the loss and its gradient, what is drawn, what is shared, and where the parameters lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig, sharding
from reformer.models import electra
from reformer.models.electra import ReformerElectra
from reformer.models.electra_parts import generator_config

CONFIG = ReformerConfig(
    vocab_size=20,
    max_length=24,
    num_layers=1,
    attention_pattern=("lsh",),
    embed_dim=16,
    mlp_dim=24,
    num_heads=4,
    head_dim=4,
    causal=False,
    num_hashes=1,
    lsh_chunk_length=8,
    loss_chunk_length=10,
)
MASK_ID = 19
KEY = jax.random.key(7)


def batch(num_examples=16, length=24):
    """Rows with about a quarter of the tokens hidden, the first one always; half of the second is padding."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, MASK_ID, (num_examples, length)).astype(np.int32)
    mask = np.ones(targets.shape, bool)
    mask[1, length // 2 :] = False
    weights = (rng.random(targets.shape) < 0.25) * mask.astype(float)
    weights[:, 0] = 1
    tokens = np.where(weights > 0, MASK_ID, targets)
    return jax.tree.map(jnp.asarray, {"tokens": tokens, "targets": targets, "weights": weights, "mask": mask})


@functools.cache
def params_of(model):
    return model.init(jax.random.key(0), method="create")["params"]


def loss_of(model, rows, key=KEY, **options):
    rngs = {"hash": key, "dropout": jax.random.fold_in(key, 1)}
    return lambda params: model.apply({"params": params}, **rows, method="loss", rngs=rngs, **options)


@functools.cache
def compiled(model, method):
    """A method of a model as a compiled function of parameters and rows, always with the same key."""

    def call(params, rows):
        return model.apply({"params": params}, **rows, method=method, rngs={"hash": KEY})

    return jax.jit(call)


# Without LSH, whose rotations no reference could draw alike.
PLAIN = ReformerElectra(dataclasses.replace(CONFIG, attention_pattern=("full",), max_length=40))


def reference_loss(model, params, rows, corrupted):
    """The issue's formula in one piece, from the logits of two ordinary models without reversibility."""
    generator, discriminator = model.split(params)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, reversible=False))
    mask = rows["mask"]
    logits = model.generator.apply({"params": generator}, rows["tokens"], mask=mask)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), rows["targets"][..., None], axis=-1)[..., 0]
    logit = model.discriminator.apply({"params": discriminator}, corrupted, mask=mask)[..., 0]
    is_replaced = corrupted != rows["targets"]
    nats_of_other = -jnp.log(jnp.where(is_replaced, jax.nn.sigmoid(logit), 1 - jax.nn.sigmoid(logit)))
    of_each = [
        jnp.sum(values * weights, axis=1) / jnp.sum(weights, axis=1)
        for values, weights in ((nats, rows["weights"]), (nats_of_other, mask))
    ]
    return jnp.sum(jnp.sum(mask, axis=1) * (of_each[0] + model.discriminator_weight * of_each[1]))


def wide(share):
    """A model in float64, of which the formula tells values and gradients."""
    config = dataclasses.replace(PLAIN.config, dtype="float64", param_dtype="float64")
    return ReformerElectra(config, share=share, generator_scale=1.0 if share == "all" else 0.5)


@pytest.mark.slow
def test_loss_and_gradient_equal_the_formula_in_one_piece(x64):
    # In the formula the drawn tokens are given: the discriminator teaches the generator nothing but embeddings.
    model, rows = wide("embeddings"), batch()
    params = params_of(model)
    corrupted, _ = compiled(model, "replace")(params, rows)
    (nats, weight), gradient = jax.jit(jax.value_and_grad(loss_of(model, rows), has_aux=True))(params)
    expected, of_formula = jax.jit(jax.value_and_grad(lambda p: reference_loss(model, p, rows, corrupted)))(params)
    np.testing.assert_allclose(nats, expected, rtol=1e-10)
    assert weight == rows["mask"].sum()
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-8), gradient, of_formula)


@pytest.mark.slow
@pytest.mark.parametrize("share", ["none", "all"])
def test_the_score_is_the_formula_whatever_is_shared(x64, share):
    model, rows = wide(share), batch()

    @jax.jit
    def run(params):
        rngs = {"hash": KEY}
        score, (corrupted, _) = (
            model.apply({"params": params}, **rows, method=m, rngs=rngs) for m in ("score", "replace")
        )
        return score.nats, score.weight, reference_loss(model, params, rows, corrupted)

    nats, weight, expected = run(params_of(model))
    np.testing.assert_allclose((nats, weight), (expected, rows["mask"].sum()), rtol=1e-10)


def gradient_of(model):
    """Loss and gradient with dropout, as a compiled function of parameters, rows and a key."""

    def of_loss(params, rows, key):
        return jax.value_and_grad(loss_of(model, rows, key, deterministic=False), has_aux=True)(params)

    return jax.jit(of_loss)


@pytest.fixture(scope="module")
def small():
    """A model with every kind of randomness, its parameters, and its `gradient_of`."""
    model = ReformerElectra(dataclasses.replace(CONFIG, dropout_rate=0.1), generator_scale=0.5)
    return model, params_of(model), gradient_of(model)


@pytest.mark.slow
def test_draws_stand_in_hidden_places_only_and_count_as_replaced_if_they_are_wrong():
    rows = batch()
    tokens, labels = compiled(PLAIN, "replace")(params_of(PLAIN), rows)
    hidden = np.asarray(rows["weights"]) > 0
    np.testing.assert_array_equal(np.where(hidden, 0, tokens), np.where(hidden, 0, rows["targets"]))
    np.testing.assert_array_equal(labels, np.asarray(tokens) != rows["targets"])
    assert 0 < labels.sum() < hidden.sum()  # one in 20 is right by chance


@pytest.mark.slow
def test_a_row_is_worth_the_same_in_any_batch_and_with_more_padding_behind_it():
    rows, params, score = batch(), params_of(PLAIN), compiled(PLAIN, "score")
    one = score(params, rows)[:3]
    longer = {name: jnp.pad(x, ((0, 0), (0, 11))) for name, x in rows.items()}
    halves = [score(params, jax.tree.map(lambda x, i=i: x[i::2], longer))[:3] for i in (0, 1)]
    np.testing.assert_allclose(np.sum(halves, axis=0), one, rtol=1e-5)


@pytest.mark.slow
def test_the_same_key_draws_the_same_and_another_other_tokens(small):
    _, params, gradient = small
    first, again, other = (gradient(params, batch(), key)[0][0] for key in (KEY, KEY, jax.random.key(8)))
    assert first == again != other


@pytest.mark.slow
def test_examples_without_targets_or_tokens_weigh_what_they_have(small):
    _, params, gradient = small
    rows = batch() | {"weights": jnp.zeros((16, 24)), "mask": jnp.zeros((16, 24), bool).at[0].set(True)}
    (nats, weight), of_params = gradient(params, rows, KEY)
    assert weight == 24 and np.isfinite(nats)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(of_params))
    assert not np.any(of_params["generator"]["head"]["kernel"])
    (nats, weight), _ = gradient(params, rows | {"mask": jnp.zeros((16, 24), bool)}, KEY)
    assert (nats, weight) == (0, 0)


@pytest.mark.slow
def test_measures_are_those_of_a_count_by_hand():
    rows, params = batch(), params_of(PLAIN)
    tokens, labels = (np.asarray(x) for x in compiled(PLAIN, "replace")(params, rows))
    apply = jax.jit(PLAIN.discriminator.apply)
    logit = apply({"params": params["discriminator"]}, tokens, mask=rows["mask"])[..., 0]
    real, suspected = np.asarray(rows["mask"]), np.asarray(logit) > 0
    found = compiled(PLAIN, "score")(params, rows)
    assert found.right == (real & (suspected == labels)).sum()
    hits, others = (real & suspected & (labels == 1)).sum(), found.others
    assert others["detection_recall"] == (hits, (real & (labels == 1)).sum())
    assert others["detection_precision"] == (hits, (real & suspected).sum())
    assert others["unreplaced_share"] == ((real & (labels == 0)).sum(), real.sum())
    nats = others["generator_nats"][0] + 50 * others["discriminator_nats"][0]
    np.testing.assert_allclose(found.nats, nats, rtol=1e-6)


@pytest.mark.parametrize(
    ("share", "scale", "own", "width"),
    [
        ("embeddings", 0.5, {"stack", "norm", "head", "projection"}, 8),
        ("embeddings", 1.0, {"stack", "norm", "head"}, 16),
        ("none", 0.5, {"embeddings", "stack", "norm", "head"}, 8),
        ("all", 1.0, {"head"}, 16),
    ],
)
def test_what_is_shared_is_stored_once_and_the_discriminator_is_complete(share, scale, own, width):
    model = ReformerElectra(CONFIG, share=share, generator_scale=scale)
    shapes = jax.eval_shape(functools.partial(model.init, method="create"), jax.random.key(0))["params"]
    assert shapes.keys() == {"generator", "discriminator"} and shapes["generator"].keys() == own
    assert shapes["discriminator"].keys() == {"embeddings", "stack", "norm", "head"}
    assert shapes["generator"]["head"]["kernel"].shape == (2 * width, CONFIG.vocab_size)
    generator, discriminator = model.split(shapes)
    assert (generator["embeddings"] is discriminator["embeddings"]) == (share != "none")
    assert (generator["stack"] is discriminator["stack"]) == (share == "all")


def test_a_generator_keeps_the_width_of_its_heads_as_long_as_it_has_several():
    sizes = {"embed_dim": 128, "mlp_dim": 512, "num_heads": 8, "head_dim": 16}
    config = dataclasses.replace(CONFIG, **sizes)
    found = [generator_config(config, scale) for scale in (1, 0.25, 0.0625)]
    assert [tuple(getattr(c, name) for name in sizes) for c in found] == [
        (128, 512, 8, 16),
        (32, 128, 2, 16),
        (8, 32, 1, 8),
    ]


def assert_equal_on(meshes, model):
    """Loss and gradient are the same on both meshes."""
    params, rows, results = params_of(model), batch(), []
    del rows["mask"]
    for mesh in meshes:
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, sharding.parameter_shardings(params, mesh))
            spread = jax.device_put(rows, sharding.batch_sharding(mesh))
            results.append(jax.device_get(gradient_of(model)(placed, spread, KEY)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-8), *results)


@pytest.mark.slow
def test_eight_devices_that_split_the_length_equal_one(x64):
    config = dataclasses.replace(wide("embeddings").config, max_length=24, dropout_rate=0.1)
    meshes = sharding.make_mesh(2, 2, 2, split_length=True), sharding.make_mesh(devices=jax.devices()[:1])
    assert_equal_on(meshes, ReformerElectra(config, generator_scale=0.5))


def test_every_parameter_has_axes_and_the_projection_is_split_where_embeddings_are():
    model = ReformerElectra(CONFIG, generator_scale=0.5)
    shapes = jax.eval_shape(functools.partial(model.init, method="create"), jax.random.key(0))["params"]
    places = sharding.parameter_shardings(shapes, sharding.make_mesh(2, 2, 2))
    assert places["generator"]["projection"]["kernel"].shard_shape((16, 8)) == (8, 8)
    assert places["discriminator"]["embeddings"]["token"].shard_shape((20, 16)) == (20, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": dataclasses.replace(CONFIG, causal=True)}, "causal=True hides .* ELECTRA needs causal=False"),
        ({"share": "norm"}, "share='norm' must be one of embeddings, all, none"),
        ({"share": "all"}, "share='all' needs a generator of the same size, generator_scale=1 instead of 0.25"),
        ({"generator_scale": 1.5}, "generator_scale=1.5 must be above 0 and at most 1"),
        ({"generator_scale": 0.05}, "generator_scale=0.05: the generator's axial_dims"),
    ],
)
def test_what_cannot_be_is_refused_with_a_repair(fields, message):
    with pytest.raises(ValueError, match=message):
        ReformerElectra(**{"config": CONFIG, **fields})


def test_examples_with_bfloat16_weights_weigh_their_number_of_tokens():
    weights = electra._per_example(jnp.ones((1, 1021), jnp.bfloat16), None)
    assert float(jnp.sum(weights)) == 1021


def test_a_draw_needs_a_key():
    with pytest.raises(ValueError, match=r"drawn with rngs=.'hash': key"):
        PLAIN.apply({"params": params_of(PLAIN)}, **batch(), method="loss")


def test_labels_are_smoothed_over_ids_and_not_over_yes_and_no():
    model = ReformerElectra(dataclasses.replace(CONFIG, label_smoothing=0.1))
    assert (model.generator.config.label_smoothing, model.discriminator.config.label_smoothing) == (0.1, 0.0)


@pytest.mark.parametrize("method", ["loss", "score", "replace"])
@pytest.mark.parametrize("name", ["tokens", "targets"])
def test_ids_that_do_not_exist_are_refused_before_any_work(name, method):
    # The place has no weight, but the discriminator sees its target.
    rows = batch(2)
    place = tuple(np.argwhere(np.asarray(rows["weights"] == 0) & np.asarray(rows["mask"]))[0])
    rows[name] = rows[name].at[place].set(20)
    with pytest.raises(ValueError, match=rf"{name}\[0, {place[1]}\]=20 is out of range: vocab_size=20 allows 0 to 19"):
        ReformerElectra(CONFIG).apply({"params": {}}, **rows, method=method, rngs={"hash": KEY})
