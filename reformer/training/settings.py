"""Checks an experiment's config and turns its `model` group into a `ReformerConfig`; stores and compares configs."""

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.data import load
from reformer.host import paths
from reformer.layers.attention import padded_length
from reformer.tasks import registry
from reformer.training import disk
from reformer.training.field_rules import FIELD_RULES

Config: TypeAlias = ConfigDict | dict[str, Any]  # the second as read from config.json


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
      ValueError: If fields are unknown or values are not allowed; one line for each.
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
        raise ValueError("\n".join(f"config.model: {problem}" for problem in str(error).splitlines())) from error


def make_model(config: Config) -> nn.Module:
    """Returns the model that a config describes."""
    return registry.make_model(config.get("task", registry.DEFAULT), model_config(config))


def check_language_model(workdir: Path, config: Config) -> None:
    """Raises a ValueError if the run in `workdir`, which has this config, did not train a language model."""
    task = config.get("task", registry.DEFAULT)["name"]
    if task != "language":
        raise ValueError(
            f"workdir={workdir} is of a run with config.task.name={task!r}. This program needs a language model, such "
            "as that of configs/stdlib.py."
        )


def window_length(config: Config) -> int:
    """Returns the number of tokens in a window."""
    return config["model"]["max_length"] if config["data"]["length"] is None else config["data"]["length"]


def validate(config: ConfigDict) -> ReformerConfig:
    """Checks every field, and then how they fit together, before any device work.

    Returns:
      The `model` group as a `ReformerConfig`.

    Raises:
      ValueError: If fields are missing or unknown, or values are not allowed; one line for each.
    """
    flat = flatten(config)
    problems = [*_problems_of_names(flat), *_problems_of_fields(flat), *_problems_of_model(flat)]
    if problems := problems or list(_problems_of_combinations(config)):
        raise ValueError("\n".join(problems))
    return model_config(config)


def _problems_of_names(flat: dict[str, Any]) -> Iterator[str]:
    """Finds what a config file left out or misspelt; one that starts from configs/base.py cannot."""
    known = {name for _, _, names in FIELD_RULES for name in names}
    known |= {f"model.{name}" for name in ReformerConfig.__dataclass_fields__}
    for name in sorted(flat.keys() - known):
        yield f"config.{name}={flat[name]!r}: there is no such field. {closest_field(name, known)}"
    for name in sorted(known - flat.keys()):
        yield f"config.{name} is missing or no single value. Start from get_config() of configs/base.py."


def closest_field(name: str, known: Iterable[str]) -> str:
    """Returns a sentence that helps where there is no field `name`."""
    closest = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    return f"Did you mean --config.{closest[0]}?" if closest else "configs/base.py lists the fields."


def _problems_of_fields(flat: dict[str, Any]) -> Iterator[str]:
    for rule, is_allowed, names in FIELD_RULES:
        for name in names:
            if name in flat and not is_allowed(flat[name]):
                yield f"config.{name}={flat[name]!r} must be {rule}."


def _problems_of_model(flat: dict[str, Any]) -> list[str]:
    fields = {name: flat[f"model.{name}"] for name in ReformerConfig.__dataclass_fields__ if f"model.{name}" in flat}
    try:
        model_config({"model": fields})
    except ValueError as error:
        return str(error).splitlines()
    return []


def _problems_of_combinations(config: ConfigDict) -> Iterator[str]:
    model, training, data = model_config(config), config.training, config.data
    if window_length(config) > model.max_length:
        yield (
            f"config.data.length={data.length} exceeds config.model.max_length={model.max_length}. "
            "Raise max_length or shorten the windows."
        )
    evaluation = config.evaluation
    if evaluation.hash_seed + evaluation.num_hash_seeds > 2**31:
        yield (
            f"config.evaluation.hash_seed={evaluation.hash_seed} and num_hash_seeds={evaluation.num_hash_seeds}: the "
            f"last seed exceeds 2147483647. Lower one of them."
        )
    if "float64" in (model.dtype, model.param_dtype) and not jax.config.read("jax_enable_x64"):
        yield "config.model.dtype or param_dtype='float64' needs the environment variable JAX_ENABLE_X64=1."
    keep_every_steps, every_steps = config.checkpoint.keep_every_steps, config.checkpoint.every_steps
    if keep_every_steps and keep_every_steps % every_steps:
        yield (
            f"config.checkpoint.keep_every_steps={keep_every_steps} is not a multiple of "
            f"config.checkpoint.every_steps={every_steps}: no checkpoint would be there to keep. Change one of the two."
        )
    if training.batch_size % training.accumulation_steps:
        yield (
            f"config.training.batch_size={training.batch_size} is not a multiple of "
            f"config.training.accumulation_steps={training.accumulation_steps}. Change one of the two."
        )
    sharded = {name: config.sharding[name] for name in ("data", "fsdp", "tensor")}
    if list(sharded.values()).count(-1) > 1:
        sizes = ", ".join(f"config.sharding.{name}={size}" for name, size in sharded.items())
        yield f"{sizes}: at most one may be -1, the devices that remain."
    yield from _problems_of_data(config)
    yield from registry.problems(config, model, window_length(config))


