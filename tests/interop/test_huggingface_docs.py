"""The examples of docs/huggingface.md run, in order, in a directory with tiny models of the published names."""

import contextlib
import io
import pathlib
import re

import jax
import numpy as np
import pytest

from reformer import ReformerConfig, ReformerLM, decoding
from reformer.interop import huggingface
from reformer.interop.tokenizers import ByteTokenizer
from tests import pieces

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "huggingface.md"
TINY = ReformerConfig(
    max_length=256,
    num_layers=2,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    head_dim=8,
    lsh_chunk_length=16,
    local_chunk_length=16,
    axial_shape=(16, 16),
    activation="relu",
    semantics="huggingface",
)
VOCAB_SIZES = {"reformer-enwik8": ByteTokenizer.vocab_size, "reformer-crime-and-punishment": pieces.VOCAB_SIZE}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the examples printed, and the names that they defined."""
    directory = tmp_path_factory.mktemp("docs")
    for name, vocab_size in VOCAB_SIZES.items():
        config = ReformerConfig(**(vars(TINY) | {"vocab_size": vocab_size}))
        variables = ReformerLM(config).init(jax.random.key(0), method="create")
        huggingface.save(directory / name, config, variables)
    pieces.train(directory / "reformer-crime-and-punishment" / "spiece.model")
    namespace: dict = {}
    printed = []
    with contextlib.chdir(directory):
        for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(example, PAGE.name, "exec"), namespace)
            printed.append(output.getvalue())
    return printed, namespace


def test_the_models_write(outputs):
    from_pieces, from_bytes, *_ = outputs[0]
    assert len(from_pieces) > 100 and len(from_bytes) >= 20  # ids of some bytes are no character


def test_the_classifier_answers_by_its_labels(outputs):
    answers = outputs[0][-1]
    assert len(re.findall("'(?:calm|excited)'", answers)) == 2


def test_the_classifier_has_the_weights_of_the_language_model(outputs):
    classifier, namespace = outputs[1]["variables"]["params"], outputs[1]
    for old, new in zip(jax.tree.leaves(namespace["params"]), jax.tree.leaves(classifier), strict=True):
        np.testing.assert_array_equal(old, new)
    assert namespace["model"].num_labels == 2


def test_a_classifier_cannot_be_decoded(outputs):
    model, variables = outputs[1]["model"], outputs[1]["variables"]
    with pytest.raises(ValueError, match="causal=False has no next token"):
        decoding.sample(model.config, variables, [np.array([1])], 1, rng=jax.random.key(0))
