"""Which bytes of a window repeat what stands far behind them: what attention over a long range is for."""

import numpy as np
from jaxtyping import Bool, UInt8

CONTEXT = 8  # bytes that must be the same; they fit one integer


def far_repeats(window: UInt8[np.ndarray, " length"], distance: int) -> Bool[np.ndarray, " length"]:
    """Finds the bytes whose context occurred before, but not within the last `distance` bytes.

    Args:
        window: what a model sees at once.
        distance: bytes; a context that occurred as near as that can be found by local attention too.

    Returns:
        True where the 8 bytes before a byte last occurred more than `distance` bytes back in the window.
    """
    found = np.zeros(len(window), bool)
    if len(window) <= CONTEXT:
        return found
    pieces = np.lib.stride_tricks.sliding_window_view(np.ascontiguousarray(window), CONTEXT)[:-1]
    codes = np.ascontiguousarray(pieces).view(np.uint64)[:, 0]
    order = np.argsort(codes, kind="stable")  # equal contexts side by side, in the order of their places
    earlier, later = order[:-1], order[1:]
    is_far = (codes[earlier] == codes[later]) & (later - earlier > distance)
    found[later[is_far] + CONTEXT] = True
    return found
