"""Hugging Face checkpoints on disk: arrays there and back. What the models compute is in test_parity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import CASES, CONFIG, FIXTURES, WEIGHTS, assert_identical, edit_fields, edit_tensors

from reformer import ReformerLM
from reformer.interop.huggingface import load, load_labels, load_model, save, save_model
from reformer.models.heads import QuestionAnswerer, ReformerEncoder, SequenceClassifier

HEADS = {"classifier": SequenceClassifier, "question_answerer": QuestionAnswerer}
HEADS |= {"bare": ReformerEncoder, "bare_causal": ReformerEncoder}


@pytest.mark.parametrize("case", CASES)
def test_loading_and_saving_gives_the_same_file(case, tmp_path):
    save_model(tmp_path, *load_model(FIXTURES / case, dtype="float64"))
    written = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    if "lm_head.bias" in written:
        np.testing.assert_array_equal(written.pop("lm_head.decoder.bias"), written["lm_head.bias"])
    assert_identical(written, safetensors.numpy.load_file(FIXTURES / case / WEIGHTS))


@pytest.mark.parametrize("case", CASES)
def test_saving_and_loading_gives_the_same_model(case, tmp_path):
    model, variables = load_model(FIXTURES / case, dtype="float64")
    save_model(tmp_path / "new" / "directory", model, variables)
    restored_model, restored = load_model(tmp_path / "new" / "directory", dtype="float64")
    assert restored_model == model
    assert_identical(restored, variables)


@pytest.mark.parametrize("case", CASES)
def test_a_head_becomes_our_model_with_its_parameters(case):
    model, variables = load_model(FIXTURES / case)
    assert type(model) is HEADS.get(case, ReformerLM)
    created = jax.eval_shape(lambda: model.init(jax.random.key(0), method="create"))
    assert jax.tree.map(jnp.shape, created) == jax.tree.map(jnp.shape, variables)


def test_a_language_model_has_its_configuration_as_the_model_does(model):
    loaded, variables = load_model(FIXTURES / "causal_repeated", dtype="float64")
    assert loaded.config == model[0]
    assert_identical(variables, model[1])


@pytest.mark.parametrize("case", sorted(HEADS))
def test_a_head_is_recognised_by_its_tensors(case, copy):
    checkpoint = copy(case)
    edit_fields(checkpoint, architectures=None)
    assert load_model(checkpoint)[0] == load_model(FIXTURES / case)[0]


def test_names_of_classes_are_kept(tmp_path):
    model, variables = load_model(FIXTURES / "classifier")
    names = load_labels(FIXTURES / "classifier")
    assert names == ("bad", "good", "ugly")
    save_model(tmp_path / "named", model, variables, labels=names)
    assert load_labels(tmp_path / "named") == names
    assert json.loads((tmp_path / "named" / CONFIG).read_text())["label2id"] == {"bad": 0, "good": 1, "ugly": 2}
    save_model(tmp_path / "unnamed", model, variables)
    assert load_labels(tmp_path / "unnamed") == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_classifier_without_names_has_as_many_classes_as_weights(copy):
    checkpoint = copy("classifier")
    edit_fields(checkpoint, id2label=None)
    assert load_model(checkpoint)[0].num_labels == 3
    assert load_labels(checkpoint) is None


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
