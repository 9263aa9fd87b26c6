"""Windows of text that are labelled with the folder they come from: the standard library's packages, or any folders.

A token is a byte, as in `text`. Files are held out as `documents.assign_files` does it: with the same fractions they
are those of data.name='stdlib', so that a model that was trained on that text has seen nothing of them.
"""

import dataclasses
import functools
import hashlib
import math
from typing import ClassVar, NamedTuple

import grain
import numpy as np
from jaxtyping import Int32

from reformer.data import documents
from reformer.data.data_set import HeldOut
from reformer.data.source import Row, name_labels, pad
from reformer.data.text import BEGIN_ID, VOCAB_SIZE
from reformer.host.options import Count, LocalPath

NUM_PACKAGES = 20  # the largest of the standard library
_SPLITS = ("train", "valid", "test")
_MAX_HELD_OUT = 100  # windows of a label in a split that is evaluated


class Labelled(NamedTuple):
    """The bytes of a window, and the number of its label."""

    tokens: Int32[np.ndarray, " length"]
    label: int


@dataclasses.dataclass(frozen=True, eq=False)
class PackageData:
    """A few labelled windows of each folder to train on, and windows of held-out files; a `Source`.

    Attributes:
        source: where the folders lie, for people.
        labels: names of the folders.
        texts: for every folder the bytes, uint8, by split.
        examples_per_label: windows to train on, evenly spread over the files of a folder that are not held out.
    """

    source: str
    labels: tuple[str, ...]
    texts: tuple[dict[str, np.ndarray], ...]
    examples_per_label: int
    unit = "window"

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the trained parameters: the names of the labels."""
        return name_labels(self.labels)

    @property
    def description(self) -> str:
        """One line: the source and the labels."""
        return f"{self.examples_per_label} windows of each of {len(self.labels)} folders in {self.source}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the names and contents of the folders."""
        digest = hashlib.sha256(repr((self.labels, self.examples_per_label)).encode())
        for text in self.texts:
            for split in _SPLITS:
                digest.update(len(text[split]).to_bytes(8, "big"))
                digest.update(np.ascontiguousarray(text[split]).data)
        return digest.hexdigest()[:32]

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """The labelled windows in random order, each once per epoch.

        Raises:
            ValueError: a folder has fewer bytes than a window.
        """
        windows = self._windows("train", length)
        indices = grain.MapDataset.range(len(windows)).seed(seed).shuffle().repeat()
        return indices.map(_ToExample(self, windows, length))

    def num_examples(self, split: str, length: int) -> int:
        """Windows of all labels."""
        return len(self._windows(split, length))

    def example(self, split: str, index: int, length: int) -> Labelled:
        """The window number `index`, those of a label side by side."""
        return self.cut(split, self._windows(split, length)[index], length)

    def cut(self, split: str, window: tuple[int, int], length: int) -> Labelled:
        """The bytes of a window, given its label and where it begins; fewer at the end of a text."""
        label, start = window
        return Labelled(self.texts[label][split][start : start + length].astype(np.int32), label)

    def to_row(self, example: Labelled, padded_length: int | None) -> Row:
        """As `Source.to_row` has it: `tokens` int32, `targets` int32 [], and if padded `weights` [] and `mask`."""
        row = {"tokens": example.tokens, "targets": np.asarray(example.label, np.int32)}
        if padded_length is None:
            return row
        return {
            "tokens": pad(example.tokens, padded_length, BEGIN_ID),
            "targets": row["targets"],
            "weights": np.ones((), np.float32),
            "mask": np.arange(padded_length) < len(example.tokens),
        }

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """What guessing costs."""
        del split, length, max_examples
        return {"guessing": math.log2(len(self.labels))}

    def accuracies(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Of guessing."""
        del split, length, max_examples
        return {"guessing": 1 / len(self.labels)}

    @functools.cache  # noqa: B019  # keeps the data, which a program reads once
    def _windows(self, split: str, length: int) -> list[tuple[int, int]]:
        """Label and first byte of every window."""
        windows: list[tuple[int, int]] = []
        for label, text in enumerate(self.texts):
            size = len(text[split])
            starts = self._training_starts(label, size, length) if split == "train" else _held_out_starts(size, length)
            windows += [(label, int(start)) for start in starts]
        return windows

    def _training_starts(self, label: int, size: int, length: int) -> np.ndarray:
        if size < length:
            raise ValueError(
                f"length={length} exceeds the {size} bytes of {self.labels[label]!r} there are to train on. Lower "
                "--config.data.length, or hold less out."
            )
        return np.linspace(0, size - length, self.examples_per_label).astype(int)


@dataclasses.dataclass(frozen=True)
class Packages(HeldOut):
    """The largest packages of the standard library, or the folders in any folder. Windows may have any length."""

    kind: ClassVar[str] = "labelled_text"
    vocab_size: ClassVar[int] = VOCAB_SIZE  # bytes and the reserved ids

    path: LocalPath = ""  # a folder with one folder for each label; '' = the 20 largest packages
    examples_per_label: Count = 50  # windows of each folder to train on

    def load(self, length: int) -> PackageData:
        """As `DataSet.load`."""
        del length
        source, folders = documents.read_folders(self.path, *self.fractions, None if self.path else NUM_PACKAGES)
        return PackageData(source, tuple(folders), tuple(folders.values()), self.examples_per_label)


def _held_out_starts(size: int, length: int) -> np.ndarray:
    """Of windows side by side, not more than `_MAX_HELD_OUT`; a text that is shorter gives one short window."""
    num_windows = max(size // length, min(size, 1))
    count = min(num_windows, _MAX_HELD_OUT)
    return np.arange(count) * num_windows // max(count, 1) * length


@dataclasses.dataclass(frozen=True, eq=False)
class _ToExample(grain.transforms.Map):
    data: PackageData
    windows: list[tuple[int, int]]
    length: int

    def map(self, index: int) -> Labelled:
        return self.data.cut("train", self.windows[index], self.length)
