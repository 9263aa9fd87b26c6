"""Loading text, and the windows it is cut into."""

import numpy as np
import pytest

from reformer.data import load, source, text

PROSE = bytes(range(1, 251)) * 8  # 2000 bytes


def _config(**changes):
    defaults = {
        "name": "text",
        "path": "",
        "cache_dir": "",
        "valid_fraction": 0.1,
        "test_fraction": 0.05,
        "repeat_distance": 128,
        "text_field": "",
    }
    return defaults | changes


def _data(train=PROSE, valid=b"", test=b""):
    return text.TextData("a test", *(np.frombuffer(split, np.uint8) for split in (train, valid, test)))


def _take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_bytes_keep_their_value_and_reserved_ids_vanish_in_decoding():
    every_byte = bytes(range(256))
    tokens = text.encode(every_byte)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, np.arange(256))
    reserved = [text.PADDING_ID, text.BEGIN_ID, text.MASK_ID]
    assert sorted(reserved) == list(range(256, text.VOCAB_SIZE))
    assert text.decode(np.concatenate([tokens, reserved])) == every_byte


def test_load_cuts_a_file_and_describes_it(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(PROSE)
    data = load.load(_config(path=str(path)), 8)
    assert b"".join(split.tobytes() for split in (data.train, data.valid, data.test)) == PROSE
    assert data.description == f"{path}: 1,700 train, 200 valid, 100 test bytes"


def test_fingerprint_changes_with_the_content_and_with_the_split():
    fingerprints = {
        _data(b"abc", b"d").fingerprint,
        _data(b"abd", b"d").fingerprint,
        _data(b"ab", b"cd").fingerprint,
        _data(b"ab", b"c", b"d").fingerprint,
    }
    assert len(fingerprints) == 4
    assert _data(b"abc", b"d").fingerprint == _data(b"abc", b"d").fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": ""}, r"config\.data\.path is empty.*--config\.data\.path"),
        ({"path": "no/such/book"}, r"data\.path='no/such/book' does not exist.*--config\.data\.path"),
        ({"valid_fraction": 0.0}, r"data\.valid_fraction=0\.0 must be a number above 0 and below 1"),
        ({"valid_fraction": 0.6, "test_fraction": 0.4}, r"Their sum must be below 1"),
        ({"test_fraction": -0.1}, r"data\.test_fraction=-0\.1 must be a number of at least 0 and below 1"),
    ],
)
def test_impossible_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load.load(_config(**changes), 8)


def test_training_windows_reach_every_place_alike():
    data = _data(bytes(range(20)))
    batches = _take(source.training_batches(data, length=5, batch_size=8, seed=0), 400)
    starts = np.concatenate([batch["targets"][:, 0] for batch in batches])
    expected = len(starts) / 16
    counts = np.bincount(starts, minlength=16)
    assert len(counts) == 16
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000, len(PROSE)])
def test_any_window_length_up_to_all_of_the_text_works(length):
    batch = next(source.training_batches(_data(), length=length, batch_size=1, seed=0))
    assert batch["targets"].shape == (1, length)


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match=r"length=2001 exceeds the 2000 bytes.*--config\.data\.path.*data\.length"):
        source.training_batches(_data(), length=2001, batch_size=1, seed=0)


def test_bytes_need_the_ids_of_bytes_and_of_the_reserved_tokens():
    assert text.Stdlib().vocab_size == text.VOCAB_SIZE


def test_simpler_models_are_scored_on_the_split_that_is_asked_for():
    baselines = _data(valid=PROSE[:500]).baselines("valid", 64)
    assert set(baselines) == {"order-1 counts", "order-2 counts", "gzip -9"}
    assert all(bits > 0 for bits in baselines.values())