def _problems_of_data(config: ConfigDict) -> Iterator[str]:
    data = config.data
    if data.name == "text" and not data.path:
        yield "config.data.path is empty. Name a file or a folder: --config.data.path=PATH."
    if data.text_field and data.name != "text":
        yield (
            f"config.data.text_field={data.text_field!r} is not read by config.data.name={data.name!r}. Leave it out, "
            "or use configs/text.py."
        )
    yield from _problems_of_text(config)
    if data.valid_fraction + data.test_fraction >= 1:
        yield (
            f"config.data.valid_fraction={data.valid_fraction} and config.data.test_fraction={data.test_fraction} "
            "leave nothing to train on. Their sum must be below 1."
        )


def _problems_of_text(config: ConfigDict) -> Iterator[str]:
    data, is_text = config.data, load.kind(config.data.name) == "text"
    chosen = {"tokens": data.tokens != "bytes"}
    chosen |= {name: data[name] for name in ("pack_documents", "separate_documents")}
    for name in (name for name, is_chosen in chosen.items() if is_chosen and not is_text):
        yield (
            f"config.data.{name}={data[name]!r} is not read by config.data.name={data.name!r}. Leave it out, or use "
            "configs/text.py."
        )
    if is_text and data.subwords and data.tokens == "bytes":
        yield f"config.data.subwords={data.subwords!r} is not read by data.tokens='bytes'. Set data.tokens='subwords'."
    for name in ("pack_documents", "separate_documents"):
        if data[name] and config.task.name != "language":
            yield f"config.data.{name}=True is for config.task.name='language', not {config.task.name!r}. Leave it out."
    if data.separate_documents and config.model.attention_implementation != "plain":
        yield (
            "config.data.separate_documents=True needs config.model.attention_implementation='plain'; the fused kernel "
            "does not keep documents apart."
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
    companions = registry.companions(config.get("task", registry.DEFAULT), model)
    sharding.validate(model, mesh, batch_sizes, padded_length(window_length(config), model), companions)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns {'group.field': (old value, new value)} for the fields that differ.

    A field that `old` lacks is no difference: it is younger than the run whose config that is. Nor is an automatic
    choice that comes to the same.
    """
    old, new = (flatten(as_json(config)) | _resolve(config) for config in (old, new))
    return {name: (value, new.get(name)) for name, value in sorted(old.items()) if value != new.get(name)}


def _resolve(config: Config) -> dict[str, Any]:
    """Returns the fields of the model that are younger than some runs, as what an automatic choice comes to."""
    try:
        model = model_config({"model": {"look_ahead": False, **config["model"]}})
    except (KeyError, ValueError):  # what is wrong is said elsewhere
        return {}
    return {"model.look_ahead": model.looks_ahead, "model.share_query_key": model.shares_query_key}


def describe(changes: dict[str, tuple[Any, Any]]) -> str:
    """Returns the differences as text, `group.field: old -> new` for each."""
    return ", ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items())


def as_json(config: Config) -> dict[str, Any]:
    """Returns the config as plain JSON values; tuples become lists."""
    return json.loads(json.dumps(config.to_dict() if isinstance(config, ConfigDict) else config))


def write(path: Path, config: Config) -> None:
    """Writes the config as readable JSON; a reader sees the old file or the new one, never a part."""
    disk.replace(path, (json.dumps(as_json(config), indent=2) + "\n").encode())


def read(workdir: str | Path) -> dict[str, Any]:
    """Returns the config that training wrote into `workdir`.

    Raises:
      ValueError: If there is none, or no config of a run.
    """
    path = paths.local(workdir) / "config.json"
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"workdir={workdir} has no config.json: it is not the workdir of a training run.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). It was not written by train.py, or it is damaged.") from None
    if not isinstance(stored, dict) or not {"model", "data"} <= stored.keys():
        raise ValueError(f"{path} is not the config of a training run. Name a workdir that train.py made.")
    stored["model"].setdefault("look_ahead", False)  # of runs that are older than the field
    return stored


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
