"""Loading, random training windows and evaluation windows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from reformer.data import text

PROSE = bytes(range(1, 251)) * 8  # 2000 bytes


def _config(**changes):
    defaults = {"name": "text", "path": "", "cache_dir": "", "valid_fraction": 0.1, "test_fraction": 0.05}
    return SimpleNamespace(**(defaults | changes))


def _data(train=PROSE, valid=b"", test=b""):
    return text.TextData("a test", *(np.frombuffer(split, np.uint8) for split in (train, valid, test)))


def _assert_equal_batches(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


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
    data = text.load(_config(path=str(path)))
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
        ({"name": "wikipedia"}, r"data\.name='wikipedia' must be one of stdlib, enwik8, text"),
        ({"name": "stdlib", "path": "book.txt"}, r"data\.path='book\.txt' is not read by data\.name='stdlib'"),
        ({"path": ""}, r"data\.path='' does not exist.*--config\.data\.path"),
        ({"path": "no/such/book"}, r"data\.path='no/such/book' does not exist.*--config\.data\.path"),
        ({"valid_fraction": 0.0}, r"data\.valid_fraction=0\.0 must be above 0"),
        ({"valid_fraction": 0.6, "test_fraction": 0.4}, r"their sum below 1"),
        ({"test_fraction": -0.1}, r"data\.test_fraction=-0\.1 at least 0"),
    ],
)
def test_impossible_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        text.load(_config(**changes))


def test_training_targets_are_a_window_and_tokens_the_same_behind_a_begin_id():
    for batch in _take(text.train_iterator(_data(), length=16, batch_size=4, seed=0), 20):
        assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
        assert batch["tokens"].dtype == batch["targets"].dtype == np.int32
        np.testing.assert_array_equal(batch["tokens"][:, 0], text.BEGIN_ID)
        np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        assert all(text.decode(row) in PROSE for row in batch["targets"])


def test_training_windows_reach_every_place_alike():
    data = _data(bytes(range(20)))
    batches = _take(text.train_iterator(data, length=5, batch_size=8, seed=0), 400)
    starts = np.concatenate([batch["targets"][:, 0] for batch in batches])
    expected = len(starts) / 16
    counts = np.bincount(starts, minlength=16)
    assert len(counts) == 16
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000, len(PROSE)])
def test_any_window_length_up_to_all_of_the_text_works(length):
    batch = next(text.train_iterator(_data(), length=length, batch_size=1, seed=0))
    assert batch["targets"].shape == (1, length)


def test_equal_seeds_give_equal_batches_and_others_do_not():
    first, again, other = (
        np.stack([batch["targets"] for batch in _take(text.train_iterator(_data(), length=8, batch_size=4, seed=s), 4)])
        for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_saved_state_continues_bit_for_bit():
    options = {"length": 32, "batch_size": 4, "seed": 7}
    unbroken = text.train_iterator(_data(), **options)
    _take(unbroken, 5)
    state = json.loads(json.dumps(unbroken.get_state()))
    assert state == {"next_index": 5}
    resumed = text.train_iterator(_data(), **options)
    resumed.set_state(state)
    for expected, actual in zip(_take(unbroken, 6), _take(resumed, 6), strict=True):
        _assert_equal_batches(actual, expected)


def test_any_number_of_processes_continues_with_the_same_batches():
    options = {"length": 16, "batch_size": 8, "seed": 1}
    whole = text.train_iterator(_data(), **options)
    _take(whole, 3)
    parts = [text.train_iterator(_data(), **options, process_index=p, process_count=4) for p in range(4)]
    for part in parts:
        part.set_state(whole.get_state())
    for expected in _take(whole, 3):
        for process_index, part in enumerate(parts):
            _assert_equal_batches(next(part), {name: rows[process_index::4] for name, rows in expected.items()})


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match=r"length=2001 exceeds the 2000 bytes.*--config\.data\.path.*data\.length"):
        text.train_iterator(_data(), length=2001, batch_size=1, seed=0)


@pytest.mark.parametrize("batch_size", [0, 3])
def test_batches_that_do_not_divide_among_the_processes_are_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a positive multiple of the 2 processes"):
        text.train_iterator(_data(), length=4, batch_size=batch_size, seed=0, process_count=2)
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a positive multiple of the 2 processes"):
        text.eval_batches(_data().train, length=4, batch_size=batch_size, process_count=2)


@pytest.mark.parametrize("num_bytes", [1, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_counts_every_byte_exactly_once(num_bytes, process_count):
    array = np.frombuffer(PROSE[:num_bytes], np.uint8)
    parts = [
        text.eval_batches(array, length=8, batch_size=4, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-num_bytes // 32)}
    batches = [batch for part in parts for batch in part]
    assert sum(batch["weights"].sum() for batch in batches) == num_bytes
    rows = np.stack([[batch["targets"] for batch in part] for part in parts], axis=2)  # [batch, row, process, length]
    assert text.decode(rows.ravel()) == array.tobytes()


def test_evaluation_begins_each_window_anew_and_pads_behind_the_end():
    (batch,) = text.eval_batches(np.array([1, 2, 3, 4, 5], np.uint8), length=3, batch_size=3)
    begin, pad = text.BEGIN_ID, text.PADDING_ID
    np.testing.assert_array_equal(batch["tokens"], [[begin, 1, 2], [begin, 4, pad], [pad, pad, pad]])
    np.testing.assert_array_equal(batch["targets"], [[1, 2, 3], [4, 5, pad], [pad, pad, pad]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch["mask"], batch["weights"] == 1)
    assert [batch[name].dtype for name in ("tokens", "targets", "weights", "mask")] == ["int32"] * 2 + ["float32", bool]


def test_evaluation_can_be_iterated_again():
    batches = text.eval_batches(_data().train, length=8, batch_size=2)
    for first, second in zip(batches, batches, strict=True):
        _assert_equal_batches(first, second)


def test_evaluation_of_an_empty_split_is_refused():
    with pytest.raises(ValueError, match=r"holds 0 bytes.*--split.*--config\.data\.test_fraction"):
        text.eval_batches(_data().test, length=8, batch_size=2)
