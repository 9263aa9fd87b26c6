"""The duplication task: a marker and a random word, twice; the second half can only be known by copying.

A sequence is 0 w 0 w. Ids: 0 = the marker, 1 .. num_symbols = symbols, num_symbols + 1 = begin. Only the second w
counts in the loss and in the accuracy; a model that cannot copy pays log2(num_symbols) bits for each of its symbols.

Source: arXiv 2001.04451, section 5, "Effect of sharing QK" and Table 2 (|w| = 511, 127 symbols).
"""

import dataclasses
import math
from typing import Any

import grain
import numpy as np

from reformer.data.source import Example, NextToken

_SPLITS = {"train": 0, "valid": 1, "test": 2}
_NUM_HELD_OUT = 2000  # words of a split that is evaluated


@dataclasses.dataclass(frozen=True)
class DuplicationData(NextToken):
    """Words drawn at random; each split has its own, the same in every run.

    Attributes:
        num_symbols: symbols that words are made of.
    """

    num_symbols: int
    unit = "symbol"

    @property
    def begin_id(self) -> int:
        """Stands before the first marker."""
        return self.num_symbols + 1

    @property
    def description(self) -> str:
        """One line for people."""
        return f"duplication of random words of {self.num_symbols} symbols: {_NUM_HELD_OUT:,} held out for each split"

    @property
    def fingerprint(self) -> str:
        """Of what decides the words."""
        return f"duplication-{self.num_symbols}"

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless examples `0 w 0 w`, each word new."""
        word_length(length)
        return grain.MapDataset.range(2**62).seed(seed).random_map(_RandomWord(self.num_symbols, length))

    def num_examples(self, split: str, length: int) -> int:
        """Equally many in every split."""
        word_length(length)
        return _NUM_HELD_OUT

    def example(self, split: str, index: int, length: int) -> Example:
        """The same word in every run."""
        return _duplicate(np.random.default_rng((_SPLITS[split], index)), self.num_symbols, length)

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """What guessing costs."""
        del split, length, max_examples
        return {"guessing": math.log2(self.num_symbols)}

    def accuracies(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Of guessing."""
        del split, length, max_examples
        return {"guessing": 1 / self.num_symbols}


def check_length(length: int) -> None:
    """Raises a ValueError if no word has this length."""
    word_length(length)


def load(config: Any, length: int) -> DuplicationData:
    """The task that the `data` group describes.

    Args:
        config: has `num_symbols`.
        length: tokens of an example: 2 |w| + 2.

    Raises:
        ValueError: there are no symbols, or no word has this length.
    """
    check_length(length)
    if config.num_symbols < 2:
        raise ValueError(f"data.num_symbols={config.num_symbols} must be at least 2.")
    return DuplicationData(config.num_symbols)


def vocab_size(config: Any) -> int:
    """The marker, the symbols and the begin id."""
    return config.num_symbols + 2


def word_length(length: int) -> int:
    """|w| of sequences of `length` tokens; raises ValueError if there is none."""
    if length < 4 or length % 2:
        raise ValueError(
            f"length={length} cannot hold a marker and a word twice. Set --config.data.length (or "
            "--config.model.max_length) to 2 |w| + 2, such as 128 for words of 63 symbols."
        )
    return length // 2 - 1


@dataclasses.dataclass(frozen=True)
class _RandomWord(grain.transforms.RandomMap):
    num_symbols: int
    length: int

    def random_map(self, _: int, rng: np.random.Generator) -> Example:
        return _duplicate(rng, self.num_symbols, self.length)


def _duplicate(rng: np.random.Generator, num_symbols: int, length: int) -> Example:
    half = np.zeros(length // 2, np.int32)
    half[1:] = rng.integers(1, num_symbols + 1, word_length(length))
    weights = np.zeros(length, np.float32)
    weights[length // 2 + 1 :] = 1
    return Example(np.concatenate([half, half]), weights)
