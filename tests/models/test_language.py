"""The language model: lengths, padding, randomness, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig, ReformerLM
from reformer.layers import rotations as all_rotations
from reformer.models import trunk
from tests import small_models as models

FIXED_BUCKETS = dataclasses.replace(models.SMALL, max_length=1000, num_buckets=8)
LOCAL = dataclasses.replace(models.SMALL, attention_pattern=("local",))


def logits(config, tokens, **kwargs):
    kwargs = {"rngs": {"hash": jax.random.key(5)}, **kwargs}
    static = {"deterministic": kwargs.pop("deterministic", True)}
    apply = jax.jit(functools.partial(ReformerLM(config).apply, **static))
    return apply({"params": models.init(config)}, tokens, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 65])
def test_any_length_trains_and_evaluates(length):
    config = dataclasses.replace(FIXED_BUCKETS, num_buckets=None, dropout_rate=0.1)
    tokens = models.tokens(config, 1, length)
    step = jax.jit(jax.value_and_grad(models.mean_loss(config)))
    loss, gradients = step(models.init(config), tokens, jax.random.key(0))
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
    assert logits(config, tokens).shape == (1, length, config.vocab_size)


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.slow), 30])
def test_padding_on_the_right_does_not_change_the_logits_of_real_tokens(length, causal):
    config = dataclasses.replace(
        FIXED_BUCKETS, causal=causal, lsh_num_chunks_after=int(not causal), local_num_chunks_after=int(not causal)
    )
    tokens = models.tokens(config, 2, length)
    expected = logits(config, tokens)
    for padding in (2, 37):
        padded = jnp.pad(tokens, ((0, 0), (0, padding)), constant_values=3)
        mask = jnp.broadcast_to(jnp.arange(length + padding) < length, padded.shape)
        found = logits(config, padded, mask=mask)[:, :length]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_loss_equals_the_cross_entropy_of_the_logits():
    config = models.SMALL
    tokens, targets = models.tokens(config), models.tokens(config, seed=1)
    weights = jnp.linspace(0, 2, tokens.size).reshape(tokens.shape)
    mask = jnp.arange(tokens.shape[1])[None] < jnp.array([96, 70])[:, None]
    kwargs = {"mask": mask, "rngs": {"hash": jax.random.key(5)}}
    nats, weight = ReformerLM(config).apply(
        {"params": models.init(config)}, tokens, targets, weights=weights, method="loss", **kwargs
    )
    log_probabilities = jax.nn.log_softmax(logits(config, tokens, mask=mask))
    chosen = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats, -jnp.sum(chosen * weights * mask), rtol=1e-5)
    np.testing.assert_allclose(weight, jnp.sum(weights * mask), rtol=1e-5)


@pytest.mark.slow
def test_zero_weights_give_zero_loss_and_finite_gradients():
    tokens = models.tokens(models.SMALL)

    def loss(params):
        options = {"weights": jnp.zeros(tokens.shape), "rngs": {"hash": jax.random.key(0)}, "method": "loss"}
        return ReformerLM(models.SMALL).apply({"params": params}, tokens, tokens, **options)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (nats, weight), gradients = step(models.init(models.SMALL))
    assert (nats, weight) == (0, 0)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_the_same_hash_key_gives_the_same_logits_and_another_key_others():
    tokens = models.tokens(models.SMALL)
    first = logits(models.SMALL, tokens)
    np.testing.assert_array_equal(first, logits(models.SMALL, tokens))
    assert np.any(np.asarray(first) != np.asarray(logits(models.SMALL, tokens, rngs={"hash": jax.random.key(6)})))


@pytest.mark.slow
def test_rotations_replace_the_hash_key():
    config = dataclasses.replace(models.SMALL, num_layers=6)
    tokens, rngs = models.tokens(config), {"hash": jax.random.key(5)}
    key = ReformerLM(config).apply({}, rngs=rngs, method=lambda model: model.make_rng("hash"))
    rotations = list(all_rotations.draw(config, 96, key))
    found = logits(config, tokens, rotations=rotations, rngs=None)
    np.testing.assert_array_equal(found, logits(config, tokens, rngs=rngs))
    assert np.any(np.asarray(found) != np.asarray(logits(config, tokens, rotations=rotations[::-1], rngs=None)))


@pytest.mark.slow
@pytest.mark.parametrize("look_ahead", [None, False])
@pytest.mark.parametrize("pattern", [("full", "local"), ("lsh",)])
def test_no_logit_has_a_gradient_by_a_later_token(pattern, look_ahead):
    # No gradient passes through the sort: of an LSH layer this is causality with the order held fixed.
    config = dataclasses.replace(
        models.SMALL, num_layers=2, attention_pattern=pattern, position_embedding="learned", look_ahead=look_ahead
    )
    params, tokens = models.init(config), models.tokens(config, 1, 40)

    def logits_by_position(positions):
        embeddings = params["embeddings"] | {"position": positions}
        variables = {"params": {**params, "embeddings": embeddings}}
        return ReformerLM(config).apply(variables, tokens, rngs={"hash": jax.random.key(0)})[0].sum(-1)

    jacobian = jax.jit(jax.jacrev(logits_by_position))(params["embeddings"]["position"])
    by_token = np.abs(np.asarray(jacobian)).sum(-1)[:, :40]
    assert np.all(np.triu(by_token, 1) == 0)
    assert np.all(np.diagonal(by_token) > 0)
    assert np.any(np.tril(by_token, -1) > 0)


def test_axial_positions_reach_the_padding_that_wrapped_windows_need():
    config = dataclasses.replace(models.SMALL, semantics="huggingface", max_length=30, axial_shape=(5, 6))
    assert logits(config, models.tokens(config)).shape == (2, 30, config.vocab_size)


def test_initialisation_through_the_loss_creates_the_same_parameters():
    tokens = models.tokens(models.SMALL)
    found = jax.eval_shape(
        functools.partial(ReformerLM(models.SMALL).init, method="loss"), jax.random.key(0), tokens, tokens
    )
    assert jax.tree.map(lambda x: x.shape, found["params"]) == jax.tree.map(
        lambda x: x.shape, models.init(models.SMALL)
    )


@pytest.mark.slow
def test_gradients_of_bfloat16_parameters_do_not_depend_on_the_chunks():
    config = dataclasses.replace(models.SMALL, param_dtype="bfloat16", attention_pattern=("local",))
    chunked = dataclasses.replace(config, mlp_chunk_length=1, loss_chunk_length=1)
    whole = dataclasses.replace(config, mlp_chunk_length=None, loss_chunk_length=None)
    one, other = (
        jax.jit(jax.grad(models.mean_loss(c)))(models.init(config), models.tokens(config), jax.random.key(0))
        for c in (chunked, whole)
    )
    assert models.relative_error(one, other) < 1e-2


def test_all_padding_is_finite():
    tokens = models.tokens(models.SMALL)
    assert np.all(np.isfinite(logits(models.SMALL, tokens, mask=jnp.zeros(tokens.shape, bool))))


def test_parameters_are_plain_arrays_of_the_requested_type():
    config = dataclasses.replace(models.SMALL, param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(models.init(config))} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_bfloat16_logits_are_close_to_float32():
    narrow = dataclasses.replace(models.SMALL, attention_pattern=("full", "local"), dtype="bfloat16")
    wide = dataclasses.replace(narrow, dtype="float32")
    tokens = models.tokens(narrow)
    found = ReformerLM(narrow).apply({"params": models.init(wide)}, tokens)
    assert found.dtype == jnp.float32
    assert models.relative_error(found, ReformerLM(wide).apply({"params": models.init(wide)}, tokens)) < 2e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: logits(models.SMALL, models.tokens(models.SMALL, 1, 97)),
            "length=97 exceeds max_length=96",
        ),
        (
            lambda: logits(models.SMALL, jnp.zeros((1, 0), jnp.int32)),
            r"\(1, 0\) must be \[batch, length, ",
        ),
        # below the public functions, whose annotations are checked in tests
        (lambda: trunk._check_inputs(jnp.zeros(4), None, 96), r"shape \(4,\) must be \[batch, length"),
        (
            lambda: trunk._check_inputs(jnp.zeros((2, 4)), jnp.ones((1, 4)), 96),
            r"mask \(1, 4\) of float32 must be \[batch, length\] = \(2, 4\) of bool",
        ),
        (
            lambda: logits(models.SMALL, models.tokens(models.SMALL), rngs=None),
            "LSH layers need rngs",
        ),
        (
            lambda: logits(LOCAL, models.tokens(LOCAL), rotations=[jnp.zeros((2, 8, 2, 4))]),
            "1 rotations for 0 LSH layers",
        ),
        (
            lambda: logits(models.SMALL, models.tokens(models.SMALL), rotations=[]),
            "0 rotations for 2 LSH layers",
        ),
        (
            lambda: logits(models.SMALL, models.tokens(models.SMALL), rotations=[jnp.zeros((2, 8, 2, 3))] * 2),
            r"rotations of shape \(2, 8, 2, 3\) do not fit",
        ),
        (
            lambda: logits(
                dataclasses.replace(models.SMALL, dropout_rate=0.1),
                models.tokens(models.SMALL),
                deterministic=False,
            ),
            "needs rngs=.'dropout': key",
        ),
    ],
)
def test_errors_name_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_pattern": ("lsh,local",)}, r"quote each name"),
        ({"num_layers": 5}, "num_layers=5 is not a multiple of the 2 layers"),
        ({"num_buckets": 7}, "num_buckets=7 must be None, an even"),
        ({"axial_shape": (8, 8), "max_length": 65}, "holds 64 positions, fewer than max_length=65"),
        ({"axial_dims": (64, 64)}, "sum to 128, which must equal embed_dim=256"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0 must be a number of at least 0 and below 1"),
        ({"dtype": "float8"}, "dtype='float8' must be one of"),
        ({"num_heads": 2.5}, "num_heads=2.5 must be an integer"),
        ({"causal": 1}, "causal=1 must be True or False"),
        ({"semantics": "huggingface", "lsh_within_bucket": True}, "do not exist under semantics='huggingface'"),
        ({"semantics": "huggingface", "local_num_chunks_after": 1}, "local_num_chunks_after=1 with causal=True"),
    ],
)
def test_an_invalid_config_is_refused_with_a_repair(fields, message):
    with pytest.raises(ValueError, match=message):
        ReformerConfig(**fields)


FULL = dataclasses.replace(models.SMALL, attention_pattern=("full",), num_layers=1, max_length=12)


@pytest.mark.parametrize("method", ["__call__", "loss", "score"])
@pytest.mark.parametrize("wrong", [-1, 50])
def test_a_token_that_does_not_exist_is_refused_before_any_work(method, wrong):
    tokens = models.tokens(FULL).at[1, 3].set(wrong)
    targets = () if method == "__call__" else (models.tokens(FULL),)
    with pytest.raises(ValueError, match=rf"tokens\[1, 3\]={wrong} is out of range: vocab_size=50 allows 0 to 49"):
        ReformerLM(FULL).apply({"params": {}}, tokens, *targets, method=method)


@pytest.mark.parametrize("method", ["loss", "score"])
def test_a_target_that_counts_and_does_not_exist_is_refused_before_any_work(method):
    tokens, targets = models.tokens(FULL), models.tokens(FULL).at[0, 2].set(-100)
    with pytest.raises(
        ValueError, match=r"targets\[0, 2\]=-100 is out of range: .* by a weight of 0, or raise vocab_size"
    ):
        ReformerLM(FULL).apply({"params": {}}, tokens, targets, method=method)


def test_compiled_logits_of_a_token_that_does_not_exist_are_nan_unless_it_is_hidden():
    tokens, mask = models.tokens(FULL), jnp.ones((2, 12), bool).at[1, 3].set(False)
    compiled = jax.jit(functools.partial(ReformerLM(FULL).apply, {"params": models.init(FULL)}))
    right = compiled(tokens, mask=mask)
    for wrong in (-1, 50):
        found = compiled(tokens.at[1, 3].set(wrong), mask=jnp.ones_like(mask))
        assert np.isnan(found[1, 3:]).all()
        np.testing.assert_array_equal(found[0], right[0])
        hidden = compiled(tokens.at[1, 3].set(wrong), mask=mask)
        np.testing.assert_array_equal(hidden[mask], right[mask])


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [("full",), ("local",), ("lsh",)])
def test_compiled_loss_and_gradients_of_a_token_that_does_not_exist_are_nan(pattern):
    config = dataclasses.replace(FULL, attention_pattern=pattern, max_length=96, loss_chunk_length=None)
    tokens = models.tokens(config).at[1, 3].set(50)
    loss, gradients = jax.jit(jax.value_and_grad(models.mean_loss(config)))(
        models.init(config), tokens, jax.random.key(0)
    )
    assert np.isnan(loss)
    assert np.isnan(gradients["head"]["kernel"]).any()
