"""The first 100,000,000 bytes of English Wikipedia, from a local copy or by download, always verified."""

import contextlib
import gzip
import hashlib
import importlib
import urllib.request
import uuid
import zipfile
import zlib
from pathlib import Path

import numpy as np

from reformer.data.preparation import one_at_a_time
from reformer.host import extras, paths

URL = "http://mattmahoney.net/dc/enwik8.zip"
SPLIT_BYTES = {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}
SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"  # of the uncompressed bytes

_UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_enwik8(path: str, cache_dir: Path) -> tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Reads enwik8 in the usual split: the first 90 million bytes train, then 5 million to validate and 5 to test.

    Args:
        path: local copy (raw, .zip or .gz), or '' to download it with TensorFlow Datasets.
        cache_dir: folder that gets the uncompressed bytes, `enwik8.bin`, which are mapped and not read into memory.

    Returns:
        A description of the source, and the bytes of train, valid and test.

    Raises:
        ValueError: `path` is not enwik8, it cannot be downloaded, or `cache_dir` cannot be written.
    """
    cached = cache_dir / "enwik8.bin"
    given = _read_copy(path) if path else None
    if not _is_enwik8(cached):
        try:
            with one_at_a_time(cache_dir):
                if not _is_enwik8(cached):
                    cache_dir.mkdir(parents=True, exist_ok=True)
                    _write_atomically(cached, given or _download(cache_dir))
        except OSError as error:
            raise ValueError(
                f"data.cache_dir={str(cache_dir)!r} cannot take enwik8 ({error}). Make room or name another folder by "
                "--config.data.cache_dir."
            ) from error
    train, valid, test = split_bytes(np.memmap(cached, np.uint8, mode="r")).values()
    return "enwik8", (train, valid, test)


def split_bytes(data: np.ndarray) -> dict[str, np.ndarray]:
    """Cuts the bytes of enwik8 into its splits, by name."""
    ends = np.cumsum(list(SPLIT_BYTES.values()))
    return dict(zip(SPLIT_BYTES, np.split(data, ends[:-1]), strict=True))


def _num_bytes() -> int:
    return sum(SPLIT_BYTES.values())


def _is_enwik8(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size != _num_bytes():
        return False
    return hashlib.sha256(np.memmap(file, np.uint8, mode="r").data).hexdigest() == SHA256


def _require_enwik8(content: bytes, origin: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        size = f"{len(content):,}" if len(content) <= _num_bytes() else f"more than {_num_bytes():,}"
        raise ValueError(
            f"{origin} is not enwik8: it holds {size} bytes with sha256 {found[:12]}, enwik8 {_num_bytes():,} with "
            f"{SHA256[:12]}. Name a whole copy by --config.data.path, or train on any file with configs/text.py."
        )
    return content


def _read_copy(path: str) -> bytes:
    file = paths.local(path)
    if not file.is_file():
        raise ValueError(f"data.path={path!r} is not a file. Name a copy of enwik8 by --config.data.path.")
    try:
        content = _uncompress(file)
    except _UNREADABLE as error:
        raise ValueError(
            f"data.path={path!r} cannot be read as enwik8 ({error}). Name a whole copy by --config.data.path, or train "
            "on any file with configs/text.py."
        ) from error
    return _require_enwik8(content, f"data.path={path!r}")


def _uncompress(file: Path) -> bytes:
    """Reads one byte more than enwik8 has at most, so that a wrong file cannot fill the memory."""
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive, archive.open("enwik8") as stream:
            return stream.read(_num_bytes() + 1)
    with gzip.open(file) if magic[:2] == b"\x1f\x8b" else file.open("rb") as stream:
        return stream.read(_num_bytes() + 1)


def _download(cache_dir: Path) -> bytes:
    with extras.needed_for("downloading enwik8", "tfds"):
        builder = importlib.import_module(
            "reformer.data.enwik8.enwik8_builder"
        )  # TensorFlow Datasets: 1 s, rarely needed
    if not (cache_dir / "enwik8.zip").is_file():
        _require_connection(cache_dir)
    return _require_enwik8(builder.prepare(cache_dir), f"The copy prepared in data.cache_dir={str(cache_dir)!r}")


def _require_connection(cache_dir: Path) -> None:
    # Without a connection the download itself would retry for minutes before it gives up.
    try:
        urllib.request.urlopen(urllib.request.Request(URL, method="HEAD"), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"{URL} cannot be reached ({error}), and data.path='' names no copy of enwik8. Fetch it on another machine "
            f"and name it by --config.data.path, or place it at {str(cache_dir / 'enwik8.zip')!r}."
        ) from error


def _write_atomically(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
