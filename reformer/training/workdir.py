"""Whether a directory may be written to: it must be new, empty, or hold the same run."""

from pathlib import Path

from ml_collections import ConfigDict

from reformer.data.source import Source
from reformer.training import distributed, settings
from reformer.training.checkpoint import Checkpoints

# What a run may change when it continues. Everything else decides what the run is.
FREE_GROUPS = ("evaluation", "checkpoint", "sharding")
FREE_FIELDS = (
    "data.path",
    "data.cache_dir",
    "optimizer.learning_rate",
    "optimizer.clip_norm",
    "training.num_steps",
    "training.log_every_steps",
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
    # A run that was killed while it wrote its config leaves config.json.tmp.
    if not workdir.exists() or not {path.name for path in workdir.iterdir()} - {"config.json.tmp"}:
        return
    if not (workdir / "config.json").exists():
        raise ValueError(f"workdir={workdir} holds files but no config.json, so no run of train.py. Name another one.")
    changes = settings.differences(settings.read(workdir), config)
    fixed = {name: values for name, values in changes.items() if not _is_free(name)}
    if fixed:
        raise ValueError(
            f"workdir={workdir} holds a run with another config ({settings.describe(fixed)}). "
            "Use the same config to continue it, or another workdir to start anew."
        )


def _is_free(name: str) -> bool:
    return name in FREE_FIELDS or name.split(".")[0] in FREE_GROUPS


def latest_step(workdir: Path) -> int:
    """Returns the step after which a run in `workdir` would continue, 0 where there is none."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.latest or 0


def check_data(workdir: Path, data: Source) -> None:
    """Raises a ValueError if the run in `workdir` was trained on other data."""
    if not (workdir / "checkpoints").is_dir():
        return
    with Checkpoints(workdir, read_only=True) as checkpoints:
        fingerprint = checkpoints.latest and checkpoints.meta(checkpoints.latest)["data"]
    if fingerprint not in (None, data.fingerprint):
        raise ValueError(
            f"the data ({data.description}) are not those that workdir={workdir} was trained on. "
            "Restore the data, or use another workdir."
        )


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Creates the directory and writes the config into it, on process 0."""
    if distributed.is_writer():
        workdir.mkdir(parents=True, exist_ok=True)
        settings.write(workdir / "config.json", config)
