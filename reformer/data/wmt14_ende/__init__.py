"""WMT14 English-German from the original archives; they have to be placed by hand.

Train: Europarl v7, Common Crawl and News Commentary v9. Valid: newstest2013. Test: newstest2014, all 3,003 sentences.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from reformer.data.pair_files import Corpus, Texts
from reformer.data.preparation import one_at_a_time
from reformer.host import extras, paths

# For every split its archives and what the names of their two members have in common, '{}' where the language stands.
MEMBERS = {
    "train": (
        ("training-parallel-europarl-v7.tgz", ("training/europarl-v7.de-en.{}",) * 2),
        ("training-parallel-commoncrawl.tgz", ("commoncrawl.de-en.{}",) * 2),
        ("training-parallel-nc-v9.tgz", ("training/news-commentary-v9.de-en.{}",) * 2),
    ),
    "valid": (("dev.tgz", ("dev/newstest2013.{}",) * 2),),
    "test": (("test-full.tgz", ("newstest2014-deen-src.{}.sgm", "newstest2014-deen-ref.{}.sgm")),),
}
LANGUAGES = ("en", "de")
INSTRUCTIONS = (
    "Fetch the archives of the translation tasks of WMT13 (europarl-v7, commoncrawl) and WMT14 (nc-v9, dev, test-full) "
    "and place all five in one folder, named by --config.data.path. configs/translate.py runs on any two text files."
)


def read_wmt14_ende(path: str, cache_dir: Path, source: str, target: str) -> Corpus:
    """Reads WMT14 English-German, preparing it once from the archives.

    Args:
        path: folder of the archives, or '' for `wmt14_ende` in `cache_dir`. Once prepared, they are no longer needed.
        cache_dir: folder that gets the prepared texts, in `tfds`.
        source: 'en' or 'de'.
        target: the other.

    Raises:
        ValueError: an archive is missing or damaged, the languages are others, or `cache_dir` cannot be written.
    """
    if {source, target} != set(LANGUAGES):
        raise ValueError(
            f"data.source_language={source!r} and data.target_language={target!r} must be 'en' and 'de', one each, for "
            "data.name='wmt14_ende'."
        )
    with extras.needed_for("data.name='wmt14_ende'", "tfds"):
        module = importlib.import_module("reformer.data.wmt14_ende.wmt14_ende_builder")  # TensorFlow Datasets: 1 s
    with one_at_a_time(cache_dir):
        builder = module.make_builder(cache_dir)
        if not builder.data_path.exists():
            folder = paths.local(path) if path else cache_dir / "wmt14_ende"
            module.prepare(builder, folder, {name: _identify(folder / name) for name in _archives(folder)})
    splits = {split: Texts(*module.read_split(builder, split, (source, target))) for split in MEMBERS}
    return Corpus(f"WMT14 {source}-{target}", splits, _fingerprint(builder.info.metadata, source))


def _archives(folder: Path) -> list[str]:
    names = [name for archives in MEMBERS.values() for name, _ in archives]
    missing = [str(folder / name) for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"There is no {' and no '.join(missing)}. {INSTRUCTIONS}")
    return names


def _identify(archive: Path) -> str:
    with archive.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fingerprint(metadata: dict[str, Any], source: str) -> str:
    return hashlib.sha256(json.dumps([source, dict(metadata)], sort_keys=True).encode()).hexdigest()[:32]
