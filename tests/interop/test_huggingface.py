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

from reformer import ReformerLM
from reformer.heads import QuestionAnswerer, ReformerEncoder, SequenceClassifier, TokenClassifier
from reformer.interop.huggingface import load, load_labels, load_model, save, save_model

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir())
HEADS = {"classifier": SequenceClassifier, "question_answerer": QuestionAnswerer}
HEADS |= {"bare": ReformerEncoder, "bare_causal": ReformerEncoder}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
QUERY = "reformer.encoder.layers.0.attention.self_attention.query.weight"


@pytest.fixture
def copy(tmp_path):
    """Makes copies of checkpoints that a test may damage."""
    return lambda case: pathlib.Path(shutil.copytree(FIXTURES / case, tmp_path / "checkpoint"))


@pytest.fixture
def checkpoint(copy):
    """A copy of a language model."""
    return copy("causal_repeated")


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


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("classifier", "ReformerForSequenceClassification"),
        ("question_answerer", "ReformerForQuestionAnswering"),
        ("bare_causal", "ReformerModel"),
    ],
)
def test_other_heads_are_no_language_models(case, name):
    with pytest.raises(ValueError, match=rf"not a language model but a {name}. Read it with load_model\(directory\)"):
        load(FIXTURES / case)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("bare", {"architectures": ["ReformerForMaskedLM"]}, "under embeddings, encoder, and none under lm_head"),
        ("bidirectional_masked", {"architectures": ["ReformerModel"]}, r"and none under encoder \(ReformerModel\)"),
        ("classifier", {"architectures": ["ReformerForQuestionAnswering"]}, "Use the config.json that it came with"),
        ("classifier", {"architectures": ["ReformerForTokenClassification"]}, "is no head that can be loaded"),
        ("causal_repeated", {"architectures": ["ReformerForMaskedLM"]}, "config.json: is_decoder=True, but .* False"),
        (
            "classifier",
            {"id2label": {"0": "no", "1": "yes"}},
            "config.json: id2label names 2 classes, but .* has 3 rows",
        ),
        ("classifier", {"classifier_dropout": 0.3}, "classifier_dropout=0.3 .* hidden_dropout_prob=0.0"),
    ],
    ids=str,
)
def test_a_foreign_head_is_refused(case, changes, message, copy):
    checkpoint = copy(case)
    edit_fields(checkpoint, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(checkpoint)


def test_a_file_without_any_head_is_refused(checkpoint):
    edit_fields(checkpoint, architectures=None)
    edit_tensors(checkpoint, {"lm_head.decoder.weight": None, "lm_head.bias": None})
    with pytest.raises(ValueError, match=r"has tensors under reformer, and none under lm_head .*, classifier .*, enc"):
        load_model(checkpoint)


@pytest.mark.parametrize("shape", [(), (3,), (3, 9)], ids=str)
def test_a_classifier_of_a_wrong_shape_is_refused(shape, copy):
    checkpoint = copy("classifier")
    edit_tensors(checkpoint, {"classifier.out_proj.weight": np.zeros(shape)})
    with pytest.raises(ValueError, match=r"wrong shape for .*classifier.out_proj.weight"):
        load_model(checkpoint)


def test_a_question_answerer_has_two_outputs(copy):
    checkpoint = copy("question_answerer")
    edit_tensors(checkpoint, {"qa_outputs.weight": np.zeros((3, 16)), "qa_outputs.bias": np.zeros(3)})
    with pytest.raises(ValueError, match=r"wrong shape for qa_outputs.bias \[3\] \(must be \[2\]\)"):
        load_model(checkpoint)


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda config: TokenClassifier(config, num_labels=3), "TokenClassifier has no counterpart .* ReformerEncoder"),
        (lambda config: SequenceClassifier(config, 3, pooling="mean"), "pooling='mean': .* takes the first token"),
        (lambda config: SequenceClassifier(config, 4), r"wrong shape for head/bias \[3\] \(must be \[4\]\)"),
        (ReformerEncoder, "it has the unexpected head/bias, head/kernel, head_hidden"),
    ],
)
def test_models_that_they_lack_or_that_do_not_fit_are_refused(make, message, tmp_path):
    model, variables = load_model(FIXTURES / "classifier")
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "new", make(model.config), variables)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "b"), ("a", "b", "c", "c")], ids=str)
def test_names_that_are_not_one_for_each_class_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match="must be num_labels=3 different names"):
        save_model(tmp_path / "new", *load_model(FIXTURES / "classifier"), labels=names)


def test_names_of_classes_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a ReformerEncoder has no classes"):
        save_model(tmp_path / "new", *load_model(FIXTURES / "bare"), labels=("a", "b"))


def test_parameters_without_their_collection_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"must be \{'params': ...\}"):
        save(tmp_path / "new", model[0], model[1]["params"])
