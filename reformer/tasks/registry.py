"""From the `task` group of a config to the task, the model and the data that it names."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data import load
from reformer.data.source import Source
from reformer.host import options
from reformer.host.options import Group
from reformer.tasks.classification import Classification
from reformer.tasks.electra import Electra
from reformer.tasks.language import Language
from reformer.tasks.masked import MaskedLanguage
from reformer.tasks.task import Task
from reformer.tasks.translation import Translation
from reformer.tasks.vision import Vision

TASKS: dict[str, type[Task]] = {
    "language": Language,  # each token from those before it
    "masked": MaskedLanguage,  # hidden tokens from all others
    "electra": Electra,  # which tokens a smaller masked model made up
    "classification": Classification,  # the label of a whole example
    "vision": Vision,  # the label of an image
    "translation": Translation,  # a text from another one
}
DEFAULT = {"name": "language"}  # of runs that are older than the group
NAME = options.Field(DEFAULT["name"], False, options.rule_of_name(TASKS))  # the field that chooses one


def find_class(name: Any) -> type[Task]:
    """Returns the task of a name, or the user's own at FILE.py:CLASS; raises ValueError if there is none."""
    return options.find_class(name, TASKS, Task)


def find(group: Group) -> Task:
    """Returns the task that the `task` group describes; raises ValueError if it cannot be."""
    return find_class(group["name"]).read(group)


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """Yields a sentence for each thing that does not fit the task of a config whose fields are right by themselves."""
    task = find_class(config.task.name).unchecked(config.task)
    if model.cross_attention and not isinstance(task, Translation):
        yield (
            f"config.model.cross_attention=True: config.task.name={config.task.name!r} has no source to attend to. Use "
            "cross_attention=False, or task.name='translation'."
        )
    if task.causal is not None and model.causal != task.causal:
        effect = (
            "hides from each token what stands after it" if model.causal else "would show the model what it predicts"
        )
        needed = f"config.task.name={config.task.name!r} needs causal={task.causal}"
        yield f"config.model.causal={model.causal} {effect}. {needed}."
    yield from task.misfits(config, model, length)
    yield from _problems_of_data(config, task, model, length)


def _problems_of_data(config: Any, task: Task, model: ReformerConfig, length: int) -> Iterator[str]:
    data, name = load.find_class(config.data.name).unchecked(config.data), config.data.name
    if task.kinds is not None and data.kind not in task.kinds:
        names = ", ".join(other for other, known in load.DATA_SETS.items() if known.kind in task.kinds)
        yield f"config.data.name={name!r} is nothing for config.task.name={config.task.name!r}. Choose from {names}."
        return
    if model.vocab_size < data.vocab_size:
        yield (
            f"config.model.vocab_size={model.vocab_size} is too small: config.data.name={name!r} and the "
            f"reserved ids need {data.vocab_size}. Raise vocab_size."
        )
    yield from data.misfits(config)
    try:
        data.check_length(task.data_length(length))
    except ValueError as error:
        yield f"config.data: {error}"


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """Returns the model that the `task` group names."""
    return find(task).make_model(model)


def companions(task: Group, model: ReformerConfig) -> dict[str, ReformerConfig]:
    """Returns the configs of the models within the task's model that are smaller than it, by name."""
    return find(task).companions(model)


def flops_per_token(task: Group, model: ReformerConfig, length: int) -> float:
    """Returns the operations per token of a training step of the task's model."""
    return find(task).flops_per_token(model, length)


def lowest_loss_is_best(task: Group) -> bool:
    """Returns whether the best checkpoint of a run is the one with the lowest validation loss, or else the latest."""
    return find(task).lowest_loss_is_best


def load_data(config: Any, length: int) -> Source:
    """Reads the data of a whole config that was checked, for examples of `length` tokens, as `Task.load`."""
    return find(config.task).load(load.find_class(config.data.name).read(config.data), length)
