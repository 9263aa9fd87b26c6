"""From the `task` group of a config to the model and the data that it names.

A task is a module of this package with three functions:

- `problems(config, model, length)` yields a sentence for each thing of a whole config that does not fit the task, with
  rows of `length` tokens; it reads nothing.
- `make_model(task, model)` returns a Linen module from the `task` group and a `ReformerConfig`, with the methods
  - `create()`, which visits every parameter,
  - `loss(**batch, deterministic)`, which returns the sums of weighted nats and of weights,
  - `score(**batch, look)`, which returns a `models.language.Evaluated`; `look` observes attention, or is None.
- `load_data(config, length)` reads a `reformer.data.source.Source`, whose rows are named as the arguments of `loss`.

and, where the model is more than one stack with a head for every id, with two more:

- `companions(task, model)` returns the configs of smaller models in it by name: they have to fit the mesh too.
- `flops_per_token(task, model, length)` counts the whole model, as `reformer.models.flops` a stack and its head.

`LOWEST_LOSS_IS_BEST = False` says that the best checkpoint is the latest, not the one of the lowest loss.
"""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, TypeAlias

import flax.linen as nn
from ml_collections import ConfigDict

from reformer.config import ReformerConfig
from reformer.data.source import Source
from reformer.models import flops

Group: TypeAlias = ConfigDict | dict[str, Any]  # the second as read from config.json

NAMES = ("language", "masked", "electra", "classification", "vision", "translation")
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


def companions(task: Group, model: ReformerConfig) -> dict[str, ReformerConfig]:
    """Returns the configs of the models within the task's model that are smaller than it, by name."""
    module = _module(task)
    return module.companions(task, model) if hasattr(module, "companions") else {}


def flops_per_token(task: Group, model: ReformerConfig, length: int) -> float:
    """Returns the operations per token of a training step of the task's model."""
    module = _module(task)
    if hasattr(module, "flops_per_token"):
        return module.flops_per_token(task, model, length)
    return flops.flops_per_token(model, length)


def lowest_loss_is_best(task: Group) -> bool:
    """Returns whether the best checkpoint of a run is the one with the lowest validation loss, or else the latest."""
    return getattr(_module(task), "LOWEST_LOSS_IS_BEST", True)


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
