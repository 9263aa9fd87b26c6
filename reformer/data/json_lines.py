"""JSON lines as train, valid and test bytes: every line is an object, and one of its fields is a document."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reformer.data import documents, folders
from reformer.host import paths

SUFFIX = ".jsonl"


def read(path: str, field: str, valid_fraction: float, test_fraction: float) -> tuple[str, documents.Splits]:
    """Reads the documents of a file, or of the files of a folder whose names end in `.jsonl`, to any depth.

    Documents are held out and joined as the files of a folder are, see `documents.read_path`; a line's number stands
    for a name, so that lines that are appended move no other. Empty documents and lines are left out.

    Args:
        path: the file or folder.
        field: of each line, that is its text.
        valid_fraction: expected part of the documents held out for validation.
        test_fraction: likewise for the test.

    Returns:
        A description of the source, and the bytes of train, valid and test.

    Raises:
        ValueError: nothing is there, or a line is no object with this field, or its field is no text.
    """
    root = paths.local(path)
    if not path or not root.exists():
        raise ValueError(f"data.path={path!r} does not exist. Name a file or a folder by --config.data.path.")
    try:
        texts = {name: text for file in _find(root, path) for name, text in _read_file(file, root, field)}
    except OSError as error:
        raise ValueError(
            f"data.path={path!r} cannot be read ({error}). Make it readable or change --config.data.path."
        ) from error
    if not texts:
        raise ValueError(
            f"data.path={path!r} holds no text in the fields {field!r}. Name another by --config.data.path."
        )
    description = f"{path}, {len(texts)} documents"
    sizes = {name: len(text) for name, text in texts.items()}

    def join(names: list[str]) -> np.ndarray:
        return documents.join(texts.pop(name) for name in names)  # not to hold everything twice

    return description, documents.deal(sizes, join, path, valid_fraction, test_fraction)


def _find(root: Path, path: str) -> list[Path]:
    if not root.is_dir():
        return [root]
    names = documents.with_content(root, folders.file_sizes(root, (SUFFIX,)))
    if not names:
        raise ValueError(
            f"data.path={path!r} holds no {SUFFIX} files with content, which data.text_field is a field of. Name "
            "another by --config.data.path, or leave text_field out to read files as plain text."
        )
    return [root / name for name in sorted(names)]


def _read_file(file: Path, root: Path, field: str) -> Iterator[tuple[str, bytes]]:
    """Names and texts of the documents of a file."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line[documents.num_mark_bytes(line[:4], str(file)) :]
            try:
                text = _text(line, field) if (line := line.strip()) else b""
            except ValueError as error:
                raise ValueError(
                    f"{str(file)!r}, line {number}: {error}. Every line must be a JSON object in UTF-8 whose field "
                    f"{field!r} is text. Repair the line, or name another field by --config.data.text_field."
                ) from error
            if text:
                yield f"{file.relative_to(root).as_posix()}:{number:012}", text


def _text(line: bytes, field: str) -> bytes:
    try:
        record = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON ({error.msg}, character {error.colno})") from error
    except RecursionError as error:
        raise ValueError("this is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"this is no object but of type {type(record).__name__}")
    if field not in record:
        raise ValueError(f"there is no field {field!r}, only {', '.join(map(repr, list(record)[:10])) or 'none'}")
    if not isinstance(record[field], str):
        raise ValueError(f"the field {field!r} is no text but of type {type(record[field]).__name__}")
    return record[field].encode()
