"""Checks an experiment's config and turns its `model` group into a `ReformerConfig`; stores and compares configs."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
from ml_collections import ConfigDict

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.data import load
from reformer.layers.attention import num_buckets, padded_length

Config: TypeAlias = ConfigDict | dict[str, Any]  # the second as read from config.json


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# (rule, predicate, fields)
FIELD_RULES = (
    ("one of adafactor, adamw", lambda value: value in ("adafactor", "adamw"), ["optimizer.name"]),
    (f"one of {', '.join(load.MODULES)}", lambda value: value in load.MODULES, ["data.name"]),
    ("True or False", lambda value: isinstance(value, bool), ["data.skip_bad_images", "sharding.split_length"]),
    ("one of rsqrt, cosine, constant", lambda value: value in ("rsqrt", "cosine", "constant"), ["optimizer.schedule"]),
    (
        "an integer of at least 1",
        lambda value: _is_integer(value) and value >= 1,
        [
            "training.num_steps",
            "training.batch_size",
            "training.accumulation_steps",
            "training.log_every_steps",
            "evaluation.every_steps",
            "evaluation.batch_size",
            "evaluation.num_hash_seeds",
            "checkpoint.every_steps",
            "checkpoint.keep_latest",
            "optimizer.min_factored_dim",
            "data.num_symbols",
        ],
    ),
    (
        "an integer from 0 to 2147483647",
        lambda value: _is_integer(value) and 0 <= value < 2**31,
        ["seed", "evaluation.hash_seed", "optimizer.warmup_steps"],
    ),
    (
        "a positive number",
        lambda value: _is_number(value) and 0 < value < math.inf,
        ["optimizer.learning_rate", "optimizer.epsilon", "optimizer.update_clip", "optimizer.factored_decay"],
    ),
    (
        "a number of at least 0 and below 1",
        lambda value: _is_number(value) and 0 <= value < 1,
        ["optimizer.b1", "optimizer.b2", "optimizer.weight_decay"],
    ),
    (
        "None or a positive number",
        lambda value: value is None or (_is_number(value) and 0 < value < math.inf),
        ["optimizer.clip_norm"],
    ),
    (
        "-1 or a positive integer",
        lambda value: _is_integer(value) and (value == -1 or value > 0),
        ["sharding.data", "sharding.fsdp", "sharding.tensor"],
    ),
    (
        "None or a positive integer",
        lambda value: value is None or (_is_integer(value) and value > 0),
        ["data.length", "evaluation.max_examples"],
    ),
)


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """Returns {'group.field': value}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, (dict, ConfigDict))
        flat.update(flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value})
    return flat


def model_config(config: Config) -> ReformerConfig:
    """Returns the `model` group as a `ReformerConfig`.

    Raises:
      ValueError: If a field is unknown or a value is not allowed.
    """
    # JSON has lists where the dataclass has tuples.
    group: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config["model"].items()
    }
    unknown = group.keys() - ReformerConfig.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"config.model has no fields {', '.join(sorted(unknown))}. See reformer/config.py.")
    try:
        return ReformerConfig(**group)
    except ValueError as error:
        raise ValueError(f"config.model: {error}") from error


def window_length(config: Config) -> int:
    """Returns the number of tokens in a window."""
    return config["model"]["max_length"] if config["data"]["length"] is None else config["data"]["length"]


def with_trained_buckets(config: Config) -> ReformerConfig:
    """Returns the model with the number of buckets that its training windows had, for sequences of other lengths."""
    model = model_config(config)
    return dataclasses.replace(model, num_buckets=num_buckets(window_length(config), model))


def validate(config: ConfigDict) -> ReformerConfig:
    """Checks every field, before any device work.

    Returns:
      The `model` group as a `ReformerConfig`.

    Raises:
      ValueError: If values are not allowed; one line for each.
    """
    problems = list(_problems_of_fields(flatten(config)))
    if not problems:
        problems = list(_problems_of_combinations(config))
    if problems:
        raise ValueError("\n".join(problems))
    return model_config(config)


def _problems_of_fields(flat: dict[str, Any]) -> Iterator[str]:
    for rule, is_allowed, names in FIELD_RULES:
        for name in names:
            if not is_allowed(flat[name]):
                yield f"config.{name}={flat[name]!r} must be {rule}."


def _problems_of_combinations(config: ConfigDict) -> Iterator[str]:
    model, training = model_config(config), config.training
    if window_length(config) > model.max_length:
        yield (
            f"config.data.length={config.data.length} exceeds config.model.max_length={model.max_length}. "
            "Raise max_length or shorten the windows."
        )
    if not model.causal:
        yield (
            "config.model.causal=False would show the model what it predicts. Training and evaluation need causal=True."
        )
    if model.vocab_size < load.vocab_size(config.data):
        yield (
            f"config.model.vocab_size={model.vocab_size} is too small: config.data.name={config.data.name!r} and the "
            f"reserved ids need {load.vocab_size(config.data)}. Raise vocab_size."
        )
    if config.data.name == "text" and not config.data.path:
        yield "config.data.path is empty. Name a file or a folder: --config.data.path=PATH."
    if training.batch_size % training.accumulation_steps:
        yield (
            f"config.training.batch_size={training.batch_size} is not a multiple of "
            f"config.training.accumulation_steps={training.accumulation_steps}. Change one of the two."
        )


def check_sharding(config: ConfigDict, mesh: jax.sharding.Mesh, is_trained: bool = False) -> None:
    """Raises a ValueError, one line for each problem, unless the model and its batches divide over the mesh.

    Args:
      config: Checked by `validate`.
      mesh: Of the run.
      is_trained: Whether there are training batches too.
    """
    model, training = model_config(config), config.training
    batch_sizes = {"config.evaluation.batch_size": config.evaluation.batch_size}
    if is_trained:
        name = "config.training.batch_size" + " / accumulation_steps" * (training.accumulation_steps > 1)
        batch_sizes[name] = training.batch_size // training.accumulation_steps
    sharding.validate(model, mesh, batch_sizes, padded_length(window_length(config), model))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns {'group.field': (old value, new value)} for the fields that differ."""
    old, new = flatten(as_json(old)), flatten(as_json(new))
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def describe(changes: dict[str, tuple[Any, Any]]) -> str:
    """Returns the differences as text, `group.field: old -> new` for each."""
    return ", ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items())


def as_json(config: Config) -> dict[str, Any]:
    """Returns the config as plain JSON values; tuples become lists."""
    return json.loads(json.dumps(config.to_dict() if isinstance(config, ConfigDict) else config))


def write(path: Path, config: Config) -> None:
    """Writes the config as readable JSON; a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(as_json(config), indent=2) + "\n")
    os.replace(temporary, path)


def read(workdir: Path) -> dict[str, Any]:
    """Returns the config that training wrote into `workdir`.

    Raises:
      ValueError: If there is none.
    """
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"workdir={workdir} has no config.json: it is not the workdir of a training run.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). It was not written by train.py, or it is damaged.") from None


def update(config: ConfigDict, stored: Config) -> ConfigDict:
    """Returns `config`, whose fields have types, with the values of a stored config.

    Raises:
      ValueError: If the stored config has a field that `config` lacks, or a value of another type.
    """
    for name, value in flatten(stored).items():
        group, _, field = name.rpartition(".")
        try:
            holder = config[group] if group else config
            holder[field] = tuple(value) if isinstance(value, list) else value
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"config.json: {name}={value!r} does not fit configs/base.py ({error}).") from error
    return config
