"""The groups of an experiment's config: those of training, and where the fields of the others stand.

The fields of `model` are those of `ReformerConfig`, in reformer/config.py. Those of `task` and `data` stand with each
task in reformer/tasks and each data set in reformer/data; which of them are read depends on `task.name` and
`data.name`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from reformer.config import is_integer
from reformer.data import load
from reformer.host.options import (
    Count,
    Field,
    Flag,
    Group,
    LocalPath,
    MaybeCount,
    MaybePositive,
    Natural,
    Options,
    Positive,
    Rule,
    Share,
    fields_of,
    one_of,
)
from reformer.tasks import registry
from reformer.training.writers import RULE as RULE_OF_WRITERS


def _are_patterns(value: Any) -> bool:
    try:
        return isinstance(value, tuple) and all(pattern and re.compile(pattern) for pattern in value)
    except (re.error, TypeError):
        return False


Patterns = Annotated[tuple, Rule("a tuple of regular expressions, each in quotes", _are_patterns)]
Devices = Annotated[
    int,
    Rule(
        "a positive integer, or -1 for the devices that remain",
        lambda value: is_integer(value, 1) or (is_integer(value, -1) and value == -1),
    ),
]


@dataclasses.dataclass(frozen=True)
class Experiment(Options):
    """What belongs to no group."""

    seed: Natural = 0  # of the parameters, the training examples, the dropout masks and the training hashes


@dataclasses.dataclass(frozen=True)
class Optimizer(Options):
    """The update rule. The steps t of a schedule count from 1."""

    GROUP: ClassVar[str] = "config.optimizer"

    name: Annotated[str, one_of(("adafactor", "adamw"))] = "adafactor"
    schedule: Annotated[str, one_of(("rsqrt", "cosine", "constant"))] = "rsqrt"  # each with a linear warmup
    learning_rate: Positive = 1.0  # highest rate of 'cosine' and 'constant'; 'rsqrt' peaks at this / sqrt(warmup_steps)
    warmup_steps: Natural = 1000  # the rate is multiplied by min(1, t / warmup_steps); 0 = no warmup
    clip_norm: MaybePositive = None  # largest global norm of the gradient; None = no clipping
    weight_decay: Share = 0.0  # times the rate, for kernels and embeddings only
    b1: Share = 0.9  # adamw: decay of the first moment
    b2: Share = 0.98  # adamw: decay of the second moment
    epsilon: Positive = 1e-9  # adamw: added to the root of the second moment
    factored_decay: Positive = 0.8  # adafactor: the second moment decays by 1 - t ** -factored_decay
    min_factored_dim: Count = 32  # adafactor: second moments are factored if two axes are at least this long
    update_clip: Positive = 1.0  # adafactor: largest root mean square of a parameter's update, before the rate


@dataclasses.dataclass(frozen=True)
class Training(Options):
    """The step loop."""

    GROUP: ClassVar[str] = "config.training"

    num_steps: Count = 1000  # updates in total
    batch_size: Count = 8  # examples per update, over all devices and micro-batches
    accumulation_steps: Count = 1  # micro-batches per update, one after the other: less memory, same result
    log_every_steps: Count = 10  # steps between two records of the training loss
    # Who gets the records beside metrics.jsonl: 'tensorboard', 'wandb', 'mlflow', or MODULE:NAME of what takes a
    # `reformer.training.writers.Opening` and returns a `Writer`.
    writers: Annotated[tuple, Rule(*RULE_OF_WRITERS)] = ("tensorboard",)
    # Workdir of a run, or folder of a Hugging Face model or its name on the hub, whose parameters are taken where the
    # shape is the same and the path, or in the stack the depth; 'DIR:PART' = those of a part, such as the
    # discriminator; '' = all random.
    init_from: LocalPath = ""
    # Regular expressions that match whole names of a parameter's path: what they match is not trained, such as
    # ('embeddings', 'stack').
    frozen: Patterns = ()
    max_skipped_updates: Natural = 0  # so many updates in a row whose loss or gradient is not finite are left out
    stall_seconds: MaybePositive = 1800.0  # a run without any progress for so long ends; None = never

    def problems(self) -> Iterator[str]:
        """Micro-batches must be of one size."""
        if self.batch_size % self.accumulation_steps:
            yield (
                f"config.training.batch_size={self.batch_size} is not a multiple of "
                f"config.training.accumulation_steps={self.accumulation_steps}. Change one of the two."
            )


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
    """The evaluations, during training and of a checkpoint."""

    GROUP: ClassVar[str] = "config.evaluation"

    every_steps: Count = 250  # steps between two evaluations during training; the last step is always evaluated
    batch_size: Count = 8  # examples per evaluation step, over all devices
    max_examples: MaybeCount = None  # only so many, evenly spread; None = the whole split
    hash_seed: Natural = 0  # of the LSH rotations, the same for every example
    num_hash_seeds: Count = 3  # at the end: seeds hash_seed, hash_seed + 1, ... tell how far other hashes differ

    def problems(self) -> Iterator[str]:
        """All seeds must be int32."""
        if self.hash_seed + self.num_hash_seeds > 2**31:
            yield (
                f"config.evaluation.hash_seed={self.hash_seed} and num_hash_seeds={self.num_hash_seeds}: the "
                f"last seed exceeds 2147483647. Lower one of them."
            )


@dataclasses.dataclass(frozen=True)
class Checkpoint(Options):
    """What is saved. The best evaluated checkpoint is always kept, and every evaluation saves one."""

    GROUP: ClassVar[str] = "config.checkpoint"

    every_steps: Count = 250  # steps between two checkpoints
    keep_latest: Count = 2  # latest checkpoints that are kept beside the best
    keep_every_steps: MaybeCount = None  # also keep those of every so many steps; None = no

    def problems(self) -> Iterator[str]:
        """What is kept must be there."""
        if self.keep_every_steps and self.keep_every_steps % self.every_steps:
            yield (
                f"config.checkpoint.keep_every_steps={self.keep_every_steps} is not a multiple of "
                f"config.checkpoint.every_steps={self.every_steps}: no checkpoint would be there to keep. Change one "
                "of the two."
            )


@dataclasses.dataclass(frozen=True)
class Sharding(Options):
    """Sizes of the device mesh; one of them may be -1, the devices that remain."""

    GROUP: ClassVar[str] = "config.sharding"

    data: Devices = -1  # copies of the model, each with its part of the batch
    fsdp: Devices = 1  # parts of the batch that also divide the parameters among them
    tensor: Devices = 1  # parts of the heads and of the feed-forward layers
    split_length: Flag = False  # the `tensor` devices hold parts of the length instead: for few, very long sequences

    def problems(self) -> Iterator[str]:
        """What remains is one number."""
        sharded = {name: getattr(self, name) for name in ("data", "fsdp", "tensor")}
        if list(sharded.values()).count(-1) > 1:
            sizes = ", ".join(f"config.sharding.{name}={size}" for name, size in sharded.items())
            yield f"{sizes}: at most one may be -1, the devices that remain."


OF_TRAINING = {
    "optimizer": Optimizer,
    "training": Training,
    "evaluation": Evaluation,
    "checkpoint": Checkpoint,
    "sharding": Sharding,
}
# The groups of which only some fields are read, and what says which: the class that their `name` stands for.
CHOSEN = {"task": registry, "data": load}


def _all_fields(classes: Iterable[type[Options]]) -> dict[str, Field]:
    return {name: field for options in classes for name, field in fields_of(options).items()}


GROUPS = {
    "task": {"name": registry.NAME} | _all_fields(registry.TASKS.values()),
    "data": {"name": load.NAME} | _all_fields(load.DATA_SETS.values()),
} | {name: fields_of(options) for name, options in OF_TRAINING.items()}
# Every field but those of `model`, such as 'data.length'.
FIELDS = fields_of(Experiment) | {
    f"{group}.{name}": field for group, fields in GROUPS.items() for name, field in fields.items()
}


def chosen(config: Group, group: str) -> type[Options]:
    """Returns the class whose fields are read of the group 'task' or 'data'; raises ValueError if there is none."""
    return CHOSEN[group].find_class(config[group]["name"])


def foreign(config: Group) -> dict[str, Any]:
    """Returns {'group.field': value} of the fields that the chosen task and data set do not read.

    Those that were left at their defaults are no matter.

    Raises:
      ValueError: If there is no such task or data set.
    """
    found: dict[str, Any] = {}
    for group in CHOSEN.keys() & set(config):
        unread = GROUPS[group].keys() - fields_of(chosen(config, group)).keys() - {"name"}
        values = {name: config[group][name] for name in sorted(unread.intersection(config[group]))}
        found |= {f"{group}.{name}": x for name, x in values.items() if x != GROUPS[group][name].default}
    return found


def readers(field: str) -> list[str]:
    """Returns the names of our tasks, or data sets, that read a field such as 'data.join'."""
    group, _, name = field.partition(".")
    known: Mapping[str, type[Options]] = registry.TASKS if group == "task" else load.DATA_SETS
    return [of for of, options in known.items() if name in fields_of(options)]
