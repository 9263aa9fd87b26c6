"""Masked data: some tokens of an example are hidden, and are what is predicted.

Source: Devlin et al. 2019, "BERT" (arXiv 1810.04805), section 3.1; the choice is drawn anew each time an example is
trained on, as Liu et al. 2019, "RoBERTa" (arXiv 1907.11692), section 4.1, do.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float32, Int32

from reformer.data.source import Example, Row, Source, chosen_examples, pad

_SPLITS = {"train": 0, "valid": 1, "test": 2}
_MAX_COUNTED = 2000  # training examples that the baseline reads


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
        """Bits per hidden token of a model that only knows how frequent each is among the training examples."""
        counts = np.ones(self.source.num_ids)
        for index in chosen_examples(self.source, "train", length, _MAX_COUNTED):
            counts += np.bincount(self.source.example("train", int(index), length).targets, minlength=len(counts))
        bits = np.log2(counts.sum() / counts)
        total = weight = 0.0
        for index in chosen_examples(self, split, length, max_examples):
            example = self.example(split, int(index), length)
            total += float((bits[example.targets] * example.weights).sum())
            weight += float(example.weights.sum())
        return {"frequencies": total / weight}

    def hide(self, example: Example, rng: np.random.Generator) -> MaskedExample:
        """Draws which tokens are chosen, and what stands in their place."""
        targets, weights = example
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
