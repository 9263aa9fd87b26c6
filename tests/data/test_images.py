"""Images of folders and archives: splits, bad files, examples and pictures."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from reformer.data import image_files, images, load, source

SIDE, LENGTH = 8, 8 * 8 * 3


def _pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def _encode(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _write_folder(root, named):
    for name, content in named.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _write_archive(path, **splits):
    arrays = {}
    for split, contents in splits.items():
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(contents), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, contents)])
    np.savez(path, **arrays)
    return path


def _load(path, length=LENGTH, **changes):
    fields = {"name": "images", "cache_dir": "", "valid_fraction": 0.1, "test_fraction": 0.0, "skip_bad_images": False}
    return load.load({"path": str(path)} | fields | changes, length)


@pytest.fixture
def folder(tmp_path):
    """Three images to train on, two to validate and one to test, in folders of their own."""
    pixels = _pixels(6)
    names = [f"train/{i}.png" for i in range(3)] + ["valid/a.png", "valid/below/b.PNG", "test/c.png"]
    return _write_folder(tmp_path / "pictures", dict(zip(names, map(_encode, pixels), strict=True)))


@pytest.fixture
def data():
    """Seven images to train on, two to validate, none to test."""
    pixels = _pixels(9)
    return images.ImageData("made up", SIDE, pixels[:7], pixels[7:], pixels[:0], "print")


def test_folders_named_after_splits_are_the_splits(folder):
    data, pixels = _load(folder), _pixels(6)
    np.testing.assert_array_equal(data.train, pixels[:3])
    np.testing.assert_array_equal(data.valid, pixels[3:5])
    np.testing.assert_array_equal(data.test, pixels[5:])
    assert data.description == f"{folder}: 3 train, 2 valid, 1 test images of 8x8"


def test_other_folders_are_split_by_name_and_every_image_is_used_once(tmp_path):
    pixels = _pixels(40)
    named = {f"class{i % 3}/{i}.png": _encode(image) for i, image in enumerate(pixels)}
    _write_folder(tmp_path, named | {"labels.csv": b"", ".hidden/x.png": b"", "class0/.y.png": b""})
    data = _load(tmp_path, valid_fraction=0.2, test_fraction=0.1)
    splits = [data.train, data.valid, data.test]
    assert min(map(len, splits)) > 0
    assert sorted(image.tobytes() for split in splits for image in split) == sorted(image.tobytes() for image in pixels)
    (tmp_path / "class0" / "0.png").unlink()
    assert {image.tobytes() for image in _load(tmp_path, valid_fraction=0.2, test_fraction=0.1).valid} <= {
        image.tobytes() for image in data.valid
    }


@pytest.mark.parametrize("has_test", [True, False])
def test_archives_hold_images_at_offsets_and_perhaps_a_test_split(tmp_path, has_test):
    pixels = _pixels(6)
    contents = [_encode(image) for image in pixels]
    splits = {"train": contents[:3], "valid": contents[3:5]} | ({"test": contents[5:]} if has_test else {})
    data = _load(_write_archive(tmp_path / "a.npz", **splits))
    np.testing.assert_array_equal(data.train, pixels[:3])
    np.testing.assert_array_equal(data.valid, pixels[3:5])
    np.testing.assert_array_equal(data.test, pixels[5:] if has_test else pixels[:0])


def test_greyscale_and_palettes_become_rgb():
    grey = _pixels(1)[0, :, :, 0]
    palette = Image.fromarray(grey).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    for content in (_encode(grey), buffer.getvalue()):
        pixels = image_files.decode(io.BytesIO(content), SIDE)
        np.testing.assert_array_equal(pixels, np.repeat(grey[:, :, None], 3, axis=2))


BAD = {
    "another size": (_encode(np.zeros((9, 8, 3), np.uint8)), "it has 8x9 pixels, not 8x8"),
    "truncated": (_encode(_pixels(1)[0])[:150], "cannot be used: .*(truncated|Truncated)"),
    "truncated JPEG": (_encode(_pixels(1)[0], "JPEG")[:-40], "cannot be used: .*truncated"),
    "no image": (b"something else", "it is no image that Pillow reads"),
    "empty": (b"", "it is no image that Pillow reads"),
    "sixteen bits": (_encode(np.zeros((8, 8), np.uint16)), "more than 8 bits"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_by_name_or_left_out_and_counted(folder, kind):
    content, reason = BAD[kind]
    (folder / "train" / "1.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train/1\.png .*{reason}.*--config\.data\.skip_bad_images=True"):
        _load(folder)
    data = _load(folder, skip_bad_images=True)
    np.testing.assert_array_equal(data.train, _pixels(6)[[0, 2]])
    assert data.description == f"{folder} (1 bad images left out): 2 train, 2 valid, 1 test images of 8x8"


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_of_an_archive_are_refused_by_number_or_left_out(tmp_path, kind):
    content, reason = BAD[kind]
    good = [_encode(image) for image in _pixels(3)]
    path = _write_archive(tmp_path / "a.npz", train=[*good, content], valid=good)
    with pytest.raises(ValueError, match=rf"train image 3 of .*a\.npz .*{reason}"):
        _load(path)
    assert len(_load(path, skip_bad_images=True).train) == 3


def test_a_split_of_bad_images_only_is_refused(tmp_path):
    good = [_encode(image) for image in _pixels(2)]
    path = _write_archive(tmp_path / "a.npz", train=[b"x", b"y"], valid=good)
    with pytest.raises(ValueError, match=r"has no train image of 8x8; 2 bad ones were left out"):
        _load(path, skip_bad_images=True)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"train_offsets": np.array([0, 5, 3])},
        {"train_offsets": np.array([0, 3, 9])},
        {"train_offsets": np.array([-1, 3])},
        {"train_offsets": np.array([0.0, 3.0])},
        {"train_jpeg": np.zeros((2, 4), np.uint8)},
        {"train_jpeg": np.zeros(8, np.float32)},
    ],
)
def test_archives_of_another_layout_are_refused(tmp_path, arrays):
    whole = {"train_jpeg": np.zeros(8, np.uint8), "train_offsets": np.array([0, 8])} if arrays else {}
    np.savez(tmp_path / "a.npz", **(whole | arrays))
    with pytest.raises(ValueError, match=r"needs the arrays train_jpeg, uint8 \[bytes\], and train_offsets"):
        _load(tmp_path / "a.npz")


def test_files_that_are_no_archives_are_refused(tmp_path):
    path = _write_archive(tmp_path / "a.npz", train=[_encode(_pixels(1)[0])], valid=[_encode(_pixels(1)[0])])
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:300])
    (tmp_path / "picture.png").write_bytes(_encode(_pixels(1)[0]))
    for name in ("cut.npz", "picture.png"):
        with pytest.raises(ValueError, match=rf"{name}' cannot be read as .npz .*--config\.data\.path"):
            _load(tmp_path / name)


def test_missing_paths_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path='.*nothing' does not exist.*folder or an \.npz"):
        _load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"data\.path='' does not exist"):
        _load("")
    with pytest.raises(ValueError, match=r"holds 0 images \(\.bmp.*too few"):
        _load(tmp_path)


def test_training_folders_without_a_validation_folder_are_refused(tmp_path):
    _write_folder(tmp_path, {"train/a.png": _encode(_pixels(1)[0]), "b.png": _encode(_pixels(1)[0])})
    with pytest.raises(ValueError, match="has images in train/, but splits need train/ and valid/"):
        _load(tmp_path)


def test_impossible_fractions_are_refused(folder):
    with pytest.raises(ValueError, match=r"data\.valid_fraction=0\.0 must be a number above 0 and below 1"):
        _load(folder, valid_fraction=0.0)


@pytest.mark.parametrize("length", [0, 1, 191, 193, 64, 2 * LENGTH])
def test_lengths_of_no_square_image_are_refused(folder, length):
    with pytest.raises(ValueError, match=rf"length={length} is not side \* side \* 3.*--config\.data\.length"):
        _load(folder, length=length)


@pytest.mark.parametrize("use", ["training_examples", "num_examples", "example"])
def test_images_are_used_whole(data, use):
    arguments = {"training_examples": (96, 0), "num_examples": ("valid", 96), "example": ("valid", 0, 96)}[use]
    with pytest.raises(ValueError, match="length=96 must be the 192 values of an image of 8x8"):
        getattr(data, use)(*arguments)


def test_tokens_are_rows_of_pixels_of_red_green_and_blue(data):
    pixels = data.valid[1]
    targets = data.example("valid", 1, LENGTH).targets
    assert targets.dtype == np.int32
    row, column, channel = 5, 2, 1
    assert targets[(row * SIDE + column) * 3 + channel] == pixels[row, column, channel]
    np.testing.assert_array_equal(images.to_picture(targets), pixels)


def test_ids_that_are_no_values_are_black_in_pictures():
    tokens = np.full(LENGTH, 255, np.int32)
    tokens[[0, 5]] = [images.BEGIN_ID, 300]
    picture = images.to_picture(tokens)
    assert picture.dtype == np.uint8
    assert (picture[0, 0, 0], picture[0, 1, 2], picture.min(where=picture > 0, initial=255)) == (0, 0, 255)


def test_every_epoch_has_each_image_once_in_another_order(data):
    examples = data.training_examples(LENGTH, seed=3)
    epochs = [[examples[epoch * 7 + i].targets.tobytes() for i in range(7)] for epoch in range(3)]
    expected = sorted(image.astype(np.int32).tobytes() for image in data.train)
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_training_batches_resume_and_begin_with_the_begin_id(data):
    batches = source.training_batches(data, length=LENGTH, batch_size=2, seed=0)
    first, state, second = next(batches), batches.get_state(), next(batches)
    again = source.training_batches(data, length=LENGTH, batch_size=2, seed=0)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["tokens"], second["tokens"])
    np.testing.assert_array_equal(first["tokens"][:, 0], images.BEGIN_ID)
    np.testing.assert_array_equal(first["tokens"][:, 1:], first["targets"][:, :-1])


def test_evaluation_reads_the_images_in_order_once(data):
    batches = source.evaluation_batches(data, "valid", length=LENGTH, batch_size=4)
    (batch,) = batches
    np.testing.assert_array_equal(batch["targets"][:2].reshape(data.valid.shape), data.valid)
    assert batch["weights"].sum() == 2 * LENGTH
    with pytest.raises(ValueError, match="The test split holds no dims"):
        source.evaluation_batches(data, "test", length=LENGTH, batch_size=4)


def test_baseline_counts_evenly_spread_images(data, monkeypatch):
    (name,) = data.baselines("valid", data.side**2 * 3)
    assert name == "left-neighbour counts"
    monkeypatch.setattr(images, "_MAX_COUNTED", 2)
    few = images.ImageData("", SIDE, data.train[[0, 3]], data.valid, data.test, "")
    assert data.baselines("valid", data.side**2 * 3) == few.baselines("valid", few.side**2 * 3)


def test_fingerprint_changes_with_pixels_and_splits(tmp_path):
    contents = [_encode(image) for image in _pixels(6)]
    archives = [
        {"train": contents[:3], "valid": contents[3:]},
        {"train": contents[:4], "valid": contents[4:]},
        {"train": contents[1::-1], "valid": contents[3:]},
        {"train": contents[:3], "valid": contents[3:5], "test": contents[5:]},
    ]
    fingerprints = [
        _load(_write_archive(tmp_path / f"{i}.npz", **splits)).fingerprint for i, splits in enumerate(archives)
    ]
    assert len(set(fingerprints)) == 4
    assert _load(tmp_path / "0.npz").fingerprint == fingerprints[0]


def test_vocabulary_is_the_values_and_the_begin_id(data):
    assert images.ImageFiles().vocab_size == data.begin_id + 1 == 257


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)], ids=["colour", "alpha", "grey and alpha"])
def test_a_png_of_16_bits_is_refused_by_name_where_pillow_would_cut_it(kind, channels):
    rows = (b"\0" + b"\0\xff" * (channels * 4)) * 4
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    with pytest.raises(ValueError, match=r"its values have more than 8 bits"):
        image_files.decode(io.BytesIO(png), 4)


def _tiff_of_16_bits(size=4):
    pixels = struct.pack("<H", 40_000) * (3 * size * size)
    fields = {256: size, 257: size, 258: (3, 128 - 6), 259: 1, 262: 2, 273: 128, 277: 3, 278: size, 279: len(pixels)}
    entries = b"".join(
        struct.pack("<HHII", tag, 3, *(value if isinstance(value, tuple) else (1, value)))
        for tag, value in fields.items()
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + entries + struct.pack("<I", 0)
    return head + b"\0" * (128 - 6 - len(head)) + struct.pack("<3H", 16, 16, 16) + pixels


def test_a_colour_tiff_and_a_ppm_of_16_bits_are_refused_by_name():
    ppm = b"P6\n4 4\n65535\n" + struct.pack(">H", 40_000) * 48
    for encoded in (_tiff_of_16_bits(), ppm):
        assert Image.open(io.BytesIO(encoded)).mode == "RGB"
        with pytest.raises(ValueError, match=r"its values have more than 8 bits"):
            image_files.decode(io.BytesIO(encoded), 4)


def test_a_ppm_of_8_bits_is_read():
    ppm = b"P6\n4 4\n255\n" + bytes(range(48))
    np.testing.assert_array_equal(image_files.decode(io.BytesIO(ppm), 4).ravel(), np.arange(48))
