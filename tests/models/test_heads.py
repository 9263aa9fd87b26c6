"""The encoder and the heads: values and gradients against obvious references, padding, randomness, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import QuestionAnswerer, ReformerEncoder, ReformerLM, SequenceClassifier, TokenClassifier, sharding
from reformer.models import heads
from reformer.training.state import param_shapes
from tests import small_models as models

# What heads add does not depend on the kind of attention, and full attention compiles fastest.
CONFIG = dataclasses.replace(
    models.SMALL,
    causal=False,
    attention_pattern=("full",),
    max_length=64,
    num_layers=1,
    mlp_chunk_length=None,
    loss_chunk_length=16,
)
LENGTHS = jnp.array([40, 25, 40])
MASK = jnp.arange(40)[None] < LENGTHS[:, None]
TOKENS = models.tokens(CONFIG, 3, 40)
RNGS = {"hash": jax.random.key(5), "dropout": jax.random.key(6)}

MODELS = {
    "encoder": ReformerEncoder(CONFIG),
    "tokens": TokenClassifier(CONFIG, 5),
    "first": SequenceClassifier(CONFIG, 7),
    "mean": SequenceClassifier(CONFIG, 7, "mean"),
    "span": QuestionAnswerer(CONFIG),
}
TARGETS = {
    "tokens": models.tokens(dataclasses.replace(CONFIG, vocab_size=5), 3, 40, seed=1),
    "first": jnp.array([6, 0, 3]),
    "mean": jnp.array([6, 0, 3]),
    "span": jnp.array([[3, 10], [0, 24], [39, 39]]),
}
TRAINED = sorted(TARGETS)


@functools.cache
def init(name):
    """Initial variables."""
    return MODELS[name].init(jax.random.key(0), method="create")


@functools.cache
def compiled(model, method="__call__", deterministic=True):
    """A method of a model."""
    static = {} if deterministic else {"deterministic": False}
    return jax.jit(functools.partial(model.apply, method=method, **static))


def apply(name, tokens=TOKENS, mask=MASK):
    return compiled(MODELS[name])(init(name), tokens, mask=mask, rngs=RNGS)


def of_targets(name, method, targets=None, mask=MASK, weights=None):
    """The loss or score of a model; weights are 1 unless given."""
    weights = jnp.ones(TOKENS.shape if name == "tokens" else (3,)) if weights is None else weights
    targets = TARGETS[name] if targets is None else targets
    options = {"weights": weights, "mask": mask, "rngs": RNGS}
    return compiled(MODELS[name], method)(init(name), TOKENS, targets, **options)


def encode(name):
    """What an encoder with the parameters of a model gives, [batch, length, 2 embed]."""
    params = {part: init(name)["params"][part] for part in ("embeddings", "stack", "norm")}
    return compiled(MODELS["encoder"])({"params": params}, TOKENS, mask=MASK, rngs=RNGS)


def dense(params, x):
    return x @ params["kernel"] + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def expected_logits(name):
    params, hidden = init(name)["params"], encode(name)
    if name in ("tokens", "span"):
        return dense(params["head"], hidden)
    means = [hidden[row, :length].mean(axis=0) for row, length in enumerate(LENGTHS)]
    pooled = hidden[:, 0] if name == "first" else jnp.stack(means)
    return dense(params["head"], jnp.tanh(dense(params["head_hidden"], pooled)))


def nats(logits, target):
    """Of one choice among the only axis of `logits`."""
    return np.log(np.exp(logits).sum()) - logits[target]


@pytest.mark.parametrize("name", ["tokens", "first", "mean"])
def test_logits_are_the_head_over_the_hidden_states_of_the_encoder(name):
    np.testing.assert_allclose(apply(name), expected_logits(name), atol=1e-5)


def test_starts_and_ends_are_the_two_outputs_of_the_head():
    start, end = apply("span")
    np.testing.assert_allclose(jnp.stack([start, end], axis=-1), expected_logits("span"), atol=1e-5)


def test_the_encoder_is_what_stands_below_the_head_of_a_language_model():
    params = models.init(CONFIG)
    below = {name: params[name] for name in ("embeddings", "stack", "norm")}
    hidden = compiled(MODELS["encoder"])({"params": below}, TOKENS, mask=MASK, rngs=RNGS)
    logits = compiled(ReformerLM(CONFIG))({"params": params}, TOKENS, mask=MASK, rngs=RNGS)
    assert hidden.shape == (3, 40, 2 * CONFIG.embed_dim)
    np.testing.assert_allclose(dense(params["head"], hidden), logits, atol=1e-5)


def _reference_loss(name, weights):
    logits, targets, weights = map(np.asarray, (expected_logits(name), TARGETS[name], weights))
    if name == "tokens":
        rows = [(r, p) for r in range(3) for p in range(int(LENGTHS[r]))]
        return sum(weights[r, p] * nats(logits[r, p], targets[r, p]) for r, p in rows), (weights * MASK).sum()
    if name == "span":
        real = [logits[r, : int(LENGTHS[r])] for r in range(3)]
        losses = [nats(real[r][:, i], targets[r, i]) * weights[r] for r in range(3) for i in range(2)]
        return sum(losses), 2 * weights.sum()
    return sum(weights[r] * nats(logits[r], targets[r]) for r in range(3)), weights.sum()


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_score_are_the_weighted_cross_entropy_over_real_tokens(name):
    shape = TOKENS.shape if name == "tokens" else (3,)
    weights = jnp.linspace(0.5, 2, int(np.prod(shape))).reshape(shape)
    loss, weight = of_targets(name, "loss", weights=weights)
    scored = of_targets(name, "score", weights=weights)
    np.testing.assert_allclose((loss, weight), _reference_loss(name, weights), rtol=1e-5)
    np.testing.assert_allclose((scored.nats, scored.weight), (loss, weight), rtol=1e-6)
    assert scored.seen == ()


def test_label_smoothing_spreads_a_part_of_each_label_over_all():
    smooth = SequenceClassifier(dataclasses.replace(CONFIG, label_smoothing=0.2), 7)
    logits = np.asarray(apply("first"), np.float64)
    nats = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
    share = 0.8 * np.eye(7)[TARGETS["first"]] + 0.2 / 7
    options = {"mask": MASK, "rngs": RNGS}
    found = compiled(smooth, "loss")(init("first"), TOKENS, TARGETS["first"], **options)
    np.testing.assert_allclose(found, (np.sum(share * nats), 3), rtol=1e-5)


def _gradients(model, name):
    def loss(params):
        options = {"mask": MASK, "rngs": RNGS, "deterministic": False, "method": "loss"}
        return model.apply({"params": params}, TOKENS, TARGETS[name], **options)[0]

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init(name)["params"])
    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("name", ["first", *(pytest.param(n, marks=pytest.mark.slow) for n in TRAINED if n != "first")])
def test_gradients_with_dropout_equal_those_of_ordinary_autodiff(name):
    wide = {"dtype": "float64", "param_dtype": "float64"}
    config = dataclasses.replace(CONFIG, dropout_rate=0.1, **wide)
    with jax.enable_x64(True):
        one, other = (
            _gradients(dataclasses.replace(MODELS[name], config=dataclasses.replace(config, reversible=r)), name)
            for r in (True, False)
        )
    assert models.relative_error(one, other) < 1e-10
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(one))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_stands_in_the_padding_changes_nothing_for_real_tokens(name):
    first, other = apply(name), apply(name, jnp.where(MASK, TOKENS, 3))
    if name not in ("first", "mean"):
        first, other = jax.tree.map(lambda x: x[MASK], (first, other))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), first, other)


def test_the_mean_without_a_mask_is_that_with_all_tokens():
    np.testing.assert_allclose(apply("mean", mask=None), apply("mean", mask=jnp.ones_like(MASK)), atol=1e-6)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_all_padding_is_finite(name):
    found = apply(name, mask=jnp.zeros_like(MASK))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ["encoder", "first", "span"])
def test_dropout_reaches_every_head_and_repeats_with_its_key(name):
    only_head = dataclasses.replace(CONFIG, dropout_rate=0.3, attention_dropout_rate=0.0)
    model = dataclasses.replace(MODELS[name], config=only_head)
    first, again = (compiled(model, deterministic=False)(init(name), TOKENS, mask=MASK, rngs=RNGS) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first, apply(name))), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean", "span"])
def test_eight_devices_that_split_the_length_compute_what_one_does(name):
    config = dataclasses.replace(CONFIG, embed_dim=16, dtype="float64", param_dtype="float64", dropout_rate=0.1)
    model, tokens = dataclasses.replace(MODELS[name], config=config), models.tokens(CONFIG, 8, 64)
    batch = {"tokens": tokens, "mask": jnp.arange(64)[None] < jnp.arange(57, 65)[:, None]}
    batch["targets"] = tokens[:, :2] if name == "span" else tokens[:, 0] % 7

    def loss(params, batch):
        return model.apply({"params": params}, **batch, rngs=RNGS, deterministic=False, method="loss")[0]

    def run(mesh):
        with jax.set_mesh(mesh):
            params = jax.jit(functools.partial(model.init, method="create"))(jax.random.key(0))["params"]
            params = jax.device_put(params, sharding.parameter_shardings(params, mesh))
            placed = jax.device_put(batch, sharding.batch_sharding(mesh))
            return jax.jit(jax.value_and_grad(loss))(params, placed)

    with jax.enable_x64(True):
        meshes = sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(2, 2, 2, split_length=True)
        one, eight = map(run, meshes)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-10), eight, one)


def test_what_stands_below_a_head_has_the_same_names_in_all_models():
    shared = {name: shape for name, shape in param_shapes(ReformerLM(CONFIG)).items() if not name.startswith("head")}
    expected = {
        "encoder": {},
        "tokens": {"head/kernel": (32, 5), "head/bias": (5,)},
        "span": {"head/kernel": (32, 2), "head/bias": (2,)},
    }
    expected["first"] = expected["mean"] = {
        "head_hidden/kernel": (32, 16),
        "head_hidden/bias": (16,),
        "head/kernel": (16, 7),
        "head/bias": (7,),
    }
    for name, of_head in expected.items():
        assert param_shapes(MODELS[name]) == shared | of_head


def test_spans_outside_the_real_tokens_do_not_count():
    _, weight = of_targets("span", "loss", jnp.array([[3, 10], [5, 25], [-1, 40]]))
    assert weight == 3


def test_bfloat16_weights_of_spans_are_summed_in_float32():
    ones = jnp.ones(1021, jnp.bfloat16)
    targets = jnp.zeros((1021, 2), jnp.int32)
    weights = heads._span_weights(targets, ones, jnp.zeros((1021, 3), jnp.int32), None)
    assert float(jnp.sum(jnp.min(weights, axis=1))) == 1021
    assert [float(x) for x in heads.label_sums(jnp.zeros((1021, 2, 3)), targets, ones[:, None] * weights)[1:]] == [
        2042
    ] * 2


def test_a_whole_span_is_exact_if_start_and_end_are_right():
    logits = [jnp.where(MASK, x, -jnp.inf) for x in apply("span")]
    best = jnp.stack([x.argmax(axis=1) for x in logits], axis=1)
    targets = best.at[1, 0].set((best[1, 0] + 1) % 25)
    scored = of_targets("span", "score", targets)
    assert scored.others["exact"] == (2, 3)
    assert (scored.right, scored.weight) == (5, 6)


@pytest.mark.parametrize("name", TRAINED)
def test_zero_weights_give_zero_loss(name):
    weights = jnp.zeros(TOKENS.shape if name == "tokens" else (3,))
    assert of_targets(name, "loss", weights=weights) == (0, 0)


@pytest.mark.parametrize("name", ["first", "span"])
def test_an_observer_sees_every_layer_of_the_pattern(name):
    options = {"mask": MASK, "rngs": RNGS, "method": "score", "look": lambda layer, *_: jnp.array(layer)}
    scored = jax.jit(functools.partial(MODELS[name].apply, **options))(init(name), TOKENS, TARGETS[name])
    assert [x.tolist() for x in scored.seen] == [[0]]


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling='last' must be one of first, mean"):
        SequenceClassifier(CONFIG, 7, "last").init(jax.random.key(0), method="create")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 7, 9], r"label\[2\]=7 is out of range: num_labels=7 allows 0 to 6"),
        ([[0, -1]], r"label\[0, 1\]=-1 is out of range"),
        ([0.5], "labels of type float64 must be integers from 0 to 6"),
    ],
)
def test_labels_out_of_range_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        heads.check_labels(np.array(labels), 7)
    heads.check_labels(np.arange(7), 7)


@pytest.mark.parametrize("method", ["loss", "score"])
@pytest.mark.parametrize(("name", "wrong"), [("tokens", 5), ("first", 7), ("mean", -100)])
def test_labels_that_count_and_do_not_exist_are_refused_before_any_work(name, wrong, method):
    targets = TARGETS[name].at[(1,) * TARGETS[name].ndim].set(wrong)
    with pytest.raises(ValueError, match=rf"targets\[1(, 1)?\]={wrong} is out of range: num_labels=[57] allows 0 to "):
        MODELS[name].apply({"params": {}}, TOKENS, targets, mask=MASK, method=method)


@pytest.mark.parametrize("wrong", [-100, -1, 3])
def test_sums_over_labels_are_nan_where_one_that_counts_does_not_exist(wrong):
    logits, targets = jnp.linspace(0, 1, 12).reshape(4, 3), jnp.array([0, wrong, 2, 1])
    assert np.isnan(heads.label_sums(logits, targets, None)).all()
    weights = jnp.array([1.0, 0, 2, 1])
    left_out = heads.label_sums(logits, targets, weights)
    np.testing.assert_array_equal(left_out, heads.label_sums(logits, targets.at[1].set(0), weights))
