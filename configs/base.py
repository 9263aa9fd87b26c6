"""Every field of an experiment with its default. Experiment files start from `get_config` and change what they need.

The fields stand, with a comment each, where they are read:

    config.model                                             reformer/config.py
    config.task       name, and what the task reads          reformer/tasks/registry.py, and the file of each task
    config.data       name, and what the data set reads      reformer/data/load.py, and the file of each data set
    config.optimizer, training, evaluation, checkpoint, sharding, and config.seed     reformer/training/groups.py

Data sets and tasks of your own, in a config file of your own: docs/own_data.md.
"""

from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict, config_dict

from reformer.config import ReformerConfig
from reformer.data.data_set import DataSet
from reformer.host import own_code
from reformer.host.options import Field, fields_of
from reformer.tasks.task import Task
from reformer.training import groups


def get_config() -> ConfigDict:
    """Returns the defaults of every group."""
    config = ConfigDict()
    config.update(_group(fields_of(groups.Experiment)))
    config.task = get_group("task")
    config.model = model_group()
    for name in ("data", *groups.OF_TRAINING):
        config[name] = get_group(name)
    return config.lock()


def get_group(name: str) -> ConfigDict:
    """Returns the defaults of one group, such as 'sharding'."""
    return _group(groups.GROUPS[name])


def _group(fields: Mapping[str, Field]) -> ConfigDict:
    group = ConfigDict()
    for name, field in fields.items():
        group[name] = config_dict.placeholder(object) if field.may_be_none else field.default
        if field.default is not None:
            group[name] = field.default
    return group


def model_group() -> ConfigDict:
    """Returns the fields of `ReformerConfig`, which holds their defaults and explains each."""
    return _group(fields_of(ReformerConfig))


def use(config: ConfigDict, *owns: DataSet | Task) -> None:
    """Puts a data set, or a task, of your own into a config, with its options; they become fields of the config.

    Args:
      config: Changed in place.
      owns: Instances of a class that is defined at the top of the config file, or in a module that can be imported.

    Raises:
      ValueError: If a later start could not find the class.
    """
    for own in owns:
        group = config[own.GROUP.removeprefix("config.")]
        values = {"name": own_code.reference(type(own))}
        values |= {name: getattr(own, name) for name in fields_of(type(own))}
        with group.unlocked(), group.ignore_type():
            fresh = _group({name: field for name, field in fields_of(type(own)).items() if name not in group})
            for name in fresh:
                group[name] = fresh.get_ref(name) if fresh[name] is None else fresh[name]
            group.update(values)


def check_preset(preset: str, presets: Iterable[str]) -> None:
    """Raises a ValueError with the list of `presets` unless `preset` is one of them or empty."""
    if preset and preset not in presets:
        raise ValueError(f"preset={preset!r} does not exist. Choose one of {', '.join(presets)}, or none.")
