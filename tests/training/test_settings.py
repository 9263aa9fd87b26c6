"""Validation, comparison and storage of configs."""

import json

import pytest

from configs import base
from reformer.training import settings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.name", "sgd", r"config.optimizer.name='sgd' must be one of adafactor, adamw"),
        ("optimizer.schedule", "linear", r"config.optimizer.schedule='linear' must be one of rsqrt, cosine, constant"),
        ("training.num_steps", 0, r"config.training.num_steps=0 must be an integer of at least 1"),
        ("training.num_steps", True, r"config.training.num_steps=True must be an integer"),
        ("seed", -1, r"config.seed=-1 must be an integer from 0"),
        ("optimizer.learning_rate", float("nan"), r"config.optimizer.learning_rate=nan must be a positive number"),
        ("optimizer.b1", 1.0, r"config.optimizer.b1=1.0 must be a number of at least 0 and below 1"),
        ("optimizer.clip_norm", "1", r"config.optimizer.clip_norm='1' must be None or a positive number"),
        ("data.length", 33, r"config.data.length=33 exceeds config.model.max_length=32. Raise max_length"),
        ("data.length", 2.5, r"config.data.length=2.5 must be None or a positive integer"),
        ("training.accumulation_steps", 3, r"batch_size=8 is not a multiple of config.training.accumulation_steps=3"),
        ("checkpoint.keep_every_steps", 0, r"config.checkpoint.keep_every_steps=0 must be None or a positive integer"),
        ("checkpoint.keep_every_steps", 3, r"keep_every_steps=3 is not a multiple of config.checkpoint.every_steps=2"),
        ("model.attention_pattern", ("local", "lsh"), r"config.model: num_layers=1 is not a multiple of the 2 layers"),
        ("model.attention_pattern", ("lsh,local",), r"quote each name"),
        ("model.vocab_size", 256, r"config.model.vocab_size=256 is too small: .* need 259"),
        ("model.causal", False, r"config.model.causal=False would show the model what it predicts"),
        ("data.path", "", r"config.data.path is empty. Name a file or a folder"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(config, field, value, message):
    group, _, name = field.rpartition(".")
    (config[group] if group else config)[name] = value
    with pytest.raises(ValueError, match=message):
        settings.validate(config)


def test_several_wrong_values_are_named_at_once(config):
    config.training.num_steps = 0
    config.checkpoint.keep_latest = 0
    with pytest.raises(ValueError, match=r"(?s)num_steps.*\n.*keep_latest"):
        settings.validate(config)


def test_a_stored_config_is_read_back_with_its_types(config, tmp_path):
    config.model.num_buckets = (4, 8)
    settings.write(tmp_path / "config.json", config)
    again = settings.update(base.get_config(), settings.read(tmp_path))
    assert again.to_dict() == config.to_dict()
    assert not settings.differences(again, config)


def test_differences_name_the_field_and_both_values(config):
    other = config.copy_and_resolve_references()
    other.model.num_hashes = 7
    changes = settings.differences(config, other)
    assert changes == {"model.num_hashes": (2, 7)}
    assert settings.describe(changes) == "model.num_hashes: 2 -> 7"


def test_a_directory_without_config_is_not_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json: it is not the workdir of a training run"):
        settings.read(tmp_path)


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        settings.read(tmp_path)


def test_a_stored_field_that_no_longer_exists_is_named():
    with pytest.raises(ValueError, match=r"config.json: model.depth=3 does not fit configs/base.py"):
        settings.update(base.get_config(), {"model": {"depth": 3}})


def test_a_run_that_is_older_than_look_ahead_has_none(tmp_path):
    stored = settings.as_json(base.get_config())
    del stored["model"]["look_ahead"], stored["model"]["share_query_key"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    model = settings.model_config(settings.read(tmp_path))
    assert not model.looks_ahead and not model.shares_query_key
    assert settings.model_config(base.get_config()).looks_ahead


def test_automatic_choices_that_come_to_the_same_are_no_difference():
    old = settings.as_json(base.get_config())
    old["model"].update(causal=False, share_query_key=False)
    del old["model"]["look_ahead"]
    new = base.get_config()
    new.model.causal = False
    assert settings.differences(old, new) == {}
    old["model"]["causal"] = new.model.causal = True
    fields = ("model.look_ahead", "model.share_query_key")
    assert settings.differences(old, new) == dict.fromkeys(fields, (False, True))
