"""Labelled windows: which label, how many, from which files."""

import numpy as np
import pytest

from reformer.data import documents, source
from reformer.data.packages import Packages

FRACTIONS = (0.2, 0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three folders of ten files of 100 equal bytes, 'a' .. 'c', and a file beside them."""
    root = tmp_path_factory.mktemp("folders")
    (root / "beside.txt").write_bytes(b"x" * 10_000)
    for name in "cab":
        (root / name).mkdir()
        for number in range(10):
            (root / name / str(number)).write_bytes(name.encode() * 100)
    return root


def _config(path, **changes):
    valid_fraction, test_fraction = FRACTIONS
    fields = {"path": str(path), "examples_per_label": 5, "valid_fraction": valid_fraction}
    return Packages(**(fields | {"test_fraction": test_fraction} | changes))


@pytest.fixture(scope="module")
def data(folder):
    return _config(folder).load(8)


def test_folders_are_labels_in_the_order_of_their_names(data):
    assert data.labels == ("a", "b", "c")
    assert isinstance(data, source.Source)
    assert data.description.startswith("5 windows of each of 3 folders in ")


def test_every_label_has_as_many_training_windows_each_once_per_epoch(data):
    (epoch,) = [next(source.training_batches(data, length=16, batch_size=15, seed=0))]
    assert epoch["tokens"].shape == (15, 16) and epoch["targets"].shape == (15,)
    np.testing.assert_array_equal(np.bincount(epoch["targets"]), [5, 5, 5])
    is_of_label = epoch["tokens"] == ord("a") + epoch["targets"][:, None]
    assert (is_of_label | (epoch["tokens"] == 0)).all() and is_of_label.mean() > 0.9


def test_epochs_have_other_orders_and_a_seed_repeats_them(data):
    def order(seed):
        batches = source.training_batches(data, length=16, batch_size=15, seed=seed)
        return [next(batches)["targets"] for _ in range(2)]

    (first, second), again = order(0), order(0)
    assert (first != second).any()
    np.testing.assert_array_equal([first, second], again)


def test_files_are_held_out_as_text_holds_them_out(folder, data):
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for split, names in documents.assign_files(sizes, *FRACTIONS).items():
        for label, text in zip(data.labels, data.texts, strict=True):
            num_files = sum(name.startswith(f"{label}/") for name in names)
            assert (text[split] > 0).sum() == 100 * num_files


def test_held_out_windows_lie_side_by_side_and_a_short_text_gives_a_short_one(folder, data):
    lengths = [len(text["valid"]) for text in data.texts]
    examples = [data.example("valid", i, 64) for i in range(data.num_examples("valid", 64))]
    assert [sum(e.label == label for e in examples) for label in range(3)] == [size // 64 for size in lengths]
    long = [data.example("valid", i, 5000) for i in range(data.num_examples("valid", 5000))]
    assert [len(e.tokens) for e in long] == [size for size in lengths if size]


def test_not_more_than_a_hundred_windows_of_a_label_are_evaluated(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / str(number)).write_bytes(bytes(range(1, 251)) * 4)
    data = _config(tmp_path).load(8)
    windows = [data.example("valid", i, 2) for i in range(data.num_examples("valid", 2))]
    assert np.bincount([example.label for example in windows]).max() == 100


def test_padded_rows_have_a_weight_for_the_window_and_a_mask(data):
    (batch,) = source.evaluation_batches(data, "valid", length=5000, batch_size=4)
    count = data.num_examples("valid", 5000)
    np.testing.assert_array_equal(batch["weights"], [1.0] * count + [0.0] * (4 - count))
    assert batch["mask"].sum() == sum(len(text["valid"]) for text in data.texts)
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32,
        "targets": np.int32,
        "weights": np.float32,
        "mask": bool,
    }


def test_guessing_costs_the_logarithm_of_the_number_of_labels(data):
    assert data.baselines("valid", 16) == {"guessing": np.log2(3)}
    assert source.accuracies(data, "valid", 16) == {"guessing": 1 / 3}


def test_the_fingerprint_changes_with_the_content(folder, data, tmp_path):
    assert _config(folder).load(8).fingerprint == data.fingerprint
    assert _config(folder, examples_per_label=6).load(8).fingerprint != data.fingerprint


def test_the_twenty_largest_packages_of_the_standard_library_are_the_labels():
    data = _config("", examples_per_label=50, valid_fraction=0.1, test_fraction=0.1).load(8)
    assert len(data.labels) == 20 and {"asyncio", "email", "encodings"} < set(data.labels)
    assert data.num_examples("train", 256) == 1000 and data.num_examples("valid", 256) > 300


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/folder", r"data\.path='no/such/folder' is no folder"),
        ("{root}/a", "holds 0 folders with files to train on, fewer than 2"),
        ("{root}/a/1", "is no folder"),
    ],
)
def test_a_folder_without_labels_is_refused(folder, path, message):
    with pytest.raises(ValueError, match=message):
        _config(path.format(root=folder)).load(8)


def test_windows_longer_than_a_folder_are_refused_with_its_name(data):
    with pytest.raises(ValueError, match=r"length=2000 exceeds the \d+ bytes of 'a'.*--config\.data\.length"):
        data.training_examples(2000, 0)
