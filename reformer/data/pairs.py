"""Pairs of texts as subwords: a source that is read whole, and a target that is written token by token.

A text ends with the end id. A pair that is longer than a row is left out and counted, never cut. Several pairs, one
after another with a separator between them, make one document if wanted.
"""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int, Int32

from reformer.data import pair_files, subwords
from reformer.data.data_set import Cached, HeldOut
from reformer.data.pair_files import Corpus, Texts
from reformer.data.source import Example, Row, chosen_examples, next_token_row, pad
from reformer.data.subwords import BEGIN_ID, PADDING_ID, Subwords
from reformer.data.wmt14_ende import read_wmt14_ende
from reformer.host.options import Count, LocalPath, Text

ASSET = "subwords.model"  # what a workdir calls the vocabulary
_LINES_AT_ONCE = 100_000  # that are encoded


class Pair(NamedTuple):
    """Ids of a source and a target, each with its end id, and the length of the row that they fill."""

    source: Int32[np.ndarray, " source"]
    targets: Int32[np.ndarray, " length"]
    length: int


class Ragged(NamedTuple):
    """Rows of different lengths in one array: row i is `ids[bounds[i] : bounds[i + 1]]`."""

    ids: Int[np.ndarray, " ids"]
    bounds: Int[np.ndarray, " rows+1"]

    def row(self, index: int | np.integer) -> Int32[np.ndarray, " ids"]:
        """The row number `index`."""
        return self.ids[self.bounds[index] : self.bounds[index + 1]].astype(np.int32)

    def lengths(self, indices: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """Of the rows of these numbers; the others are not touched, there may be millions."""
        return self.bounds[indices + 1] - self.bounds[indices]

    @property
    def all_lengths(self) -> Int[np.ndarray, " rows"]:
        """Of all rows."""
        return np.diff(self.bounds)


@dataclasses.dataclass(frozen=True, eq=False)
class PairData:
    """Pairs of texts and their subwords.

    Attributes:
        corpus: the texts.
        vocabulary: the subwords.
        length: tokens of a row's target; the description says how many pairs it leaves out.
        source_length: tokens of a row's source.
        num_joined: a document has so many pairs, or as many as fit.
    """

    corpus: Corpus
    vocabulary: Subwords
    length: int
    source_length: int
    num_joined: int = 1
    unit = "subword"

    @functools.cached_property
    def _ids(self) -> dict[str, tuple[Ragged, Ragged]]:
        return {
            split: (_encode(self.vocabulary, texts.source), _encode(self.vocabulary, texts.target))
            for split, texts in self.corpus.splits.items()
        }

    @property
    def description(self) -> str:
        """One line: the source, the pairs of each split, and those that are too long for a row."""
        counts = ", ".join(f"{len(texts.source):,} {split}" for split, texts in self.corpus.splits.items())
        documents = ""
        if self.num_joined > 1:
            mean = self.fits("train", self.length).sum() / max(1, self.num_examples("train", self.length))
            documents = f", in documents of up to {self.num_joined} ({mean:.3g} fit on average)"
        missing = {split: int((~self.fits(split, self.length)).sum()) for split in self.corpus.splits}
        too_long = ", ".join(f"{count:,} {split}" for split, count in missing.items() if count)
        return (
            f"{self.corpus.description}: {counts} pairs{documents}; {self.vocabulary.num_ids:,} subwords; longer than "
            f"{self.source_length} -> {self.length} and left out: {too_long or 'none'}"
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the texts and the subwords."""
        return hashlib.sha256(f"{self.corpus.fingerprint} {self.vocabulary.fingerprint}".encode()).hexdigest()[:32]

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the trained parameters: the vocabulary."""
        return {ASSET: self.vocabulary.model}

    def fits(self, split: str, length: int) -> Bool[np.ndarray, " pairs"]:
        """For every pair of a split, whether a row of `length` holds it with its end ids."""
        source, target = (ragged.all_lengths + 1 for ragged in self._ids[split])
        return (source <= self.source_length) & (target <= length)

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless pairs in random order, each once per epoch.

        A document is made of others in every epoch; those that no longer fit into it are left out of that epoch.

        Raises:
            ValueError: no pair fits.
        """
        usable = np.flatnonzero(self.fits("train", length))
        if not len(usable):
            raise ValueError(
                f"length={length}: no pair of {self.corpus.description} is short enough for "
                f"{self.source_length} -> {length} tokens. Raise --config.data.length or "
                "--config.task.source_length."
            )
        order = grain.MapDataset.source(usable).seed(seed).shuffle().repeat()
        return order.batch(self.num_joined, drop_remainder=True).map(_ToPair(self, length))

    def num_examples(self, split: str, length: int) -> int:
        """Pairs, or documents, that fit."""
        return len(self._documents(split, length))

    def example(self, split: str, index: int, length: int) -> Pair:
        """The pair, or document, number `index` of those that fit."""
        return self.make_pair(split, self._documents(split, length)[index], length)

    def make_pair(self, split: str, indices: Int[np.ndarray, " pairs"], length: int) -> Pair:
        """Joins pairs in the order of `indices`, as many of them as fit."""
        count = self._num_that_fit(split, indices, length)
        source, target = (subwords.join([side.row(i) for i in indices[:count]]) for side in self._ids[split])
        return Pair(source, target, length)

    def documents(self, split: str, length: int) -> list[Texts]:
        """The texts of a split that are translated together: single pairs, whatever their length, or documents."""
        texts = self.corpus.splits[split]
        if self.num_joined == 1:
            return [Texts([source], [target]) for source, target in zip(*texts, strict=True)]
        chosen = self._documents(split, length)
        return [Texts(*([language[i] for i in indices] for language in texts)) for indices in chosen]

    def to_row(self, example: Pair, padded_length: int | None) -> Row:
        """As `Source.to_row` has it: the arrays of `next_token_row`, `source` int32 and `source_mask` bool."""
        row = next_token_row(Example(example.targets), BEGIN_ID, padded_length or example.length)
        row["source"] = pad(example.source, self.source_length, PADDING_ID)
        row["source_mask"] = np.arange(self.source_length) < len(example.source)
        return row

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Bits per subword of the target, end id included, if each costs what its share of the training text says."""
        _, trained = self._ids["train"]
        counts = np.bincount(trained.ids, minlength=self.vocabulary.num_ids) + 1.0  # add one (Laplace)
        num_documents = self.num_examples("train", length)
        counts[subwords.END_ID] += num_documents
        counts[subwords.SEPARATOR_ID] += self.fits("train", length).sum() - num_documents
        indices = chosen_examples(self, split, length, max_examples)
        scored = np.concatenate([self.example(split, int(i), length).targets for i in indices])
        return {"order-0 counts": float(-np.log2(counts[scored] / counts.sum()).mean())}

    @functools.cache  # noqa: B019  # keeps the data, which a program reads once
    def _documents(self, split: str, length: int) -> list[np.ndarray] | Int[np.ndarray, "pairs 1"]:
        """Numbers of the pairs of each document of a split, in order; what fits nowhere is in none."""
        left = np.flatnonzero(self.fits(split, length))
        if self.num_joined == 1:
            return left[:, None]
        found = []
        while len(left):
            count = self._num_that_fit(split, left[: self.num_joined], length)
            found.append(left[:count])
            left = left[count:]
        return found

    def _num_that_fit(self, split: str, indices: Int[np.ndarray, " pairs"], length: int) -> int:
        """How many pairs, from the first, fit into a row together; at least the first does."""
        source, target = (np.cumsum(ragged.lengths(indices) + 1) for ragged in self._ids[split])
        return max(1, int(((source <= self.source_length) & (target <= length)).sum()))


@dataclasses.dataclass(frozen=True)
class _Subwords(Cached):
    """What all pairs have in common."""

    kind: ClassVar[str] = "pairs"

    source_language: Text = "en"  # what the names of the files end with
    target_language: Text = "de"
    num_subwords: Count = 8000  # of both languages together; model.vocab_size is the same
    subwords: LocalPath = ""  # file of a vocabulary, such as subwords.model in the workdir of a run; '' = learn it
    join: Count = 1  # so many pairs, or as many as fit, make a document

    @property
    def languages(self) -> tuple[str, str]:
        """Of the source and of the target."""
        return self.source_language, self.target_language

    @property
    def vocab_size(self) -> int:
        """The subwords, reserved ids included."""
        return self.num_subwords

    def check_length(self, length: int) -> None:
        """Raises a ValueError if nothing but the end id fits."""
        if length < 2:
            raise ValueError(
                f"length={length} leaves no place for a subword before the end id. Raise --config.data.length."
            )

    @abc.abstractmethod
    def read_corpus(self) -> Corpus:
        """Reads the texts."""

    def load(self, length: int) -> PairData:
        """As `DataSet.load`; reads or learns the subwords too. Sources have the length of targets."""
        self.check_length(length)
        corpus = self.read_corpus()
        if self.subwords:
            vocabulary = subwords.read(self.subwords)
        else:
            texts = corpus.splits["train"]
            vocabulary = subwords.learn(texts.source + texts.target, self.num_subwords, self.cache)
        if vocabulary.num_ids != self.num_subwords:
            raise ValueError(
                f"data.subwords={self.subwords!r} has {vocabulary.num_ids} subwords, but data.num_subwords="
                f"{self.num_subwords}. Name another file, or set --config.data.num_subwords={vocabulary.num_ids} and "
                "--config.model.vocab_size to the same."
            )
        return PairData(corpus, vocabulary, length, length, self.join)


@dataclasses.dataclass(frozen=True)
class Pairs(HeldOut, _Subwords):
    """Two text files, line by line translations of each other."""

    path: LocalPath = ""  # what the names of the files begin with, up to '.train.en'

    def problems(self) -> Iterator[str]:
        """There is no default of the path."""
        if not self.path:
            yield (
                "config.data.path is empty. Name what the names of two text files begin with, such as data/multi30k "
                "for data/multi30k.train.en: --config.data.path=PREFIX."
            )
        yield from super().problems()

    def read_corpus(self) -> Corpus:
        """Reads the texts."""
        return pair_files.read(self.path, *self.languages, *self.fractions)


@dataclasses.dataclass(frozen=True)
class WMT14(_Subwords):
    """WMT14 English-German, in either direction."""

    path: LocalPath = ""  # the folder of the original archives; '' = `wmt14_ende` in `cache_dir`

    def read_corpus(self) -> Corpus:
        """Reads the texts."""
        return read_wmt14_ende(self.path, self.cache, *self.languages)


def _encode(vocabulary: Subwords, lines: Sequence[str]) -> Ragged:
    dtype = np.uint16 if vocabulary.num_ids <= 2**16 else np.int32
    parts, lengths = [np.zeros(0, dtype)], [np.zeros(1, np.int64)]
    for start in range(0, len(lines), _LINES_AT_ONCE):
        rows = vocabulary.encode(lines[start : start + _LINES_AT_ONCE])
        lengths.append(np.array([len(row) for row in rows], np.int64))
        parts.append(np.fromiter((token for row in rows for token in row), dtype, lengths[-1].sum()))
    return Ragged(np.concatenate(parts), np.cumsum(np.concatenate(lengths)))


@dataclasses.dataclass(frozen=True, eq=False)
class _ToPair(grain.transforms.Map):
    data: PairData
    length: int

    def map(self, indices: np.ndarray) -> Pair:
        return self.data.make_pair("train", indices, self.length)
