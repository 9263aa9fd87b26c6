"""Data that are drawn as it goes: no file is read, and every training example is new."""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import grain
import numpy as np

from reformer.data.data_set import DataSet
from reformer.data.source import Example, NextToken

_SPLITS = {"train": 0, "valid": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class MadeUp(DataSet):
    """A data set that is its own `Source`; each split has its own examples, the same in every run."""

    num_held_out: ClassVar[int] = 500  # examples of a split that is evaluated

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, length: int) -> Any:
        """Draws an example for a row of `length` tokens."""

    @property
    @abc.abstractmethod
    def num_outcomes(self) -> int:
        """Among how many targets who knows nothing has to guess."""

    @property
    def description(self) -> str:
        """One line for people."""
        return f"{self.fingerprint}: {self.num_held_out:,} held out for each split"

    @property
    def fingerprint(self) -> str:
        """Of what decides the examples."""
        return f"{type(self).__qualname__}-{'-'.join(map(str, dataclasses.astuple(self)))}"

    def load(self, length: int) -> Any:
        """Returns itself: there is nothing to read."""
        self.check_length(length)
        return self

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless examples, each new."""
        self.check_length(length)
        return grain.MapDataset.range(2**62).seed(seed).random_map(_Draw(self, length))

    def num_examples(self, split: str, length: int) -> int:
        """Equally many in every split."""
        self.check_length(length)
        return self.num_held_out

    def example(self, split: str, index: int, length: int) -> Any:
        """The same example in every run."""
        return self.draw(np.random.default_rng((_SPLITS[split], index)), length)

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """What guessing costs."""
        del split, length, max_examples
        return {"guessing": math.log2(self.num_outcomes)}


@dataclasses.dataclass(frozen=True)
class MadeUpTokens(NextToken, MadeUp):
    """Made-up sequences for language models: `begin_id` and `draw` are all that is missing."""

    kind: ClassVar[str] = "tokens"
    unit: ClassVar[str] = "symbol"

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, length: int) -> Example:
        """Draws `length` targets below `begin_id`, and perhaps what each counts."""

    @property
    def vocab_size(self) -> int:
        """The ids of targets and the begin id."""
        return self.begin_id + 1

    @property
    def num_outcomes(self) -> int:
        """The ids of targets."""
        return self.begin_id


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    data: MadeUp
    length: int

    def random_map(self, _: int, rng: np.random.Generator) -> Any:
        return self.data.draw(rng, self.length)
