"""Parameters that are not trained: they have no gradient, no optimizer state and no weight decay."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from flax import traverse_util

Params = dict[str, Any]


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches whole names of a path: 'norm' is every norm, '^norm' only the one above the stack."""
    return any(re.search(rf"(^|/)({pattern})(/|$)", path) for pattern in patterns)


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Returns the parameters that are trained and the others, each in the same nesting; {} = there are none."""
    if not patterns:
        return params, {}
    parts: tuple[Params, Params] = {}, {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        parts[is_frozen("/".join(path), patterns)][path] = leaf
    trained, others = map(traverse_util.unflatten_dict, parts)
    return trained, others


def merge(trained: Params, others: Params | None) -> Params:
    """Returns what `split` was given; None = there are no others."""
    if not others:
        return trained
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(others)
    return traverse_util.unflatten_dict(flat)


def check(patterns: Sequence[str], paths: Collection[str]) -> None:
    """Raises a ValueError if a pattern matches no path of a parameter, or together they match all."""
    for pattern in patterns:
        if not any(is_frozen(path, (pattern,)) for path in paths):
            groups = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise ValueError(
                f"config.training.frozen: {pattern!r} matches no parameter. They lie under {groups}; quote each name: "
                "--config.training.frozen=\"('embeddings','stack')\"."
            )
    if patterns and all(is_frozen(path, patterns) for path in paths):
        raise ValueError(f"config.training.frozen={tuple(patterns)!r} leaves nothing to train. Take some of it out.")
