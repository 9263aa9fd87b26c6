"""TensorFlow Datasets builder of WMT14 English-German that works without TensorFlow: array_record, standard library."""

import html
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from reformer.data import wmt14_ende

_RECORDS_AT_ONCE = 10_000
_SEGMENT = re.compile(r"<seg[^>]*>(.*)</seg>")


class Wmt14Ende(tfds.core.GeneratorBasedBuilder):
    """The lines of the original files, in order; pairs of which a side is empty are left out."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = wmt14_ende.INSTRUCTIONS
    archives: dict[str, str]  # checksum by name; set before the preparation

    def _info(self) -> tfds.core.DatasetInfo:
        languages = {language: tfds.features.Text() for language in wmt14_ende.LANGUAGES}
        return tfds.core.DatasetInfo(
            builder=self,
            description="The English-German translation task of WMT14.",
            homepage="https://www.statmt.org/wmt14/translation-task.html",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(languages),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        self.info.metadata.update(archives=self.archives)
        folder = Path(dl_manager.manual_dir)
        return {split: self._generate_examples(folder, files) for split, files in wmt14_ende.MEMBERS.items()}

    def _generate_examples(self, folder: Path, files: tuple) -> Iterator[tuple[int, dict[str, str]]]:
        number = 0
        for archive, members in files:
            wanted = [name.format(language) for name, language in zip(members, wmt14_ende.LANGUAGES, strict=True)]
            for pair in _read_pairs(folder / archive, wanted):
                if all(pair):
                    yield number, dict(zip(wmt14_ende.LANGUAGES, pair, strict=True))
                    number += 1


def make_builder(cache_dir: Path) -> Wmt14Ende:
    """Returns the builder of the data set in `cache_dir`, prepared or not."""
    return Wmt14Ende(data_dir=cache_dir / "tfds", file_format="array_record")


def prepare(builder: Wmt14Ende, folder: Path, archives: dict[str, str]) -> None:
    """Prepares the texts from the archives in `folder`; raises ValueError if it cannot."""
    builder.archives = archives
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    except OSError as error:
        raise ValueError(
            f"{str(builder.data_path)!r} cannot take WMT14 ({error}). Make room or name another folder by "
            "--config.data.cache_dir."
        ) from error


def read_split(builder: Wmt14Ende, split: str, languages: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Returns the texts of a split in two languages; raises ValueError if the prepared files are damaged."""
    texts: tuple[list[str], list[str]] = ([], [])
    try:
        records = builder.as_data_source(split=split)
        for start in range(0, len(records), _RECORDS_AT_ONCE):
            for record in records.__getitems__(range(start, min(start + _RECORDS_AT_ONCE, len(records)))):
                for lines, language in zip(texts, languages, strict=True):
                    lines.append(record[language].decode())
    except Exception as error:  # array_record raises whatever it meets
        raise ValueError(
            f"The {split} split prepared in {str(builder.data_path)!r} is damaged ({error}). Remove that folder; it is "
            "prepared again from the archives."
        ) from error
    return texts


def _read_pairs(archive: Path, wanted: list[str]) -> Iterator[tuple[str, ...]]:
    """The lines of two members of an archive, of which only the ends of the names are known, side by side."""
    found: dict[str, list[str]] = {}
    try:
        with tarfile.open(archive, "r|*") as members:
            for member in members:
                for name in wanted:
                    if f"/{member.name}".endswith(f"/{name}"):
                        found[name] = _lines(name, members.extractfile(member).read().decode())
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(archive)!r} cannot be read ({error}). Replace it. {wmt14_ende.INSTRUCTIONS}") from error
    lengths = [len(found.get(name, [])) for name in wanted]
    if not all(lengths) or len(set(lengths)) > 1:
        raise ValueError(
            f"{str(archive)!r}: {' and '.join(wanted)} have {lengths[0]:,} and {lengths[1]:,} lines and should be "
            f"translations of each other. Replace it. {wmt14_ende.INSTRUCTIONS}"
        )
    yield from zip(*(found[name] for name in wanted), strict=True)


def _lines(name: str, content: str) -> list[str]:
    if name.endswith(".sgm"):
        return [html.unescape(text).strip() for text in _SEGMENT.findall(content)]
    lines = [line.strip() for line in content.split("\n")]
    return lines if lines[-1] else lines[:-1]
