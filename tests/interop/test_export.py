"""A model that was exported is the model."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from reformer import ReformerLM, export
from tests import small_models as models

CONFIG = models.TINY


@pytest.fixture(scope="module")
def variables():
    """Of the small model."""
    return {"params": models.init(CONFIG)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_of_safetensors_has_the_same_config_and_arrays(dtype, variables, tmp_path):
    written = jax.tree.map(lambda x: x.astype(dtype), variables)
    export.save_safetensors(tmp_path / "a.safetensors", CONFIG, written)
    config, read = export.load_safetensors(tmp_path / "a.safetensors")
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, read, written)
    assert jax.tree.leaves(read)[0].dtype == dtype


def test_another_file_is_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has no config of a Reformer"):
        export.load_safetensors(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a file of safetensors"):
        export.load_safetensors(tmp_path / "broken.safetensors")


@pytest.mark.slow
def test_an_exported_forward_pass_runs_without_this_package_and_equals_it(variables, tmp_path):
    tokens = models.tokens(CONFIG)
    (tmp_path / "logits").write_bytes(export.export_logits(CONFIG, variables, batch_size=2))
    export.save_safetensors(tmp_path / "weights", CONFIG, variables)
    program = (
        "import sys, json, jax, jax.numpy as jnp, safetensors.flax\n"
        "from flax import traverse_util\n"
        "variables = traverse_util.unflatten_dict(safetensors.flax.load_file('weights'), sep='/')\n"
        "call = jax.export.deserialize(bytearray(open('logits', 'rb').read())).call\n"
        "print(json.dumps(call(variables, jnp.array(json.loads(sys.argv[1]), jnp.int32)).tolist()))\n"
        "assert 'reformer' not in sys.modules\n"
    )
    program = program.replace("import sys,", "import jax.export, sys,")
    command = [sys.executable, "-c", program, json.dumps(tokens.tolist())]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expected = jax.jit(ReformerLM(CONFIG).apply)(variables, tokens, rngs={"hash": jax.random.key(0)})
    np.testing.assert_allclose(jnp.array(json.loads(printed)), expected, rtol=1e-5, atol=1e-5)


def test_a_length_that_the_model_does_not_have_is_refused(variables):
    with pytest.raises(ValueError, match="exceeds max_length=16"):
        export.export_logits(CONFIG, variables, length=17)
