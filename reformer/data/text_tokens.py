"""What a text is to a model: its bytes, or the subwords of a vocabulary. Documents of it are joined by one zero byte.

A vocabulary is a SentencePiece model, or a `tokenizer.json` as Hugging Face's library of that name writes it. Its own
reserved ids are not used: behind its ids stand three more, which separate documents, begin a window and hide a token.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Integer

from reformer.data import subwords
from reformer.data.documents import SEPARATOR
from reformer.data.vocabularies import PIECES_FILE, TOKENIZER_FILE, Decoder, HubTokenizer, Pieces, Vocabulary
from reformer.host import extras, paths

NUM_RESERVED = 3
_PARTS_AT_ONCE = 10_000
_TRIED_BYTES = 100_000  # to see whether subwords restore a text


class Encoded(NamedTuple):
    """The ids of a text, and the bytes of it that each stands for; these sum to the length of the text."""

    ids: Int32[np.ndarray, " tokens"]
    num_bytes: Int32[np.ndarray, " tokens"]


@runtime_checkable
class TextTokens(Protocol):
    """Text to ids and back.

    Attributes:
        unit: what an id is, 'byte' or 'token'.
        num_ids: the ids of targets lie below it.
        separator_id: ends a document; one of the targets.
        begin_id: stands before the first target.
        mask_id: stands in the place of a hidden one.
        vocab_size: all ids lie below it.
    """

    unit: str

    @property
    def num_ids(self) -> int: ...  # noqa: D102
    @property
    def separator_id(self) -> int: ...  # noqa: D102
    @property
    def begin_id(self) -> int: ...  # noqa: D102
    @property
    def mask_id(self) -> int: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102

    def encode(self, text: bytes) -> Int32[np.ndarray, " tokens"]:
        """The ids of a text, without reserved ones but separators."""

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> bytes:
        """The text of ids; those that stand for none give nothing."""

    def decoder(self) -> Decoder:
        """A function that decodes a text which comes in parts: each call returns what has become known by its ids."""


class ByteTokens:
    """Every byte is its own id."""

    unit = "byte"
    num_ids = 256
    separator_id = SEPARATOR[0]
    begin_id, mask_id, vocab_size = 257, 258, 259  # 256 is kept for padding

    def encode(self, text: bytes) -> Int32[np.ndarray, " bytes"]:
        """As `TextTokens.encode`."""
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> bytes:
        """As `TextTokens.decode`."""
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes()

    def decoder(self) -> Decoder:
        """As `TextTokens.decoder`."""
        return lambda ids: self.decode(np.fromiter(ids, np.int64))


BYTES = ByteTokens()


@dataclasses.dataclass(frozen=True, eq=False)
class SubwordTokens:
    """The subwords of a vocabulary, and the ids behind them."""

    vocabulary: Vocabulary
    unit = "token"

    @property
    def separator_id(self) -> int:
        """As in `TextTokens`."""
        return self.vocabulary.num_ids

    @property
    def num_ids(self) -> int:
        """As in `TextTokens`."""
        return self.separator_id + 1

    @property
    def begin_id(self) -> int:
        """As in `TextTokens`."""
        return self.separator_id + 1

    @property
    def mask_id(self) -> int:
        """As in `TextTokens`."""
        return self.separator_id + 2

    @property
    def vocab_size(self) -> int:
        """As in `TextTokens`."""
        return self.vocabulary.num_ids + NUM_RESERVED

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the trained parameters: the vocabulary."""
        return {self.vocabulary.file_name: self.vocabulary.content}

    @property
    def fingerprint(self) -> str:
        """Another one means other subwords."""
        return hashlib.sha256(self.vocabulary.content).hexdigest()[:32]

    def encode(self, text: bytes) -> Int32[np.ndarray, " tokens"]:
        """As `TextTokens.encode`."""
        return self.encode_with_bytes(text).ids

    def encode_with_bytes(self, text: bytes) -> Encoded:
        """The ids of a text, and the bytes that each stands for.

        Raises:
            ValueError: the text is no UTF-8.
        """
        ids, ends, start = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0
        parts = _parts(_read(text), self.vocabulary.max_characters)
        for first in range(0, len(parts), _PARTS_AT_ONCE):
            some = parts[first : first + _PARTS_AT_ONCE]
            rows = self.vocabulary.encode(["" if part == "\0" else part for part in some])  # it sees no separators
            for part, (row, row_ends) in zip(some, rows, strict=True):
                if part == "\0":
                    row, row_ends = np.array([self.separator_id], np.int32), np.ones(1, np.int64)
                size = len(part.encode())
                row_ends = start + np.minimum(np.maximum.accumulate(row_ends), size)
                start += size
                row_ends[-1:] = start
                ids.append(row)
                ends.append(row_ends)
        joined = np.concatenate(ends)
        joined[-1:] = start
        return Encoded(np.concatenate(ids), np.diff(joined, prepend=0).astype(np.int32))

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> bytes:
        """As `TextTokens.decode`."""
        return self.decoder()(np.asarray(ids).tolist())

    def decoder(self) -> Decoder:
        """As `TextTokens.decoder`."""
        decode = self.vocabulary.decoder()

        def decode_all(ids: Iterable[int]) -> bytes:
            nonlocal decode
            text, some = b"", []
            for token in ids:
                if token < self.separator_id:
                    some.append(int(token))
                else:
                    text, some = text + decode(some), []
                if token == self.separator_id:
                    text, decode = text + SEPARATOR, self.vocabulary.decoder()
            return text + decode(some)

        return decode_all

    def restores(self, text: bytes) -> bool:
        """Whether the beginning of a text is what its ids are decoded to, byte for byte."""
        beginning = text[:_TRIED_BYTES].decode(errors="ignore").encode()
        return self.decode(self.encode(beginning)) == beginning


