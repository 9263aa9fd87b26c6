"""Text as subwords: windows as of bytes, and the bytes that each token stands for, to tell bits per byte."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from reformer.data import text_tokens
from reformer.data.text import TextData

_LONGEST_CHARACTER = 4  # bytes of UTF-8


@dataclasses.dataclass(frozen=True, eq=False)
class SubwordText(TextData):
    """Subwords of a text; `train`, `valid` and `test` hold ids.

    Attributes:
        tokens: the vocabulary.
        texts: by split, the bytes.
        num_bytes: by split, how many of them each token stands for.
    """

    tokens: Any = None
    texts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    num_bytes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def description(self) -> str:
        """One line: the source, bytes and tokens of each split, and the vocabulary."""
        counts = ", ".join(
            f"{len(raw):,} {split} bytes ({len(getattr(self, split)):,} tokens)" for split, raw in self.texts.items()
        )
        loss = "" if self.tokens.restores(self.texts["train"][:200_000].tobytes()) else ", which do not restore it"
        return f"{self.source}: {counts}; {self.tokens.separator_id:,} subwords{loss}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the tokens of the splits and of the vocabulary."""
        return hashlib.sha256(f"{super().fingerprint} {self.tokens.fingerprint}".encode()).hexdigest()[:32]

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the trained parameters: the vocabulary."""
        return self.tokens.assets

    def bytes_per_token(self, split: str) -> Integer[np.ndarray, " tokens"]:
        """As `TextData.bytes_per_token`."""
        return self.num_bytes[split]

    def bytes_of_split(self, split: str) -> UInt8[np.ndarray, " bytes"]:
        """As `TextData.bytes_of_split`."""
        return self.texts[split]

    def byte_ends(self, split: str) -> Integer[np.ndarray, " ends"]:
        """As `TextData.byte_ends`."""
        return np.concatenate([[0], np.cumsum(self.num_bytes[split], dtype=np.int64)])


def make(bytes_of: TextData, path: str, num_subwords: int, cache_dir: Path) -> SubwordText:
    """Reads or learns subwords, and reads a text by them.

    Args:
        bytes_of: the text.
        path: file of the vocabulary; '' = it is learned from the training split.
        num_subwords: that are learned.
        cache_dir: folder that keeps what was learned.

    Raises:
        ValueError: the vocabulary is missing or cannot be read or learned, or the text is no UTF-8.
    """
    texts = {split: whole_characters(getattr(bytes_of, split)) for split in ("train", "valid", "test")}
    train = texts["train"].tobytes()
    tokens = text_tokens.read(path) if path else text_tokens.learn(train, num_subwords, cache_dir)
    found = {split: tokens.encode_with_bytes(raw.tobytes()) for split, raw in texts.items()}
    ids: dict[str, Any] = {split: _narrow(encoded.ids) for split, encoded in found.items()}
    num_bytes = {split: _narrow(encoded.num_bytes) for split, encoded in found.items()}
    return SubwordText(bytes_of.source, **ids, tokens=tokens, texts=texts, num_bytes=num_bytes)


def whole_characters(raw: UInt8[np.ndarray, " bytes"]) -> UInt8[np.ndarray, " kept"]:
    """Bytes of UTF-8 without the parts of characters at the ends, where a file was cut into splits."""
    beginning, end = raw[: _LONGEST_CHARACTER - 1], raw[-_LONGEST_CHARACTER:].tobytes()
    is_inside = (beginning & 0xC0) == 0x80
    first = len(beginning) if is_inside.all() else int(np.argmin(is_inside))
    for num_given in range(1, len(end)):
        lead = end[-num_given]
        if lead >= 0xC0:
            is_cut = num_given < 2 + (lead >= 0xE0) + (lead >= 0xF0)
            return raw[first : len(raw) - num_given * is_cut]
        if lead < 0x80:
            break
    return raw[first:]


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same values in the smallest type that holds them: a text may have a billion."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
