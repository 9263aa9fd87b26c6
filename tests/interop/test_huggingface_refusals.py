"""Hugging Face checkpoints that are refused, at loading and at saving, each by a sentence that says what is wrong."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import CONFIG, FIXTURES, WEIGHTS, edit_fields, edit_tensors

from reformer.interop.huggingface import load, load_model, save, save_model
from reformer.models.heads import ReformerEncoder, SequenceClassifier, TokenClassifier

QUERY = "reformer.encoder.layers.0.attention.self_attention.query.weight"

# At loading


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


# At saving


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
