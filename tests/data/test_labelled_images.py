"""Labelled images of folders, archives and a package: labels stay with their images, and training images vary."""

import io

import numpy as np
import pytest
from PIL import Image

from reformer.data import load, source
from reformer.data.labelled_images import Augmentation, LabelledImage, LabelledImages, Split

SIDE, LENGTH = 8, 8 * 8 * 3
UNCHANGED = Augmentation(random_flip=False, crop_padding=0)


def _pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def _encode(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write_folder(root, names, pixels):
    for name, image in zip(names, pixels, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_encode(image))
    return root


def _write_archive(path, labels, **changes):
    arrays = {}
    for split, of_split in labels.items():
        contents = [_encode(image) for image in _pixels(len(of_split), seed=len(arrays))]
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(contents), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, contents)])
        arrays[f"{split}_labels"] = np.array(of_split, np.int16)
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def _load(path, length=LENGTH, **changes):
    fields = {"name": "labelled_images", "valid_fraction": 0.2, "test_fraction": 0.0, "skip_bad_images": False}
    fields |= {"random_flip": False, "crop_padding": 0}
    return load.load({"path": str(path)} | fields | changes, length)


def _data(augmentation=UNCHANGED, num_train=6):
    pixels = _pixels(num_train + 2)
    train, valid = Split(pixels[:-2], np.arange(num_train) % 3), Split(pixels[-2:], np.array([2, 0]))
    return LabelledImages("made up", train, valid, Split(pixels[:0], np.zeros(0, int)), augmentation)


def test_the_folder_below_the_split_is_the_label(tmp_path):
    names = ["train/cat/b.png", "train/ant/a.png", "train/cat/deep/c.png", "valid/cat/d.png", "test/ant/e.png"]
    pixels = _pixels(5)
    data = _load(_write_folder(tmp_path, names, pixels))
    assert data.label_names == ["ant", "cat"]
    np.testing.assert_array_equal(data.train.pixels, pixels[[1, 0, 2]])
    assert (data.train.labels.tolist(), data.valid.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 1], [1], [0])
    assert data.description == f"{tmp_path}: 3 train, 1 valid, 1 test images of 8x8, 2 labels"


def test_without_folders_of_splits_the_first_folder_is_the_label(tmp_path):
    pixels = _pixels(60)
    names = [f"{'xyz'[i % 3]}/{i}.png" for i in range(60)]
    data = _load(_write_folder(tmp_path, names, pixels))
    assert min(len(data.train), len(data.valid)) > 0 and len(data.train) + len(data.valid) == 60
    label_of = {image.tobytes(): i % 3 for i, image in enumerate(pixels)}
    for split in (data.train, data.valid):
        assert [label_of[image.tobytes()] for image in split.pixels] == split.labels.tolist()


def test_archives_hold_the_numbers_of_the_labels(tmp_path):
    data = _load(_write_archive(tmp_path / "a.npz", {"train": [4, 0, 2], "valid": [2, 4]}))
    assert (data.train.labels.tolist(), data.valid.labels.tolist(), len(data.test)) == ([4, 0, 2], [2, 4], 0)
    assert (data.num_labels, data.label_names) == (5, None)
    np.testing.assert_array_equal(data.train.pixels, _pixels(3))


def test_a_bad_image_is_left_out_together_with_its_label(tmp_path):
    names = [f"{split}/{label}/{i}.png" for split in ("train", "valid") for i, label in enumerate("abc")]
    _write_folder(tmp_path, names, _pixels(6))
    (tmp_path / "train/b/1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/b/1\.png cannot be used"):
        _load(tmp_path)
    data = _load(tmp_path, skip_bad_images=True)
    assert data.train.labels.tolist() == [0, 2]
    np.testing.assert_array_equal(data.train.pixels, _pixels(6)[[0, 2]])
    assert "(1 bad images left out)" in data.description


def test_images_without_a_folder_of_a_label_are_refused(tmp_path):
    _write_folder(tmp_path, ["train/a.png", "valid/x/b.png"], _pixels(2))
    with pytest.raises(ValueError, match=r"train/a\.png lies in no folder that names its label.*FOLDER/train/LABEL/"):
        _load(tmp_path)


def test_a_label_that_only_validation_has_is_refused(tmp_path):
    _write_folder(tmp_path, ["train/x/a.png", "valid/x/b.png", "valid/y/c.png"], _pixels(3))
    with pytest.raises(ValueError, match=r"has valid images in the folder 'y' and none to train on"):
        _load(tmp_path)


def test_a_split_of_images_of_another_size_is_refused(tmp_path):
    _write_folder(tmp_path, ["train/x/a.png", "valid/x/b.png"], _pixels(2))
    with pytest.raises(ValueError, match=r"or choose another size by --config\.task\.image_size\."):
        _load(tmp_path, length=16 * 16 * 3)
    with pytest.raises(
        ValueError, match=r"has no train image of 16x16 \(2 bad images left out\).*config.task.image_size"
    ):
        _load(tmp_path, length=16 * 16 * 3, skip_bad_images=True)


@pytest.mark.parametrize(
    "labels", [None, np.zeros(2, int), np.zeros(4, int), np.zeros((3, 1), int), np.zeros(3), np.array(["a", "b", "c"])]
)
def test_archives_without_an_integer_for_each_image_are_refused(tmp_path, labels):
    path = _write_archive(tmp_path / "a.npz", {"train": [0, 1, 2], "valid": [0]}, train_labels=labels)
    with pytest.raises(ValueError, match="needs the array train_labels with an integer for each of the 3 images"):
        _load(path)


