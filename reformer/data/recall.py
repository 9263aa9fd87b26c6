"""Associative recall: pairs of a key and its value, where a key that comes again must be followed by the same value.

A sequence is pairs k v. Each slot draws one of `num_pairs` pairs, so that the one before it of the same key stands at
any distance, up to the whole length. Keys are ids from 0, values from `num_symbols`; which value belongs to which key
is new in every sequence. Only the values of keys that have occurred before count in the loss and in the accuracy; a
model that cannot look them up pays log2(num_symbols) bits for each.

Source: Ba et al. 2016 (arXiv 1610.06258), section 4.1, associative retrieval; several queries in a sequence as in
Arora et al. 2023, "Zoology" (arXiv 2312.04927), section 3.2.
"""

import dataclasses

import numpy as np

from reformer.data.made_up import MadeUpTokens
from reformer.data.source import Example
from reformer.host.options import AtLeastTwo

_TIMES_SEEN = 4  # how often a key occurs in a sequence, on average


@dataclasses.dataclass(frozen=True)
class Recall(MadeUpTokens):
    """Sequences of pairs drawn at random."""

    num_symbols: AtLeastTwo = 127  # keys there are, and values there are

    @property
    def begin_id(self) -> int:
        """Stands before the first key."""
        return 2 * self.num_symbols

    @property
    def num_outcomes(self) -> int:
        """The values."""
        return self.num_symbols

    @property
    def description(self) -> str:
        """One line for people."""
        what = f"associative recall of {self.num_symbols} symbols"
        return f"{what}: {self.num_held_out} sequences held out for each split"

    @property
    def fingerprint(self) -> str:
        """Of what decides the sequences."""
        return f"recall-{self.num_symbols}"

    def check_length(self, length: int) -> None:
        """Raises a ValueError if no sequence has this length."""
        if length < 2 * _TIMES_SEEN or length % 2:
            raise ValueError(
                f"length={length} cannot hold pairs of a key and a value. Set --config.data.length (or "
                f"--config.model.max_length) to an even number of at least {2 * _TIMES_SEEN}."
            )

    def load(self, length: int) -> "Recall":
        """As `MadeUp.load`; also raises ValueError if there are too few symbols for the pairs."""
        super().load(length)
        if self.num_symbols < num_pairs(length):
            raise ValueError(
                f"data.num_symbols={self.num_symbols} are fewer than the {num_pairs(length)} keys of a sequence of "
                f"{length} tokens. Raise num_symbols or shorten the sequences."
            )
        return self

    def draw(self, rng: np.random.Generator, length: int) -> Example:
        """Draws the pairs of a sequence, and then one for each of its slots."""
        count = num_pairs(length)
        keys = rng.permutation(self.num_symbols)[:count]
        values = rng.integers(self.num_symbols, 2 * self.num_symbols, count)
        slots = rng.integers(count, size=length // 2)
        occurred = np.ones(len(slots), bool)
        occurred[np.unique(slots, return_index=True)[1]] = False
        targets = np.stack([keys[slots], values[slots]], axis=1).reshape(-1)
        weights = np.stack([np.zeros(len(slots)), occurred], axis=1).reshape(-1)
        return Example(targets.astype(np.int32), weights.astype(np.float32))


def num_pairs(length: int) -> int:
    """Different keys in a sequence of `length` tokens."""
    return length // (2 * _TIMES_SEEN)
