"""Hugging Face checkpoints on disk: arrays there and back, and refusals. What the models compute is in test_parity."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from reformer.interop.huggingface import load, save

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir())
CONFIG, WEIGHTS = "config.json", "model.safetensors"
QUERY = "reformer.encoder.layers.0.attention.self_attention.query.weight"


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a checkpoint that a test may damage."""
    return pathlib.Path(shutil.copytree(FIXTURES / "causal_repeated", tmp_path / "checkpoint"))


@pytest.fixture
def model():
    """A configuration and its variables, in float64."""
    return load(FIXTURES / "causal_repeated", dtype="float64")


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


# There and back


@pytest.mark.parametrize("case", CASES)
def test_loading_and_saving_gives_the_same_file(case, tmp_path):
    save(tmp_path, *load(FIXTURES / case, dtype="float64"))
    written = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    np.testing.assert_array_equal(written.pop("lm_head.decoder.bias"), written["lm_head.bias"])
    assert_identical(written, safetensors.numpy.load_file(FIXTURES / case / WEIGHTS))


@pytest.mark.parametrize("case", CASES)
def test_saving_and_loading_gives_the_same_model(case, tmp_path):
    config, variables = load(FIXTURES / case, dtype="float64")
    save(tmp_path / "new" / "directory", config, variables)
    restored_config, restored = load(tmp_path / "new" / "directory", dtype="float64")
    assert restored_config == config
    assert_identical(restored, variables)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_type_of_the_arrays_is_kept(dtype, tmp_path):
    config, variables = load(FIXTURES / "causal_repeated", dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(dtype)}
    save(tmp_path, config, variables)
    assert {tensor.dtype for tensor in safetensors.numpy.load_file(tmp_path / WEIGHTS).values()} == {jnp.dtype(dtype)}
    restored_config, restored = load(tmp_path, dtype=dtype)
    assert (restored_config, config.dtype, config.param_dtype) == (config, dtype, dtype)
    assert_identical(restored, variables)


def test_jax_arrays_are_saved_like_numpy_arrays(tmp_path):
    config, variables = load(FIXTURES / "causal_repeated")
    save(tmp_path / "numpy", config, variables)
    save(tmp_path / "jax", config, jax.tree.map(jnp.asarray, variables))
    assert (tmp_path / "numpy" / WEIGHTS).read_bytes() == (tmp_path / "jax" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("removed", ["lm_head.bias", "lm_head.decoder.bias"])
def test_the_head_bias_is_found_under_either_name(removed, checkpoint, model):
    bias = model[1]["params"]["head"]["bias"]
    edit_tensors(checkpoint, {"lm_head.bias": bias, "lm_head.decoder.bias": bias, removed: None})
    assert_identical(load(checkpoint, dtype="float64")[1], model[1])


def test_mask_constants_of_old_releases_are_ignored(checkpoint, model):
    prefix = "reformer.encoder.layers.1.attention.self_attention"
    edit_tensors(checkpoint, {f"{prefix}.self_mask_value_float32": -1e5, f"{prefix}.mask_value_float16": -1e4})
    assert_identical(load(checkpoint, dtype="float64")[1], model[1])


# Refusals to load


def test_a_missing_configuration_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        load(tmp_path / "nowhere")


def test_a_pickle_is_refused(checkpoint):
    (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"found pytorch_model.bin.*convert them .* safe_serialization=True"):
        load(checkpoint)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "bert"}'])
def test_an_unusable_configuration_is_refused_by_name(content, checkpoint):
    (checkpoint / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=r"checkpoint/config.json: "):
        load(checkpoint)


def test_a_truncated_file_is_refused(checkpoint):
    content = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file"):
        load(checkpoint)


def test_another_head_is_refused(checkpoint):
    edit_fields(checkpoint, architectures=None)
    edit_tensors(checkpoint, {"lm_head.decoder.weight": None, "lm_head.bias": None, "qa_outputs.bias": np.zeros(2)})
    with pytest.raises(ValueError, match=r"not a language model: .* tensors under qa_outputs, reformer"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({QUERY: None}, f"it lacks {QUERY}"),
        ({"classifier.bias": np.zeros(2)}, "it has the unexpected classifier.bias"),
        ({QUERY: np.zeros((6, 9))}, rf"wrong shape for {QUERY} \[6, 9\] \(must be \[6, 8\]\)"),
        ({QUERY: np.zeros((6, 8), np.int8)}, "has type int8"),
        ({"lm_head.decoder.bias": np.zeros(16)}, "lm_head.bias and lm_head.decoder.bias differ"),
        ({"reformer.encoder.layer_norm.weight": None, QUERY: np.zeros(1)}, "it lacks .*; it has the wrong shape"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_named(tensors, message, checkpoint):
    edit_tensors(checkpoint, tensors)
    with pytest.raises(ValueError, match=message):
        load(checkpoint)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="dtype='int8' must be one of float32"):
        load(FIXTURES / "causal_repeated", dtype="int8")


# Refusals to save


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_nothing_is_overwritten(name, tmp_path, model):
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match=f"{name} exists and is not overwritten"):
        save(tmp_path, *model)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_file_in_place_of_the_directory_is_refused(tmp_path, model):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="file exists and is not overwritten"):
        save(tmp_path / "file", *model)


def test_a_failing_disk_leaves_nothing_behind(tmp_path, model, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, *model)
    assert not list(tmp_path.iterdir())


def test_options_that_they_lack_are_refused_before_anything_is_written(tmp_path, model):
    config, variables = model
    with pytest.raises(ValueError, match="semantics='reformer' cannot be saved"):
        save(tmp_path / "new", dataclasses.replace(config, semantics="reformer"), variables)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("head", "bias"), None, "it lacks head/bias"),
        (("head", "scale"), np.zeros(3), "it has the unexpected head/scale"),
        (("head", "bias"), np.zeros(3), r"wrong shape for head/bias \[3\] \(must be \[16\]\)"),
        (("head", "bias"), np.zeros(16, np.int32), "head/bias has type int32"),
        (("norm", "scale"), np.zeros((2, 8)), r"wrong shape for norm/scale \[2, 8\] \(must be \[16\]\)"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_named(path, value, message, tmp_path, model):
    config, variables = model
    group, leaf = path
    variables["params"][group].pop(leaf, None)
    if value is not None:
        variables["params"][group][leaf] = value
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "new", config, variables)
    assert not (tmp_path / "new").exists()


def test_parameters_without_their_collection_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"must be \{'params': ...\}"):
        save(tmp_path / "new", model[0], model[1]["params"])
