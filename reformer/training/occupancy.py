"""How evenly the tokens of LSH layers fall into buckets."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.layers.kinds import num_buckets
from reformer.ops.hashing import count_buckets
from reformer.ops.plan import Arrays, Given, Plan


class Occupancy(NamedTuple):
    """Means over the examples, heads and rounds of a layer.

    Attributes:
      largest_share: Of the tokens of an example, in the largest bucket.
      num_effective: exp of the entropy of the shares: buckets of equal size that would be as even.
    """

    largest_share: float
    num_effective: float


Sums = Mapping[str, Any]  # by the depth of an LSH layer: largest shares, numbers of effective buckets, rounds


def look(config: ReformerConfig, i: int, arrays: Arrays, plan: Plan, given: Given) -> Any:
    """Returns the sums over a batch, for `ReformerLM.observe`; None where nothing is hashed."""
    del i, plan
    if given.order is None:
        return None
    total = math.prod(num_buckets(arrays.query.shape[2], config))
    count = functools.partial(count_buckets, num_buckets=total)
    place = sharding.spec("act_batch", "act_heads")
    counts = sharding.shard_map(count, place, place)(given.order.buckets)
    num_tokens = counts.sum(-1, keepdims=True)
    shares = counts / jnp.maximum(num_tokens, 1)
    is_real = (num_tokens[..., 0] > 0).astype(shares.dtype)  # not the rows that fill the last batch
    effective = jnp.exp(jax.scipy.special.entr(shares).sum(-1))
    return jnp.stack([(shares.max(-1) * is_real).sum(), (effective * is_real).sum(), is_real.sum()])


def by_depth(config: ReformerConfig, seen: Sequence[Any]) -> Sums:
    """Returns the sums by layer, of what `observe` collected for the layers of the pattern, stacked over blocks."""
    period = len(config.attention_pattern)
    return {
        str(block * period + i): of_blocks[block]
        for i, of_blocks in enumerate(seen)
        if of_blocks is not None
        for block in range(config.num_blocks)
    }


def means(sums: Sums) -> dict[int, Occupancy]:
    """Returns the means by depth, which counts from 0."""
    arrays = {int(depth): np.asarray(of_layer, np.float64) for depth, of_layer in sums.items()}
    return {
        depth: Occupancy(float(share / rounds), float(effective / rounds))
        for depth, (share, effective, rounds) in sorted(arrays.items())
    }


def record(layers: Mapping[int, Occupancy]) -> dict[str, float]:
    """Returns what is reported, by the number of the layer from 0."""
    return {
        f"layer_{depth}_{name}": value
        for depth, layer in layers.items()
        for name, value in (("largest_share", layer.largest_share), ("effective_buckets", layer.num_effective))
    }
