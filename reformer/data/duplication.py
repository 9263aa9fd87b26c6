"""The duplication task: a marker and a random word, twice; the second half can only be known by copying.

A sequence is 0 w 0 w. Ids: 0 = the marker, 1 .. num_symbols = symbols, num_symbols + 1 = begin. Only the second w
counts in the loss and in the accuracy; a model that cannot copy pays log2(num_symbols) bits for each of its symbols.

Source: arXiv 2001.04451, section 5, "Effect of sharing QK" and Table 2 (|w| = 511, 127 symbols).
"""

import dataclasses
from typing import ClassVar

import numpy as np

from reformer.data.made_up import MadeUpTokens
from reformer.data.source import Example
from reformer.host.options import AtLeastTwo


@dataclasses.dataclass(frozen=True)
class Duplication(MadeUpTokens):
    """Words drawn at random; sequences of `length` tokens have words of length / 2 - 1."""

    num_held_out: ClassVar[int] = 2000  # words

    num_symbols: AtLeastTwo = 127  # that words are made of

    @property
    def begin_id(self) -> int:
        """Stands before the first marker."""
        return self.num_symbols + 1

    @property
    def num_outcomes(self) -> int:
        """The symbols."""
        return self.num_symbols

    @property
    def description(self) -> str:
        """One line for people."""
        words = f"duplication of random words of {self.num_symbols} symbols"
        return f"{words}: {self.num_held_out:,} held out for each split"

    @property
    def fingerprint(self) -> str:
        """Of what decides the words."""
        return f"duplication-{self.num_symbols}"

    def check_length(self, length: int) -> None:
        """Raises a ValueError if no word has this length."""
        if length < 4 or length % 2:
            raise ValueError(
                f"length={length} cannot hold a marker and a word twice. Set --config.data.length (or "
                "--config.model.max_length) to 2 |w| + 2, such as 128 for words of 63 symbols."
            )

    def draw(self, rng: np.random.Generator, length: int) -> Example:
        """Draws a word and duplicates it."""
        half = np.zeros(length // 2, np.int32)
        half[1:] = rng.integers(1, self.num_symbols + 1, length // 2 - 1)
        weights = np.zeros(length, np.float32)
        weights[length // 2 + 1 :] = 1
        return Example(np.concatenate([half, half]), weights)

    def accuracies(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Of guessing."""
        del split, length, max_examples
        return {"guessing": 1 / self.num_symbols}
