"""The duplication task: what a sequence is, what counts, and what is refused."""

import numpy as np
import pytest

from reformer.data import source
from reformer.data.duplication import Duplication

DATA = Duplication(num_symbols=5).load(16)


def test_the_second_half_repeats_the_first_and_only_its_word_counts():
    batch = next(source.training_batches(DATA, length=16, batch_size=32, seed=0))
    targets, weights = batch["targets"], batch["weights"]
    np.testing.assert_array_equal(targets[:, :8], targets[:, 8:])
    np.testing.assert_array_equal(targets[:, 0], 0)
    assert set(targets[:, 1:8].ravel()) == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(weights, np.tile(np.arange(16) > 8, (32, 1)))
    np.testing.assert_array_equal(batch["tokens"][:, 0], DATA.begin_id)
    np.testing.assert_array_equal(batch["tokens"][:, 1:], targets[:, :-1])


def test_held_out_words_are_the_same_in_every_run_and_differ_between_splits():
    first, again = (DATA.example("valid", 3, 64).targets for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != DATA.example("test", 3, 64).targets).any()
    assert (first != DATA.example("valid", 4, 64).targets).any()
    assert DATA.num_examples("valid", 64) == 2000


def test_ids_are_the_marker_the_symbols_and_the_begin_id():
    assert Duplication(num_symbols=127).vocab_size == 129
    assert DATA.begin_id == 6


@pytest.mark.parametrize("length", [2, 3, 65])
def test_lengths_without_a_word_are_refused(length):
    with pytest.raises(ValueError, match=f"length={length} cannot hold a marker and a word twice"):
        Duplication(num_symbols=5).load(length)


def test_too_few_symbols_are_refused():
    with pytest.raises(ValueError, match=r"config.data.num_symbols=1 must be an integer of at least 2"):
        Duplication(num_symbols=1)
