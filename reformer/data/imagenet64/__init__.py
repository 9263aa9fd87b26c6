"""Downsampled ImageNet, 64x64, from the original tars; they have to be placed by hand.

Source: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks", arXiv 1601.06759. Chrabaszcz's
downsampled ImageNet (npz files) is another data set, whose bits per dim are not comparable.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reformer.data.preparation import one_at_a_time
from reformer.host import extras, paths

# Bytes and sha256 of the tars that were published; there is a smaller set of 32x32 too.
PUBLISHED = {
    "train_64x64.tar": (12_112_588_800, "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7"),
    "valid_64x64.tar": (477_255_680, "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd"),
    "train_32x32.tar": (4_113_018_880, "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5"),
    "valid_32x32.tar": (161_474_560, "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7"),
}
INSTRUCTIONS = (
    "The original server, image-net.org/small, no longer has the tars: find train_64x64.tar and valid_64x64.tar "
    "elsewhere (an academic torrent has them) and place both in one folder, named by --config.data.path. "
    "configs/imagenet64.py also runs on a folder of images or an .npz: --config.data.name=images "
    "--config.data.path=PATH."
)

_END_MARK = bytes(1024)  # what a whole tar ends with


class Contents(NamedTuple):
    """What `images.ImageData` is made of, in its order."""

    source: str
    side: int
    train: Any
    valid: Any
    test: Any
    fingerprint: str


def read_imagenet64(path: str, cache_dir: Path, side: int, skip_bad_images: bool) -> Contents:
    """Reads downsampled ImageNet, preparing it once from the tars; there is no test split.

    Args:
        path: folder of `train_64x64.tar` and `valid_64x64.tar` (the size in the names follows `side`), or '' for
            `imagenet64` in `cache_dir`. Once prepared, the tars are no longer needed.
        cache_dir: folder that gets the prepared images, about as large as the tars, in `tfds`.
        side: pixels of a row and of a column.
        skip_bad_images: leave out what is unreadable or has another size, instead of refusing it.

    Returns:
        The images, which are decoded when they are read. The fingerprint is that of the tars.

    Raises:
        ValueError: a tar is missing, damaged or another than before, an image is bad, or `cache_dir` cannot be written.
    """
    with extras.needed_for("data.name='imagenet64'", "tfds"):
        module = importlib.import_module("reformer.data.imagenet64.imagenet64_builder")  # TensorFlow Datasets: 1 s
    folder = paths.local(path) if path else cache_dir / "imagenet64"
    tars = {split: folder / f"{split}_{side}x{side}.tar" for split in ("train", "valid")}
    with one_at_a_time(cache_dir):
        builder = module.make_builder(cache_dir, side, skip_bad_images)
        if module.is_prepared(builder):
            _require_same(tars, builder.info.metadata["tars"], str(builder.data_path))
        else:
            _require_there(tars)
            module.prepare(builder, folder, {tar.name: _identify(tar) for tar in tars.values()})
    train, valid = (module.open_split(builder, split) for split in tars)
    nothing = np.zeros((0, side, side, 3), np.uint8)
    return Contents(_describe(builder.info.metadata), side, train, valid, nothing, _fingerprint(builder.info.metadata))


def _describe(metadata: dict[str, Any]) -> str:
    found = {name: (tar["bytes"], tar["sha256"]) for name, tar in metadata["tars"].items()}
    is_published = found.items() <= PUBLISHED.items()
    origin = "imagenet64" if is_published else f"{' and '.join(found)}, not those that were published"
    return origin + (f" ({metadata['num_skipped']:,} bad images left out)" if metadata["num_skipped"] else "")


def _fingerprint(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode()).hexdigest()[:32]


def _require_there(tars: dict[str, Path]) -> None:
    missing = [str(tar) for tar in tars.values() if not tar.is_file()]
    if missing:
        raise ValueError(f"There is no {' and no '.join(missing)}. {INSTRUCTIONS}")


def _require_same(tars: dict[str, Path], known: dict[str, dict[str, Any]], prepared: str) -> None:
    for tar in tars.values():
        if tar.is_file() and tar.stat().st_size != known[tar.name]["bytes"]:
            raise ValueError(
                f"{str(tar)!r} holds {tar.stat().st_size:,} bytes, but {prepared!r} was prepared from one of "
                f"{known[tar.name]['bytes']:,}. Remove that folder to prepare it anew, or name another by "
                "--config.data.cache_dir."
            )


def _identify(tar: Path) -> dict[str, Any]:
    """Size and checksum, after the checks that need no decoding; a tar of another size than the published may be."""
    size, (published_size, published_sha256) = tar.stat().st_size, PUBLISHED.get(tar.name, (None, None))
    with tar.open("rb") as stream:
        stream.seek(max(size - len(_END_MARK), 0))
        is_whole = stream.read() == _END_MARK
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if not is_whole or (size == published_size and sha256 != published_sha256):
        problem = "has another checksum than the published one" if is_whole else "lacks the end mark of a tar"
        raise ValueError(f"{str(tar)!r} ({size:,} bytes) is damaged: it {problem}. Replace it. {INSTRUCTIONS}")
    return {"bytes": size, "sha256": sha256}