@pytest.mark.parametrize(("labels", "found"), [([0, 7, 3], "train image 1 is 7"), ([0, 1, -1], "train image 2 is -1")])
def test_a_label_out_of_range_is_refused_with_its_image(tmp_path, labels, found):
    data = _load(_write_archive(tmp_path / "a.npz", {"train": labels, "valid": [1]}))
    with pytest.raises(ValueError, match=rf"the label of {found}, but config\.task\.num_labels=5.*from 0 to 4"):
        data.check_labels(5)
    _load(_write_archive(tmp_path / "b.npz", {"train": [0, 4], "valid": [1]})).check_labels(5)


def test_the_digits_are_there_without_a_download():
    data = _load("", name="digits", test_fraction=0.2)
    assert data.description == "digits of scikit-learn: 1,079 train, 359 valid, 359 test images of 8x8, 10 labels"
    assert (data.train.pixels.min(), data.train.pixels.max()) == (0, 255)
    np.testing.assert_array_equal(np.unique(data.valid.labels), np.arange(10))
    np.testing.assert_array_equal(data.train.pixels[..., 0], data.train.pixels[..., 2])
    with pytest.raises(ValueError, match=r"digits have 8x8 pixels, not 16x16\. Set --config\.task\.image_size=8"):
        _load("", name="digits", length=16 * 16 * 3)


def _changed(augmentation, count):
    """One image, changed `count` times."""
    pixels = _pixels(1)[0]
    rngs = [np.random.default_rng(seed) for seed in range(count)]
    return pixels, [augmentation.random_map(LabelledImage(pixels, 3), rng) for rng in rngs]


def test_flipping_gives_the_image_and_its_mirror_image_about_equally_often():
    pixels, changed = _changed(Augmentation(random_flip=True, crop_padding=0), 60)
    is_same = [np.array_equal(example.pixels, pixels) for example in changed]
    is_mirrored = [np.array_equal(example.pixels, pixels[:, ::-1]) for example in changed]
    assert sum(is_same) + sum(is_mirrored) == 60 and 20 < sum(is_same) < 40
    assert {example.label for example in changed} == {3}


@pytest.mark.parametrize("padding", [1, 3, SIDE - 2])
def test_cropping_cuts_every_place_of_the_image_with_its_mirrored_margin(padding):
    pixels, changed = _changed(Augmentation(random_flip=False, crop_padding=padding), 400)
    padded = np.pad(pixels, [(padding, padding), (padding, padding), (0, 0)], mode="reflect")
    count = 2 * padding + 1
    crops = {padded[i : i + SIDE, j : j + SIDE].tobytes(): (i, j) for i in range(count) for j in range(count)}
    places = [crops[example.pixels.tobytes()] for example in changed]
    assert {i for i, _ in places} == {j for _, j in places} == set(range(count))


def test_nothing_changes_without_augmentation():
    pixels, changed = _changed(UNCHANGED, 5)
    assert all(np.array_equal(example.pixels, pixels) for example in changed)


def test_every_epoch_has_each_image_once_changed_in_another_way():
    data = _data(Augmentation(random_flip=True, crop_padding=3))
    examples = data.training_examples(16, seed=1)
    epochs = [[examples[epoch * 6 + i] for i in range(6)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(example.label for example in epoch) == [0, 0, 1, 1, 2, 2]
    assert len({example.pixels.tobytes() for epoch in epochs for example in epoch}) > 12
    plain = _data().training_examples(16, seed=1)
    assert len({plain[i].pixels.tobytes() for i in range(18)}) == 6


def test_the_same_seed_changes_images_alike_and_a_resumed_run_goes_on():
    def batches(seed):
        return source.training_batches(
            _data(Augmentation(True, 2)), length=16, batch_size=2, seed=seed, process_index=0, process_count=1
        )

    one, other = batches(5), batches(5)
    first = next(one)
    assert first["images"].shape == (2, SIDE, SIDE, 3) and first["targets"].dtype == np.int32
    assert sorted(first) == ["images", "targets"]
    np.testing.assert_array_equal(first["images"], next(other)["images"])
    assert not np.array_equal(first["images"], next(batches(6))["images"])
    state, expected = one.get_state(), next(one)
    resumed = batches(5)
    resumed.set_state(state)
    for name, array in next(resumed).items():
        np.testing.assert_array_equal(array, expected[name])


def test_evaluation_reads_every_image_once_as_it_is():
    data = _data(Augmentation(True, 3))
    (batch,) = source.evaluation_batches(data, "valid", length=16, batch_size=3)
    np.testing.assert_array_equal(batch["images"][:2], data.valid.pixels)
    assert (batch["targets"].tolist(), batch["weights"].tolist()) == ([2, 0, 0], [1, 1, 0])


def test_the_baseline_is_the_entropy_of_the_labels():
    data = _data(num_train=9)
    assert data.baselines("valid", 16) == {"label counts": pytest.approx(np.log2(3))}
    assert source.accuracies(data, "valid", 16) == {"label counts": 0.5}


def test_the_fingerprint_changes_with_pixels_labels_and_splits(tmp_path):
    labels = [{"train": [0, 1], "valid": [1]}, {"train": [1, 0], "valid": [1]}, {"train": [0], "valid": [1, 1]}]
    found = [_load(_write_archive(tmp_path / f"{i}.npz", of)).fingerprint for i, of in enumerate(labels)]
    assert len(set(found)) == 3
    assert _load(tmp_path / "0.npz").fingerprint == found[0]
