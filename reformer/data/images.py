"""Images as sequences: row by row, pixel by pixel, red, green and blue, each value a token.

A token is a value from 0 to 255 or the begin id, so that an image has side * side * 3 tokens.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import ClassVar, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, UInt8

from reformer.data import baselines, image_files
from reformer.data.data_set import Cached, DataSet, HeldOut
from reformer.data.imagenet64 import read_imagenet64
from reformer.data.source import Example, NextToken, chosen_examples
from reformer.host import paths
from reformer.host.options import Flag, LocalPath

BEGIN_ID, VOCAB_SIZE = 256, 257

_MAX_COUNTED = 10_000  # training images that the baseline reads


@runtime_checkable
class Images(Protocol):
    """Images by number, each uint8 [side, side, 3]: an array, or records that are decoded when they are read."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> np.ndarray:
        """The image number `index`."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData(NextToken):
    """Images of one size.

    Attributes:
        source: what they are, for people.
        side: pixels of a row and of a column.
        train: the images to train on.
        valid: likewise, to evaluate on.
        test: likewise; may be empty.
        fingerprint: another one means that the data were replaced.
    """

    source: str
    side: int
    train: Images
    valid: Images
    test: Images
    fingerprint: str
    unit = "dim"
    begin_id = BEGIN_ID

    @property
    def description(self) -> str:
        """One line: the source and the images of each split."""
        counts = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in image_files.SPLITS)
        return f"{self.source}: {counts} images of {self.side}x{self.side}"

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless images in random order, each once per epoch.

        Raises:
            ValueError: `length` is not that of an image.
        """
        self._require_length(length)
        examples = grain.MapDataset.source(self.train).map(_ToExample())
        return examples.seed(seed).shuffle().repeat()

    def num_examples(self, split: str, length: int) -> int:
        """One for each image."""
        self._require_length(length)
        return len(getattr(self, split))

    def example(self, split: str, index: int, length: int) -> Example:
        """The image number `index`."""
        self._require_length(length)
        return _ToExample().map(getattr(self, split)[index])

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Bits per dim of counts of each value given its left neighbour, `baselines.left_neighbour_bits_per_dim`.

        At most 10,000 training images are counted, evenly spread.
        """
        counted, scored = self._some("train", length, _MAX_COUNTED), self._some(split, length, max_examples)
        return {"left-neighbour counts": baselines.left_neighbour_bits_per_dim(counted, scored)}

    def _some(self, split: str, length: int, count: int | None) -> Iterator[np.ndarray]:
        images = getattr(self, split)
        return (images[int(index)] for index in chosen_examples(self, split, length, count))

    def _require_length(self, length: int) -> None:
        if length != self.side**2 * 3:
            raise ValueError(
                f"length={length} must be the {self.side**2 * 3} values of an image of {self.side}x{self.side}. Images "
                "are trained and evaluated whole; change --config.data.length."
            )


@dataclasses.dataclass(frozen=True)
class _Images(DataSet):
    """What all images have in common. Greyscale is converted to RGB; nothing is resized."""

    kind: ClassVar[str] = "images"
    vocab_size: ClassVar[int] = VOCAB_SIZE  # the 256 values and the begin id

    skip_bad_images: Flag = False  # leave unreadable images and those of another size out, instead of refusing them

    def check_length(self, length: int) -> None:
        """Raises a ValueError if no image has this length, which is side * side * 3."""
        side_of(length)


@dataclasses.dataclass(frozen=True)
class ImageNet64(Cached, _Images):
    """Downsampled ImageNet. Images are checked when they are prepared, and decoded when they are read."""

    path: LocalPath = ""  # the folder of the original tars; '' = `imagenet64` in `cache_dir`

    def load(self, length: int) -> ImageData:
        """As `DataSet.load`."""
        return ImageData(*read_imagenet64(self.path, self.cache, side_of(length), self.skip_bad_images))


@dataclasses.dataclass(frozen=True)
class ImageFiles(HeldOut, _Images):
    """Images of a folder, of which a part is held out, or of an .npz that is split (see `image_files`).

    They are decoded once, into `length` bytes of memory each (8,800 of 64x64: 108 MB), so that every bad one is found.
    """

    path: LocalPath = ""  # a folder or an .npz

    def load(self, length: int) -> ImageData:
        """As `DataSet.load`."""
        side = side_of(length)
        decoder = image_files.Decoder(side, self.skip_bad_images)
        splits = {split: decoder.decode_all(files)[0] for split, files in find(self.path, self.fractions).items()}
        for split in ("train", "valid"):
            if not len(splits[split]):
                raise ValueError(
                    f"data.path={self.path!r} has no {split} image of {side}x{side}; {decoder.num_skipped} bad ones "
                    "were left out. Name other images by --config.data.path, or their size by --config.data.length."
                )
        left_out = f" ({decoder.num_skipped:,} bad images left out)" if decoder.num_skipped else ""
        return ImageData(self.path + left_out, side, **splits, fingerprint=_fingerprint(splits))


def to_picture(tokens: Int[np.ndarray, " length"]) -> UInt8[np.ndarray, "side side 3"]:
    """The image of side * side * 3 tokens; ids above 255, which are no values, become 0."""
    tokens, side = np.asarray(tokens), side_of(len(tokens))
    return np.where(tokens < 256, tokens, 0).astype(np.uint8).reshape(side, side, 3)


def find(given_path: str, fractions: tuple[float, float]) -> dict[str, image_files.Files]:
    """Finds the images of each split.

    Args:
        given_path: a folder or an .npz.
        fractions: the parts of a folder's images that are held out for validation and for the test.

    Raises:
        ValueError: there is none, or it is no folder and no archive of images.
    """
    path = paths.local(given_path)
    if not given_path or not path.exists():
        raise ValueError(f"data.path={given_path!r} does not exist. Name a folder or an .npz by --config.data.path.")
    return image_files.find_in_folder(path, *fractions) if path.is_dir() else image_files.find_in_archive(path)


def side_of(length: int) -> int:
    """Pixels of a side of images of `length` tokens; raises ValueError if there are no such images."""
    side = math.isqrt(length // 3)
    if not side or side**2 * 3 != length:
        raise ValueError(
            f"length={length} is not side * side * 3 for any side, as images need. Set --config.data.length (or "
            "--config.model.max_length) to 12288 for 64x64, 3072 for 32x32."
        )
    return side


def _fingerprint(splits: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for pixels in splits.values():
        digest.update(str(pixels.shape).encode())
        digest.update(pixels.data)
    return digest.hexdigest()[:32]


class _ToExample(grain.transforms.Map):
    def map(self, pixels: np.ndarray) -> Example:
        return Example(pixels.reshape(-1).astype(np.int32))
