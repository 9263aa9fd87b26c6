"""From the `data` group of a config to the data it names."""

import importlib
from typing import Any

from reformer.data.source import Source

# What data of a name are, which is also the module that reads them.
MODULES = {"stdlib": "text", "enwik8": "text", "text": "text"}
MODULES |= {"pairs": "pairs", "wmt14_ende": "pairs"}
MODULES |= {"imagenet64": "images", "images": "images", "duplication": "duplication"}
MODULES |= {"packages": "packages", "recall": "recall", "listops": "listops"}
MODULES |= {"labelled_images": "labelled_images", "digits": "labelled_images"}


def load(config: Any, length: int) -> Source:
    """Reads the data.

    Args:
        config: the `data` group.
        length: tokens of an example.

    Raises:
        ValueError: a value is impossible, or the data are missing, too few or not what they should be.
    """
    return _module(config.name).load(config, length)


def kind(name: str) -> str | None:
    """What data of a name are, such as 'text', 'images' or 'packages'; None if there is no such name."""
    return MODULES.get(name)


def vocab_size(config: Any) -> int:
    """How many ids the data need, without reading them."""
    return _module(config.name).vocab_size(config)


def check_length(config: Any, length: int) -> None:
    """Raises a ValueError if no example of such data can have `length` tokens; reads nothing."""
    _module(config.name).check_length(length)


def _module(name: str):
    if name not in MODULES:
        raise ValueError(f"data.name={name!r} must be one of {', '.join(MODULES)}.")
    return importlib.import_module(f"reformer.data.{MODULES[name]}")
