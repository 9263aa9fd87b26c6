"""enwik8 from local copies and through the TFDS builder, on a small stand-in."""

import gzip
import hashlib
import importlib
import threading
import urllib.error
import zipfile

import numpy as np
import pytest

from reformer.data import enwik8, preparation, text

CONTENT = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def small_enwik8(monkeypatch):
    """Makes `CONTENT` the enwik8 that is expected."""
    monkeypatch.setattr(enwik8, "SPLIT_BYTES", {"train": 9000, "validation": 500, "test": 500})
    monkeypatch.setattr(enwik8, "SHA256", hashlib.sha256(CONTENT).hexdigest())


def test_processes_prepare_one_after_the_other(tmp_path):
    order = []

    def prepare():
        with preparation.one_at_a_time(tmp_path / "cache"):
            order.append("second")

    second = threading.Thread(target=prepare)
    with preparation.one_at_a_time(tmp_path / "cache"):
        second.start()
        second.join(timeout=0.3)
        order.append("first")
    second.join()
    assert order == ["first", "second"]


@pytest.fixture
def builder(monkeypatch):
    """The module of the TFDS builder, with records so small that each split has several."""
    module = importlib.import_module("reformer.data.enwik8.enwik8_builder")
    monkeypatch.setattr(module, "_RECORD_BYTES", 300)
    return module


def _write_zip(path, content, name="enwik8"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def _write_copy(folder, kind, content):
    path = folder / f"copy.{kind}"
    if kind == "zip":
        return _write_zip(path, content)
    path.write_bytes(gzip.compress(content) if kind == "gz" else content)
    return path


def _assert_usual_split(splits):
    assert [split.tobytes() for split in splits] == [CONTENT[:9000], CONTENT[9000:9500], CONTENT[9500:]]


@pytest.mark.parametrize("kind", ["raw", "zip", "gz"])
def test_local_copy_is_split_and_mapped(tmp_path, kind):
    path = _write_copy(tmp_path, kind, CONTENT)
    data = text.Enwik8(path=str(path), cache_dir=str(tmp_path / "cache"), repeat_distance=64).load(8)
    _assert_usual_split((data.train, data.valid, data.test))
    assert isinstance(data.train, np.memmap)
    assert {file.name for file in (tmp_path / "cache").iterdir()} == {"enwik8.bin", "preparing.lock"}


def test_cached_bytes_are_used_without_the_copy(tmp_path):
    enwik8.read_enwik8(str(_write_copy(tmp_path, "raw", CONTENT)), tmp_path)
    _assert_usual_split(enwik8.read_enwik8("", tmp_path)[1])


def test_damaged_cache_is_replaced(tmp_path):
    path = str(_write_copy(tmp_path, "raw", CONTENT))
    (tmp_path / "enwik8.bin").write_bytes(bytes(10_000))
    _assert_usual_split(enwik8.read_enwik8(path, tmp_path)[1])


@pytest.mark.parametrize("kind", ["raw", "zip", "gz"])
@pytest.mark.parametrize(
    ("content", "found"),
    [(CONTENT[:-1], "holds 9,999 bytes"), (CONTENT + b"x", "more than 10,000"), (bytes(10_000), "sha256 95b532cc4381")],
)
def test_other_content_is_refused_and_nothing_is_cached(tmp_path, kind, content, found):
    path = str(_write_copy(tmp_path, kind, content))
    with pytest.raises(ValueError, match=rf"is not enwik8: .*{found}.*--config\.data\.path.*configs/text\.py"):
        enwik8.read_enwik8(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_truncated_archive_is_refused(tmp_path, kind):
    path = _write_copy(tmp_path, kind, CONTENT)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cannot be read as enwik8.*--config\.data\.path"):
        enwik8.read_enwik8(str(path), tmp_path / "cache")


def test_archive_of_something_else_is_refused(tmp_path):
    path = _write_zip(tmp_path / "text8.zip", CONTENT, name="text8")
    with pytest.raises(ValueError, match=r"cannot be read as enwik8 .*no item named 'enwik8'"):
        enwik8.read_enwik8(str(path), tmp_path / "cache")


def test_missing_copy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path='.*enwik9' is not a file.*--config\.data\.path"):
        enwik8.read_enwik8(str(tmp_path / "enwik9"), tmp_path / "cache")


def test_cache_that_cannot_be_written_is_refused(tmp_path):
    path = _write_copy(tmp_path, "raw", CONTENT)
    with pytest.raises(ValueError, match=r"data\.cache_dir=.* cannot take enwik8.*--config\.data\.cache_dir"):
        enwik8.read_enwik8(str(path), path / "below_a_file")


def test_missing_connection_says_at_once_where_to_place_the_file(tmp_path, builder, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(enwik8.urllib.request, "urlopen", refuse)
    with pytest.raises(ValueError, match=r"cannot be reached.*--config\.data\.path, or place it at '.*enwik8\.zip'"):
        enwik8.read_enwik8("", tmp_path)


def test_builder_prepares_the_usual_split_without_tensorflow(tmp_path, builder, monkeypatch):
    archive = _write_zip(tmp_path / "enwik8.zip", CONTENT).read_bytes()
    (url_info,) = builder.Enwik8.url_infos.values()
    expected = type(url_info)(size=len(archive), checksum=hashlib.sha256(archive).hexdigest(), filename="enwik8.zip")
    monkeypatch.setattr(builder.Enwik8, "url_infos", {enwik8.URL: expected})
    _assert_usual_split(enwik8.read_enwik8("", tmp_path)[1])
    prepared = builder.Enwik8(data_dir=tmp_path / "tfds", file_format="array_record")
    assert {name: split.num_examples for name, split in prepared.info.splits.items()} == {
        "train": 30,
        "validation": 2,
        "test": 2,
    }


def test_builder_refuses_another_archive_in_the_cache(tmp_path, builder):
    _write_zip(tmp_path / "enwik8.zip", CONTENT)  # not the archive that checksums.tsv names
    with pytest.raises(ValueError, match=r"enwik8\.zip' is not enwik8\. Replace it, .*--config\.data\.path"):
        enwik8.read_enwik8("", tmp_path)


def test_builder_names_the_published_archive(builder):
    (url_info,) = builder.Enwik8.url_infos.values()
    assert (url_info.size, url_info.filename) == (36_445_475, "enwik8.zip")
    assert url_info.checksum == "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
    assert list(builder.Enwik8.url_infos) == [enwik8.URL]
