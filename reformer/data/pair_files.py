"""Pairs of text files, line by line translations of each other: which of them are train, valid and test."""

import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

from reformer.data import documents
from reformer.host import paths

_VALID_NAMES = ("valid", "val", "validation", "dev")
_RULE = (
    "data.path must be what the names of the files have in common: PATH.train.en, PATH.train.de, PATH.val.en, PATH.val."
    "de and, if there is one, PATH.test.en, PATH.test.de; or PATH.en and PATH.de alone."
)


class Texts(NamedTuple):
    """Line i of one language is the translation of line i of the other."""

    source: list[str]
    target: list[str]


class Corpus(NamedTuple):
    """Pairs of texts.

    Attributes:
        description: what they are, for people.
        splits: of 'train', 'valid' and 'test', which may be empty.
        fingerprint: another one means that the texts were replaced.
    """

    description: str
    splits: dict[str, Texts]
    fingerprint: str


def read(path: str, source: str, target: str, valid_fraction: float, test_fraction: float) -> Corpus:
    """Reads pairs of files, one line per text; pairs of which a side is empty are left out and counted.

    Args:
        path: what the names of the files begin with, see `_RULE`.
        source: what the names end with in the language that is read, such as 'en'.
        target: likewise in the language that is written.
        valid_fraction: part of a single pair of files that is held out for validation, near its end.
        test_fraction: likewise for the test, at its end.

    Raises:
        ValueError: files are missing, or they are not line by line translations.
    """
    names = _find(path, source, target)
    splits = {split: _read_pair(f"{path}{name}", source, target) for split, name in names.items()}
    if set(names) == {"train"}:
        splits = _cut(splits["train"], valid_fraction, test_fraction)
    empty = {split: sum(not all(pair) for pair in zip(*texts, strict=True)) for split, texts in splits.items()}
    splits = {split: _without_empty(texts) for split, texts in splits.items()}
    splits.setdefault("test", Texts([], []))
    for split in ("train", "valid"):
        if not splits[split].source:
            raise ValueError(f"data.path={path!r} holds no pair for {split}. {_RULE}")
    left_out = f" ({sum(empty.values())} pairs with an empty side left out)" if any(empty.values()) else ""
    named = f" ({names['test'].strip('.')})" if "test" in names else ""
    return Corpus(f"{path}{named}{left_out}", splits, fingerprint(splits))


def fingerprint(splits: dict[str, Texts]) -> str:
    """Hash of all texts."""
    digest = hashlib.sha256()
    for split, texts in sorted(splits.items()):
        digest.update(f"{split} {len(texts.source)}\n".encode())
        for pair in zip(*texts, strict=True):
            digest.update("\n".join((*pair, "")).encode())
    return digest.hexdigest()[:32]


def _find(path: str, source: str, target: str) -> dict[str, str]:
    """What stands between `path` and the language in the names of the files of each split."""
    prefix = paths.local(path)
    if not path or not prefix.parent.is_dir():
        raise ValueError(f"data.path={path!r}: there is no such folder. {_RULE}")
    found = {
        file.name[len(prefix.name) : -len(source) - 1]
        for file in prefix.parent.iterdir()
        if file.name.startswith(prefix.name) and file.name.endswith(f".{source}") and file.is_file()
    }
    chosen = {}
    for split, names in {"train": ["train"], "valid": _VALID_NAMES, "test": _test_names(found)}.items():
        there = [f".{name}" for name in names if f".{name}" in found]
        if there:
            chosen[split] = there[0]
    if set(chosen) >= {"train", "valid"}:
        return chosen
    if "" not in found:
        raise ValueError(
            f"data.path={path!r} has no files PATH.train.{source} and PATH.val.{source}, nor PATH.{source} alone; "
            f"found {', '.join(f'PATH{name}.{source}' for name in sorted(found)) or 'nothing'}. {_RULE}"
        )
    return {"train": ""}


def _test_names(found: set[str]) -> list[str]:
    """Several test sets have names such as test_2016_flickr: the first in the order of the alphabet is taken."""
    return sorted(name.strip(".") for name in found if name.startswith(".test"))


def _read_pair(prefix: str, source: str, target: str) -> Texts:
    texts = Texts(*(read_lines(paths.local(f"{prefix}.{language}")) for language in (source, target)))
    if len(texts.source) != len(texts.target):
        raise ValueError(
            f"{prefix}.{source} has {len(texts.source):,} lines and {prefix}.{target} {len(texts.target):,}. Line i of "
            "one must be the translation of line i of the other."
        )
    return texts


def read_lines(file: Path) -> list[str]:
    """The lines of a text in UTF-8, without spaces at their ends.

    Lines end with a line feed, which a carriage return may precede. A carriage return alone ends a line in a file
    without any line feed, as old Macs wrote it; elsewhere it stands within a line. A byte order mark is left out.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        content = file.read_bytes()
        text = content[documents.num_mark_bytes(content[:4], str(file)) :].decode()
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read ({error.strerror}). Name a file of lines of text.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not text in UTF-8 ({error}). Convert it.") from error
    # Not `splitlines`, which also cuts at characters that stand within a line.
    lines = [line.strip() for line in text.split("\n" if "\n" in text else "\r")]
    return lines if lines[-1] else lines[:-1]


def _cut(texts: Texts, valid_fraction: float, test_fraction: float) -> dict[str, Texts]:
    count = len(texts.source)
    num_valid, num_test = round(count * valid_fraction), round(count * test_fraction)
    ends = [0, count - num_valid - num_test, count - num_test, count]
    cut = [Texts(texts.source[i:j], texts.target[i:j]) for i, j in itertools.pairwise(ends)]
    return dict(zip(("train", "valid", "test"), cut, strict=True))


def _without_empty(texts: Texts) -> Texts:
    kept = [pair for pair in zip(*texts, strict=True) if all(pair)]
    return Texts([source for source, _ in kept], [target for _, target in kept])
