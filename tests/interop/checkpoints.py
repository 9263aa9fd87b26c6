"""The fixtures, and what tests do to copies of them."""

import json
import pathlib

import jax
import numpy as np
import safetensors.numpy

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir())
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def edit_fields(directory, **changes):
    """Change fields of a checkpoint's configuration."""
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory, changes):
    """Change tensors of a checkpoint; None removes one."""
    tensors = safetensors.numpy.load_file(directory / WEIGHTS) | changes
    kept = {name: np.array(tensor) for name, tensor in tensors.items() if tensor is not None}
    (directory / WEIGHTS).write_bytes(safetensors.numpy.save(kept))


def assert_identical(actual, expected):
    """Assert that two trees have the same structure, types and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
