"""Associative recall: what a sequence is, what counts, and what is refused."""

import numpy as np
import pytest

from reformer.data import recall, source

DATA = recall.Recall(num_symbols=50).load(64)


def test_a_key_is_always_followed_by_its_value_and_counts_from_its_second_time_on():
    batch = next(source.training_batches(DATA, length=64, batch_size=16, seed=0))
    for targets, weights in zip(batch["targets"], batch["weights"], strict=True):
        known = {}
        for key, value, of_key, of_value in zip(targets[::2], targets[1::2], weights[::2], weights[1::2], strict=True):
            assert key < 50 <= value < 100
            assert of_key == 0
            assert of_value == (key in known)
            assert known.setdefault(key, value) == value
        assert 4 <= len(known) <= recall.num_pairs(64) == 8


def test_the_pair_before_stands_at_any_distance():
    slots = [DATA.example("valid", i, 64).targets[::2] for i in range(200)]
    distances = [t - max(np.flatnonzero(row[:t] == row[t])) for row in slots for t in range(1, 32) if row[t] in row[:t]]
    assert min(distances) == 1
    assert max(distances) > 24


def test_held_out_sequences_are_the_same_in_every_run_and_differ_between_splits():
    first, again = (DATA.example("valid", 3, 64).targets for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != DATA.example("test", 3, 64).targets).any()


def test_ids_are_keys_values_and_the_begin_id():
    assert recall.Recall(num_symbols=50).vocab_size == 101
    assert DATA.begin_id == 100


@pytest.mark.parametrize("length", [6, 65])
def test_lengths_without_pairs_are_refused(length):
    with pytest.raises(ValueError, match=f"length={length} cannot hold pairs"):
        recall.Recall(num_symbols=50).load(length)


def test_fewer_symbols_than_keys_are_refused():
    with pytest.raises(ValueError, match="num_symbols=7 are fewer than the 8 keys of a sequence of 64 tokens"):
        recall.Recall(num_symbols=7).load(64)
