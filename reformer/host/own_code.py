"""Python files of the user: config files, and the classes of data sets and tasks that are defined in them.

A module that is made of a file has the whole path of the file as its name. `reference` and `find` go from a class to
text, which config.json can hold, and back: FILE.py:CLASS, or MODULE:CLASS of what can be imported.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from reformer.host import paths


def run(path: str | Path) -> ModuleType:
    """Runs a Python file and returns its module; whatever it raises is raised."""
    file = paths.local(path).absolute()
    code = compile(file.read_bytes(), str(file), "exec")
    module = ModuleType(str(file))
    module.__file__ = str(file)
    # Dataclasses look their module up. Nothing is written beside the file, as an import would do.
    sys.modules[module.__name__] = module
    exec(code, module.__dict__)
    return module


def is_reference(name: Any) -> bool:
    """Whether it looks like what `reference` returns."""
    return isinstance(name, str) and all(name.rpartition(":"))


def reference(found: type) -> str:
    """Returns where a class is defined.

    Raises:
      ValueError: if another process could not find it there.
    """
    if "<locals>" in found.__qualname__ or found.__module__ not in sys.modules or found.__module__ == "__main__":
        raise ValueError(
            f"{found.__qualname__} is defined where a later start cannot find it. Define it at the top of the config "
            "file, or in a module that can be imported."
        )
    return f"{found.__module__}:{found.__qualname__}"


def find(what: str, name: str) -> Any:
    """Returns the class to which `reference` gave this name.

    Args:
      what: the field that holds the name, for people.
      name: FILE.py:CLASS or MODULE:CLASS.

    Raises:
      ValueError: if the file is gone, does not run, or has no such class.
    """
    module, _, attribute = name.rpartition(":")
    try:
        return getattr(_module(module), attribute)
    except FileNotFoundError:
        raise ValueError(
            f"{what}={name!r}: there is no file {module}. Put it back, or say where it is now by "
            f"--{what}=FILE.py:{attribute}."
        ) from None
    except Exception as error:  # the file may hold anything
        described = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{what}={name!r} cannot be found ({described}). Repair the file or the name.") from error


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    file = str(paths.local(name).absolute())
    return sys.modules[file] if file in sys.modules else run(file)
