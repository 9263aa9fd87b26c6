"""The vision task: it learns, continues exactly, is evaluated, and says what does not fit."""

import json

import pytest

import reformer
from configs import vit
from reformer.commands import generate
from reformer.inspection import __main__ as inspection
from reformer.training import evaluation, loop, settings
from tests.training.runs import assert_same_run, records, run


def make_config(num_steps=6):
    config = vit.get_config("tiny")
    config.model.update(embed_dim=32, axial_dims=(16, 16), mlp_dim=64, head_dim=16)
    config.training.update(num_steps=num_steps, log_every_steps=1)
    config.evaluation.update(every_steps=4, max_examples=120, num_hash_seeds=2)
    config.checkpoint.every_steps = 2
    return config


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 6 steps and its result."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return workdir, run(make_config(), workdir)


@pytest.mark.slow
def test_a_run_reports_the_two_accuracies_and_the_buckets(unbroken):
    workdir, result = unbroken
    assert 0 < result["accuracy"] < result["top_5_accuracy"] < 1
    assert [r["bits_per_image"] for r in records(workdir) if r["split"] == "valid"][-1] == result["bits_per_image"]
    buckets = [r for r in records(workdir) if r["split"] == "lsh"][-1]
    assert buckets["num_buckets"] == 8 and "layer_1_largest_share" in buckets


@pytest.mark.slow
def test_a_run_that_failed_and_continues_equals_an_unbroken_one(unbroken, tmp_path, monkeypatch):
    original, calls = loop.batches.to_mesh, iter(range(100))

    def to_mesh_until_the_fifth(batch, mesh):
        if "weights" not in batch and next(calls) == 4:
            raise KeyboardInterrupt
        return original(batch, mesh)

    monkeypatch.setattr(loop.batches, "to_mesh", to_mesh_until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), tmp_path / "run")
    monkeypatch.undo()
    assert run(make_config(), tmp_path / "run") == unbroken[1]
    assert_same_run(tmp_path / "run", unbroken[0])


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_on_the_test_split(unbroken):
    workdir, _ = unbroken
    config = settings.update(make_config(), json.loads((workdir / "config.json").read_text()))
    found = evaluation.evaluate(evaluation.prepare(config, workdir, "latest", "test"))
    assert (found["split"], found["num_images"], found["step"]) == ("test", 120, 6)
    assert 0 < found["accuracy"] < found["top_5_accuracy"] < 1


@pytest.mark.slow
def test_a_library_user_gets_the_model_and_its_variables(unbroken):
    workdir, _ = unbroken
    model = settings.make_model(settings.read(workdir))
    config, variables = reformer.load(workdir)
    assert isinstance(model, reformer.ReformerViT) and model.config == config
    assert variables["params"]["head"]["kernel"].shape == (64, 10)


@pytest.mark.slow
def test_what_is_made_for_ids_refuses_the_run_in_a_sentence(unbroken):
    workdir, _ = unbroken
    for program in (inspection, generate):
        with pytest.raises(ValueError, match=r"task.name='vision'. This program needs a language model"):
            program.parse([f"--workdir={workdir}"])


@pytest.mark.slow
def test_it_learns_the_digits(tmp_path):
    config = make_config(num_steps=150)
    config.evaluation.every_steps = config.checkpoint.every_steps = 150
    config.evaluation.max_examples = None
    result = run(config, tmp_path / "run")
    assert result["accuracy"] > 0.7
    assert result["top_5_accuracy"] > 0.95


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "data.name",
            "stdlib",
            r"data\.name='stdlib' is nothing for .*'vision'\. Choose from .*digits",
        ),
        ("model.causal", True, r"config: causal=True hides from each patch"),
        ("model.max_length", 17, r"config: max_length=17 must be 16: images of 8x8 in patches of 2x2 are 4x4 = 16"),
        ("task.pooling", "first", r"config: max_length=16 must be 17: .*and the class token"),
        ("task.pooling", "max", r"config\.task\.pooling='max' must be one of first, mean"),
        ("task.patch_order", "snake", r"config\.task\.patch_order='snake' must be one of rows, hilbert"),
        ("task.patch_size", 3, r"config: image_size=8 is not a multiple of patch_size=3"),
        ("model.axial_shape", (2, 8), r"config: axial_shape=\(2, 8\) must be \(4, 4\)"),
        ("data.length", 8, r"config\.data\.length=8: images are trained and evaluated whole\. Leave it at None"),
        ("data.crop_padding", 8, r"config\.data\.crop_padding=8 must be below config\.task\.image_size=8"),
        ("data.crop_padding", -1, r"config\.data\.crop_padding=-1 must be an integer from 0"),
    ],
)
def test_what_does_not_fit_is_named(field, value, message):
    config = make_config()
    group, name = field.split(".")
    config[group].update({name: value})
    with pytest.raises(ValueError, match=message):
        settings.validate(config)


def test_a_label_out_of_range_is_refused_before_anything_is_written(tmp_path):
    config = make_config()
    config.task.num_labels = 9
    with pytest.raises(ValueError, match=r"config\.task\.num_labels=9, .*from 0 to 8\. Set num_labels=10"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_token_is_a_matter_of_the_config():
    config = make_config()
    config.task.pooling = "first"
    config.model.update(max_length=17, axial_shape=(5, 4))
    assert settings.validate(config).max_length == 17
    assert settings.make_model(config).pooling == "first"
