"""Encoded images in a folder or an .npz archive: which split each belongs to, and their pixels."""

import dataclasses
import io
import itertools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from reformer.data import documents, folders

SPLITS = ("train", "valid", "test")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

File: TypeAlias = Path | io.BytesIO

# Whatever Pillow raises on damaged files.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


class Files(NamedTuple):
    """Images of a split that were not read yet: how many, and each with a name for people."""

    num_images: int
    named: Iterable[tuple[str, File]]


def decode(file: File, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Pixels of an encoded image; greyscale, palettes and other colour spaces are converted to RGB.

    Raises:
        ValueError: it has another size than `side` by `side`, or more than 8 bits per value.
        OSError: it is truncated or no image. Pillow raises others too; `decode_named` knows them.
    """
    with Image.open(file) as image:
        if image.size != (side, side):
            raise ValueError(f"it has {image.width}x{image.height} pixels, not {side}x{side}")
        # Pillow cuts 16 bits of colour to 8. How they are stored tells: of PNG and TIFF a name, of PPM the largest.
        stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
        if image.mode[0] in "IF" or re.search(r";16[BLN]|\('\w+', (?!255\))\d{3,}\)", stored):
            raise ValueError(f"its values have more than 8 bits (mode {image.mode}, stored as {stored})")
        return np.asarray(image.convert("RGB"))


def decode_named(name: str, file: File, side: int, repair: str) -> UInt8[np.ndarray, "side side 3"]:
    """Pixels of an encoded image, as `decode`.

    Raises:
        ValueError: the image is bad; `name` says which, and `repair` what to do.
    """
    try:
        return decode(file, side)
    except _UNREADABLE as error:
        reason = "it is no image that Pillow reads" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name} cannot be used: {reason}. {repair}") from error


@dataclasses.dataclass
class Decoder:
    """Decodes images of one size; a bad one is an error, or is left out and counted.

    Attributes:
        side: pixels of a row and of a column.
        skip_bad_images: leave out what is unreadable or has another size.
        size_field: the field of the configuration that says `side`, and how.
        num_skipped: images left out so far.
    """

    side: int
    skip_bad_images: bool
    size_field: str = "--config.data.length, which is side * side * 3"
    num_skipped: int = 0

    def decode(self, name: str, file: File) -> np.ndarray | None:
        """Pixels, uint8 `[side, side, 3]`, or None if the image is bad and bad ones are left out.

        Raises:
            ValueError: the image is bad and bad ones are not left out.
        """
        repair = (
            "Repair or remove it; or leave such images out by --config.data.skip_bad_images=True; or choose another "
            f"size by {self.size_field}."
        )
        try:
            return decode_named(name, file, self.side, repair)
        except ValueError:
            if not self.skip_bad_images:
                raise
        self.num_skipped += 1
        return None

    def decode_all(self, files: Files) -> tuple[UInt8[np.ndarray, "images side side 3"], Int[np.ndarray, " images"]]:
        """Pixels of all images of a split, in order, and the number of each among the files."""
        pixels = np.empty((files.num_images, self.side, self.side, 3), np.uint8)
        kept: list[int] = []
        for number, (name, file) in enumerate(files.named):
            image = self.decode(name, file)
            if image is not None:
                pixels[len(kept)] = image
                kept.append(number)
        return pixels[: len(kept)], np.array(kept, int)


def find_in_folder(root: Path, valid_fraction: float, test_fraction: float) -> dict[str, Files]:
    """Finds the images below a folder, as `folders.file_sizes` does: files with one of `SUFFIXES`, not hidden.

    Folders 'train', 'valid' and perhaps 'test' directly below `root` are the splits, and nothing beside them is read.
    Without them, images are assigned by a hash of their name (`documents.assign_files`).

    Raises:
        ValueError: there are too few, a folder is missing, or one cannot be read.
    """
    sizes = folders.file_sizes(root, SUFFIXES)
    given = {split for split in SPLITS if any(name.startswith(f"{split}/") for name in sizes)}
    if given and not given >= {"train", "valid"}:
        raise ValueError(
            f"data.path={str(root)!r} has images in {', '.join(sorted(given))}/, but splits need train/ and valid/. "
            "Add the missing one, or rename the folder to have its images split by --config.data.valid_fraction."
        )
    if not given and len(sizes) < 2 + (test_fraction > 0):
        raise ValueError(
            f"data.path={str(root)!r} holds {len(sizes)} images ({', '.join(SUFFIXES)}), too few to train on and to "
            "hold some out. Name another folder, or an .npz, by --config.data.path."
        )
    if given:
        names = {split: sorted(name for name in sizes if name.startswith(f"{split}/")) for split in SPLITS}
    else:
        names = documents.assign_files(sizes, valid_fraction, test_fraction)
    return {split: _files_below(root, names[split]) for split in SPLITS}


def find_in_archive(path: Path) -> dict[str, Files]:
    """Finds the images in an .npz with the arrays `train_jpeg`, `train_offsets`, `valid_jpeg`, `valid_offsets`.

    Image i of a split is `jpeg[offsets[i]:offsets[i + 1]]`, in any format that Pillow reads. `test_jpeg` and
    `test_offsets` may be missing.

    Raises:
        ValueError: it is not such an archive.
    """
    arrays = _read_archive(path, [f"{split}_{part}" for split in SPLITS for part in ("jpeg", "offsets")])
    return {split: _files_in_arrays(arrays, split, path) for split in SPLITS}


def read_labels(path: Path, num_images: dict[str, int]) -> dict[str, Int[np.ndarray, " images"]]:
    """Reads the numbers of the labels from the arrays `train_labels`, `valid_labels`, `test_labels` of an .npz.

    Args:
        path: of the archive.
        num_images: of each split, as `find_in_archive` found them.

    Raises:
        ValueError: labels are missing, or there is not one whole number for each image.
    """
    arrays = _read_archive(path, [f"{split}_labels" for split in SPLITS])
    labels = {split: arrays.get(f"{split}_labels", np.zeros(0, int)) for split in SPLITS}
    for split, of_split in labels.items():
        if of_split.dtype.kind not in "iu" or of_split.shape != (num_images[split],):
            raise ValueError(
                f"data.path={str(path)!r} needs the array {split}_labels with an integer for each of the "
                f"{num_images[split]:,} images; it holds {of_split.dtype} {list(of_split.shape)}. Add or repair it."
            )
    return labels


def _files_below(root: Path, names: list[str]) -> Files:
    return Files(len(names), [(str(root / name), root / name) for name in names])


def _read_archive(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip file")
        with np.load(path) as archive:
            return {name: archive[name] for name in names if name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"data.path={str(path)!r} cannot be read as .npz ({error}). Name a whole one, or a folder of images, by "
            "--config.data.path."
        ) from error


def _files_in_arrays(arrays: dict[str, np.ndarray], split: str, path: Path) -> Files:
    jpeg, offsets = arrays.get(f"{split}_jpeg"), arrays.get(f"{split}_offsets")
    if jpeg is None and offsets is None and split == "test":
        return Files(0, ())
    if jpeg is None or offsets is None or not _fit(jpeg, offsets):
        raise ValueError(
            f"data.path={str(path)!r} needs the arrays {split}_jpeg, uint8 [bytes], and {split}_offsets, integers that "
            "never fall, from 0 to bytes: image i is jpeg[offsets[i]:offsets[i + 1]]. Add or repair them."
        )
    return Files(max(len(offsets) - 1, 0), _slices(jpeg, offsets, f"{split} image {{}} of {path}"))


def _fit(jpeg: np.ndarray, offsets: np.ndarray) -> bool:
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        return False
    ends = np.concatenate([[0], offsets, [len(jpeg)]]).astype(np.int64)
    return bool((np.diff(ends) >= 0).all())


def _slices(jpeg: np.ndarray, offsets: np.ndarray, name: str) -> Iterator[tuple[str, io.BytesIO]]:
    for number, (start, stop) in enumerate(itertools.pairwise(offsets)):
        yield name.format(number), io.BytesIO(jpeg[start:stop].tobytes())
