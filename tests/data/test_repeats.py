"""Which bytes count as repeats of something far away."""

import numpy as np
import pytest

from reformer.data.repeats import CONTEXT, far_repeats


def _naive(window, distance):
    found = []
    for t in range(len(window)):
        places = [s for s in range(CONTEXT, t) if bytes(window[s - CONTEXT : s]) == bytes(window[t - CONTEXT : t])]
        found.append(t >= CONTEXT and bool(places) and t - places[-1] > distance)
    return np.array(found, bool)


@pytest.mark.parametrize("distance", [0, 9, 40, 500])
def test_far_repeats_are_those_of_a_search_for_every_byte(distance):
    window = np.random.default_rng(0).integers(0, 2, 300).astype(np.uint8)
    window[200:260] = window[20:80]
    found = far_repeats(window, distance)
    np.testing.assert_array_equal(found, _naive(window, distance))
    assert found.any() == (distance < 300)


def test_a_context_that_also_occurred_nearby_is_not_far():
    piece, others = np.arange(20, dtype=np.uint8), np.arange(100, 150, dtype=np.uint8)
    window = np.concatenate([piece, others, piece, piece])
    far = np.flatnonzero(far_repeats(window, 40))
    np.testing.assert_array_equal(far, np.arange(70 + CONTEXT, 91))  # not the third one, which follows at once


@pytest.mark.parametrize("length", [0, 1, CONTEXT, CONTEXT + 1])
def test_a_short_window_repeats_nothing(length):
    assert not far_repeats(np.zeros(length, np.uint8), 0).any()
