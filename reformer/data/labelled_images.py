"""Images with a label each: of a folder or an archive, or the handwritten digits of scikit-learn."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import grain
import numpy as np
from jaxtyping import Int, UInt8

from reformer.data import image_files, images
from reformer.data.data_set import HeldOut
from reformer.data.source import Row, chosen_examples, name_labels
from reformer.host import extras, paths
from reformer.host.options import Flag, LocalPath, Natural

DIGITS_SIDE, DIGITS_LARGEST = 8, 16  # pixels, and the value of a white one

Pixels = UInt8[np.ndarray, "side side 3"]


class LabelledImage(NamedTuple):
    """An image and the number of its label."""

    pixels: Pixels
    label: int


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images by number, and the label of each."""

    pixels: UInt8[np.ndarray, "images side side 3"]
    labels: Int[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImage:
        return LabelledImage(self.pixels[index], int(self.labels[index]))


@dataclasses.dataclass(frozen=True)
class Augmentation(grain.transforms.RandomMap):
    """Changes a training image so that its label stays what it is.

    Attributes:
        random_flip: mirror every second one left to right.
        crop_padding: pixels; move the image by up to so many each way, and fill the gap with its mirror image.
    """

    random_flip: bool
    crop_padding: int

    def random_map(self, element: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        """Draws a place and a direction."""
        pixels, side = element.pixels, len(element.pixels)
        moves = rng.integers(-self.crop_padding, self.crop_padding + 1, 2)
        rows, columns = (_mirrored(np.arange(side) + move, side) for move in moves)
        if self.random_flip and rng.integers(2):
            columns = columns[::-1]
        return LabelledImage(pixels[rows[:, None], columns[None]], element.label)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one size. An example is one of them, whatever the length in patches that a model makes of it.

    Attributes:
        source: what they are, for people.
        train: the images to train on.
        valid: likewise, to evaluate on.
        test: likewise; may be empty.
        augmentation: of the images to train on.
        label_names: by number; None = they have none.
    """

    source: str
    train: Split
    valid: Split
    test: Split
    augmentation: Augmentation
    label_names: Sequence[str] | None = None
    unit = "image"

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the trained parameters: the names of the labels."""
        return {} if self.label_names is None else name_labels(self.label_names)

    @property
    def description(self) -> str:
        """One line: the source, the images of each split and the labels."""
        counts = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in image_files.SPLITS)
        side = self.train.pixels.shape[1]
        return f"{self.source}: {counts} images of {side}x{side}, {self.num_labels} labels"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Another one means that pixels, labels or splits were changed."""
        digest = hashlib.sha256()
        for split in image_files.SPLITS:
            for array in (getattr(self, split).pixels, getattr(self, split).labels):
                digest.update(str(array.shape).encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]

    @property
    def num_labels(self) -> int:
        """One more than the largest."""
        return 1 + max(int(getattr(self, split).labels.max(initial=-1)) for split in image_files.SPLITS)

    def check_labels(self, num_labels: int) -> None:
        """Raises a ValueError that names an image whose label is not one of `num_labels`."""
        for split in image_files.SPLITS:
            labels = getattr(self, split).labels
            for number in np.flatnonzero((labels < 0) | (labels >= num_labels))[:1]:
                raise ValueError(
                    f"{self.source}: the label of {split} image {number} is {labels[number]}, but "
                    f"config.task.num_labels={num_labels}, so that labels run from 0 to {num_labels - 1}. Set "
                    f"num_labels={self.num_labels}, or repair the labels."
                )

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless images in random order, each once per epoch, each time changed in another way."""
        del length
        examples = grain.MapDataset.source(self.train).seed(seed).shuffle().repeat()
        return examples.random_map(self.augmentation)

    def num_examples(self, split: str, length: int) -> int:
        """One for each image."""
        del length
        return len(getattr(self, split))

    def example(self, split: str, index: int, length: int) -> LabelledImage:
        """The image number `index`, as it is."""
        del length
        return getattr(self, split)[index]

    def to_row(self, example: LabelledImage, padded_length: int | None) -> Row:
        """As `Source.to_row` has it: `images` uint8 [side, side, 3], `targets` int32 [] and perhaps `weights` []."""
        row = {"images": example.pixels, "targets": np.asarray(example.label, np.int32)}
        return row if padded_length is None else row | {"weights": np.ones((), np.float32)}

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Bits per image of a guess by how often each label is in training, counted from one."""
        counts = np.bincount(self.train.labels, minlength=self.num_labels) + 1
        labels = self._chosen_labels(split, length, max_examples)
        return {"label counts": float(np.mean(np.log2(counts.sum() / counts[labels])))}

    def accuracies(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """Of who always says the label that is most frequent in training."""
        most_frequent = np.bincount(self.train.labels, minlength=self.num_labels).argmax()
        return {"label counts": float(np.mean(self._chosen_labels(split, length, max_examples) == most_frequent))}

    def _chosen_labels(self, split: str, length: int, max_examples: int | None) -> np.ndarray:
        return getattr(self, split).labels[chosen_examples(self, split, length, max_examples)]


@dataclasses.dataclass(frozen=True)
class _Labelled(HeldOut):
    """What all labelled images have in common; a length is side * side * 3, as of `images`."""

    kind: ClassVar[str] = "labelled_images"
    vocab_size: ClassVar[int] = 0  # an image is no row of ids

    random_flip: Flag = False  # mirror every second image to train on
    crop_padding: Natural = 0  # pixels; move those to train on by up to so many each way

    @property
    def augmentation(self) -> Augmentation:
        """Of the images to train on."""
        return Augmentation(self.random_flip, self.crop_padding)

    def check_length(self, length: int) -> None:
        """Raises a ValueError if no image has so many values."""
        images.side_of(length)


@dataclasses.dataclass(frozen=True)
class LabelledImageFiles(_Labelled):
    """Images of a folder or an .npz with labels (see `image_files`); all are decoded at once."""

    # An .npz, or a folder with one sub-folder for each label, below train/, valid/ and perhaps test/ or not split.
    path: LocalPath = ""
    skip_bad_images: Flag = False  # leave unreadable images and those of another size out, instead of refusing them

    def load(self, length: int) -> LabelledImages:
        """As `DataSet.load`."""
        side = images.side_of(length)
        names, splits, left_out = _read_files(self, side)
        for split in ("train", "valid"):
            if not len(splits[split]):
                raise ValueError(
                    f"data.path={self.path!r} has no {split} image of {side}x{side}{left_out}. Name other images by "
                    "--config.data.path, or their size by --config.task.image_size."
                )
        return LabelledImages(self.path + left_out, **splits, augmentation=self.augmentation, label_names=names)


@dataclasses.dataclass(frozen=True)
class Digits(_Labelled):
    """1,797 handwritten digits, of which the last are held out, since neighbours may be of the same hand.

    Source: Alpaydin, Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """

    def load(self, length: int) -> LabelledImages:
        """As `DataSet.load`."""
        with extras.needed_for("data.name='digits'", "images"):
            from sklearn.datasets import load_digits

        side = images.side_of(length)
        if side != DIGITS_SIDE:
            raise ValueError(f"The digits have 8x8 pixels, not {side}x{side}. Set --config.task.image_size=8.")
        digits = load_digits()
        grey = np.round(digits.images * (255 / DIGITS_LARGEST)).astype(np.uint8)
        pixels, labels = np.repeat(grey[..., None], 3, axis=3), digits.target
        num_valid, num_test = (round(part * len(labels)) for part in self.fractions)
        ends = [len(labels) - num_valid - num_test, len(labels) - num_test]
        pairs = zip(np.split(pixels, ends), np.split(labels, ends), strict=True)
        train, valid, test = (Split(*pair) for pair in pairs)
        names = [str(digit) for digit in range(10)]
        return LabelledImages("digits of scikit-learn", train, valid, test, self.augmentation, names)


def _read_files(wanted: LabelledImageFiles, side: int) -> tuple[list[str] | None, dict[str, Split], str]:
    """The names of the labels, the images of each split, and a remark on what was left out."""
    found = images.find(wanted.path, wanted.fractions)
    names, labels = _labels(wanted.path, found)
    decoder = image_files.Decoder(side, wanted.skip_bad_images, "--config.task.image_size")
    splits = {}
    for split, files in found.items():
        pixels, kept = decoder.decode_all(files)
        splits[split] = Split(pixels, labels[split][kept])
    return names, splits, f" ({decoder.num_skipped:,} bad images left out)" if decoder.num_skipped else ""


def _labels(given_path: str, found: dict[str, image_files.Files]) -> tuple[list[str] | None, dict[str, np.ndarray]]:
    """The names of the labels, and for every split the number of each image's."""
    path = paths.local(given_path)
    if not path.is_dir():
        return None, image_files.read_labels(path, {split: files.num_images for split, files in found.items()})
    given = {split: [_label_name(path, Path(name)) for name, _ in files.named] for split, files in found.items()}
    names = sorted(set(given["train"]))
    for split in ("valid", "test"):
        for unknown in sorted(set(given[split]) - set(names))[:1]:
            raise ValueError(
                f"data.path={given_path!r} has {split} images in the folder {unknown!r} and none to train on. Add "
                f"some, or remove them: {Counter(given[split])[unknown]} images."
            )
    numbers = {name: number for number, name in enumerate(names)}
    return names, {split: np.array([numbers[name] for name in given[split]], int) for split in given}


def _label_name(root: Path, file: Path) -> str:
    """The folder below `root`, and below that of the split, in which an image lies."""
    folders = file.relative_to(root).parts[:-1]
    folders = folders[1:] if folders and folders[0] in image_files.SPLITS else folders
    if not folders:
        raise ValueError(
            f"{file} lies in no folder that names its label. Images are read from FOLDER/LABEL/ or "
            "FOLDER/train/LABEL/, FOLDER/valid/LABEL/; name FOLDER by --config.data.path."
        )
    return folders[0]


def _mirrored(places: np.ndarray, side: int) -> np.ndarray:
    """Places from -side to 2 * side - 2, those outside mirrored at the first and at the last one inside."""
    return side - 1 - np.abs(side - 1 - np.abs(places))
