"""The directory of a run: it must be new, empty, or hold the same run, and is that of one run at a time."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from reformer.data import load, text_tokens
from reformer.data.source import Source, assets
from reformer.training import disk, distributed, manifest, settings
from reformer.training.checkpoint import NAME as CHECKPOINTS
from reformer.training.checkpoint import Checkpoints
from reformer.training.state import TrainState

CONFIG = "config.json"
VOCABULARIES = (text_tokens.PIECES_FILE, text_tokens.TOKENIZER_FILE)
# What a run may change when it continues. Everything else decides what the run is.
FREE_GROUPS = ("evaluation", "checkpoint", "sharding")
FIXED_FIELDS = ("evaluation.max_examples", "evaluation.hash_seed")  # losses are compared, to know the best
PATHS = ("data.path", "data.cache_dir", "data.subwords")
FREE_FIELDS = (
    *PATHS,
    "optimizer.learning_rate",
    "optimizer.clip_norm",
    "training.num_steps",
    "training.log_every_steps",
    "training.writers",
    "training.max_skipped_updates",
    "training.stall_seconds",
)


def check(workdir: Path, config: ConfigDict) -> None:
    """Refuses a directory that another run or something else uses; nothing is written.

    Raises:
      ValueError: If `workdir` holds another run, or files that no run wrote.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir={workdir} is a file. Name a directory.")
    # What a run leaves that was killed before its config was there.
    beginnings = {f"{CONFIG}.tmp", disk.LOCK, disk.PROBE}
    if not workdir.exists() or not {path.name for path in workdir.iterdir()} - beginnings:
        return
    if not (workdir / CONFIG).exists():
        raise ValueError(f"workdir={workdir} holds files but no config.json, so no run of train.py. Name another one.")
    changes = settings.differences(settings.read(workdir), config)
    fixed = {name: values for name, values in changes.items() if not _is_free(name)}
    if fixed:
        raise ValueError(
            f"workdir={workdir} holds a run with another config ({settings.describe(fixed)}). "
            f"Use the same config to continue it{_flags(fixed)}, or another workdir to start anew."
        )


def _flags(fixed: dict[str, tuple[Any, Any]]) -> str:
    """The flags that give a run the config that it had, if they are few."""
    values = {name: tuple(old) if isinstance(old, list) else old for name, (old, _) in fixed.items()}
    flags = [shlex.quote(f"--config.{name}={value}") for name, value in values.items()]
    return f" ({' '.join(flags)})" if len(flags) <= 4 else ""


def _check_again(workdir: Path, config: ConfigDict) -> None:
    try:
        check(workdir, config)  # another run may have begun there since, and ended
    except ValueError as error:
        raise OSError(str(error)) from error


def _is_free(name: str) -> bool:
    return name in FREE_FIELDS or (name.split(".")[0] in FREE_GROUPS and name not in FIXED_FIELDS)


def latest_step(workdir: Path) -> int:
    """Returns the step after which a run in `workdir` would continue, 0 where there is none."""
    if not (workdir / CHECKPOINTS).is_dir():
        return 0
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.latest or 0


def check_data(workdir: Path, data: Source) -> None:
    """Raises a ValueError if the run in `workdir` was trained on other data."""
    if not (workdir / CHECKPOINTS).is_dir():
        return
    with Checkpoints(workdir, read_only=True) as checkpoints:
        readable = [step for step in checkpoints.steps if not checkpoints.problem(step, ["meta"])]
        fingerprint = checkpoints.meta(readable[-1])["data"] if readable else None
    if fingerprint not in (None, data.fingerprint):
        raise ValueError(
            f"the data ({data.description}) are not those that workdir={workdir} was trained on. "
            "A file was replaced, cut or lengthened. Restore the data, or use another workdir."
        )


def with_own_vocabulary(workdir: Path, config: ConfigDict) -> ConfigDict:
    """Returns `config` with the subwords of a text that the run in `workdir` keeps, unless it names others now."""
    own = text_tokens.find(workdir)
    if own is None or load.kind(config.data.name) != "text" or config.data.get("tokens") != "subwords":
        return config
    if settings.read(workdir)["data"].get("subwords") != config.data.subwords:
        return config
    config = config.copy_and_resolve_references()
    config.data.subwords = str(own)
    return config


def check_others(config: ConfigDict, data: Source) -> None:
    """Raises a ValueError, where it differs, unless config and data are those of process 0; paths may be others."""
    mine = settings.flatten(settings.as_json(config)) | {"the data": data.fingerprint}
    its = distributed.on_process_0(lambda: mine)
    differing = sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))
    differing = [name for name in differing if name not in PATHS]
    if differing:
        described = ", ".join(f"{name}={mine.get(name)!r} instead of {its.get(name)!r}" for name in differing)
        raise ValueError(
            f"this process has another run than process 0: {described}. Start all alike, on the same data."
        )


def check_assets(workdir: Path, data: Source) -> None:
    """Raises a ValueError if the data come with another vocabulary, or labels, than the run in `workdir` has."""
    for name, content in assets(data).items():
        if (workdir / name).is_file() and (workdir / name).read_bytes() != content:
            repair = "Name data that have the same, by --config.data.path."
            if name in VOCABULARIES:
                repair = f"Use the run's own by --config.data.subwords={workdir / name}."
            raise ValueError(
                f"{workdir / name} is not the one of the data ({data.description}): the trained parameters mean other "
                f"{'ids' if name in VOCABULARIES else 'labels'}. {repair}"
            )


@contextlib.contextmanager
def claimed(workdir: Path, config: ConfigDict, data: Source) -> Iterator[None]:
    """Makes the workdir that of this run alone, and writes what belongs to the data into it.

    The config is written where there is none; that of steps that were trained is left to `keep_config`. All this on
    process 0.

    Raises:
      OSError: If another run is at work there or has begun there since `check`, or nothing can be written.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            disk.check_writable(workdir)
            with disk.explained(workdir):
                stack.enter_context(disk.locked(workdir))
                _check_again(workdir, config)
                if not (workdir / CONFIG).exists():
                    settings.write(workdir / CONFIG, config)
                for name, content in assets(data).items():
                    if not (workdir / name).is_file() or (workdir / name).read_bytes() != content:
                        disk.replace(workdir / name, content)

        distributed.on_process_0(claim)
        yield


def open_checkpoints(workdir: Path, group: ConfigDict, target: TrainState) -> Checkpoints:
    """Returns the checkpoints of a run that writes some.

    Args:
      workdir: Exists.
      group: The `checkpoint` group of the config.
      target: Shapes and dtypes of the state.

    Raises:
      OSError: If there is no room for them, or if there are some and none is intact.
    """

    def check() -> None:
        # The latest, the best, and the one that is being written, less those that are there already.
        num_more = group.keep_latest + 2 - len(manifest.steps_in(workdir / CHECKPOINTS))
        state = (target.params, target.optimizer)
        disk.check_space(workdir, state, max(num_more, 1), manifest.bytes_of_leftovers(workdir / CHECKPOINTS))

    distributed.on_process_0(check)
    return Checkpoints(workdir, group.keep_latest, group.keep_every_steps)


def keep_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the config of the steps that are to be trained now, on process 0."""
    distributed.on_process_0(lambda: settings.write(workdir / CONFIG, config))
