"""Every experiment file gives a config that passes validation, and every wrong one is named."""

import dataclasses
from pathlib import Path

import pytest

from configs import base
from configs import classify as classify_config
from configs import duplication as duplication_config
from configs import electra as electra_config
from configs import enwik8 as enwik8_config
from configs import imagenet64 as imagenet64_config
from configs import listops as listops_config
from configs import masked as masked_config
from configs import recall as recall_config
from configs import stdlib as stdlib_config
from configs import text as text_config
from configs import translate as translate_config
from configs import vit as vit_config
from configs import wmt_ende as wmt_ende_config
from reformer.config import ReformerConfig
from reformer.host import options
from reformer.training import groups, settings

EXPERIMENTS = [
    (stdlib_config, ["", "tiny"]),
    (enwik8_config, ["", "paper", "small", "tiny", "full_attention"]),
    (text_config, ["", "small", "tiny"]),
    (imagenet64_config, ["", "paper", "small", "tiny"]),
    (electra_config, ["", "tiny"]),
    (duplication_config, ["", "paper", "small", "tiny"]),
    (masked_config, ["", "tiny"]),
    (recall_config, ["", "bytes_4k", "bytes_8k", "bytes_16k", "pairs", "tiny"]),
    (listops_config, ["", "arena", "small", "tiny"]),
    (classify_config, ["", "tiny"]),
    (translate_config, ["", "captions", "transformer", "documents", "documents_full", "tiny"]),
    (wmt_ende_config, ["", "base", "big", "tiny"]),
    (
        vit_config,
        ["", "patch8", "patch4", "patch2", "patch1", "digits", "tiny", "patch8_full", "patch1_full", "tiny_full"],
    ),
]


@pytest.mark.parametrize(
    ("module", "preset"), [(module, preset) for module, presets in EXPERIMENTS for preset in presets]
)
def test_every_preset_is_valid(module, preset):
    config = module.get_config(preset)
    if "path" in options.fields_of(groups.chosen(config, "data")):
        config.data.path = "somewhere"
    fields = dataclasses.asdict(settings.validate(config))
    assert fields == {name: tuple(x) if isinstance(x, list) else x for name, x in config.model.to_dict().items()}


@pytest.mark.parametrize("module", [module for module, _ in EXPERIMENTS])
def test_an_unknown_preset_is_refused_with_the_list(module):
    with pytest.raises(ValueError, match=r"preset='huge' does not exist. Choose one of .*tiny"):
        module.get_config("huge")


def test_the_tiny_model_of_any_text_is_that_of_the_standard_library_on_shorter_windows():
    """It beats order-2 counts and gzip on 1 MB in minutes, which smaller ones and Adafactor at 0.02 did not."""
    tiny, stdlib = text_config.get_config("tiny"), stdlib_config.get_config()
    stdlib.model.max_length = 512
    assert tiny.model == stdlib.model
    assert tiny.optimizer == stdlib.optimizer
    assert tiny.training.num_steps * tiny.training.batch_size * tiny.model.max_length > 2_000_000


def test_the_model_group_is_the_dataclass_with_its_defaults():
    group = base.get_config().model.to_dict()
    assert group == dataclasses.asdict(ReformerConfig())


def test_all_experiments_have_the_same_fields():
    fields = settings.flatten(base.get_config()).keys()
    for module, presets in EXPERIMENTS:
        for preset in presets:
            assert settings.flatten(module.get_config(preset)).keys() == fields


def test_presets_of_the_paper_have_its_values_and_all_other_causal_models_look_ahead():
    for module, presets in EXPERIMENTS:
        for preset in presets:
            config = module.get_config(preset)
            model, is_paper = settings.model_config(config), preset in ("paper", "full_attention")
            is_default_of_paper = preset == "" and module in (enwik8_config, duplication_config)
            is_untried = module is imagenet64_config or config.task.name == "translation"
            is_plain = is_paper or is_default_of_paper or is_untried or not model.causal
            assert model.looks_ahead != is_plain, (module.__name__, preset)


def test_the_paper_preset_has_the_original_pattern_and_length():
    model = settings.model_config(enwik8_config.get_config("paper"))
    assert model.attention_pattern == ("local", "local", "lsh", "local")
    assert (model.num_layers, model.max_length) == (12, 65_536)
    model = settings.model_config(imagenet64_config.get_config("paper"))
    assert (model.attention_pattern, model.num_layers, model.max_length) == (("lsh",), 6, 12_288)


@pytest.mark.parametrize("path", sorted(Path(base.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_experiments_need_nothing_but_the_package(path):
    assert "from configs import" not in path.read_text(), "an installed package has reformer.configs only"
