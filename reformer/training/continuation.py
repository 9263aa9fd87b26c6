"""What a run that continues does otherwise than before: said first, and kept once its steps begin."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from reformer.training import settings, workdir
from reformer.training.checkpoint import Checkpoints
from reformer.training.metrics import Journal
from reformer.training.optimizer import make_schedule


def describe(config: ConfigDict, checkpoints: Checkpoints, num_done: int) -> list[str]:
    """Returns a line for each field that changed since the checkpoint that a run continues from.

    Args:
      config: From now on.
      checkpoints: Of the run.
      num_done: Steps done before; 0 = it begins.
    """
    stored, num_steps = _stored(checkpoints, num_done), config.training.num_steps
    changes = [f"{name} {old!r} -> {new!r}" for name, (old, new) in settings.differences(stored, config).items()]
    if num_done >= num_steps:
        lines = [f"nothing is left to train: {num_done} steps are done, and config.training.num_steps={num_steps}"]
        return lines + [f"{change} trains nothing; config.json stays as it is" for change in changes]
    return [f"{change} from step {num_done + 1}" for change in changes] + _warnings(stored, config, num_done)


def keep(directory: Path, config: ConfigDict, checkpoints: Checkpoints, journal: Journal, num_done: int) -> None:
    """Journals what `describe` says, and writes config.json; called when the next step is about to run.

    Compared is the checkpoint's config and not config.json: a run that was killed before its next checkpoint repeats
    its records, this one too.
    """
    if changes := settings.differences(_stored(checkpoints, num_done), config):
        journal.write({"split": "changed", "step": num_done + 1, "changes": changes})
    workdir.keep_config(directory, config)


def _stored(checkpoints: Checkpoints, num_done: int) -> dict[str, Any]:
    return settings.without_foreign(checkpoints.meta(num_done).get("config", {})) if num_done else {}


def _warnings(stored: dict[str, Any], config: ConfigDict, num_done: int) -> list[str]:
    """Returns a sentence if a schedule that depends on the number of steps is stretched or compressed."""
    old, new = stored.get("training", {}).get("num_steps"), config.training.num_steps
    if old in (None, new) or config.optimizer.schedule != "cosine":
        return []
    before = make_schedule(ConfigDict(stored["optimizer"]), old)(num_done)
    after = make_schedule(config.optimizer, new)(num_done)
    return [
        f"warning: the cosine schedule was one of {old} steps and is one of {new}: the learning rate of step "
        f"{num_done + 1} is {after:.3g} instead of {before:.3g}. If it must not jump, lower "
        "config.optimizer.learning_rate, or begin another run from this one by --config.training.init_from."
    ]
