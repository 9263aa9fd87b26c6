"""Checks an experiment's config and turns its `model` group into a `ReformerConfig`; stores and compares configs."""

import difflib
import json
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import flax.linen as nn
import jax
from ml_collections import ConfigDict, config_dict

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.host import own_code, paths
from reformer.host.options import Field, Options, fields_of
from reformer.layers.kinds import padded_length
from reformer.tasks import registry
from reformer.training import disk, groups

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
    own, not_found = _find_chosen(flat)
    problems = [
        *not_found.values(),
        *_problems_of_names(flat, own, not_found),
        *_problems_of_fields(flat, own),
        *_problems_of_model(flat),
    ]
    if problems := problems or list(_problems_of_combinations(config)):
        raise ValueError("\n".join(problems))
    return model_config(config)


def _find_chosen(flat: dict[str, Any]) -> tuple[dict[str, Field], dict[str, str]]:
    """Finds the fields that the chosen task and data set read, and for each group that names none a sentence."""
    own: dict[str, Field] = {}
    not_found: dict[str, str] = {}
    for group, of in groups.CHOSEN.items():
        try:
            chosen = of.find_class(flat.get(f"{group}.name"))
            own |= {f"{group}.{name}": field for name, field in fields_of(chosen).items()}
        except ValueError as error:
            not_found[group] = str(error)
    return own, not_found


def _problems_of_names(flat: dict[str, Any], own: dict[str, Field], not_found: Container[str]) -> Iterator[str]:
    """Finds what a config file left out or misspelt; one that starts from configs/base.py cannot."""
    known = groups.FIELDS.keys() | {f"model.{name}" for name in ReformerConfig.__dataclass_fields__}
    for name in sorted(flat.keys() - known - own.keys()):
        if name.partition(".")[0] in not_found:  # it may be an option of one's own, of which nothing is known then
            continue
        yield f"config.{name}={flat[name]!r}: there is no such field. {closest_field(name, known)}"
    for name in sorted(known - flat.keys()):
        yield f"config.{name} is missing or no single value. Start from get_config() of configs/base.py."


def closest_field(name: str, known: Iterable[str]) -> str:
    """Returns a sentence that helps where there is no field `name`."""
    closest = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    return f"Did you mean --config.{closest[0]}?" if closest else "configs/base.py lists the fields."


def _problems_of_fields(flat: dict[str, Any], own: dict[str, Field]) -> Iterator[str]:
    names_of_choices = {f"{group}.name" for group in groups.CHOSEN}  # whether they exist is known already
    for name, field in (groups.FIELDS | own).items():
        if name in flat.keys() - names_of_choices and (problem := field.problem(f"config.{name}", flat[name])):
            yield problem


def _problems_of_model(flat: dict[str, Any]) -> list[str]:
    fields = {name: flat[f"model.{name}"] for name in ReformerConfig.__dataclass_fields__ if f"model.{name}" in flat}
    try:
        model_config({"model": fields})
    except ValueError as error:
        return str(error).splitlines()
    return []


def _problems_of_combinations(config: ConfigDict) -> Iterator[str]:
    model, data = model_config(config), config.data
    if window_length(config) > model.max_length:
        yield (
            f"config.data.length={data.length} exceeds config.model.max_length={model.max_length}. "
            "Raise max_length or shorten the windows."
        )
    if "float64" in (model.dtype, model.param_dtype) and not jax.config.read("jax_enable_x64"):
        yield "config.model.dtype or param_dtype='float64' needs the environment variable JAX_ENABLE_X64=1."
    classes: dict[str, type[Options]] = groups.OF_TRAINING | {
        name: groups.chosen(config, name) for name in groups.CHOSEN
    }
    for name, options in classes.items():
        yield from options.unchecked(config[name]).problems()
    yield from registry.problems(config, model, window_length(config))
    for name, value in groups.foreign(config).items():
        group = name.partition(".")[0]
        yield (
            f"config.{name}={value!r} is not read by config.{group}.name={config[group].name!r}. Leave it at "
            f"{groups.FIELDS[name].default!r}, or choose from {', '.join(groups.readers(name))}."
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
    choice that comes to the same, or another place of the file with a data set or task of one's own.
    """
    old, new = (flatten(as_json(config)) | _resolve(config) | _own_names(config) for config in (old, new))
    return {name: (value, new.get(name)) for name, value in sorted(old.items()) if value != new.get(name)}


def _own_names(config: Config) -> dict[str, str]:
    """Returns the names of the data set and the task that are the user's own, without the folders of their file."""
    names = {group: config[group]["name"] for group in groups.CHOSEN if group in config}
    return {f"{group}.name": Path(name).name for group, name in names.items() if own_code.is_reference(name)}


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
    return without_foreign(stored)


def without_foreign(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored config without what its task and data set do not read; once, such fields could be set."""
    try:
        unread = groups.foreign(stored)
    except (KeyError, ValueError):  # the class is gone: what is wrong is said where it is used
        return stored
    groups_left = {
        group: {name: value for name, value in fields.items() if f"{group}.{name}" not in unread}
        for group, fields in stored.items()
        if group in groups.CHOSEN
    }
    return stored | groups_left


def update(config: ConfigDict, stored: Config) -> ConfigDict:
    """Returns `config`, whose fields have types, with the values of a stored config.

    Raises:
      ValueError: If the stored config has a field that `config` lacks, or a value of another type. Options of the
        user's own data set or task are added, whether or not its file is there.
    """
    for name, value in flatten(stored).items():
        group, _, field = name.rpartition(".")
        try:
            holder = config[group] if group else config
            if group in groups.CHOSEN and own_code.is_reference(stored[group]["name"]):
                _add(holder, field, value)
            holder[field] = tuple(value) if isinstance(value, list) else value
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"config.json: {name}={value!r} does not fit configs/base.py ({error}).") from error
    return config


def _add(group: ConfigDict, field: str, value: Any) -> None:
    """Adds a field that a group lacks, of the type of a value."""
    if field not in group:
        with group.unlocked():
            group[field] = config_dict.placeholder(object) if value is None else value
