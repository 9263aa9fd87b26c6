"""Files and folders as train, valid and test bytes: the 'stdlib' and 'text' sources."""

import codecs
import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from reformer.data import folders
from reformer.host import paths

SEPARATOR = b"\x00"  # between documents; source code and prose do not contain it
Splits = tuple[np.ndarray, np.ndarray, np.ndarray]

# pydoc_data is one generated file with 6 % of all bytes: documentation, no code.
_NOT_THE_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


def read_stdlib(valid_fraction: float, test_fraction: float) -> tuple[str, Splits]:
    """Reads the source files of the running interpreter's standard library, without its tests.

    Args:
        valid_fraction: expected part of the files held out for validation.
        test_fraction: expected part of the files held out for the test.

    Returns:
        A description of the source, and the bytes of train, valid and test.

    Raises:
        ValueError: the interpreter comes without its sources.
    """
    source, root, sizes = _find_stdlib()
    return source, _read_folder(root, sizes, valid_fraction, test_fraction)


def read_folders(
    path: str, valid_fraction: float, test_fraction: float, num_largest: int | None = None
) -> tuple[str, dict[str, dict[str, np.ndarray]]]:
    """Reads the folders directly below a folder, or those of the standard library: its packages.

    Files are held out as `read_stdlib` and `read_path` do it, which are given the same fractions.

    Args:
        path: the folder above them; '' = the standard library.
        valid_fraction: expected part of the files held out for validation.
        test_fraction: likewise for the test.
        num_largest: only so many, those with most bytes; None = all.

    Returns:
        A description of the source, and by the name of a folder its bytes by split. Folders of which all files are held
        out are left out; a split of a folder may be empty.

    Raises:
        ValueError: nothing is there, or fewer than two folders, or than `num_largest`.
    """
    source, root, sizes = _find_folder(path) if path else _find_stdlib()
    files: dict[str, dict[str, list[str]]] = {}
    for split, names in assign_files(sizes, valid_fraction, test_fraction).items():
        for name in names:
            if "/" in name:
                of_folder = files.setdefault(name.split("/")[0], {"train": [], "valid": [], "test": []})
                of_folder[split].append(name)
    size = {folder: sum(sizes[name] for names in of.values() for name in names) for folder, of in files.items()}
    chosen = sorted((folder for folder in files if files[folder]["train"]), key=lambda folder: -size[folder])
    if len(chosen) < (num_largest or 2):
        raise ValueError(
            f"{str(root)!r} holds {len(chosen)} folders with files to train on, fewer than {num_largest or 2}. Name a "
            "folder with one folder for each label by --config.data.path."
        )
    return source, {
        folder: {split: _join(root, names) for split, names in files[folder].items()}
        for folder in sorted(chosen[:num_largest])
    }


