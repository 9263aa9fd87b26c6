"""Vocabularies of subwords: a SentencePiece or a `tokenizer.json` of Hugging Face."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from reformer.data.pairs import ASSET as PIECES_FILE
from reformer.host import extras

TOKENIZER_FILE = "tokenizer.json"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes one
_CHARACTERS_AT_ONCE = 2**14  # of a document, up to the end of a line

Decoder = Callable[[Iterable[int]], bytes]


@runtime_checkable
class Vocabulary(Protocol):
    """The subwords of a file.

    Attributes:
        file_name: what a workdir calls the file.
        content: of the file.
        num_ids: all its ids lie below it.
        max_characters: a document is encoded in parts of about so many.
    """

    file_name: str

    @property
    def max_characters(self) -> int: ...  # noqa: D102
    @property
    def content(self) -> bytes: ...  # noqa: D102
    @property
    def num_ids(self) -> int: ...  # noqa: D102

    def encode(self, parts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ids of every part, and where the text of each ends, in bytes from the beginning of the part."""

    def decoder(self) -> Decoder:
        """Decodes a document that comes in parts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """A SentencePiece model."""

    content: bytes
    file_name = PIECES_FILE

    @functools.cached_property
    def _processor(self) -> Any:
        with extras.needed_for("a SentencePiece model", "subwords"):
            from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.content)

    @functools.cached_property
    def _texts(self) -> list[bytes]:
        """The bytes of every id; those of control give none."""
        return [self._text(i) for i in range(self.num_ids)]

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(text) for text in self._texts], np.int64)

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Whether it puts a space before every text."""
        return self._processor.id_to_piece(self._processor.encode("a"))[0].startswith(_SPACE)

    @property
    def max_characters(self) -> int:
        """Lines by themselves are encoded several times faster; but not where each would get a space."""
        return _CHARACTERS_AT_ONCE if self._adds_space else 1

    @property
    def num_ids(self) -> int:
        """As `Vocabulary.num_ids`."""
        return self._processor.get_piece_size()

    def encode(self, parts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `Vocabulary.encode`."""
        rows = [np.array(row, np.int32) for row in self._processor.encode(parts)]
        return [(row, np.cumsum(self._lengths[row])) for row in rows]

    def decoder(self) -> Decoder:
        """As `Vocabulary.decoder`."""
        is_first = self._adds_space

        def decode(ids: Iterable[int]) -> bytes:
            nonlocal is_first
            text = b"".join(map(self._texts.__getitem__, ids))
            if text and is_first:
                text, is_first = text.removeprefix(b" "), False
            return text

        return decode

    def _text(self, token: int) -> bytes:
        processor = self._processor
        if processor.is_control(token):
            return b""
        if processor.is_unknown(token):
            return "\N{REPLACEMENT CHARACTER}".encode()
        piece = processor.id_to_piece(token)
        return bytes([int(piece[3:-1], 16)]) if processor.is_byte(token) else piece.replace(_SPACE, " ").encode()


@dataclasses.dataclass(frozen=True, eq=False)
class HubTokenizer:
    """A `tokenizer.json`."""

    content: bytes
    file_name = TOKENIZER_FILE
    max_characters = _CHARACTERS_AT_ONCE

    @functools.cached_property
    def _tokenizer(self) -> Any:
        with extras.needed_for("a tokenizer.json", "subwords"):
            from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.content.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def num_ids(self) -> int:
        """As `Vocabulary.num_ids`; some below it may be unused."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, parts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `Vocabulary.encode`."""
        rows = self._tokenizer.encode_batch(parts, add_special_tokens=False)
        return [
            (np.array(row.ids, np.int32), _in_bytes(part, [end for _, end in row.offsets]))
            for part, row in zip(parts, rows, strict=True)
        ]

    def decoder(self) -> Decoder:
        """As `Vocabulary.decoder`."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return lambda ids: "".join(stream.step(self._tokenizer, int(i)) or "" for i in ids).encode()


def _in_bytes(text: str, characters: list[int]) -> np.ndarray:
    """Places in a text, given in characters, in bytes of UTF-8."""
    if text.isascii():
        return np.array(characters, np.int64)
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + sum((code_points >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    return np.concatenate([[0], np.cumsum(sizes)])[np.array(characters, np.int64)]
