"""Text as bytes: random windows to train on, and windows side by side over all of it to evaluate on.

A token is a byte (its id is its value) or one of three reserved ids. Documents that were separate files are joined by
one zero byte (`documents.SEPARATOR`), which is trained and evaluated like any other byte. Files are not translated:
whatever ends their lines is trained and evaluated too. Only the byte order mark of UTF-8 at the beginning of a file is
left out, which is no part of the text; files with that of UTF-16 or UTF-32 are refused.

The same text may be read as subwords (`subword_text`), and by documents (`packing`).
"""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import grain
import numpy as np
from jaxtyping import Int, Int32, Integer, UInt8

from reformer.data import baselines, documents, json_lines, text_tokens
from reformer.data.data_set import Cached, HeldOut
from reformer.data.enwik8 import read_enwik8
from reformer.data.repeats import far_repeats
from reformer.data.source import Example, NextToken, Row, Source, chosen_examples, pad
from reformer.data.text_tokens import BYTES, TextTokens
from reformer.host.options import Count, Flag, LocalPath, Text, one_of

PADDING_ID, BEGIN_ID, MASK_ID, VOCAB_SIZE = 256, BYTES.begin_id, BYTES.mask_id, BYTES.vocab_size


@dataclasses.dataclass(frozen=True, eq=False)
class TextData(NextToken):
    """Bytes of a text.

    Attributes:
        source: what it is, for people.
        train: uint8 [bytes].
        valid: likewise.
        test: likewise; may be empty.
        repeat_distance: bytes; evaluation also counts those alone that repeat what is farther away (`repeats`).
        tokens: what it is made of.
    """

    source: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    repeat_distance: int = 128
    tokens: TextTokens = BYTES

    @property
    def unit(self) -> str:
        """What a target is."""
        return self.tokens.unit

    @property
    def begin_id(self) -> int:
        """As `NextToken.begin_id`."""
        return self.tokens.begin_id

    @property
    def mask_id(self) -> int:
        """As `NextToken.mask_id`."""
        return self.tokens.mask_id

    @property
    def num_ids(self) -> int:
        """As `NextToken.num_ids`."""
        return self.tokens.num_ids

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
                f"length={length} exceeds the {len(self.train)} {self.unit}s there are to train on. Name more data by "
                "--config.data.path or lower --config.data.length."
            )
        return grain.MapDataset.range(2**62).seed(seed).random_map(_RandomWindow(self.train, length))

    def num_examples(self, split: str, length: int) -> int:
        """Windows side by side, the last one perhaps shorter; each sees nothing of the one before."""
        return -(-len(getattr(self, split)) // length)

    def example(self, split: str, index: int, length: int) -> Example:
        """The window number `index`."""
        window, num_bytes = slice(index * length, (index + 1) * length), self.bytes_per_token(split)
        sizes = None if num_bytes is None else num_bytes[window].astype(np.float32)
        return Example(getattr(self, split)[window].astype(np.int32), num_bytes=sizes)

    def to_row(self, example: Example, padded_length: int | None) -> Row:
        """As `NextToken.to_row`; padded bytes with `repeats` float32 too, 1 for what `far_repeats` finds, if it can."""
        row = super().to_row(example, padded_length)
        if self.tokens is not BYTES or padded_length is None or padded_length <= self.repeat_distance:
            return row
        found = far_repeats(example.targets.astype(np.uint8), self.repeat_distance)
        return row | {"repeats": pad(found.astype(np.float32), padded_length, 0)}

    def bytes_per_token(self, split: str) -> Integer[np.ndarray, " tokens"] | None:
        """The bytes of the text that each token of a split stands for; None = one."""
        del split
        return None

    def bytes_of_split(self, split: str) -> UInt8[np.ndarray, " bytes"]:
        """The text of a split."""
        return getattr(self, split)

    def byte_ends(self, split: str) -> Integer[np.ndarray, " ends"]:
        """The bytes of a split that lie before each token, and before the end."""
        return np.arange(len(getattr(self, split)) + 1)

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Bits per byte of count models of the training bytes, and of gzip."""
        indices = chosen_examples(self, split, length, max_examples)
        ends, raw = self.byte_ends(split), self.bytes_of_split(split)
        last = len(ends) - 1
        windows = [raw[ends[i * length] : ends[min((i + 1) * length, last)]] for i in indices]
        return bits_of_simpler_models(self.bytes_of_split("train"), np.concatenate(windows))


def bits_of_simpler_models(
    train: UInt8[np.ndarray, " train"], scored: UInt8[np.ndarray, " scored"]
) -> dict[str, float]:
    """Bits per byte of `scored` by count models of `train`, and of gzip."""
    return {
        "order-1 counts": baselines.order_n_bits_per_byte(train, scored, 1),
        "order-2 counts": baselines.order_n_bits_per_byte(train, scored, 2),
        "gzip -9": baselines.gzip_bits_per_byte(scored),
    }


@dataclasses.dataclass(frozen=True)
class PlainText(Cached):
    """What all texts have in common. Windows may have any length."""

    kind: ClassVar[str] = "text"

    repeat_distance: Count = 128  # `repeats` are bytes whose last 8 last occurred more than so many bytes back
    tokens: Annotated[str, one_of(("bytes", "subwords"))] = "bytes"
    # File of a SentencePiece model or a tokenizer.json, such as that in the workdir of a run; '' = learn it.
    subwords: LocalPath = ""
    num_subwords: Count = 8000  # so many are learned; model.vocab_size is 3 more
    pack_documents: Flag = False  # windows hold whole documents (files, JSON lines), as many as fit, if short
    separate_documents: Flag = False  # tokens attend within their document only

    @property
    def vocab_size(self) -> int:
        """Bytes or subwords, and the reserved ids; 0 where the file of the subwords is missing."""
        return text_tokens.vocab_size(self.tokens, self.subwords, self.num_subwords)

    def problems(self) -> Iterator[str]:
        """Bytes are no subwords."""
        yield from super().problems()
        if self.subwords and self.tokens == "bytes":
            yield (
                f"config.data.subwords={self.subwords!r} is not read by data.tokens='bytes'. Set "
                "data.tokens='subwords'."
            )

    def misfits(self, config: Any) -> Iterator[str]:
        """As `DataSet.misfits`: what heeds documents is for language models, and for plain attention."""
        task, implementation = config.task.name, config.model.attention_implementation
        for name in ("pack_documents", "separate_documents"):
            if getattr(self, name) and task != "language":
                yield f"config.data.{name}=True is for config.task.name='language', not {task!r}. Leave it out."
        if self.separate_documents and implementation != "plain":
            yield (
                "config.data.separate_documents=True needs config.model.attention_implementation='plain'; the fused "
                "kernel does not keep documents apart."
            )

    def load(self, length: int) -> Source:
        """As `DataSet.load`; reads or learns the subwords too."""
        from reformer.data import packing, subword_text  # which are made of this module's

        del length
        found = self.read_bytes()
        if self.tokens == "subwords":
            found = subword_text.make(found, self.subwords, self.num_subwords, self.cache)
        return packing.wrap(found, self.pack_documents, self.separate_documents)

    @abc.abstractmethod
    def read_bytes(self) -> TextData:
        """Reads the bytes of the three splits."""


@dataclasses.dataclass(frozen=True)
class Stdlib(HeldOut, PlainText):
    """The source files of the running interpreter's standard library, of which some are held out."""

    def read_bytes(self) -> TextData:
        """As `PlainText.read_bytes`."""
        source, splits = documents.read_stdlib(*self.fractions)
        return TextData(source, *splits, self.repeat_distance)


@dataclasses.dataclass(frozen=True)
class Enwik8(PlainText):
    """The first 100 million bytes of English Wikipedia; the last 5 and the 5 before them are held out."""

    path: LocalPath = ""  # a local copy, raw or compressed; '' = it is downloaded

    def read_bytes(self) -> TextData:
        """As `PlainText.read_bytes`."""
        source, splits = read_enwik8(self.path, self.cache)
        return TextData(source, *splits, self.repeat_distance)


@dataclasses.dataclass(frozen=True)
class TextFiles(HeldOut, PlainText):
    """A file, of which the end is held out, or a folder, of which some files are; of JSON lines some documents."""

    path: LocalPath = ""  # file or folder
    text_field: Text = ""  # the field of JSON lines that is a document; '' = files are plain text

    def problems(self) -> Iterator[str]:
        """There is no default of the path."""
        if not self.path:
            yield "config.data.path is empty. Name a file or a folder: --config.data.path=PATH."
        yield from super().problems()

    def read_bytes(self) -> TextData:
        """As `PlainText.read_bytes`."""
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
    return BYTES.encode(text)


def decode(tokens: Int[np.ndarray, " tokens"]) -> bytes:
    """Bytes of token ids; reserved ids give nothing."""
    return BYTES.decode(tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class _RandomWindow(grain.transforms.RandomMap):
    array: np.ndarray
    length: int

    def random_map(self, _: int, rng: np.random.Generator) -> Example:
        start = rng.integers(len(self.array) - self.length + 1)
        return Example(self.array[start : start + self.length].astype(np.int32))
