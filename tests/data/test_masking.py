"""Hidden tokens: how many, which, what stands in their place, and that it is the same again."""

import json

import numpy as np
import pytest

from reformer.data import source, text
from reformer.data.duplication import Duplication
from reformer.data.masking import Masked

LENGTH = 200


def _text(num_valid=1000):
    rng = np.random.default_rng(0)
    train, valid = (rng.integers(0, 256, size).astype(np.uint8) for size in (5000, num_valid))
    return text.TextData("a test", train, valid, valid[:0])


@pytest.fixture(scope="module")
def batch():
    batches = source.training_batches(Masked(_text()), length=LENGTH, batch_size=400, seed=0)
    return next(batches)


def test_exactly_the_rate_of_each_example_is_chosen(batch):
    np.testing.assert_array_equal(batch["weights"].sum(axis=1), 0.15 * LENGTH)
    assert set(np.unique(batch["weights"])) == {0, 1}


def test_every_place_is_chosen_alike(batch):
    expected = 0.15 * len(batch["weights"])
    assert np.abs(batch["weights"].sum(axis=0) - expected).max() < 5 * np.sqrt(expected)


def test_of_the_chosen_tokens_80_percent_are_masked_10_random_and_10_left(batch):
    chosen = batch["weights"] == 1
    tokens, targets = batch["tokens"][chosen], batch["targets"][chosen]
    shares = [(tokens == text.MASK_ID).mean(), ((tokens != text.MASK_ID) & (tokens != targets)).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1 * 255 / 256], atol=0.01)
    assert tokens[tokens != text.MASK_ID].max() < 256


def test_what_is_not_chosen_stays_as_it_is(batch):
    others = batch["weights"] == 0
    np.testing.assert_array_equal(batch["tokens"][others], batch["targets"][others])


def test_a_window_that_comes_again_has_other_hidden_tokens():
    data = text.TextData("a test", *(np.arange(32, dtype=np.uint8) for _ in range(3)))
    batch = next(source.training_batches(Masked(data), length=32, batch_size=8, seed=0))
    assert (batch["targets"] == np.arange(32)).all()
    assert len(np.unique(batch["weights"], axis=0)) == 8


def test_a_saved_state_continues_bit_for_bit():
    options = {"length": 32, "batch_size": 4, "seed": 7}
    unbroken = source.training_batches(Masked(_text()), **options)
    next(unbroken)
    state = json.loads(json.dumps(unbroken.get_state()))
    resumed = source.training_batches(Masked(_text()), **options)
    resumed.set_state(state)
    expected, actual = next(unbroken), next(resumed)
    for name in ("tokens", "targets", "weights"):
        np.testing.assert_array_equal(actual[name], expected[name])
        assert actual[name].dtype == expected[name].dtype


def test_evaluation_hides_the_same_tokens_every_time_and_others_in_each_example():
    first, again = (
        list(source.evaluation_batches(Masked(_text()), "valid", length=100, batch_size=5)) for _ in range(2)
    )
    for one, other in zip(first, again, strict=True):
        assert one.keys() == {"tokens", "targets", "weights", "mask"}
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
    assert len(np.unique(first[0]["weights"], axis=0)) == 5


def test_padding_is_masked_and_weighs_nothing():
    (batch,) = source.evaluation_batches(Masked(_text(num_valid=30)), "valid", length=20, batch_size=3)
    np.testing.assert_array_equal(batch["mask"].sum(axis=1), [20, 10, 0])
    np.testing.assert_array_equal(batch["weights"].sum(axis=1), [3, 2, 0])
    assert not batch["weights"][~batch["mask"]].any()


def test_at_least_one_token_is_hidden_and_all_can_be():
    for rate, expected in ((0.001, 1), (1.0, 8)):
        example = Masked(_text(), rate).example("valid", 0, 8)
        assert example.weights.sum() == expected


def test_only_tokens_that_count_in_the_source_are_hidden():
    example = Masked(Duplication(num_symbols=5), 0.5).example("valid", 0, 12)
    assert example.weights[:7].sum() == 0 and example.weights[7:].sum() == 2
    assert example.tokens.max() <= Duplication(num_symbols=5).mask_id == 7


def test_the_shares_may_be_others():
    example = Masked(_text(), 0.5, masked_share=1.0, random_share=0.0).example("valid", 0, 100)
    np.testing.assert_array_equal(example.tokens == text.MASK_ID, example.weights == 1)


def test_uniform_bytes_cost_8_bits_whatever_their_neighbours():
    baselines = Masked(_text()).baselines("valid", 100)
    assert 7.8 < baselines["frequencies"] < 8.6
    assert baselines["both neighbours"] > 7.8


def test_bytes_that_their_neighbours_tell_cost_nearly_nothing():
    alphabet = np.tile(np.arange(65, 91, dtype=np.uint8), 200)
    baselines = Masked(text.TextData("a test", alphabet, alphabet[:500], alphabet[:0])).baselines("valid", 100)
    np.testing.assert_allclose(baselines["frequencies"], np.log2(26), atol=0.2)
    assert baselines["both neighbours"] < 0.1


def test_other_tokens_than_bytes_have_no_counts_of_neighbours():
    assert Masked(Duplication(num_symbols=5)).baselines("valid", 8, 10).keys() == {"frequencies"}


def test_it_is_a_source_with_the_fingerprint_of_what_it_hides():
    data = Masked(_text(), 0.25)
    assert isinstance(data, source.Source)
    assert data.fingerprint == data.source.fingerprint and data.description.endswith("25% of the bytes are asked for")
