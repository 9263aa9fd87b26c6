"""Images as sequences: row by row, pixel by pixel, red, green and blue, each value a token.

A token is a value from 0 to 255 or the begin id, so that an image has side * side * 3 tokens.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, UInt8

from reformer.data import baselines, documents, image_files
from reformer.data.imagenet64 import read_imagenet64
from reformer.data.source import Example, NextToken, chosen_examples
from reformer.host import paths

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


def vocab_size(config: Any) -> int:
    """The 256 values and the begin id."""
    del config
    return VOCAB_SIZE


def check_length(length: int) -> None:
    """Raises a ValueError if no image has this length."""
    side_of(length)


def load(config: Any, length: int) -> ImageData:
    """Reads the images that the `data` group of the configuration names.

    Images of a folder or an .npz are decoded once, into `length` bytes of memory each (8,800 of 64x64: 108 MB), so
    that every bad one is found here. Those of the tars are checked when they are prepared and decoded when they are
    read. Greyscale is converted to RGB; nothing is resized.

    Args:
        config: has `name` ('imagenet64' or 'images'), `path` (a folder or an .npz, see `image_files`; for imagenet64
            the folder of the tars, '' = `imagenet64` in `cache_dir`), `cache_dir` ('' = ~/.cache/reformer),
            `valid_fraction` and `test_fraction` (the part of a folder's images that is held out) and
            `skip_bad_images` (leave out what is unreadable or has another size, instead of refusing it).
        length: tokens of an image, side * side * 3.

    Returns:
        The images of the three splits.

    Raises:
        ValueError: a value is impossible, or images are missing, bad or too few.
    """
    side = side_of(length)
    if config.name == "imagenet64":
        cache_dir = paths.local(config.cache_dir or "~/.cache/reformer")
        return ImageData(*read_imagenet64(config.path, cache_dir, side, config.skip_bad_images))
    decoder = image_files.Decoder(side, config.skip_bad_images)
    splits = {split: decoder.decode_all(files)[0] for split, files in find(config).items()}
    for split in ("train", "valid"):
        if not len(splits[split]):
            raise ValueError(
                f"data.path={config.path!r} has no {split} image of {side}x{side}; {decoder.num_skipped} bad ones were "
                "left out. Name other images by --config.data.path, or their size by --config.data.length."
            )
    left_out = f" ({decoder.num_skipped:,} bad images left out)" if decoder.num_skipped else ""
    return ImageData(config.path + left_out, side, **splits, fingerprint=_fingerprint(splits))


def to_picture(tokens: Int[np.ndarray, " length"]) -> UInt8[np.ndarray, "side side 3"]:
    """The image of side * side * 3 tokens; ids above 255, which are no values, become 0."""
    tokens, side = np.asarray(tokens), side_of(len(tokens))
    return np.where(tokens < 256, tokens, 0).astype(np.uint8).reshape(side, side, 3)


def find(config: Any) -> dict[str, image_files.Files]:
    """Finds the images of each split in the folder or the .npz that the `data` group of the configuration names.

    Raises:
        ValueError: there is none, or it is no folder and no archive of images.
    """
    path, fractions = paths.local(config.path), (config.valid_fraction, config.test_fraction)
    if not config.path or not path.exists():
        raise ValueError(f"data.path={config.path!r} does not exist. Name a folder or an .npz by --config.data.path.")
    if not path.is_dir():
        return image_files.find_in_archive(path)
    documents.check_fractions(*fractions)
    return image_files.find_in_folder(path, *fractions)


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
