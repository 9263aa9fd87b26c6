"""What each field of an experiment's config may be; those of the `model` group are checked by `ReformerConfig`."""

import re
from collections.abc import Callable, Collection
from typing import Any

from reformer.config import is_integer, is_number
from reformer.data import load
from reformer.host import paths
from reformer.models.trunk import POOLINGS
from reformer.ops.patches import ORDERS
from reformer.tasks import registry
from reformer.training import writers


def _is_one_of(names: Collection[str]) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names


def _are_patterns(value: Any) -> bool:
    try:
        return isinstance(value, tuple) and all(pattern and re.compile(pattern) for pattern in value)
    except (re.error, TypeError):
        return False


# (rule, predicate, fields). The fields of `model` are checked by ReformerConfig; every other one stands here.
FIELD_RULES = (
    (*_is_one_of(("adafactor", "adamw")), ["optimizer.name"]),
    (*_is_one_of(("rsqrt", "cosine", "constant")), ["optimizer.schedule"]),
    (*_is_one_of(load.MODULES), ["data.name"]),
    (*_is_one_of(registry.NAMES), ["task.name"]),
    (*_is_one_of(("bytes", "subwords")), ["data.tokens"]),
    (*_is_one_of(POOLINGS), ["task.pooling"]),
    (*_is_one_of(ORDERS), ["task.patch_order"]),
    (
        "True or False",
        lambda value: isinstance(value, bool),
        [
            "data.skip_bad_images",
            "data.random_flip",
            "data.pack_documents",
            "data.separate_documents",
            "task.share_embeddings",
            "sharding.split_length",
        ],
    ),
    (
        "text in quotes",
        lambda value: isinstance(value, str),
        ["data.text_field", "data.source_language", "data.target_language", "task.share"],
    ),
    (
        f"text in quotes, and {paths.RULE.removesuffix('.')}",
        lambda value: isinstance(value, str) and not paths.is_address(value),
        ["data.path", "data.cache_dir", "data.subwords", "training.init_from"],
    ),
    ("a tuple of regular expressions, each in quotes", _are_patterns, ["training.frozen"]),
    (*writers.RULE, ["training.writers"]),
    (
        "an integer of at least 1 and at most 2147483647",
        lambda value: is_integer(value, 1),
        [
            "task.image_size",
            "task.patch_size",
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
            "data.examples_per_label",
            "data.repeat_distance",
            "data.join",
            "data.num_subwords",
            "task.num_labels",
        ],
    ),
    ("an integer of at least 2 and at most 2147483647", lambda value: is_integer(value, 2), ["data.num_symbols"]),
    (
        "an integer from 0 to 2147483647",
        lambda value: is_integer(value, 0),
        ["seed", "evaluation.hash_seed", "optimizer.warmup_steps", "training.max_skipped_updates", "data.crop_padding"],
    ),
    (
        "a positive integer, or -1 for the devices that remain",
        lambda value: is_integer(value, 1) or (is_integer(value, -1) and value == -1),
        ["sharding.data", "sharding.fsdp", "sharding.tensor"],
    ),
    (
        "a positive number that float32 holds",
        lambda value: is_number(value) and value > 0,
        [
            "optimizer.learning_rate",
            "optimizer.epsilon",
            "optimizer.update_clip",
            "optimizer.factored_decay",
            "task.discriminator_weight",
            "task.generator_scale",
            "task.temperature",
        ],
    ),
    (
        "a number of at least 0 and below 1",
        lambda value: is_number(value) and 0 <= value < 1,
        ["optimizer.b1", "optimizer.b2", "optimizer.weight_decay", "data.test_fraction"],
    ),
    (
        "a number above 0 and below 1",
        lambda value: is_number(value) and 0 < value < 1,
        ["data.valid_fraction", "task.mask_rate"],
    ),
    (
        "None or a positive number that float32 holds",
        lambda value: value is None or (is_number(value) and value > 0),
        ["optimizer.clip_norm", "training.stall_seconds"],
    ),
    (
        "None or a positive integer",
        lambda value: value is None or is_integer(value, 1),
        ["task.source_length", "data.length", "evaluation.max_examples", "checkpoint.keep_every_steps"],
    ),
)
