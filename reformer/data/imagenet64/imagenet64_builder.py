"""TensorFlow Datasets builder of downsampled ImageNet without TensorFlow: array_record, standard library tar."""

import dataclasses
import io
import tarfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from reformer.data import image_files, imagenet64


@dataclasses.dataclass(kw_only=True)
class Imagenet64Config(tfds.core.BuilderConfig):
    """Which images: pixels of a row and of a column, and whether bad ones are left out."""

    side: int = 64
    skip_bad_images: bool = False


def _config(side: int, skip_bad_images: bool) -> Imagenet64Config:
    name = f"{side}x{side}" + ("_skip_bad_images" if skip_bad_images else "")
    return Imagenet64Config(name=name, side=side, skip_bad_images=skip_bad_images)


class Imagenet64(tfds.core.GeneratorBasedBuilder):
    """The PNG files of the tars, unchanged and in order."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: typing.ClassVar = [_config(64, False), _config(64, True), _config(32, False), _config(32, True)]
    MANUAL_DOWNLOAD_INSTRUCTIONS = imagenet64.INSTRUCTIONS
    tars: dict[str, dict[str, Any]]  # size and checksum by name; set before the preparation

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.side
        image = tfds.features.Image(shape=(side, side, 3), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description="ImageNet, downsampled for density estimation.",
            homepage="https://arxiv.org/abs/1601.06759",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict({"image": image}),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        self.info.metadata.update(tars=self.tars, num_skipped=0)
        side = self.builder_config.side
        paths = {split: Path(dl_manager.manual_dir, f"{split}_{side}x{side}.tar") for split in ("train", "valid")}
        return {split: self._generate_examples(path) for split, path in paths.items()}

    def _generate_examples(self, tar: Path) -> Iterator[tuple[int, dict[str, bytes]]]:
        decoder = image_files.Decoder(self.builder_config.side, self.builder_config.skip_bad_images)
        number = 0
        for name, content in _members(tar):
            if decoder.decode(f"{name} of {str(tar)!r}", io.BytesIO(content)) is not None:
                yield number, {"image": content}
                number += 1
        if not number:
            raise ValueError(f"{str(tar)!r} holds no usable PNG file. Replace it. {imagenet64.INSTRUCTIONS}")
        self.info.metadata["num_skipped"] += decoder.num_skipped


class Records:
    """Images of a prepared split by random access; each is decoded when it is read."""

    def __init__(self, source: Any, side: int):
        self._source, self._side = source, side

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        return image_files.decode(io.BytesIO(self._source[index]["image"]), self._side)


def make_builder(cache_dir: Path, side: int, skip_bad_images: bool) -> Imagenet64:
    """Returns the builder of the data set in `cache_dir`, prepared or not."""
    config = _config(side, skip_bad_images)
    known = config.name in Imagenet64.builder_configs  # then only the name is taken
    return Imagenet64(config=config.name if known else config, data_dir=cache_dir / "tfds", file_format="array_record")


def is_prepared(builder: Imagenet64) -> bool:
    """Whether the preparation was completed; it works in a folder of another name until then."""
    return builder.data_path.exists()


def prepare(builder: Imagenet64, folder: Path, tars: dict[str, dict[str, Any]]) -> None:
    """Reads every image of the tars in `folder`, and keeps them for random access; raises ValueError if it cannot."""
    builder.tars = tars
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    except OSError as error:
        raise ValueError(
            f"{str(builder.data_path)!r} cannot take imagenet64 ({error}). Make room or name another folder by "
            "--config.data.cache_dir."
        ) from error


def open_split(builder: Imagenet64, split: str) -> Records:
    """Returns the images of 'train' or 'valid'; raises ValueError if the prepared files are damaged."""
    # The feature's own decoding differs with and without OpenCV, and for greyscale.
    encoded = {"image": tfds.decode.SkipDecoding()}
    try:
        records = Records(builder.as_data_source(split=split, decoders=encoded), builder.builder_config.side)
        records[0], records[len(records) - 1]
    except Exception as error:  # array_record raises whatever it meets
        raise ValueError(
            f"The {split} split prepared in {str(builder.data_path)!r} is damaged ({error}). Remove that folder; it is "
            "prepared again from the tars."
        ) from error
    return records


def _members(tar: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(tar, "r|") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".png") and not Path(member.name).name.startswith("."):
                    yield member.name, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{str(tar)!r} cannot be read ({error}). Replace it. {imagenet64.INSTRUCTIONS}") from error
