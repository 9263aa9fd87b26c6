"""Subwords by sentencepiece: learned from a training text, or read from the file of a vocabulary that was learned so.

A word that has no subword of its own is spelled in smaller ones, in the end in bytes, so that every text has ids and is
restored from them, up to the number of spaces in a row.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from reformer.host import extras, paths

PADDING_ID, BEGIN_ID, END_ID, UNKNOWN_ID, SEPARATOR_ID = range(5)
NUM_RESERVED = 5

_RESERVED = ("<pad>", "<s>", "</s>", "<unk>", "<sep>")
_MAX_LINES = 2_000_000  # that are learned from, evenly spread
_RECIPE = "bpe 1"  # another one gives another vocabulary from the same text
_DEFAULT_MOST_BYTES = 4192  # of a line


@dataclasses.dataclass(frozen=True, eq=False)
class Subwords:
    """A vocabulary.

    Attributes:
        model: the content of its file.
    """

    model: bytes

    @functools.cached_property
    def processor(self) -> Any:
        """The `sentencepiece.SentencePieceProcessor`."""
        with extras.needed_for("a vocabulary of subwords", "translation"):
            from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)

    @property
    def num_ids(self) -> int:
        """Ids, the reserved ones included."""
        return self.processor.get_piece_size()

    @property
    def fingerprint(self) -> str:
        """Another one means other subwords."""
        return hashlib.sha256(self.model).hexdigest()[:32]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, without reserved ones at its ends."""
        return self.processor.encode(list(texts))

    def decode(self, ids: Int[np.ndarray, " ids"]) -> list[str]:
        """The texts that separators divide, up to the end id; other reserved ids give nothing."""
        written: list[int] = np.asarray(ids).tolist()
        if END_ID in written:
            written = written[: written.index(END_ID)]
        parts: list[list[int]] = [[]]
        for token in written:
            if token == SEPARATOR_ID:
                parts.append([])
            elif token >= NUM_RESERVED:
                parts[-1].append(token)
        return self.processor.decode(parts)


def join(parts: Sequence[np.ndarray]) -> Int32[np.ndarray, " joined"]:
    """The ids of texts one after another, a separator between two and the end id behind the last."""
    ends = [SEPARATOR_ID] * (len(parts) - 1) + [END_ID]
    ids = [np.append(part, end) for part, end in zip(parts, ends, strict=True)]
    return np.concatenate(ids).astype(np.int32)


def read(path: str) -> Subwords:
    """Reads a vocabulary from a file that `learn` wrote, such as `subwords.model` in the workdir of a run.

    Raises:
        ValueError: the file is missing, or it is none of `learn`.
    """
    file = paths.local(path)
    if not file.is_file():
        raise ValueError(
            f"data.subwords={path!r}: there is no such file. Name the subwords.model of a run by "
            "--config.data.subwords, or leave it out to learn subwords from the training text."
        )
    found = Subwords(file.read_bytes())
    try:
        reserved = tuple(found.processor.id_to_piece(list(range(NUM_RESERVED))))
    except Exception as error:  # sentencepiece raises whatever it meets
        raise ValueError(
            f"data.subwords={path!r} cannot be read as a sentencepiece model ({error}). Name the subwords.model of a "
            "run by --config.data.subwords."
        ) from error
    if reserved != _RESERVED:
        raise ValueError(
            f"data.subwords={path!r} begins with {' '.join(reserved)} and not with {' '.join(_RESERVED)}: it was not "
            "learned by this library. Name the subwords.model of a run by --config.data.subwords."
        )
    return found


def learn(lines: Sequence[str], num_ids: int, cache_dir: Path, *, restores_spaces: bool = False) -> Subwords:
    """Learns subwords by byte-pair encoding, or finds them where they were kept when the same lines were learned.

    Args:
        lines: the training text; at most 2 million lines are read, evenly spread.
        num_ids: size of the vocabulary, reserved ids included.
        cache_dir: folder that keeps the vocabulary in `subwords`.
        restores_spaces: every text is restored byte for byte, spaces too, and no space is put before it. Characters
            that make up less than 0.05 % of the text together are spelled in bytes.

    Raises:
        ValueError: the text is too small for so many subwords or has too many characters for so few, or `cache_dir`
            cannot be written.
    """
    lines = lines[:: -(-len(lines) // _MAX_LINES)] if lines else lines
    longest = max((len(line.encode()) for line in lines), default=0)
    # Sentencepiece leaves longer lines out. Its own limit is kept where it does no harm: it is a part of the model.
    most_bytes = longest if longest > _DEFAULT_MOST_BYTES else None
    recipe = _RECIPE + " with spaces" * restores_spaces
    digest = hashlib.sha256(f"{recipe} {num_ids}{f' {most_bytes}' if most_bytes else ''}".encode())
    for line in lines:
        digest.update(line.encode() + b"\n")
    file = cache_dir / "subwords" / f"{digest.hexdigest()[:32]}.model"
    if file.is_file():
        return read(str(file))
    found = Subwords(_train(lines, num_ids, most_bytes or _DEFAULT_MOST_BYTES, restores_spaces))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
        with contextlib.ExitStack() as stack:
            stack.callback(temporary.unlink, missing_ok=True)
            temporary.write_bytes(found.model)
            temporary.replace(file)
    except OSError as error:
        raise ValueError(
            f"data.cache_dir={str(cache_dir)!r} cannot take the subwords ({error}). Make room or name another folder "
            "by --config.data.cache_dir."
        ) from error
    return found


def _train(lines: Iterable[str], num_ids: int, most_bytes: int, restores_spaces: bool) -> bytes:
    of_text = restores_spaces  # the other subwords are those of translation
    with extras.needed_for("a vocabulary of subwords", "subwords" if of_text else "translation"):
        from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    pad, begin, end, unknown, separator = _RESERVED
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="bpe",
            vocab_size=num_ids,
            pad_id=PADDING_ID,
            bos_id=BEGIN_ID,
            eos_id=END_ID,
            unk_id=UNKNOWN_ID,
            pad_piece=pad,
            bos_piece=begin,
            eos_piece=end,
            unk_piece=unknown,
            control_symbols=[separator],
            byte_fallback=True,
            character_coverage=0.9995 if restores_spaces else 1.0,
            remove_extra_whitespaces=not restores_spaces,
            add_dummy_prefix=not restores_spaces,
            allow_whitespace_only_pieces=restores_spaces,
            normalization_rule_name="identity",
            max_sentence_length=most_bytes,
            num_threads=1,  # the same vocabulary every time
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[-1].split("] ")[-1]
        raise ValueError(
            f"data.num_subwords={num_ids} cannot be learned from this text: {reason} Change --config.data.num_subwords "
            "(and --config.model.vocab_size)."
        ) from error
    return written.getvalue()
