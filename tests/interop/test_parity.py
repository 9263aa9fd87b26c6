"""Our model under Hugging Face semantics computes what theirs does, in float64.

The fixtures are what transformers 4.57.1 computed (see make_fixtures). They also hold the oracle, which then tells what
theirs would compute for configurations, lengths and masks that are in no fixture, gradients included. A directory of
further fixtures, of another maker, is tested too if the environment variable REFORMER_PARITY names it: there the inputs
are in io.npz, the gradients in grads.npz, and those of question answering are of mean(start_logits^2).
"""

import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import safetensors.numpy

from reformer import ReformerConfig, ReformerLM, num_buckets
from reformer.interop.huggingface import load_model, save_model
from reformer.models.heads import QuestionAnswerer

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CASES = sorted(FIXTURES.iterdir())
if "REFORMER_PARITY" in os.environ:
    CASES += sorted(path for path in pathlib.Path(os.environ["REFORMER_PARITY"]).iterdir() if path.is_dir())
FAST = {"causal_factorised", "bidirectional_masked", "classifier", "question_answerer"}
every_case = pytest.mark.parametrize(
    "case", [pytest.param(path, id=path.name, marks=() if path.name in FAST else pytest.mark.slow) for path in CASES]
)
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


class Fixture(NamedTuple):
    """What they were given and computed; gradients by the names of the parameters, of the mean of squares of `of`."""

    logits: Any
    inputs: tuple  # tokens, mask, rotations
    gradients: dict
    of: Any = staticmethod(lambda logits: logits)


def read_fixture(directory):
    """What is expected of a checkpoint."""
    if (directory / "io.npz").exists():
        return read_foreign_fixture(directory)
    expected = np.load(directory / "expected.npz")
    gradients = {name.removeprefix("gradient/"): expected[name] for name in expected if name.startswith("gradient/")}
    return Fixture(expected["logits"], read_inputs(expected, "tokens", "mask"), gradients)


def read_foreign_fixture(directory):
    """Likewise, as REFORMER_PARITY has it."""
    expected, gradients = np.load(directory / "io.npz"), dict(np.load(directory / "grads.npz"))
    inputs = read_inputs(expected, "input_ids", "attention_mask")
    if "logits" in expected:
        return Fixture(expected["logits"], inputs, gradients)
    both = np.stack([expected["start_logits"], expected["end_logits"]], axis=-1)
    return Fixture(both, inputs, gradients, lambda logits: logits[..., 0])


def read_inputs(expected, tokens, mask):
    """Tokens, mask and rotations."""
    num_rotations = sum(name.startswith("rotations_") for name in expected)
    rotations = [expected[f"rotations_{i}"] for i in range(num_rotations)]
    return expected[tokens], expected[mask].astype(bool), rotations


def read_checkpoint(directory):
    """The state dict and fields of a checkpoint, as the oracle takes them."""
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    weights.pop("lm_head.decoder.bias", None)
    return jax.tree.map(jnp.asarray, weights), json.loads((directory / "config.json").read_text())


def logits_and_gradient(function, weights, of=lambda logits: logits):
    """Logits, and the gradient of the mean of their squares."""

    def loss(weights):
        logits = function(weights)
        return jnp.mean(of(logits) ** 2), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    return logits, gradient


def ours(model, variables, tokens, mask, rotations, directory, **options):
    """Logits of our model and its gradient under their names."""
    tokens, mask, rotations = jax.tree.map(jnp.asarray, (np.int32(tokens), mask, rotations))

    def run(variables):
        logits = model.apply(variables, tokens, mask=mask, rotations=rotations)
        return jnp.stack(logits, axis=-1) if isinstance(model, QuestionAnswerer) else logits

    logits, gradient = logits_and_gradient(run, variables, **options)
    save_model(directory, model, gradient)
    return logits, read_checkpoint(directory)[0]


def assert_logits_match(actual, expected, mask):
    """Compare logits, those of tokens at real positions."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    real = mask if expected.shape[:2] == mask.shape else ...
    np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=LOGITS_TOLERANCE)


def assert_gradients_match(actual, expected):
    """Compare gradients by name, norm over norm."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = np.linalg.norm(np.asarray(actual[name]) - np.asarray(gradient))
        assert difference <= GRADIENT_TOLERANCE * np.linalg.norm(gradient), name


@pytest.mark.slow
@every_case
def test_the_oracle_computes_what_they_do(case):
    fixture, (weights, fields) = read_fixture(case), read_checkpoint(case)
    actual, gradient = logits_and_gradient(
        lambda weights: oracle.logits(weights, fields, *fixture.inputs), weights, fixture.of
    )
    assert_logits_match(actual, fixture.logits, fixture.inputs[1])
    if fixture.gradients:
        assert_gradients_match(gradient, fixture.gradients)


@every_case
def test_our_model_computes_what_they_do(case, tmp_path):
    fixture = read_fixture(case)
    actual, gradient = ours(*load_model(case, dtype="float64"), *fixture.inputs, tmp_path, of=fixture.of)
    assert_logits_match(actual, fixture.logits, fixture.inputs[1])
    if fixture.gradients:
        assert_gradients_match(gradient, fixture.gradients)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "length", "is_masked"),
    [
        (
            {
                "num_hashes": 1,
                "lsh_num_chunks_before": 0,
                "position_embedding": "learned",
                "attention_pattern": ("lsh",),
            },
            48,
            False,
        ),
        (
            {"num_hashes": 3, "lsh_num_chunks_before": 2, "local_num_chunks_before": 2, "lsh_chunk_length": 8}
            | {"axial_shape": (2, 3, 8), "axial_dims": (2, 2, 4)},
            45,
            True,
        ),
        (
            {"local_chunk_length": 6, "local_num_chunks_before": 0, "mlp_chunk_length": 5, "activation": "silu"},
            31,
            True,
        ),
        ({"attention_pattern": ("lsh", "local", "lsh"), "num_layers": 6, "num_buckets": (2, 4, 2)}, 24, False),
        ({"num_buckets": None, "lsh_chunk_length": 2}, 47, True),
        (BOTH_SIDES | {"layer_norm_epsilon": 1e-5}, 8, False),
        (BOTH_SIDES | {"lsh_num_chunks_after": 2, "local_num_chunks_before": 2, "activation": "relu"}, 21, True),
        (BOTH_SIDES | {"lsh_chunk_length": 16, "activation": "gelu_tanh"}, 14, True),
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
    model = ReformerLM(config)
    variables = model.init(jax.random.key(0), method="create")
    variables = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), variables)
    save_model(tmp_path / "model", model, variables)
    weights, fields = read_checkpoint(tmp_path / "model")
    inputs = (tokens, mask, rotations)
    expected, expected_gradient = logits_and_gradient(lambda weights: oracle.logits(weights, fields, *inputs), weights)
    logits, gradient = ours(model, variables, tokens, mask if is_masked else None, rotations, tmp_path / "gradient")
    assert_logits_match(logits, expected, mask)
    assert_gradients_match(gradient, expected_gradient)