def read(path: str) -> SubwordTokens:
    """Reads a vocabulary from the file of a SentencePiece model or from a tokenizer.json.

    Raises:
        ValueError: the file is missing, or neither of the two.
        MissingPackageError: the package that reads it is not installed.
    """
    file = paths.local(path)
    if not file.is_file():
        raise ValueError(
            f"data.subwords={path!r}: there is no such file. Name a SentencePiece model or a tokenizer.json by "
            "--config.data.subwords, or leave it out to learn subwords from the training text."
        )
    status = file.stat()
    return _parse(path, file.resolve(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _parse(path: str, file: Path, changed_at: int, num_bytes: int) -> SubwordTokens:
    """As `read`, once for a file that does not change: every validation of a config asks for its size."""
    del changed_at, num_bytes
    content = file.read_bytes()
    vocabulary: Any = (HubTokenizer if content.lstrip()[:1] == b"{" else Pieces)(content)
    try:
        json.loads(content) if isinstance(vocabulary, HubTokenizer) else None
        vocabulary.encode(["a"])
    except extras.MissingPackageError:
        raise
    except Exception as error:  # both packages raise whatever they meet
        kind = "a tokenizer.json" if isinstance(vocabulary, HubTokenizer) else "a SentencePiece model"
        raise ValueError(
            f"data.subwords={path!r} cannot be read as {kind} ({error}). Name one of the two by --config.data.subwords."
        ) from error
    return SubwordTokens(vocabulary)


def learn(text: bytes, num_subwords: int, cache_dir: Path) -> SubwordTokens:
    """Learns subwords from a training text, or finds them where they were kept when the same text was learned.

    Args:
        text: in UTF-8.
        num_subwords: ids of the vocabulary.
        cache_dir: folder that keeps the vocabulary.

    Raises:
        ValueError: as `subwords.learn`; the text is no UTF-8.
    """
    lines = [line for document in _read(text) for line in document.split("\n") if line]
    return SubwordTokens(Pieces(subwords.learn(lines, num_subwords, cache_dir, restores_spaces=True).model))


def vocab_size(tokens: str, path: str, num_subwords: int) -> int:
    """How many ids a text needs.

    Args:
        tokens: 'bytes' or 'subwords'.
        path: file of the vocabulary; '' = it is learned. Where the file is missing, this is 0: a run may have its own
            copy, and reading the data says what is missing.
        num_subwords: that are learned.
    """
    if tokens == "bytes":
        return BYTES.vocab_size
    if not path:
        return num_subwords + NUM_RESERVED
    return read(path).vocab_size if paths.local(path).is_file() else 0


def find(directory: Path) -> Path | None:
    """The file of the vocabulary that a run keeps in its workdir; None if there is none."""
    files = [directory / name for name in (PIECES_FILE, TOKENIZER_FILE)]
    return next((file for file in files if file.is_file()), None)


def of_run(directory: Path, tokens: str) -> TextTokens:
    """What the text of a run is made of.

    Args:
        directory: the workdir.
        tokens: `data.tokens` of its config.

    Raises:
        ValueError: the vocabulary is missing.
    """
    if tokens == "bytes":
        return BYTES
    file = find(directory)
    if file is None:
        raise ValueError(
            f"workdir={directory} has no {PIECES_FILE} and no {TOKENIZER_FILE}, without which its ids mean nothing. "
            "Put the vocabulary of the run there."
        )
    return read(str(file))


def _read(text: bytes) -> list[str]:
    """The documents of a text."""
    try:
        return text.decode().split(SEPARATOR.decode())
    except UnicodeDecodeError as error:
        near = text[max(0, error.start - 20) : error.start + 20]
        raise ValueError(
            f"the text is no UTF-8, which subwords need: byte {error.start:,} is {text[error.start]:#04x}, in "
            f"{near!r}. Convert the file, take it away if it is no text, or read bytes by --config.data.tokens=bytes."
        ) from error


def _parts(documents: Sequence[str], max_characters: int) -> list[str]:
    """Documents in parts of at least so many characters that end with a line, and the separators between documents."""
    parts: list[str] = []
    for document in documents:
        parts += ["\0"] if parts or document is not documents[0] else []
        start = 0
        while start < len(document):
            end = document.find("\n", start + max_characters - 1) + 1 or len(document)
            parts.append(document[start:end])
            start = end
    return parts
