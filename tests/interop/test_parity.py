"""Our model under Hugging Face semantics computes what theirs does, in float64.

The fixtures are what transformers 4.57.1 computed (see make_fixtures). They also hold the oracle, which then tells what
theirs would compute for configurations, lengths and masks that are in no fixture, gradients included.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import safetensors.numpy

from reformer import ReformerConfig, ReformerLM, num_buckets
from reformer.interop.huggingface import load, save

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir())
LOGITS_TOLERANCE = 1e-9
GRADIENT_TOLERANCE = 1e-7  # norm over norm

BASE = ReformerConfig(
    vocab_size=16,
    max_length=48,
    num_layers=2,
    embed_dim=8,
    mlp_dim=10,
    num_heads=2,
    head_dim=3,
    num_buckets=4,
    lsh_chunk_length=4,
    local_chunk_length=4,
    axial_shape=(6, 8),
    axial_dims=(2, 6),
    activation="gelu",
    layer_norm_epsilon=1e-12,
    semantics="huggingface",
    dtype="float64",
    param_dtype="float64",
)
BOTH_SIDES = {"causal": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 1}

pytestmark = pytest.mark.usefixtures("x64")


def read_fixture(case):
    """The expected arrays of a fixture, its tokens, mask and rotations, and the gradient by name."""
    expected = np.load(FIXTURES / case / "expected.npz")
    num_rotations = sum(name.startswith("rotations_") for name in expected)
    rotations = [expected[f"rotations_{i}"] for i in range(num_rotations)]
    gradients = {name.removeprefix("gradient/"): expected[name] for name in expected if name.startswith("gradient/")}
    return expected["logits"], (expected["tokens"], expected["mask"], rotations), gradients


def read_checkpoint(directory):
    """The state dict and fields of a checkpoint, as the oracle takes them."""
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    weights.pop("lm_head.decoder.bias", None)
    return jax.tree.map(jnp.asarray, weights), json.loads((directory / "config.json").read_text())


def logits_and_gradient(function, weights):
    """Logits, and the gradient of the mean of their squares."""

    def loss(weights):
        logits = function(weights)
        return jnp.mean(logits**2), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    return logits, gradient


def ours(config, variables, tokens, mask, rotations, directory):
    """Logits of our model and its gradient under their names."""
    model = ReformerLM(config)
    tokens, mask, rotations = jax.tree.map(jnp.asarray, (np.int32(tokens), mask, rotations))

    def run(variables):
        return model.apply(variables, tokens, mask=mask, rotations=rotations)

    logits, gradient = logits_and_gradient(run, variables)
    save(directory, config, gradient)
    return logits, read_checkpoint(directory)[0]


def assert_logits_match(actual, expected, mask):
    """Compare logits at real positions."""
    np.testing.assert_allclose(np.asarray(actual)[mask], np.asarray(expected)[mask], rtol=0, atol=LOGITS_TOLERANCE)


def assert_gradients_match(actual, expected):
    """Compare gradients by name, norm over norm."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = np.linalg.norm(np.asarray(actual[name]) - np.asarray(gradient))
        assert difference <= GRADIENT_TOLERANCE * np.linalg.norm(gradient), name


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_computes_what_they_do(case):
    logits, inputs, gradients = read_fixture(case)
    weights, fields = read_checkpoint(FIXTURES / case)
    actual, gradient = logits_and_gradient(lambda weights: oracle.logits(weights, fields, *inputs), weights)
    assert_logits_match(actual, logits, inputs[1])
    if gradients:
        assert_gradients_match(gradient, gradients)


@pytest.mark.parametrize("case", CASES)
def test_our_model_computes_what_they_do(case, tmp_path):
    logits, inputs, gradients = read_fixture(case)
    actual, gradient = ours(*load(FIXTURES / case, dtype="float64"), *inputs, tmp_path)
    assert_logits_match(actual, logits, inputs[1])
    if gradients:
        assert_gradients_match(gradient, gradients)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "length", "is_masked"),
    [
        ({}, 48, True),
        ({"num_hashes": 1, "lsh_num_chunks_before": 0, "local_num_chunks_before": 0}, 32, False),
        ({"num_hashes": 3, "lsh_num_chunks_before": 2, "local_num_chunks_before": 2}, 16, True),
        ({"lsh_chunk_length": 8, "local_chunk_length": 4, "mlp_chunk_length": 5}, 40, False),
        ({"lsh_chunk_length": 4, "local_chunk_length": 6}, 31, True),
        ({"attention_pattern": ("lsh", "local", "lsh"), "num_layers": 6, "num_buckets": (2, 4, 2)}, 24, False),
        ({"position_embedding": "learned", "activation": "silu", "attention_pattern": ("lsh",)}, 9, False),
        ({"axial_shape": (2, 3, 8), "axial_dims": (2, 2, 4), "attention_pattern": ("local",)}, 45, False),
        ({"num_buckets": None, "lsh_chunk_length": 2}, 47, False),
        ({"num_buckets": None, "lsh_chunk_length": 8}, 33, True),
        (BOTH_SIDES | {"activation": "gelu_tanh"}, 8, False),
        (BOTH_SIDES | {"layer_norm_epsilon": 1e-5, "num_hashes": 1}, 48, True),
        (BOTH_SIDES | {"lsh_num_chunks_after": 2, "local_num_chunks_before": 2, "activation": "relu"}, 21, True),
        (BOTH_SIDES | {"lsh_chunk_length": 16, "local_chunk_length": 4}, 14, True),
        (BOTH_SIDES | {"lsh_chunk_length": 16, "local_chunk_length": 8}, 1, False),
    ],
    ids=str,
)
def test_our_model_computes_what_they_would(changes, length, is_masked, tmp_path):
    config = dataclasses.replace(BASE, **changes)
    rng = np.random.default_rng(length)
    tokens = rng.integers(0, config.vocab_size, (2, length))
    mask = np.ones((2, length), bool)
    if is_masked:
        mask[0, max(1, length // 2) :] = False
        mask[1, : length // 4] = False
    factors = num_buckets(length, config)
    shape = (config.num_heads, config.head_dim, config.num_hashes, sum(factors) // 2)
    rotations = [rng.standard_normal(shape) for _ in range(config.num_lsh_layers)]
    variables = ReformerLM(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    variables = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), variables)
    save(tmp_path / "model", config, variables)
    weights, fields = read_checkpoint(tmp_path / "model")
    inputs = (tokens, mask, rotations)
    expected, expected_gradient = logits_and_gradient(lambda weights: oracle.logits(weights, fields, *inputs), weights)
    logits, gradient = ours(config, variables, tokens, mask if is_masked else None, rotations, tmp_path / "gradient")
    assert_logits_match(logits, expected, mask)
    assert_gradients_match(gradient, expected_gradient)
