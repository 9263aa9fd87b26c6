"""Associative recall: pairs of a key and its value, where a key that comes again must be followed by the same value.

A sequence is pairs k v. Each slot draws one of `num_pairs` pairs, so that the one before it of the same key stands at
any distance, up to the whole length. Keys are ids from 0, values from `num_symbols`; which value belongs to which key
is new in every sequence. Only the values of keys that have occurred before count in the loss and in the accuracy; a
model that cannot look them up pays log2(num_symbols) bits for each.

Source: Ba et al. 2016 (arXiv 1610.06258), section 4.1, associative retrieval; several queries in a sequence as in
Arora et al. 2023, "Zoology" (arXiv 2312.04927), section 3.2.
"""

import dataclasses
import math
from typing import Any

import grain
import numpy as np

from reformer.data.source import Example, NextToken

_SPLITS = {"train": 0, "valid": 1, "test": 2}
_NUM_HELD_OUT = 500  # sequences of a split that is evaluated
_TIMES_SEEN = 4  # how often a key occurs in a sequence, on average


@dataclasses.dataclass(frozen=True)
class RecallData(NextToken):
    """Sequences drawn at random; each split has its own, the same in every run.

    Attributes:
        num_symbols: keys there are, and values there are.
    """

    num_symbols: int
    unit = "symbol"

    @property
    def begin_id(self) -> int:
        """Stands before the first key."""
        return 2 * self.num_symbols

    @property
    def description(self) -> str:
        """One line for people."""
        return f"associative recall of {self.num_symbols} symbols: {_NUM_HELD_OUT} sequences held out for each split"

    @property
    def fingerprint(self) -> str:
        """Of what decides the sequences."""
        return f"recall-{self.num_symbols}"

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless sequences, each new."""
        check_length(length)
        return grain.MapDataset.range(2**62).seed(seed).random_map(_RandomPairs(self.num_symbols, length))

    def num_examples(self, split: str, length: int) -> int:
        """Equally many in every split."""
        check_length(length)
        return _NUM_HELD_OUT

    def example(self, split: str, index: int, length: int) -> Example:
        """The same sequence in every run."""
        return _draw(np.random.default_rng((_SPLITS[split], index)), self.num_symbols, length)

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """What guessing costs."""
        del split, length, max_examples
        return {"guessing": math.log2(self.num_symbols)}


def check_length(length: int) -> None:
    """Raises a ValueError if no sequence has this length."""
    if length < 2 * _TIMES_SEEN or length % 2:
        raise ValueError(
            f"length={length} cannot hold pairs of a key and a value. Set --config.data.length (or "
            f"--config.model.max_length) to an even number of at least {2 * _TIMES_SEEN}."
        )


def load(config: Any, length: int) -> RecallData:
    """The task that the `data` group describes.

    Args:
        config: has `num_symbols`.
        length: tokens of an example.

    Raises:
        ValueError: there are too few symbols for the pairs, or no sequence has this length.
    """
    check_length(length)
    if config.num_symbols < num_pairs(length):
        raise ValueError(
            f"data.num_symbols={config.num_symbols} are fewer than the {num_pairs(length)} keys of a sequence of "
            f"{length} tokens. Raise num_symbols or shorten the sequences."
        )
    return RecallData(config.num_symbols)


def vocab_size(config: Any) -> int:
    """Keys, values and the begin id."""
    return 2 * config.num_symbols + 1


def num_pairs(length: int) -> int:
    """Different keys in a sequence of `length` tokens."""
    return length // (2 * _TIMES_SEEN)


@dataclasses.dataclass(frozen=True)
class _RandomPairs(grain.transforms.RandomMap):
    num_symbols: int
    length: int

    def random_map(self, _: int, rng: np.random.Generator) -> Example:
        return _draw(rng, self.num_symbols, self.length)


def _draw(rng: np.random.Generator, num_symbols: int, length: int) -> Example:
    count = num_pairs(length)
    keys, values = rng.permutation(num_symbols)[:count], rng.integers(num_symbols, 2 * num_symbols, count)
    slots = rng.integers(count, size=length // 2)
    occurred = np.ones(len(slots), bool)
    occurred[np.unique(slots, return_index=True)[1]] = False
    targets = np.stack([keys[slots], values[slots]], axis=1).reshape(-1)
    weights = np.stack([np.zeros(len(slots)), occurred], axis=1).reshape(-1)
    return Example(targets.astype(np.int32), weights.astype(np.float32))
