"""Text as bytes: random windows to train on, and windows side by side over all of it to evaluate on.

A token is a byte (its id is its value) or one of three reserved ids. Documents that were separate files are joined by
one zero byte (`documents.SEPARATOR`), which is trained and evaluated like any other byte. Files are not translated:
whatever ends their lines is trained and evaluated too. Only the byte order mark of UTF-8 at the beginning of a file is
left out, which is no part of the text; files with that of UTF-16 or UTF-32 are refused.

The same text may be read as subwords (`subword_text`), and by documents (`packing`).
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, Int32, Integer, UInt8

from reformer.data import baselines, documents, json_lines
from reformer.data.enwik8 import read_enwik8
from reformer.data.repeats import far_repeats
from reformer.data.source import Example, NextToken, Row, chosen_examples, pad
from reformer.data.text_tokens import BYTES, TextTokens
from reformer.data.text_tokens import vocab_size as vocab_size
from reformer.host import paths

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


def check_length(length: int) -> None:
    """Windows may have any length."""
    del length


def load(config: Any, length: int | None = None) -> NextToken:
    """Reads the text that the `data` group of the configuration names.

    Args:
        config: has `name` ('stdlib', 'enwik8' or 'text'), `path` (a file or folder; '' where none is needed),
            `cache_dir` ('' = ~/.cache/reformer), `repeat_distance`, `text_field` (of JSON lines; '' = plain
            text), and `valid_fraction` and `test_fraction`, the part of the files (of the bytes, where it is a single
            file of plain text; of JSON lines, of their texts) that is held out; enwik8 has its own split.
            `tokens`: 'bytes' or 'subwords', of which `subwords` names the file ('' = learn `num_subwords` of them from
            the training text); `pack_documents` and `separate_documents`, see `packing`.
        length: of no importance here.

    Returns:
        The three splits.

    Raises:
        ValueError: a value is impossible, or the data are missing, too few or not what they should be.
    """
    from reformer.data import packing, subword_text  # which are made of this module's

    del length
    cache_dir = paths.local(config.cache_dir or "~/.cache/reformer")
    found = _read(config, cache_dir)
    if config.tokens == "subwords":
        found = subword_text.make(found, config, cache_dir)
    return packing.wrap(found, config.pack_documents, config.separate_documents)


def _read(config: Any, cache_dir: Path) -> TextData:
    """The bytes of the three splits."""
    path, fractions = config.path or "", (config.valid_fraction, config.test_fraction)
    documents.check_fractions(*fractions)
    if config.name == "enwik8":
        source, splits = read_enwik8(path, cache_dir)
    elif config.name == "text" and config.text_field:
        source, splits = json_lines.read(path, config.text_field, *fractions)
    elif config.name == "text":
        source, splits = documents.read_path(path, *fractions)
    elif path:
        raise ValueError(f"data.path={path!r} is not read by data.name='stdlib'. Use configs/text.py, or leave it out.")
    else:
        source, splits = documents.read_stdlib(*fractions)
    return TextData(source, *splits, config.repeat_distance)


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
