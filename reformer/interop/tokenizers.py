"""Text to ids and back, as the published Hugging Face Reformers have it: bytes, or SentencePiece from a local file."""

import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int32

from reformer.host import extras, paths
from reformer.interop import hub
from reformer.interop.huggingface_config import CONFIG_FILE, config_from_fields, named, read_fields

PIECES_FILE = "spiece.model"
_OTHER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")  # of tokenizers that are none of these two


@runtime_checkable
class Tokenizer(Protocol):
    """What both tokenizers offer.

    Attributes:
        vocab_size: The ids lie below it.
        stop_id: The id that ends a text; None = there is none.
    """

    vocab_size: int
    stop_id: int | None

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """The ids of a text; nothing is put before or behind it."""

    def decode(self, ids: Any) -> str:
        """The text of ids; those that stand for no text, such as padding, are left out.

        Raises:
            ValueError: if an id does not exist.
        """

    def save(self, directory: str | os.PathLike) -> None:
        """Writes what `load_tokenizer` needs beside the `config.json` of a model.

        Raises:
            FileExistsError: if it exists.
        """


class ByteTokenizer:
    """That of google/reformer-enwik8: the id of a byte of UTF-8 is the byte plus 2; 0 pads and 1 is not used.

    Their model card decodes every byte to a character of its own; here the bytes of a character are one again.
    """

    num_reserved = 2
    vocab_size = num_reserved + 256
    stop_id: int | None = None

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """As `Tokenizer.encode`."""
        content = text.encode() if isinstance(text, str) else text
        return np.frombuffer(content, np.uint8).astype(np.int32) + self.num_reserved

    def decode(self, ids: Any) -> str:
        """As `Tokenizer.decode`; what is no UTF-8, such as half a character, becomes U+FFFD."""
        ids = _check_ids(ids, self.vocab_size)
        return (ids[ids >= self.num_reserved] - self.num_reserved).astype(np.uint8).tobytes().decode(errors="replace")

    def save(self, directory: str | os.PathLike) -> None:
        """As `Tokenizer.save`: nothing, for bytes need no file."""


class SentencePieceTokenizer:
    """That of google/reformer-crime-and-punishment: the pieces of a `spiece.model`.

    Text is only text: a `</s>` that is written in it does not become the id that ends a text.

    Args:
        file: Trained by SentencePiece.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not SentencePiece's.
    """

    def __init__(self, file: str | os.PathLike):
        with extras.needed_for("a tokenizer of SentencePiece", "translation"):
            import sentencepiece  # only these models need it

        file = paths.local(file)
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist. It is the {PIECES_FILE} that a model comes with.")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=os.fspath(file))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file} is not a SentencePiece model. Fetch it again.") from error
        self.vocab_size = self._pieces.vocab_size()
        self.stop_id = self._pieces.eos_id() if self._pieces.eos_id() >= 0 else None

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """As `Tokenizer.encode`; what no piece covers becomes the id of the unknown."""
        return np.array(self._pieces.encode(text), np.int32)

    def decode(self, ids: Any) -> str:
        """As `Tokenizer.decode`; the unknown becomes U+2047, and spaces are normalised by the pieces' own rules."""
        return self._pieces.decode(_check_ids(ids, self.vocab_size).tolist())

    def save(self, directory: str | os.PathLike) -> None:
        """As `Tokenizer.save`: `spiece.model`."""
        with open(paths.local(directory) / PIECES_FILE, "xb") as file:
            file.write(self._pieces.serialized_model_proto())


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face Reformer: its `spiece.model`, or bytes if the model has 258 ids.

    Args:
        directory: That of the model, with its `config.json`, or its name on the Hugging Face hub.

    Raises:
        FileNotFoundError: if there is no tokenizer, or no `config.json`.
        ValueError: if the tokenizer has ids that the model lacks, or a file is not what it should be.
    """
    directory = hub.folder(directory, has_weights=False)
    fields = read_fields(directory)
    with named(directory / CONFIG_FILE):
        vocab_size = config_from_fields(fields, "float32").vocab_size
    file = directory / PIECES_FILE
    if file.is_file():
        tokenizer = SentencePieceTokenizer(file)
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f"{file} has {tokenizer.vocab_size} pieces, more than vocab_size={vocab_size} in {CONFIG_FILE}: it "
                f"belongs to another model. Use the {PIECES_FILE} that this one came with."
            )
        return tokenizer
    others = sorted({path.name for pattern in _OTHER_FILES for path in directory.glob(pattern)})
    if vocab_size == ByteTokenizer.vocab_size and not others:
        return ByteTokenizer()
    found = f", only {', '.join(others)}, which cannot be read" if others else ""
    raise FileNotFoundError(
        f"{file} does not exist{found}, and vocab_size={vocab_size} in {CONFIG_FILE}; without a file the ids are bytes "
        f"and there are {ByteTokenizer.vocab_size}. Put the {PIECES_FILE} there that the model came with."
    )


def encode_batch(
    tokenizer: Tokenizer, texts: Sequence[str | bytes]
) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
    """The ids of texts, padded with 0 on the right to the longest, and the mask of those that are real.

    Raises:
        ValueError: if there is no text.
    """
    if not texts:
        raise ValueError("texts=[] must hold at least one text.")
    rows = [tokenizer.encode(text) for text in texts]
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask


def _check_ids(ids: Any, vocab_size: int) -> Int[np.ndarray, " tokens"]:
    ids = np.asarray(ids)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise ValueError(f"ids of shape {ids.shape} and type {ids.dtype} must be one row of integers.")
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if len(wrong):
        raise ValueError(
            f"id {wrong[0]} does not exist: the tokenizer has those from 0 to {vocab_size - 1}. If the model has more, "
            f"draw with Sampling(num_ids={vocab_size})."
        )
    return ids.astype(np.int64)
