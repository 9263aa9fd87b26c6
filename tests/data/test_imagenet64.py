"""Downsampled ImageNet from tars through the TFDS builder, on tiny stand-ins."""

import hashlib
import importlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from reformer.data import image_files, imagenet64, images, load, source

SIDE, LENGTH = 8, 8 * 8 * 3
PIXELS = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), np.uint8)


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write_tar(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo(path.stem)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{path.stem}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def cache(tmp_path):
    """A cache folder with the tars where they are expected: five images to train on, two to validate."""
    contents = {f"{i:07}.png": _png(pixels) for i, pixels in enumerate(PIXELS)}
    names = list(contents)
    _write_tar(tmp_path / "imagenet64" / "train_8x8.tar", {name: contents[name] for name in names[:5]})
    _write_tar(tmp_path / "imagenet64" / "valid_8x8.tar", {name: contents[name] for name in names[5:]})
    return tmp_path


def _load(cache, path="", **changes):
    fields = {"name": "imagenet64", "valid_fraction": 0.1, "test_fraction": 0.1, "skip_bad_images": False}
    return load.load({"path": str(path), "cache_dir": str(cache)} | fields | changes, LENGTH)


def _assert_whole(data):
    np.testing.assert_array_equal(np.stack([data.train[i] for i in range(len(data.train))]), PIXELS[:5])
    np.testing.assert_array_equal(np.stack([data.valid[i] for i in range(len(data.valid))]), PIXELS[5:])
    assert len(data.test) == 0


def _forbid_preparation(monkeypatch):
    builder = importlib.import_module("reformer.data.imagenet64.imagenet64_builder")
    monkeypatch.setattr(builder, "prepare", lambda *_: pytest.fail("prepared again"))


def test_tars_are_prepared_in_order_without_tensorflow(cache):
    data = _load(cache)
    _assert_whole(data)
    assert data.description == (
        "train_8x8.tar and valid_8x8.tar, not those that were published: 5 train, 2 valid, 0 test images of 8x8"
    )


def test_prepared_images_are_used_without_the_tars(cache, monkeypatch):
    before = _load(cache)
    _forbid_preparation(monkeypatch)
    _assert_whole(_load(cache))
    for split in ("train", "valid"):
        (cache / "imagenet64" / f"{split}_8x8.tar").unlink()
    after = _load(cache)
    _assert_whole(after)
    assert (after.fingerprint, after.description) == (before.fingerprint, before.description)


def test_tars_are_read_from_another_folder(cache):
    (cache / "imagenet64").rename(cache / "elsewhere")
    _assert_whole(_load(cache, path=cache / "elsewhere"))


def test_published_tars_are_recognised_by_their_checksum(cache, monkeypatch):
    facts = {}
    for tar in (cache / "imagenet64").iterdir():
        facts[tar.name] = (tar.stat().st_size, hashlib.sha256(tar.read_bytes()).hexdigest())
    monkeypatch.setattr(imagenet64, "PUBLISHED", facts)
    assert _load(cache).description == "imagenet64: 5 train, 2 valid, 0 test images of 8x8"


def test_tars_of_the_published_size_need_the_published_checksum(cache, monkeypatch):
    size = (cache / "imagenet64" / "valid_8x8.tar").stat().st_size
    monkeypatch.setattr(imagenet64, "PUBLISHED", {"valid_8x8.tar": (size, "0" * 64)})
    with pytest.raises(ValueError, match=r"valid_8x8\.tar' .* is damaged: it has another checksum than the published"):
        _load(cache)


@pytest.mark.parametrize("skip_bad_images", [False, True])
def test_sizes_that_were_published_have_configs_of_their_own(tmp_path, skip_bad_images, caplog):
    module = importlib.import_module("reformer.data.imagenet64.imagenet64_builder")
    for side in (32, 64):
        config = module.make_builder(tmp_path, side, skip_bad_images).builder_config
        assert (config.side, config.skip_bad_images) == (side, skip_bad_images)
    assert not caplog.records


def test_records_can_be_sent_to_another_process(cache):
    train = pickle.loads(pickle.dumps(_load(cache).train))
    np.testing.assert_array_equal(train[3], PIXELS[3])


def test_training_batches_come_from_the_records(cache):
    data = _load(cache)
    batch = next(source.training_batches(data, length=LENGTH, batch_size=5, seed=0))
    expected = sorted(pixels.tobytes() for pixels in PIXELS[:5])
    assert sorted(images.to_picture(targets).tobytes() for targets in batch["targets"]) == expected
    assert data.baselines("valid", data.side**2 * 3)["left-neighbour counts"] > 0


@pytest.mark.parametrize("missing", [["train_8x8.tar"], ["train_8x8.tar", "valid_8x8.tar"]])
def test_missing_tars_are_named_with_where_to_place_them(cache, missing):
    for name in missing:
        (cache / "imagenet64" / name).unlink()
    there_is = "There is no " + " and no ".join(rf".*imagenet64/{name}" for name in missing)
    with pytest.raises(
        ValueError, match=rf"{there_is}\. .*no longer has .*academic torrent.*--config\.data\.name=images"
    ):
        _load(cache)
    assert not (cache / "tfds" / "imagenet64" / "8x8" / "1.0.0").exists()


@pytest.mark.parametrize("kept", [0, 1, 512, 5000])  # 512: the header of the folder, whole
def test_truncated_tars_are_refused_and_nothing_is_prepared(cache, kept):
    tar = cache / "imagenet64" / "train_8x8.tar"
    tar.write_bytes(tar.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train_8x8\.tar' .* is damaged: it lacks the end mark of a tar"):
        _load(cache)
    assert not list((cache / "tfds").rglob("*.array_record*"))


def test_tars_that_are_none_are_refused(cache):
    (cache / "imagenet64" / "valid_8x8.tar").write_bytes(b"x" * 3000 + bytes(1024))
    with pytest.raises(ValueError, match=r"valid_8x8\.tar' cannot be read .*Replace it"):
        _load(cache)


def test_tars_without_images_are_refused(cache):
    _write_tar(cache / "imagenet64" / "valid_8x8.tar", {"readme.txt": b"nothing", "._1.png": b"of a Mac"})
    with pytest.raises(ValueError, match=r"valid_8x8\.tar' holds no usable PNG file"):
        _load(cache)


@pytest.mark.parametrize(
    "bad",
    [b"no image", _png(np.zeros((9, 8, 3), np.uint8)), _png(PIXELS[0])[:150]],
    ids=["no image", "another size", "truncated"],
)
def test_bad_images_are_refused_by_name_or_left_out_and_counted(cache, bad):
    contents = {"1.png": _png(PIXELS[0]), "2.png": bad, "3.png": _png(PIXELS[1])}
    _write_tar(cache / "imagenet64" / "train_8x8.tar", contents)
    with pytest.raises(ValueError, match=r"train_8x8/2\.png of '.*train_8x8\.tar' cannot be used"):
        _load(cache)
    for _ in range(2):  # the second time from what was prepared
        data = _load(cache, skip_bad_images=True)
        np.testing.assert_array_equal(np.stack([data.train[i] for i in range(2)]), PIXELS[:2])
        assert "(1 bad images left out): 2 train, 2 valid" in data.description
    with pytest.raises(ValueError, match="cannot be used"):
        _load(cache)


def test_interrupted_preparation_is_not_taken_for_whole(cache, monkeypatch):
    decode, calls = image_files.decode, []

    def stop_at_the_sixth(*arguments):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(image_files, "decode", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        _load(cache)
    assert not list((cache / "tfds").rglob("*.array_record*"))
    monkeypatch.setattr(image_files, "decode", decode)
    _assert_whole(_load(cache))


def test_leftovers_of_a_killed_preparation_are_not_taken_for_whole(cache):
    _load(cache)
    (prepared,) = (cache / "tfds").rglob("1.0.0")
    prepared.rename(prepared.with_name("incomplete.ABCDEF_1.0.0"))
    _assert_whole(_load(cache))


@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_damaged_records_are_refused(cache, damage):
    _load(cache)
    (record,) = (cache / "tfds").rglob("*train.array_record*")
    record.unlink() if damage == "remove" else record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"The train split prepared in .* is damaged .*Remove that folder"):
        _load(cache)


def test_other_tars_than_were_prepared_are_refused(cache):
    _load(cache)
    with (cache / "imagenet64" / "train_8x8.tar").open("ab") as tar:
        tar.write(bytes(512))
    with pytest.raises(ValueError, match=r"train_8x8\.tar' holds .* but '.*1\.0\.0' was prepared from one of .*Remove"):
        _load(cache)


def test_cache_that_cannot_be_written_is_refused(cache):
    (cache / "tfds").write_bytes(b"a file")
    with pytest.raises(ValueError, match=r"cannot take imagenet64 .*--config\.data\.cache_dir"):
        _load(cache)


def test_other_tars_have_another_fingerprint(cache):
    before = _load(cache).fingerprint
    _write_tar(cache / "other" / "train_8x8.tar", {"1.png": _png(PIXELS[6])})
    _write_tar(cache / "other" / "valid_8x8.tar", {"1.png": _png(PIXELS[5])})
    assert _load(cache / "second", path=cache / "other").fingerprint != before


def test_the_published_sizes_are_known():
    assert imagenet64.PUBLISHED["train_64x64.tar"][0] == 12_112_588_800
    assert imagenet64.PUBLISHED["valid_64x64.tar"][0] == 477_255_680
