"""What every kind of data offers, and the batches that are made of it.

A row is an example in the form in which a model takes it: arrays by the names of the arguments of its `loss`.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float32, Int, Int32

Row = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]  # rows, stacked on axis 0


class Example(NamedTuple):
    """Targets, the weight of each in the loss, None = 1, and the bytes that each stands for, None = not told."""

    targets: Int32[np.ndarray, " length"]
    weights: Float32[np.ndarray, " length"] | None = None
    num_bytes: Float32[np.ndarray, " length"] | None = None


@runtime_checkable
class Source(Protocol):
    """Data to train and evaluate on."""

    @property
    def unit(self) -> str:
        """What a target is, such as 'byte', 'dim' (of an image) or 'symbol'."""

    @property
    def description(self) -> str:
        """One line for people."""

    @property
    def fingerprint(self) -> str:
        """Another one means that the data were replaced."""

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless examples at random, which fill a row of `length`; raises ValueError if there cannot be any."""

    def num_examples(self, split: str, length: int) -> int:
        """How many examples cover a split: 'train', 'valid' or 'test'; raises ValueError if `length` cannot be."""

    def example(self, split: str, index: int, length: int) -> Any:
        """The example number `index` of a split, which fits into a row of `length`."""

    def to_row(self, example: Any, padded_length: int | None) -> Row:
        """The arrays of an example, which have the same shapes and types for all examples.

        Args:
            example: of `training_examples` or `example`.
            padded_length: the row may be shorter and is padded to this; it has `weights` float32, which are 0 in the
                padding. None = it comes from `training_examples`, and `weights` may be left out where all are 1.
        """

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Bits per unit of simpler models, by name, on the examples that `evaluation_batches` reads."""


def assets(source: Source) -> dict[str, bytes]:
    """Files, by name, without which trained parameters mean nothing, such as a vocabulary; most data have none.

    A run keeps them in its workdir.
    """
    return getattr(source, "assets", {})


def accuracies(source: Source, split: str, length: int, max_examples: int | None = None) -> dict[str, float] | None:
    """Share of right answers of simpler models, by name; None of data where bits are what counts.

    Args:
        source: the data.
        split: of the data.
        length: tokens of an example.
        max_examples: that are scored, as in `baselines`.
    """
    return source.accuracies(split, length, max_examples) if hasattr(source, "accuracies") else None


def name_labels(names: Sequence[str]) -> dict[str, bytes]:
    """The file that says what the labels of a classifier mean, in the order of its logits, for `assets`."""
    return {"labels.txt": "".join(f"{name}\n" for name in names).encode()}


class NextToken(abc.ABC):
    """A base of sources for language models: each target is predicted from those before it.

    The tokens are the targets moved right by one behind a begin id. Examples are `Example`s.
    """

    @property
    @abc.abstractmethod
    def begin_id(self) -> int:
        """Stands before the first target; the ids of targets lie below it."""

    @property
    def num_ids(self) -> int:
        """The ids below it are those of targets."""
        return self.begin_id

    @property
    def mask_id(self) -> int:
        """Stands in the place of a hidden target, see `masking`; models of other tasks need not know it."""
        return self.begin_id + 1

    def to_row(self, example: Example, padded_length: int | None) -> Row:
        """As `Source.to_row` has it: `tokens` and `targets` int32, and if padded a `mask` bool, True = real.

        Padded rows of tokens that stand for several bytes have `num_bytes` float32 too.
        """
        return next_token_row(example, self.begin_id, padded_length)


def next_token_row(example: Example, begin_id: int, padded_length: int | None) -> Row:
    """The arrays that a model takes which predicts each target from those before it; as `NextToken.to_row`."""
    targets, weights, num_bytes = example
    tokens = np.concatenate([np.array([begin_id], np.int32), targets[:-1]])
    if padded_length is None:
        row = {"tokens": tokens, "targets": targets}
        return row if weights is None else row | {"weights": weights}
    weights = np.ones(len(targets), np.float32) if weights is None else weights
    row = {
        "tokens": pad(tokens, padded_length, begin_id),
        "targets": pad(targets, padded_length, begin_id),
        "weights": pad(weights, padded_length, 0),
        "mask": np.arange(padded_length) < len(targets),
    }
    return row if num_bytes is None else row | {"num_bytes": pad(num_bytes, padded_length, 0)}


def pad(array: np.ndarray, length: int, value: Any) -> np.ndarray:
    """Appends `value` to an array of one axis until it has `length` entries."""
    return np.pad(array, (0, length - len(array)), constant_values=value)


def training_batches(
    source: Source, *, length: int, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless batches of random examples.

    Args:
        source: the data.
        length: tokens of an example.
        batch_size: examples of a batch over all processes.
        seed: the same seed gives the same batches, whatever the number of processes.
        process_index: which part of each batch is wanted: the rows from `process_index * batch_size / process_count`.
        process_count: number of parts.

    Returns:
        Iterator of rows stacked to `[batch_size / process_count, ...]`. `get_state()` is `{'next_index': batches so
        far}`, on any number of processes; `set_state(...)` continues from there with the same batches as an unbroken
        run.

    Raises:
        ValueError: no example has this length, or the batch does not divide among the processes.
    """
    rows = _rows_per_process(batch_size, process_count)
    # Parts are dealt out after the random choice: dealing out first would give every process the same examples.
    # They lie in each batch one after another, so that it is the same array for any number of processes.
    parts = source.training_examples(length, seed).map(_ToRow(source)).batch(rows, drop_remainder=True)
    own = parts[process_index::process_count]
    return iter(own.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def evaluation_batches(
    source: Source,
    split: str,
    *,
    length: int,
    batch_size: int,
    max_examples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Sequence[Batch]:
    """The examples of a split, in order, each once.

    Args:
        source: the data.
        split: 'train', 'valid' or 'test'.
        length: tokens of an example.
        batch_size: examples of a batch over all processes.
        max_examples: only so many, spread evenly over the split; None = all.
        process_index: which part of each batch is wanted, as in `training_batches`.
        process_count: number of parts; all have equally many batches.

    Returns:
        Sequence of padded rows stacked to `[batch_size / process_count, ...]`. The rows that fill the last batch are
        zeros, their weights as well.

    Raises:
        ValueError: the split is empty, or the batch does not divide among the processes.
    """
    indices = chosen_examples(source, split, length, max_examples)
    if not len(indices):
        raise ValueError(
            f"The {split} split holds no {source.unit}s to evaluate on. Choose another by --split, or hold some "
            "out: --config.data.valid_fraction and --config.data.test_fraction do so for files and folders."
        )
    rows = _rows_per_process(batch_size, process_count)
    return _EvaluationBatches(source, split, length, indices, rows, process_index, process_count)


def chosen_examples(source: Source, split: str, length: int, max_examples: int | None) -> Int[np.ndarray, " examples"]:
    """The numbers of the examples that are evaluated: all, or `max_examples` spread evenly over the split."""
    num_examples = source.num_examples(split, length)
    count = min(num_examples, max_examples or num_examples)
    return np.arange(count) * num_examples // max(count, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class _ToRow(grain.transforms.Map):
    source: Source

    def map(self, example: Any) -> Row:
        return self.source.to_row(example, None)


@dataclasses.dataclass(frozen=True, eq=False)
class _EvaluationBatches(Sequence):
    source: Source
    split: str
    length: int
    indices: np.ndarray
    rows: int  # of this process, in each batch
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-len(self.indices) // (self.rows * self.process_count))

    def __getitem__(self, number: int) -> Batch:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        batch_size = self.rows * self.process_count
        first = number * batch_size + self.process_index * self.rows
        own = self.indices[first : first + self.rows]
        rows = [self._row(int(index)) for index in own]
        if len(rows) < self.rows:
            example = rows[0] if rows else self._row(int(self.indices[0]))
            rows += [{name: np.zeros_like(array) for name, array in example.items()}] * (self.rows - len(rows))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, index: int) -> Row:
        return self.source.to_row(self.source.example(self.split, index, self.length), self.length)


def _rows_per_process(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes. "
            "Change --config.training.batch_size or --config.evaluation.batch_size."
        )
    return batch_size // process_count
