"""The command line of the programs: a config file or a stored config, and overrides `--config.group.field=value`."""

import argparse
import contextlib
import difflib
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from reformer import compilation, configs
from reformer.config import is_integer, is_number
from reformer.host import extras, own_code, paths
from reformer.training import distributed, groups, memory, settings

_OUT_OF_MEMORY = (
    "the memory of a device does not suffice. Lower the batch_size of config.training or config.evaluation, raise "
    "config.training.accumulation_steps or config.sharding.fsdp, or set config.model.mlp_chunk_length and "
    "loss_chunk_length; --dry_run says what is needed."
)


_RULES_OF_TYPES = {bool: "True or False", int: "an integer", float: "a number"}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a ValueError where argparse prints the usage and exits with code 2."""

    def __init__(self, description: str, may_be_many: bool = True):
        """Takes what --help says first, and whether several processes may work on it together."""
        super().__init__(
            description=description,
            epilog="Any field of the config is set by --config.GROUP.FIELD=VALUE; configs/base.py says where they "
            "stand.",
            allow_abbrev=False,
        )
        self.add_argument(
            "--compilation_cache",
            metavar="DIR",
            default=compilation.CACHE_DIR,
            help="keeps what was compiled for the next start; 'off' = nowhere; default: %(default)s",
        )
        self._may_be_many = may_be_many
        distributed.add_flags(self, is_hidden=not may_be_many)

    def parse(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Returns the flags and the overrides, and connects this process with the others of the run.

        From here on, standard output replaces what its encoding cannot show.

        Raises:
          ValueError: If a flag is wrong.
          ConnectionError: If the processes do not find each other.
        """
        known, overrides = self.parse_known_args(arguments)
        replace_unshowable()
        for name in (name for argument in overrides if (name := _flag_name(argument))):
            if not name.startswith(("config.", "noconfig.")):
                self._suggest(name)
        if known.compilation_cache != "off":
            compilation.keep_compiled(known.compilation_cache)
        if not self._may_be_many:
            distributed.refuse(known.num_processes)
            return known, overrides
        distributed.initialize(known.coordinator, known.num_processes, known.process_id, known.silent_seconds)
        return known, overrides

    def _suggest(self, name: str) -> None:
        flags = [flag.lstrip("-") for action in self._actions for flag in action.option_strings]
        if closest := difflib.get_close_matches(name, flags, 1, cutoff=0.8):
            raise ValueError(f"there is no flag --{name}. Did you mean --{closest[0]}? See --help.")

    def error(self, message: str):
        """Raises `message` as a ValueError."""
        raise ValueError(f"{message}. See --help.")


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program with the message on stderr and exit code 1 if an exception of one of `kinds` is raised.

    So it does if the memory of a device does not suffice, or a package is missing.

    ValueError belongs only around what checks the user's input: elsewhere it is a defect and its traceback is wanted.
    """
    expected: tuple[type[Exception], ...] = (*kinds, extras.MissingPackageError)
    try:
        yield
    except expected as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        print(f"error: {_OUT_OF_MEMORY} ({str(error).splitlines()[0][:300]})", file=sys.stderr)
        sys.exit(1)


def replace_unshowable() -> None:
    """Lets standard output show '?' for what its encoding (ASCII, cp1252) lacks: a model writes any character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def check_seed(name: str, seed: int) -> None:
    """Raises a ValueError for a seed of a flag that is no int32: JAX would fail, or take it for another."""
    if not is_integer(seed, 0):
        raise ValueError(f"{name}={seed} must be from 0 to 2147483647.")


def check_output(flag: str, file: Path | None) -> None:
    """Raises a ValueError unless the file that `flag` names can be written; None is no file."""
    if file is None:
        return
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir():
        raise ValueError(f"{flag}={file} must be a file in a folder that exists. Create the folder or name another.")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise ValueError(f"{flag}={file} cannot be written. Name another file.")


def load_config(path_and_preset: str) -> ConfigDict:
    """Returns what `get_config` of a config file returns.

    Args:
      path_and_preset: `path/to/file.py` or `path/to/file.py:preset`. Where there is no such file, `configs/NAME.py` is
        the one of this package.

    Raises:
      ValueError: If there is no such file or preset, or the file does not work.
    """
    path, _, preset = os.fspath(paths.local(path_and_preset)).partition(":")
    path = str(_own_config(path) or path)
    if not Path(path).is_file():
        raise ValueError(
            f"--config={path_and_preset}: there is no file {Path(path).absolute()}. Give its path from here, "
            "or one of ours, such as configs/stdlib.py."
        )
    try:
        get_config = getattr(own_code.run(path), "get_config", None)
        takes_preset = get_config is not None and len(inspect.signature(get_config).parameters) > 0
        config = get_config(preset) if takes_preset else None
    except Exception as error:  # the file may hold anything
        raise ValueError(f"--config={path_and_preset}: {_message(error)}{_where(error, path)}") from error
    if not takes_preset:
        raise ValueError(f"--config={path}: this file has no function get_config(preset). See configs/stdlib.py.")
    if not isinstance(config, ConfigDict):
        raise ValueError(f"--config={path}: get_config({preset!r}) returned {config!r}, not a ConfigDict.")
    return config


