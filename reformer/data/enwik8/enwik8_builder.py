"""TensorFlow Datasets builder of enwik8 that works without TensorFlow: array_record files, standard library zip."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from reformer.data import enwik8

_RECORD_BYTES = 1_000_000


class Enwik8(tfds.core.GeneratorBasedBuilder):
    """The 90M / 5M / 5M bytes of enwik8, in order, in records of at most one million bytes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # The default encoding of a tensor is a list of variable-length integers: slower and larger.
        content = tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
        return tfds.core.DatasetInfo(
            builder=self,
            description="The first 100,000,000 bytes of the English Wikipedia dump of 3 March 2006.",
            homepage="http://mattmahoney.net/dc/textdata.html",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict({"bytes": content}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        with zipfile.ZipFile(dl_manager.download(enwik8.URL)) as archive:
            splits = enwik8.split_bytes(np.frombuffer(archive.read("enwik8"), np.uint8))
        return {name: self._generate_examples(content) for name, content in splits.items()}

    def _generate_examples(self, content: np.ndarray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for start in range(0, len(content), _RECORD_BYTES):
            yield start, {"bytes": content[start : start + _RECORD_BYTES]}


def prepare(cache_dir: Path) -> bytes:
    """Returns the bytes of enwik8, prepared in `cache_dir` from a verified download or an `enwik8.zip` placed there."""
    builder = Enwik8(data_dir=cache_dir / "tfds", file_format="array_record")
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=cache_dir))
    except NonMatchingChecksumError as error:
        placed = cache_dir / "enwik8.zip"
        origin = f"{str(placed)!r}" if placed.is_file() else f"The download of {enwik8.URL}"
        raise ValueError(f"{origin} is not enwik8. Replace it, or name a copy by --config.data.path.") from error
    splits = (builder.as_data_source(split=name) for name in enwik8.SPLIT_BYTES)
    return b"".join(record["bytes"].tobytes() for split in splits for record in split)
