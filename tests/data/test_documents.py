"""Files and folders as splits of bytes."""

import itertools

import numpy as np
import pytest

from reformer.data import documents


def _write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def _contents(split):
    return set(split.tobytes().split(documents.SEPARATOR))


def test_standard_library_is_read_without_its_tests_and_installed_packages():
    source, splits = documents.read_stdlib(0.05, 0.05)
    assert source.startswith("standard library of Python 3.")
    train, valid, test = splits
    assert len(train) > 5_000_000
    assert 0.01 < len(valid) / len(train) < 0.2
    assert 0.01 < len(test) / len(train) < 0.2
    everything = b"".join(split.tobytes() for split in splits)
    assert b"class JSONDecoder(object):" in everything
    assert b"class TestCase(object):" in everything  # unittest is a library, not a test
    assert b"class ReformerConfig" not in everything
    assert b"support.run_unittest" not in everything


def test_standard_library_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match=r"without the sources.*configs/text\.py and --config\.data\.path"):
        documents.read_stdlib(0.1, 0.0)


def test_file_is_mapped_and_cut_in_order(tmp_path):
    path = _write(tmp_path, {"book": bytes(range(100))}) + "/book"
    _, (train, valid, test) = documents.read_path(path, 0.1, 0.2)
    assert isinstance(train, np.memmap)
    assert (train.tobytes(), valid.tobytes()) == (bytes(range(70)), bytes(range(70, 80)))
    assert test.tobytes() == bytes(range(80, 100))


def test_no_test_fraction_means_no_test_bytes(tmp_path):
    path = _write(tmp_path, {"book": bytes(range(100))}) + "/book"
    assert len(documents.read_path(path, 0.1, 0.0)[1][2]) == 0


def test_folder_is_split_by_file_with_separators_between_documents(tmp_path):
    files = {f"part{i % 3}/{i}.txt": f"document {i}".encode() for i in range(60)}
    source, splits = documents.read_path(_write(tmp_path, files), 0.2, 0.1)
    assert source.endswith("60 files")
    contents = [_contents(split) for split in splits]
    assert set.union(*contents) == set(files.values())
    assert sum(map(len, contents)) == 60
    for split in splits:
        assert split[0] != 0
        assert split[-1] != 0


def test_hidden_and_empty_files_are_left_out(tmp_path):
    files = {"a": b"1", "b": b"2", "c": b"3", "empty": b"", ".hidden": b"4", ".git/config": b"5"}
    _, splits = documents.read_path(_write(tmp_path, files), 0.3, 0.3)
    assert sorted(split.tobytes() for split in splits) == [b"1", b"2", b"3"]


def test_files_stay_in_their_split_when_others_come_or_a_test_is_held_out():
    sizes = {f"{i}.txt": 10 for i in range(200)}
    before = documents.assign_files(sizes, 0.2, 0.1)
    after = documents.assign_files(sizes | {f"new{i}": 10 for i in range(50)}, 0.2, 0.1)
    assert all(set(before[split]) <= set(after[split]) for split in before)
    assert documents.assign_files(sizes, 0.2, 0.0)["valid"] == before["valid"]


def test_assignment_does_not_depend_on_the_order_of_the_files():
    names = [f"{i}.txt" for i in range(20)]
    forward, backward = (
        documents.assign_files(dict.fromkeys(order, 1), 0.2, 0.1) for order in (names, reversed(names))
    )
    assert forward == backward


@pytest.mark.parametrize(("valid_fraction", "test_fraction"), [(1e-9, 1e-9), (0.5, 0.499999), (1e-9, 0.0)])
def test_every_wanted_split_gets_a_file_and_train_the_largest(valid_fraction, test_fraction):
    sizes = {"large": 1000, "medium": 100, "small": 10}
    splits = documents.assign_files(sizes, valid_fraction, test_fraction)
    assert "large" in splits["train"]
    assert splits["valid"]
    assert bool(splits["test"]) == (test_fraction > 0)
    assert sorted(itertools.chain(*splits.values())) == sorted(sizes)


def test_folder_with_fewer_files_than_splits_is_cut_like_one_file(tmp_path):
    root = _write(tmp_path, {"a": b"a" * 50, "b": b"b" * 49})
    _, splits = documents.read_path(root, 0.1, 0.1)
    assert b"".join(split.tobytes() for split in splits) == b"a" * 50 + documents.SEPARATOR + b"b" * 49
    assert [len(split) for split in splits] == [80, 10, 10]


@pytest.mark.parametrize("content", [b"", b"ab"])
def test_file_too_small_to_split_is_refused(tmp_path, content):
    path = _write(tmp_path, {"book": content}) + "/book"
    with pytest.raises(ValueError, match=rf"holds {len(content)} bytes, too few.*--config\.data\.path"):
        documents.read_path(path, 0.1, 0.1)


def test_folder_without_content_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no files with content.*--config\.data\.path"):
        documents.read_path(_write(tmp_path, {"empty": b""}), 0.1, 0.1)


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = _write(tmp_path, {"book": b"text"}) + "/book"
    monkeypatch.setattr(documents.np, "memmap", refuse)
    with pytest.raises(ValueError, match=r"cannot be read.*Permission denied.*--config\.data\.path"):
        documents.read_path(path, 0.1, 0.1)


MARK = b"\xef\xbb\xbf"  # byte order mark of UTF-8


def test_byte_order_marks_are_no_part_of_the_text_and_ends_of_lines_are(tmp_path):
    text = b"one\r\ntwo\rthree\n" + MARK + b" inside stays" * 10
    _, splits = documents.read_path(_write(tmp_path, {"book": MARK + text}) + "/book", 0.1, 0.1)
    assert b"".join(split.tobytes() for split in splits) == text
    folder = _write(tmp_path / "folder", {f"{i}.txt": MARK + b"%d\r\n" % i for i in range(20)})
    _, splits = documents.read_path(folder, 0.2, 0.1)
    assert set.union(*map(_contents, splits)) == {b"%d\r\n" % i for i in range(20)}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-32-be"])
def test_text_in_utf_16_is_refused_by_name(tmp_path, encoding):
    content = ("\ufeff" * encoding.endswith("be") + "text " * 20).encode(encoding)
    root = _write(tmp_path, {"folder/book.txt": content, "folder/other.txt": b"text"})
    for path in (f"{root}/folder/book.txt", f"{root}/folder"):
        with pytest.raises(ValueError, match=r"folder/book.txt' begins with the byte order mark of UTF-16 .* iconv -f"):
            documents.read_path(path, 0.1, 0.0)