def _own_config(path: str) -> Path | None:
    """Returns the experiment of this package that `configs/NAME.py` names where there is no such file."""
    own = Path(configs.__file__).parent / Path(path).name
    return own if Path(path).parent == Path("configs") and not Path(path).is_file() and own.is_file() else None


def _message(error: BaseException) -> str:
    """Returns what an error says, in one line, without the list of all fields that a ConfigDict adds."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return re.sub(r"Other fields present: .*?(?=Did you mean|$)", "", " ".join(message.split())).strip()


def _where(error: Exception, path: str) -> str:
    """Returns the kind of an error and the line of the config file that it comes from; '' for our own ValueErrors."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(Path(path).absolute())
    ]
    if isinstance(error, ValueError) or not lines:
        return ""
    return f" ({type(error).__name__} in line {lines[-1]}). configs/base.py lists the fields."


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Returns `config` with the fields set that `arguments` name.

    Args:
      config: Its fields and their types say what may be set; changed in place.
      arguments: `--config.group.field=value`, as many as needed.

    Raises:
      ValueError: If arguments are not of this form, name no field or have a value of another type; one line for each.
    """
    problems = [problem for argument in arguments if (problem := _problem_of(config, argument))]
    if problems:
        raise ValueError("\n".join(problems))
    unknown = _set_fields(config, arguments)
    if unknown:
        raise ValueError(f"unknown arguments: {' '.join(unknown)}. Overrides look like --config.model.num_hashes=4.")
    return config


def _problem_of(config: ConfigDict, argument: str) -> str:
    """Returns what is wrong with one argument, '' if nothing is."""
    name = _flag_name(argument)
    if not name:
        return ""
    field, fields = re.sub(r"^(no)?config\.", "", name), settings.flatten(config)
    if field == name:
        return _unknown_flag(argument, name, fields)
    if field not in fields:
        return f"{argument}: there is no field config.{field}. {settings.closest_field(field, fields)}"
    if "=" not in argument:  # its value, if it has one, is the next argument
        return ""
    try:
        _set_fields(config, [argument])
    except ValueError as error:
        return _wrong_value(config, field, argument.partition("=")[2]) or str(error)
    return ""


def _flag_name(argument: str) -> str:
    """Returns the name of a flag without its hyphens, '' for what is none, such as a value."""
    match = re.match(r"--?([A-Za-z_][^=]*)", argument)
    return match.group(1) if match else ""


def _unknown_flag(argument: str, name: str, fields: dict[str, Any]) -> str:
    """Returns a sentence about a flag of no program, which may be a field without --config. or its group."""
    shortened = {part: field for field in fields for part in (field, field.rpartition(".")[2])}
    closest = difflib.get_close_matches(name, shortened, 1, cutoff=0.8)
    if not closest:
        return f"{argument}: there is no flag --{name}. See --help, and configs/base.py for fields of --config."
    value = "".join(argument.partition("=")[1:])
    return f"{argument}: there is no flag --{name}. Did you mean --config.{shortened[closest[0]]}{value}?"


def _wrong_value(config: ConfigDict, field: str, value: str) -> str:
    """Returns a sentence about a value that is not of its field's type, '' where the type has no rule here."""
    group, _, name = field.rpartition(".")
    kind = (config[group] if group else config).get_type(name)
    if kind not in _RULES_OF_TYPES:
        return ""
    rule = groups.FIELDS[field].rule.words if field in groups.FIELDS else _RULES_OF_TYPES[kind]
    meant = _meant(kind, value)
    return f"config.{field}={value!r} must be {rule}." + f" Did you mean --config.{field}={meant}?" * bool(meant)


def _meant(kind: type, value: str) -> str:
    """Returns the value as it should have been written, '' if that is unknown."""
    if kind is bool:
        return {"no": "False", "off": "False", "n": "False", "yes": "True", "on": "True", "y": "True"}.get(
            value.lower(), ""
        )
    with contextlib.suppress(ValueError):
        number = float(value)
        return str(int(number)) if kind is int and is_number(number) and number.is_integer() else ""
    return ""


def _set_fields(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Sets fields of `config` in place; returns the arguments that set nothing."""
    argv = ["", *arguments]
    flag_values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=argv)
        return flag_values(argv)[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise ValueError(
            f"{' '.join(str(error).split())}. See --help for flags, and configs/base.py for fields of --config."
        ) from error
