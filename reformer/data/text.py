"""Text as bytes: random windows to train on, and windows side by side over all of it to evaluate on.

A token is a byte (its id is its value) or one of three reserved ids. Documents that were separate files are joined by
one zero byte (`documents.SEPARATOR`), which is trained and evaluated like any other byte. Files are not translated:
whatever ends their lines is trained and evaluated too. Only the byte order mark of UTF-8 at the beginning of a file is
left out, which is no part of the text; files with that of UTF-16 or UTF-32 are refused.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import ClassVar

import grain
import numpy as np
from jaxtyping import Int, Int32

from reformer.data import baselines, documents, json_lines
from reformer.data.data_set import Cached, DataSet, HeldOut
from reformer.data.enwik8 import read_enwik8
from reformer.data.repeats import far_repeats
from reformer.data.source import Example, NextToken, Row, chosen_examples, pad
from reformer.host.options import Count, LocalPath, Text

PADDING_ID, BEGIN_ID, MASK_ID, VOCAB_SIZE = 256, 257, 258, 259


@dataclasses.dataclass(frozen=True, eq=False)
class TextData(NextToken):
    """Bytes of a text.

    Attributes:
        source: what it is, for people.
        train: uint8 [bytes].
        valid: likewise.
        test: likewise; may be empty.
        repeat_distance: bytes; evaluation also counts those alone that repeat what is farther away (`repeats`).
    """

    source: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    repeat_distance: int = 128
    unit = "byte"
    begin_id = BEGIN_ID
    mask_id = MASK_ID
    num_ids = 256

    @property
    def description(self) -> str:
        """One line: the source and the bytes of each split."""
        return f"{self.source}: {len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test bytes"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the lengths and contents of the splits; another one means that the data were replaced."""
        digest = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            digest.update(len(split).to_bytes(8, "big"))
            digest.update(np.ascontiguousarray(split).data)
        return digest.hexdigest()[:32]

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless windows at uniformly random places of `train`.

        Raises:
            ValueError: the text is shorter than a window.
        """
        if len(self.train) < length:
            raise ValueError(
                f"length={length} exceeds the {len(self.train)} bytes there are to train on. Name more data by "
                "--config.data.path or lower --config.data.length."
            )
        return grain.MapDataset.range(2**62).seed(seed).random_map(_RandomWindow(self.train, length))

    def num_examples(self, split: str, length: int) -> int:
        """Windows side by side, the last one perhaps shorter; each sees nothing of the one before."""
        return -(-len(getattr(self, split)) // length)

    def example(self, split: str, index: int, length: int) -> Example:
        """The window number `index`."""
        return Example(getattr(self, split)[index * length : (index + 1) * length].astype(np.int32))

    def to_row(self, example: Example, padded_length: int | None) -> Row:
        """As `NextToken.to_row`; padded with `repeats` float32 too, 1 for what `far_repeats` finds, where it can."""
        row = super().to_row(example, padded_length)
        if padded_length is None or padded_length <= self.repeat_distance:
            return row
        found = far_repeats(example.targets.astype(np.uint8), self.repeat_distance)
        return row | {"repeats": pad(found.astype(np.float32), padded_length, 0)}

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Bits per byte of count models of the training bytes, and of gzip."""
        indices = chosen_examples(self, split, length, max_examples)
        array = np.concatenate([getattr(self, split)[i * length : (i + 1) * length] for i in indices])
        return {
            "order-1 counts": baselines.order_n_bits_per_byte(self.train, array, 1),
            "order-2 counts": baselines.order_n_bits_per_byte(self.train, array, 2),
            "gzip -9": baselines.gzip_bits_per_byte(array),
        }


@dataclasses.dataclass(frozen=True)
class _Bytes(DataSet):
    """What all texts have in common. Windows may have any length."""

    kind: ClassVar[str] = "text"
    vocab_size: ClassVar[int] = VOCAB_SIZE  # bytes and the reserved ids

    repeat_distance: Count = 128  # `repeats` are bytes whose last 8 last occurred more than so many bytes back


@dataclasses.dataclass(frozen=True)
class Stdlib(HeldOut, _Bytes):
    """The source files of the running interpreter's standard library, of which some are held out."""

    def load(self, length: int) -> TextData:
        """As `DataSet.load`."""
        del length
        source, splits = documents.read_stdlib(*self.fractions)
        return TextData(source, *splits, self.repeat_distance)


@dataclasses.dataclass(frozen=True)
class Enwik8(Cached, _Bytes):
    """The first 100 million bytes of English Wikipedia; the last 5 and the 5 before them are held out."""

    path: LocalPath = ""  # a local copy, raw or compressed; '' = it is downloaded

    def load(self, length: int) -> TextData:
        """As `DataSet.load`."""
        del length
        source, splits = read_enwik8(self.path, self.cache)
        return TextData(source, *splits, self.repeat_distance)


@dataclasses.dataclass(frozen=True)
class TextFiles(HeldOut, _Bytes):
    """A file, of which the end is held out, or a folder, of which some files are; of JSON lines some documents."""

    path: LocalPath = ""  # file or folder
    text_field: Text = ""  # the field of JSON lines that is a document; '' = files are plain text

    def problems(self) -> Iterator[str]:
        """There is no default of the path."""
        if not self.path:
            yield "config.data.path is empty. Name a file or a folder: --config.data.path=PATH."
        yield from super().problems()

    def load(self, length: int) -> TextData:
        """As `DataSet.load`."""
        del length
        if self.text_field:
            source, splits = json_lines.read(self.path, self.text_field, *self.fractions)
        else:
            source, splits = documents.read_path(self.path, *self.fractions)
        return TextData(source, *splits, self.repeat_distance)


def bytes_of(argument: str) -> bytes:
    """The bytes that an argument of a command line was given as; those that are no UTF-8 came as surrogates."""
    return argument.encode(errors="surrogateescape")


def encode(text: bytes) -> Int32[np.ndarray, " bytes"]:
    """Token ids of bytes."""
    return np.frombuffer(text, np.uint8).astype(np.int32)


def decode(tokens: Int[np.ndarray, " tokens"]) -> bytes:
    """Bytes of token ids; reserved ids give nothing."""
    tokens = np.asarray(tokens)
    return tokens[tokens < 256].astype(np.uint8).tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class _RandomWindow(grain.transforms.RandomMap):
    array: np.ndarray
    length: int

    def random_map(self, _: int, rng: np.random.Generator) -> Example:
        start = rng.integers(len(self.array) - self.length + 1)
        return Example(self.array[start : start + self.length].astype(np.int32))
