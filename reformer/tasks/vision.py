"""Image classification: the label of a whole image."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from reformer.config import ReformerConfig
from reformer.data import load
from reformer.data.source import Source
from reformer.models import vision
from reformer.tasks.language import problems_of_data
from reformer.tasks.registry import Group

KINDS = ("labelled_images",)


def problems(config: Any, model: ReformerConfig, length: int) -> Iterator[str]:
    """As `registry` has it."""
    task, data = config.task, config.data
    yield from problems_of_data(config, model, _num_values(task), KINDS)
    for problem in vision.problems(model, *_geometry(task)):
        yield f"config: {problem}"
    if length != model.max_length:
        yield (
            f"config.data.length={data.length}: images are trained and evaluated whole. Leave it at None; "
            "config.model.max_length is their length in patches."
        )
    if data.crop_padding >= task.image_size:
        yield (
            f"config.data.crop_padding={data.crop_padding} must be below config.task.image_size={task.image_size}: the "
            "padding mirrors the image."
        )


def make_model(task: Group, model: ReformerConfig) -> nn.Module:
    """As `registry` has it."""
    return vision.ReformerViT(model, task["num_labels"], *_geometry(task))


def load_data(config: Any, length: int) -> Source:
    """As `registry` has it."""
    del length  # in patches, of which the data know nothing
    data: Any = load.load(config.data, _num_values(config.task))
    data.check_labels(config.task.num_labels)
    return data


def _num_values(task: Group) -> int:
    """What the data know as the length of an image."""
    return 3 * task["image_size"] ** 2


def _geometry(task: Group) -> tuple:
    return tuple(task[name] for name in ("image_size", "patch_size", "pooling", "patch_order"))
