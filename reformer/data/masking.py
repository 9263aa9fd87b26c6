"""Masked data: some tokens of an example are hidden, and are what is predicted.

Source: Devlin et al. 2019, "BERT" (arXiv 1810.04805), section 3.1; the choice is drawn anew each time an example is
trained on, as Liu et al. 2019, "RoBERTa" (arXiv 1907.11692), section 4.1, do.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float32, Int32

from reformer.data import baselines
from reformer.data.source import Example, Row, Source, assets, chosen_examples, pad

_SPLITS = {"train": 0, "valid": 1, "test": 2}
_MAX_COUNTED = 10_000  # training examples that the baselines read


@runtime_checkable
class Maskable(Source, Protocol):
    """A source of `Example`s, such as every `source.NextToken`."""

    @property
    def begin_id(self) -> int:
        """Stands in the padding."""

    @property
    def num_ids(self) -> int:
        """The ids below it are those of targets."""

    @property
    def mask_id(self) -> int:
        """Stands in the place of a hidden target."""


class MaskedExample(NamedTuple):
    """What the model sees, what stands there in truth, and the weight of each place, 0 where it is not asked for."""

    tokens: Int32[np.ndarray, " length"]
    targets: Int32[np.ndarray, " length"]
    weights: Float32[np.ndarray, " length"]


@dataclasses.dataclass(frozen=True, eq=False)
class Masked:
    """Examples of another source with hidden tokens, for bidirectional models; a `Source`.

    Of each example `rate` of the tokens that count, at least one, are chosen. Each chosen one becomes the mask id or a
    random id, or stays as it is, by chance and independently of the others.

    Attributes:
        source: where the examples come from; its targets are what is predicted here, not moved.
        rate: share of the tokens that are chosen, above 0 and at most 1.
        masked_share: share of the chosen ones that become the mask id.
        random_share: share of the chosen ones that become a random id, which may be the right one; the rest stays.
    """

    source: Maskable
    rate: float = 0.15
    masked_share: float = 0.8
    random_share: float = 0.1

    @property
    def unit(self) -> str:
        """What a target is."""
        return self.source.unit

    @property
    def description(self) -> str:
        """One line for people."""
        return f"{self.source.description}; {self.rate:.0%} of the {self.unit}s are asked for"

    @property
    def fingerprint(self) -> str:
        """Of the source: what is hidden follows from it and from the config."""
        return self.source.fingerprint

    @property
    def assets(self) -> dict[str, bytes]:
        """Those of the source."""
        return assets(self.source)

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """The examples of the source, with other hidden tokens each time."""
        return self.source.training_examples(length, seed).random_map(_Hide(self))

    def num_examples(self, split: str, length: int) -> int:
        """As many as the source has."""
        return self.source.num_examples(split, length)

    def example(self, split: str, index: int, length: int) -> MaskedExample:
        """The example number `index`; the same tokens are hidden in every run."""
        rng = np.random.default_rng((_SPLITS[split], index))
        return self.hide(self.source.example(split, index, length), rng)

    def to_row(self, example: MaskedExample, padded_length: int | None) -> Row:
        """As `Source.to_row` has it: `tokens`, `targets` and `weights`, and if padded a `mask` bool, True = real."""
        row = {"tokens": example.tokens, "targets": example.targets, "weights": example.weights}
        if padded_length is None:
            return row
        padding = {"tokens": self.source.begin_id, "targets": self.source.begin_id, "weights": 0}
        padded = {name: pad(array, padded_length, padding[name]) for name, array in row.items()}
        return padded | {"mask": np.arange(padded_length) < len(example.targets)}

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Bits per hidden token of count models of training examples.

        One knows how frequent each token is. Where tokens are bytes, another knows both neighbours too, also where they
        are hidden from the model; it is scored on the tokens that have two.
        """
        chosen = chosen_examples(self.source, "train", length, _MAX_COUNTED)
        counted = [self.source.example("train", int(index), length).targets for index in chosen]
        scored = [self.example(split, int(i), length) for i in chosen_examples(self, split, length, max_examples)]
        bits = {"frequencies": self._bits_of_frequencies(counted, scored)}
        if self.source.num_ids == 256 and max(len(example.targets) for example in scored) > 2:
            bits["both neighbours"] = _bits_of_neighbours(counted, scored)
        return bits

    def _bits_of_frequencies(self, counted: list[np.ndarray], scored: list[MaskedExample]) -> float:
        counts = 1 + np.bincount(np.concatenate(counted), minlength=self.source.num_ids)
        bits = np.log2(counts.sum() / counts)
        weights = np.concatenate([example.weights for example in scored])
        return float(np.average(bits[np.concatenate([example.targets for example in scored])], weights=weights))

    def hide(self, example: Example, rng: np.random.Generator) -> MaskedExample:
        """Draws which tokens are chosen, and what stands in their place."""
        targets, weights, _ = example
        weights = np.ones(len(targets), np.float32) if weights is None else weights
        counting = np.flatnonzero(weights)
        chosen = rng.choice(counting, max(1, round(self.rate * len(counting))), replace=False)
        tokens, kept, lot = targets.copy(), np.zeros_like(weights), rng.random(len(chosen))
        kept[chosen] = weights[chosen]
        tokens[chosen[lot < self.masked_share]] = self.source.mask_id
        others = chosen[(lot >= self.masked_share) & (lot < self.masked_share + self.random_share)]
        tokens[others] = rng.integers(self.source.num_ids, size=len(others))
        return MaskedExample(tokens, targets, kept)


@dataclasses.dataclass(frozen=True, eq=False)
class _Hide(grain.transforms.RandomMap):
    data: Masked

    def random_map(self, example: Example, rng: np.random.Generator) -> MaskedExample:
        return self.data.hide(example, rng)


def _bits_of_neighbours(counted: list[np.ndarray], scored: list[MaskedExample]) -> float:
    codes = np.concatenate([_codes_of_neighbours(targets) for targets in counted])
    tables = [np.bincount(codes % 256**length, minlength=256**length) for length in (1, 2, 3)]
    wanted = np.concatenate([_codes_of_neighbours(example.targets) for example in scored])
    weights = np.concatenate([example.weights[1:-1] for example in scored])
    return float(np.average(-np.log2(baselines.probabilities(tables, wanted)), weights=weights))


def _codes_of_neighbours(targets: np.ndarray) -> np.ndarray:
    """For every token that has two neighbours: left, right, token as the digits of a number to the base 256."""
    left, token, right = targets[:-2], targets[1:-1], targets[2:]
    return (left * 256 + right) * 256 + token
