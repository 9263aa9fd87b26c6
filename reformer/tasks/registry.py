"""From the `task` group of a config to the model and the data that it names.

A task is a module of this package with three functions:

- `problems(config, model, length)` yields a sentence for each thing of a whole config that does not fit the task, with
  rows of `length` tokens; it reads nothing.
- `make_model(task, model)` returns a Linen module from the `task` group and a `ReformerConfig`, with the methods
  - `create()`, which visits every parameter,
  - `loss(**batch, deterministic)`, which returns the sums of weighted nats and of weights,
  - `score(**batch, look)`, which returns a `reformer.model.Evaluated`; `look` is an observer of attention or None.
- `load_data(config, length)` reads a `reformer.data.source.Source`, whose rows are named as the arguments of `loss`.
"""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, TypeAlias

import flax.linen as nn
from ml_collections import ConfigDict

from reformer.config import ReformerConfig
from reformer.data.source import Source

Group: TypeAlias = ConfigDict | dict[str, Any]  # the second as read from config.json

NAMES = ("language", "masked", "classification", "vision", "translation")
DEFAULT = {"name": "language"}  # of runs that are older than the group


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """Yields a sentence for each thing that does not fit the task of a config whose fields are right by themselves."""
    if model.cross_attention and config.task.name != "translation":
        yield (
            f"config.model.cross_attention=True: config.task.name={config.task.name!r} has no source to attend to. Use "
            "cross_attention=False, or task.name='translation'."
        )
    yield from _module(config.task).problems(config, model, length)


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """Returns the model that the `task` group names."""
    return _module(task).make_model(task, model)


def load_data(config: Any, length: int) -> Source:
    """Reads the data.

    Args:
      config: a whole config, checked.
      length: tokens of an example.

    Raises:
      ValueError: the data are missing, too few or not what they should be.
    """
    return _module(config.task).load_data(config, length)


def _module(task: Group) -> ModuleType:
    if task["name"] not in NAMES:
        raise ValueError(f"config.task.name={task['name']!r} must be one of {', '.join(NAMES)}.")
    return importlib.import_module(f"reformer.tasks.{task['name']}")
