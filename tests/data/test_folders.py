"""The walk of a folder: links are followed, and it ends."""

import os

import numpy as np
import pytest
from PIL import Image

from reformer.data import documents, folders, images, labelled_images, packages


def _write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def _link(link, target):
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def _write_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name)


def test_links_to_files_and_folders_are_followed_by_their_names(tmp_path):
    _write(tmp_path / "elsewhere", "a.txt", "deep/b.txt", ".hidden/c.txt")
    root = _write(tmp_path / "root", "own.txt")
    _link(root / "file.txt", tmp_path / "elsewhere" / "a.txt")
    _link(root / "linked", tmp_path / "elsewhere")
    _link(root / ".unseen", tmp_path / "elsewhere")
    assert folders.file_sizes(root) == {"file.txt": 5, "linked/a.txt": 5, "linked/deep/b.txt": 10, "own.txt": 7}


def test_links_that_lead_back_are_not_walked_again(tmp_path):
    root = _write(tmp_path / "above" / "root", "a/one", "b/two")
    _link(root / "self", ".")
    _link(root / "a" / "parent", "..")
    _link(root / "a" / "above", tmp_path / "above")
    _link(root / "a" / "to_b", root / "b")
    _link(root / "b" / "to_a", root / "a")
    assert set(folders.file_sizes(root)) == {"a/one", "a/to_b/two", "b/two", "b/to_a/one"}
    assert set(folders.file_sizes(root / "self")) == {"a/one", "a/to_b/two", "b/two", "b/to_a/one"}


def test_suffixes_are_meant_in_any_case_and_only_files_are_found(tmp_path):
    root = _write(tmp_path, "a.PNG", "b.png", "c.txt", "d.png/e.txt")
    os.mkfifo(root / "f.png")
    assert set(folders.file_sizes(root, (".png",))) == {"a.PNG", "b.png"}


@pytest.mark.parametrize(("target", "reason"), [("nothing", "No such file"), ("link", "Too many levels")])
def test_a_link_that_leads_nowhere_is_refused_by_name(tmp_path, target, reason):
    root = _write(tmp_path, "a")
    _link(root / "link", root / target)
    with pytest.raises(ValueError, match=rf"cannot be read \(.*{reason}.*/link'\)\. .*link that leads nowhere"):
        folders.file_sizes(root)


def test_text_behind_links_is_read(tmp_path):
    _write(tmp_path / "elsewhere", *(f"{i}.txt" for i in range(20)))
    _link(tmp_path / "root" / "linked", tmp_path / "elsewhere")
    source, splits = documents.read_path(str(tmp_path / "root"), 0.2, 0.1)
    assert source.endswith("root, 20 files")
    read = documents.SEPARATOR.join(split.tobytes() for split in splits).split(documents.SEPARATOR)
    assert sorted(read) == sorted(b"%d.txt" % i for i in range(20))


def test_a_file_with_two_names_is_read_once_by_the_one_that_is_no_link(tmp_path):
    root = _write(tmp_path / "root", "b/one", "two")
    _write(tmp_path / "elsewhere", "three")
    _link(root / "a", root / "b")
    _link(root / "also_two", root / "two")
    _link(root / "c", tmp_path / "elsewhere")
    _link(root / "d", tmp_path / "elsewhere")
    sizes = documents.with_content(root, folders.file_sizes(root))
    assert sizes == {"b/one": 5, "two": 3, "c/three": 5}
    assert documents.read_path(str(root), 0.2, 0.1)[0].endswith("root, 3 files")


def test_linked_folders_are_labels_of_text(tmp_path):
    for label in "ab":
        _write(tmp_path / "elsewhere" / label, *map(str, range(10)))
        _link(tmp_path / "root" / f"linked_{label}", tmp_path / "elsewhere" / label)
    data = packages.Packages(
        path=str(tmp_path / "root"), valid_fraction=0.2, test_fraction=0.0, examples_per_label=2
    ).load(8)
    assert data.labels == ("linked_a", "linked_b")


@pytest.mark.parametrize("linked", ["train", "train/ant", "valid"])
def test_linked_splits_and_labels_of_images_are_read(tmp_path, linked):
    root = tmp_path / "root"
    names = [f"{split}/{label}/{i}.png" for split in ("train", "valid") for label in ("ant", "bee") for i in range(2)]
    _write_images(root, *names)
    (root / linked).rename(tmp_path / "elsewhere")
    _link(root / linked, tmp_path / "elsewhere")
    data = labelled_images.LabelledImageFiles(path=str(root), valid_fraction=0.2, test_fraction=0.0).load(192)
    assert (data.train.labels.tolist(), data.valid.labels.tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])
    assert data.label_names == ["ant", "bee"]
    found = images.find(str(root), (0.2, 0.0))
    assert sorted(name for files in found.values() for name, _ in files.named) == sorted(str(root / n) for n in names)


def test_a_link_that_leads_nowhere_is_left_out_of_what_the_user_did_not_choose(tmp_path):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").symlink_to(tmp_path / "nowhere.py")
    assert folders.file_sizes(tmp_path, leave_out_broken_links=True) == {"a.py": 1}
    with pytest.raises(ValueError, match="remove a link that leads nowhere"):
        folders.file_sizes(tmp_path)