def _find_stdlib() -> tuple[str, Path, dict[str, int]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    sizes = with_content(root, folders.file_sizes(root, (".py",), _is_outside_library, leave_out_broken_links=True))
    if len(sizes) < 3:
        raise ValueError(
            f"{str(root)!r} holds {len(sizes)} Python source files: this interpreter comes without the sources of its "
            "standard library. Train on a file or folder of yours with configs/text.py and --config.data.path."
        )
    return f"standard library of Python {platform.python_version()}, {len(sizes)} files", root, sizes


def _find_folder(path: str) -> tuple[str, Path, dict[str, int]]:
    root = paths.local(path)
    if not root.is_dir():
        raise ValueError(f"data.path={path!r} is no folder. Name one with a folder for each label.")
    sizes = with_content(root, folders.file_sizes(root))
    if not sizes:
        raise ValueError(f"data.path={path!r} holds no files with content. Name another by --config.data.path.")
    return f"{path}, {len(sizes)} files", root, sizes


def read_path(path: str, valid_fraction: float, test_fraction: float) -> tuple[str, Splits]:
    """Reads a file, split contiguously in the order train, valid, test, or a folder, split by file.

    A folder is searched to any depth, also through links, and a file is read once, however many names lead to it.
    Hidden and empty files are left out. It is read into memory, a single file is mapped. The byte order mark of UTF-8
    that a file begins with is left out; all other bytes stay as they are, ends of lines of any kind too.

    Args:
        path: the file or folder.
        valid_fraction: part of the bytes (of a folder: expected part of the files) held out for validation.
        test_fraction: likewise for the test.

    Returns:
        A description of the source, and the bytes of train, valid and test.

    Raises:
        ValueError: nothing is there, or too little, or text in UTF-16 or UTF-32 with a byte order mark.
    """
    root = paths.local(path)
    if not path or not root.exists():
        raise ValueError(f"data.path={path!r} does not exist. Name a file or a folder by --config.data.path.")
    try:
        if root.is_dir():
            sizes = with_content(root, folders.file_sizes(root))
            return f"{path}, {len(sizes)} files", _read_folder(root, sizes, valid_fraction, test_fraction)
        data = np.memmap(root, np.uint8, mode="r") if root.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ValueError(
            f"data.path={path!r} cannot be read ({error}). Make it readable or change --config.data.path."
        ) from error
    data = data[num_mark_bytes(data[:4].tobytes(), str(root)) :]
    return path, split_contiguously(data, str(root), valid_fraction, test_fraction)


def num_mark_bytes(beginning: bytes, name: str) -> int:
    """Bytes of the byte order mark that a file begins with: 3 or none. The mark is no part of its text.

    Args:
        beginning: the first four bytes, or more.
        name: of the file, for people.

    Raises:
        ValueError: it is the mark of UTF-16 or UTF-32.
    """
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError(
            f"{name!r} begins with the byte order mark of UTF-16 or UTF-32, and text is read as UTF-8. Convert it by "
            "iconv -f UTF-16 -t UTF-8, or take it away if it is no text."
        )
    return len(codecs.BOM_UTF8) if beginning.startswith(codecs.BOM_UTF8) else 0


def split_contiguously(data: np.ndarray, name: str, valid_fraction: float, test_fraction: float) -> Splits:
    """Cuts bytes into train, valid and test, in this order; each that is wanted gets at least one byte."""
    num_valid, num_test = (max(1, round(part * len(data))) if part else 0 for part in (valid_fraction, test_fraction))
    num_train = len(data) - num_valid - num_test
    if num_train < 1:
        raise ValueError(
            f"{name!r} holds {len(data)} bytes, too few to train on and to hold some out. "
            "Name a larger file or folder by --config.data.path."
        )
    return data[:num_train], data[num_train : num_train + num_valid], data[num_train + num_valid :]


def assign_files(sizes: dict[str, int], valid_fraction: float, test_fraction: float) -> dict[str, list[str]]:
    """Assigns each file to a split by a hash of its name, so that other files coming or going do not move it.

    A split that is wanted and got no file takes one from the largest split: train its biggest, the others its smallest.

    Args:
        sizes: bytes by name (path below the root, with `/`); at least one file for each split that is wanted.
        valid_fraction: expected part of the files for 'valid', above 0.
        test_fraction: expected part of the files for 'test'.

    Returns:
        Sorted names by split.
    """
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name in sizes:
        rank = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64
        held_out = "valid" if rank < valid_fraction else "test"
        splits[held_out if rank < valid_fraction + test_fraction else "train"].append(name)
    for split in ("train", "valid", "test") if test_fraction else ("train", "valid"):
        if not splits[split]:
            donor = max(splits.values(), key=len)
            pick = max if split == "train" else min
            splits[split].append(donor.pop(donor.index(pick(donor, key=lambda name: (sizes[name], name)))))
    return {split: sorted(names) for split, names in splits.items()}


def _read_folder(root: Path, sizes: dict[str, int], valid_fraction: float, test_fraction: float) -> Splits:
    if not sizes:
        raise ValueError(f"data.path={str(root)!r} holds no files with content. Name another by --config.data.path.")
    return deal(sizes, lambda names: _join(root, names), str(root), valid_fraction, test_fraction)


def deal(
    sizes: dict[str, int],
    join: Callable[[list[str]], np.ndarray],
    source: str,
    valid_fraction: float,
    test_fraction: float,
) -> Splits:
    """Deals documents to train, valid and test by `assign_files`; fewer than splits are joined and cut instead.

    Args:
        sizes: bytes by name.
        join: gives the bytes of named documents; each is asked for once.
        source: what holds them, for people.
        valid_fraction: expected part of the documents for validation.
        test_fraction: likewise for the test.
    """
    if len(sizes) < 2 + (test_fraction > 0):
        return split_contiguously(join(sorted(sizes)), source, valid_fraction, test_fraction)
    names = assign_files(sizes, valid_fraction, test_fraction)
    return join(names["train"]), join(names["valid"]), join(names["test"])


def join(contents: Iterable[bytes | memoryview]) -> np.ndarray:
    """Documents one after another, separated; what is read as it goes is not held twice, as `bytes.join` would."""
    joined = bytearray()
    for content in contents:
        joined += SEPARATOR if joined else b""
        joined += content
    return np.frombuffer(joined, np.uint8)


def _join(root: Path, names: list[str]) -> np.ndarray:
    return join(_without_mark((root / name).read_bytes(), str(root / name)) for name in names)


def _without_mark(content: bytes, name: str) -> memoryview:
    return memoryview(content)[num_mark_bytes(content[:4], name) :]


def _is_outside_library(folder_name: str) -> bool:
    return folder_name in _NOT_THE_LIBRARY or folder_name.startswith((".", "config-"))


def with_content(root: Path, sizes: dict[str, int]) -> dict[str, int]:
    """The files that are not empty, each by one of its names: one without a link, or else the first."""
    by_file: dict[Path, str] = {}
    below = root.resolve()
    for name in sizes:
        file = (root / name).resolve()
        if file not in by_file or file == below / name:
            by_file[file] = name
    kept = set(by_file.values())
    return {name: size for name, size in sizes.items() if size and name in kept}
