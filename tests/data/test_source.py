"""Batches to train on and to evaluate on, and which data a config names."""

import json

import numpy as np
import pytest

from reformer.data import load, source, text

PROSE = bytes(range(1, 251)) * 8  # 2000 bytes


def _data(train=PROSE, valid=b"", test=b""):
    return text.TextData("a test", *(np.frombuffer(split, np.uint8) for split in (train, valid, test)))


def _assert_equal_batches(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


def _take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_training_targets_are_a_window_and_tokens_the_same_behind_a_begin_id():
    for batch in _take(source.training_batches(_data(), length=16, batch_size=4, seed=0), 20):
        assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
        assert batch["tokens"].dtype == batch["targets"].dtype == np.int32
        np.testing.assert_array_equal(batch["tokens"][:, 0], text.BEGIN_ID)
        np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        assert all(text.decode(row) in PROSE for row in batch["targets"])


def test_equal_seeds_give_equal_batches_and_others_do_not():
    first, again, other = (
        np.stack(
            [batch["targets"] for batch in _take(source.training_batches(_data(), length=8, batch_size=4, seed=s), 4)]
        )
        for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_saved_state_continues_bit_for_bit():
    options = {"length": 32, "batch_size": 4, "seed": 7}
    unbroken = source.training_batches(_data(), **options)
    _take(unbroken, 5)
    state = json.loads(json.dumps(unbroken.get_state()))
    assert state == {"next_index": 5}
    resumed = source.training_batches(_data(), **options)
    resumed.set_state(state)
    for expected, actual in zip(_take(unbroken, 6), _take(resumed, 6), strict=True):
        _assert_equal_batches(actual, expected)


def test_any_number_of_processes_continues_with_the_same_batches():
    options = {"length": 16, "batch_size": 8, "seed": 1}
    whole = source.training_batches(_data(), **options)
    _take(whole, 3)
    parts = [source.training_batches(_data(), **options, process_index=p, process_count=4) for p in range(4)]
    for part in parts:
        part.set_state(whole.get_state())
    for expected in _take(whole, 3):
        for process_index, part in enumerate(parts):
            _assert_equal_batches(next(part), {name: rows[2 * process_index :][:2] for name, rows in expected.items()})


@pytest.mark.parametrize("batch_size", [0, 3])
def test_batches_that_do_not_divide_among_the_processes_are_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a positive multiple of the 2 processes"):
        source.training_batches(_data(), length=4, batch_size=batch_size, seed=0, process_count=2)
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a positive multiple of the 2 processes"):
        source.evaluation_batches(_data(), "train", length=4, batch_size=batch_size, process_count=2)


@pytest.mark.parametrize("num_bytes", [1, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_counts_every_byte_exactly_once(num_bytes, process_count):
    data = _data(valid=PROSE[:num_bytes])
    parts = [
        source.evaluation_batches(data, "valid", length=8, batch_size=4, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-num_bytes // 32)}
    batches = [batch for part in parts for batch in part]
    assert sum(batch["weights"].sum() for batch in batches) == num_bytes
    # [batch, process, row, length]
    rows, counts = (
        np.stack([[batch[name] for batch in part] for part in parts], axis=1) for name in ("targets", "weights")
    )
    assert text.decode(rows[counts > 0]) == PROSE[:num_bytes]


def test_evaluation_begins_each_window_anew_and_pads_behind_the_end():
    (batch,) = source.evaluation_batches(_data(valid=bytes([1, 2, 3, 4, 5])), "valid", length=3, batch_size=3)
    begin = pad = text.BEGIN_ID
    np.testing.assert_array_equal(batch["tokens"], [[begin, 1, 2], [begin, 4, pad], [0, 0, 0]])
    np.testing.assert_array_equal(batch["targets"], [[1, 2, 3], [4, 5, pad], [0, 0, 0]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch["mask"], batch["weights"] == 1)
    assert [batch[name].dtype for name in ("tokens", "targets", "weights", "mask")] == ["int32"] * 2 + ["float32", bool]


def test_evaluation_can_be_iterated_again():
    batches = source.evaluation_batches(_data(), "train", length=8, batch_size=2)
    for first, second in zip(batches, batches, strict=True):
        _assert_equal_batches(first, second)


def test_evaluation_of_an_empty_split_is_refused():
    with pytest.raises(ValueError, match=r"holds no bytes.*--split.*--config\.data\.test_fraction"):
        source.evaluation_batches(_data(), "test", length=8, batch_size=2)


@pytest.mark.parametrize(("max_examples", "chosen"), [(None, [0, 1, 2, 3, 4]), (2, [0, 2]), (9, [0, 1, 2, 3, 4])])
def test_some_examples_are_spread_evenly_over_the_split(max_examples, chosen):
    data = _data(valid=bytes(range(10)))
    batches = source.evaluation_batches(data, "valid", length=2, batch_size=1, max_examples=max_examples)
    assert [batch["targets"][0, 0] // 2 for batch in batches] == chosen


def test_an_unknown_name_of_data_is_refused():
    with pytest.raises(ValueError, match=r"data\.name='wikipedia' must be one of stdlib, enwik8, text"):
        load.load({"name": "wikipedia"}, 8)
