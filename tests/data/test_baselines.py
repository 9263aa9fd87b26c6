"""Byte-count models and gzip."""

import gzip
import math
import time

import numpy as np
import pytest

from reformer.data import baselines


def _bytes(text):
    return np.frombuffer(text, np.uint8)


def _cost(train, context, byte):
    """Bits of one byte by the definition, counting with loops."""
    if context is None:
        return 1 / 256
    pieces = [train[i : i + len(context) + 1] for i in range(len(train) - len(context))]
    followers = [piece[-1] for piece in pieces if piece[:-1] == context]
    kinds = max(len(set(followers)), 1)
    backed_off = _cost(train, context[1:] if context else None, byte)
    return (followers.count(byte) + kinds * backed_off) / (len(followers) + kinds)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("valid", [b"bandana", b"xyz", b"b", b"an"])
def test_count_model_equals_its_definition(order, valid):
    train = b"a banana and another banana"
    bits = -sum(math.log2(_cost(train, valid[max(0, i - order) : i], byte)) for i, byte in enumerate(valid))
    measured = baselines.order_n_bits_per_byte(_bytes(train), _bytes(valid), order)
    assert measured == pytest.approx(bits / len(valid), rel=1e-12)


@pytest.mark.parametrize("context", [b"an", b"qq", b"na", b"aq"])
def test_probabilities_of_a_context_sum_to_one(context):
    tables = [baselines.count_grams(_bytes(b"a banana and another banana"), length) for length in (1, 2, 3)]
    codes = int.from_bytes(context, "big") * 256 + np.arange(256)
    probabilities = baselines.probabilities(tables, codes)
    assert probabilities.min() > 0
    assert probabilities.sum() == pytest.approx(1, rel=1e-12)


def test_pieces_are_counted_across_slices(monkeypatch):
    data = np.random.default_rng(0).integers(0, 4, 1000, np.uint8)
    expected = [baselines.count_grams(data, length) for length in (1, 2, 3)]
    monkeypatch.setattr(baselines, "_SLICE", 300)
    for length, counts in enumerate(expected, start=1):
        np.testing.assert_array_equal(baselines.count_grams(data, length), counts)
        assert counts.sum() == len(data) - length + 1


def test_random_bytes_cost_eight_bits_and_repeated_ones_almost_none():
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    assert baselines.order_n_bits_per_byte(noise, noise[::-1], 0) == pytest.approx(8, abs=0.01)
    constant = _bytes(b"a" * 10_000)
    assert baselines.order_n_bits_per_byte(constant, constant, 2) < 0.01


def test_nothing_to_count_costs_eight_bits():
    assert baselines.order_n_bits_per_byte(_bytes(b""), _bytes(b"text"), 2) == 8


def test_ten_megabytes_are_counted_within_seconds():
    data = np.random.default_rng(0).integers(0, 100, 10_000_000, np.uint8)
    start = time.perf_counter()
    baselines.order_n_bits_per_byte(data, data[:500_000], 2)
    assert time.perf_counter() - start < 10


def test_gzip_is_the_size_of_its_output():
    content = b"a banana and another banana" * 10
    assert baselines.gzip_bits_per_byte(_bytes(content)) == 8 * len(gzip.compress(content, 9)) / len(content)


def test_orders_whose_table_would_not_fit_are_refused():
    with pytest.raises(ValueError, match="order=3 must be 0, 1 or 2"):
        baselines.order_n_bits_per_byte(_bytes(b"a"), _bytes(b"a"), 3)


def test_empty_split_is_refused():
    with pytest.raises(ValueError, match=r"valid holds 0 bytes.*--config\.data\.valid_fraction"):
        baselines.order_n_bits_per_byte(_bytes(b"a"), _bytes(b""), 1)
    with pytest.raises(ValueError, match="valid holds 0 bytes"):
        baselines.gzip_bits_per_byte(_bytes(b""))


def _image(*channels):
    return np.stack([np.array(channel, np.uint8) for channel in channels], axis=-1)


def test_left_neighbour_model_equals_hand_computed_counts():
    train = _image([[5, 5], [5, 7]], [[1, 1], [1, 1]], [[9, 8], [9, 8]])
    valid = _image([[5, 7], [5, 5]], [[1, 2], [3, 1]], [[9, 8], [9, 8]])
    # Red: 5 comes three times and 7 once, two kinds; right of 5 come 5 and 7, once each.
    five, seven = (3 + 2 / 256) / 6, (1 + 2 / 256) / 6
    bits = 2 * -math.log2(five) - math.log2((1 + 2 * five) / 4) - math.log2((1 + 2 * seven) / 4)
    # Green: only 1, right of 1 only 1; nothing is known of what follows 3.
    one, two, three = (4 + 1 / 256) / 5, (1 / 256) / 5, (1 / 256) / 5
    bits -= math.log2(one) + math.log2((0 + two) / 3) + math.log2(three) + math.log2(one)
    # Blue: 9 and 8 twice each, right of 9 always 8.
    eight = nine = (2 + 2 / 256) / 6
    bits -= 2 * math.log2(nine) + 2 * math.log2((2 + eight) / 3)
    assert baselines.left_neighbour_bits_per_dim([train], [valid]) == pytest.approx(bits / 12, rel=1e-12)


def test_left_neighbours_are_counted_over_all_images_and_stacks(monkeypatch):
    train = np.random.default_rng(0).integers(0, 4, (10, 4, 4, 3), np.uint8)
    valid = np.random.default_rng(1).integers(0, 4, (5, 4, 4, 3), np.uint8)
    whole = baselines.left_neighbour_bits_per_dim(train, iter(valid))
    monkeypatch.setattr(baselines, "_IMAGES", 3)
    assert baselines.left_neighbour_bits_per_dim(iter(train), valid) == whole
    one_by_one = [baselines.left_neighbour_bits_per_dim(train, [image]) for image in valid]
    assert whole == pytest.approx(np.mean(one_by_one), rel=1e-12)


def test_no_images_to_count_cost_eight_bits_and_none_to_score_are_refused():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert baselines.left_neighbour_bits_per_dim([], images) == 8
    with pytest.raises(ValueError, match=r"valid holds 0 images.*--config\.data\.valid_fraction"):
        baselines.left_neighbour_bits_per_dim(images, [])
