"""Options that the chosen task or data set does not read, and those of data sets and tasks of one's own."""

import dataclasses
import json
from typing import Annotated

import pytest

from configs import base
from reformer.data.data_set import DataSet
from reformer.host import options
from reformer.host.options import Count, LocalPath, MaybeCount, Options, Positive
from reformer.tasks.task import Task
from reformer.training import groups, settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Letters(DataSet):
    """A data set with options of each sort."""

    kind, vocab_size = "tokens", 27
    path: LocalPath
    share: Positive = 1.0
    most: MaybeCount = None
    case: Annotated[str, options.one_of(["upper", "lower"])] = "lower"

    def load(self, length):
        """Nothing that these tests need."""


@dataclasses.dataclass(frozen=True)
class Guessing(Task):
    """A task without options."""

    def make_model(self, model):
        """Nothing that these tests need."""


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "data.join",
            4,
            r"^config\.data\.join=4 is not read by config\.data\.name='text'\. Leave it at 1, or choose from pairs, "
            r"wmt14_ende\.$",
        ),
        (
            "data.num_symbols",
            9,
            r"^config\.data\.num_symbols=9 is not read by .*='text'\. Leave it at 127, or choose from duplication, ",
        ),
        (
            "task.mask_rate",
            0.3,
            r"^config\.task\.mask_rate=0\.3 is not read by config\.task\.name='language'\. Leave it at 0\.15, or "
            r"choose from masked, electra\.$",
        ),
        (
            "task.source_length",
            3,
            r"source_length=3 is not read by .*'language'\. Leave it at None, or .* translation\.",
        ),
    ],
)
def test_an_option_that_nobody_reads_is_refused_with_who_does(config, field, value, message):
    group, _, name = field.partition(".")
    config[group][name] = value
    with pytest.raises(ValueError, match=message):
        settings.validate(config)


def test_every_foreign_option_is_named_and_one_of_a_wrong_type_before_them(config):
    config.data.update(join=4, random_flip=True)
    with pytest.raises(ValueError, match=r"(?s)^config\.data\.join=4 is not read.*\nconfig\.data\.random_flip=True is"):
        settings.validate(config)
    config.data.num_symbols = 0
    with pytest.raises(ValueError, match=r"^config\.data\.num_symbols=0 must be an integer of at least 2[^\n]*$"):
        settings.validate(config)


def test_every_default_may_stay_whatever_reads_it(config):
    for name in groups.GROUPS["data"].keys() - {"name", "path", "length", "valid_fraction", "test_fraction"}:
        config.data[name] = groups.GROUPS["data"][name].default
    assert groups.foreign(config) == {}
    settings.validate(config)


def test_a_stored_config_with_options_that_nobody_read_is_read_without_them(config, tmp_path):
    stored = settings.as_json(config)
    stored["data"].update(join=4, num_symbols=9, path="words.txt")
    stored["task"].update(mask_rate=0.3)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again = settings.update(base.get_config(), settings.read(tmp_path))
    assert (again.data.join, again.data.num_symbols, again.data.path) == (1, 127, "words.txt")
    assert again.task.mask_rate == 0.15
    settings.validate(again)
    config.data.path = "words.txt"
    assert not settings.differences(settings.read(tmp_path), config)  # so the run continues


def test_use_makes_options_fields_with_their_types():
    config = base.get_config()
    config.data.update(num_symbols=9, length=16)
    base.use(config, Letters(path="letters", share=2), Guessing())
    assert (config.data.path, config.data.share, config.data.most, config.data.case) == ("letters", 2.0, None, "lower")
    assert (config.data.num_symbols, config.data.length) == (127, None)  # as for every new choice: the defaults
    assert (config.data.name, config.task.name) == (f"{__name__}:Letters", f"{__name__}:Guessing")
    assert groups.chosen(config, "data") is Letters and groups.chosen(config, "task") is Guessing
    config.data.update(share=0.5, most=3)
    config.data.most = None
    with pytest.raises(TypeError):
        config.data.share = "half"
    with pytest.raises((AttributeError, KeyError)):
        config.data.shares = 1.0
    assert Letters.read(config.data) == Letters(path="letters", share=0.5)


def test_options_of_ones_own_are_checked_at_construction_and_in_a_config():
    with pytest.raises(ValueError, match=r"^config\.data\.share=-1 must be a positive number that float32 holds\.$"):
        Letters(path="letters", share=-1)
    config = base.get_config()
    base.use(config, Letters(path="letters"))
    config.data.case = "title"
    with pytest.raises(ValueError, match=r"^config\.data\.case='title' must be one of upper, lower\.$"):
        settings.validate(config)


def test_options_of_ones_own_are_stored_and_read_back(tmp_path):
    config = base.get_config()
    base.use(config, Letters(path="letters", most=3))
    settings.write(tmp_path / "config.json", config)
    again = settings.update(base.get_config(), settings.read(tmp_path))
    assert again.to_dict() == config.to_dict()
    assert not settings.differences(again, config)


def test_a_class_that_another_process_cannot_find_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Hidden(Letters):
        """Within a function."""

    with pytest.raises(ValueError, match=r"Hidden is defined where a later start cannot find it\. Define"):
        base.use(base.get_config(), Hidden(path="letters"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Letters", r"must be one of stdlib, enwik8, .*, or FILE\.py:CLASS of your own\.$"),
        ("/nowhere/mine.py:Letters", r"there is no file /nowhere/mine\.py\. Put it back, or say where it is now by "),
        (f"{__name__}:Letter", r"cannot be found \(AttributeError: .*\)\. Repair the file or the name\.$"),
        (f"{__name__}:Guessing", r"must be a class that has DataSet as a base\.$"),
        ("no_such_module:Letters", r"cannot be found \(ModuleNotFoundError: .*\)\. Repair the file or the name\.$"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_sentence(config, name, message):
    config.data.name = name
    with pytest.raises(ValueError, match=message) as error:
        settings.validate(config)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"config.data.name={name!r}")


def test_a_run_whose_files_moved_has_no_other_config():
    old, new = ({"data": {"name": f"/{folder}/mine.py:Letters"}, "model": {}} for folder in ("here", "there"))
    assert settings.differences(old, new) == {}
    assert settings.in_new_place(old, new)["data"]["name"] == "/there/mine.py:Letters"
    other = {"data": {"name": "/there/mine.py:Digits"}, "model": {}}
    assert settings.in_new_place(old, other) == old
    assert settings.differences(old, other)


def test_options_say_their_rules_by_types():
    @dataclasses.dataclass(frozen=True)
    class Some(Options):
        """Plain types, and one with a rule."""

        flag: bool = True
        size: int = 3
        steps: Count = 1

    with pytest.raises(ValueError) as error:
        Some(flag=1, size=2.5, steps=0)  # type: ignore[arg-type]
    lines = str(error.value).splitlines()
    assert [line.split(" must be ")[0] for line in lines] == ["config.flag=1", "config.size=2.5", "config.steps=0"]
