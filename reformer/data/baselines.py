"""What a byte costs without a neural network: count models and gzip, to print beside a model's bits per byte or dim."""

import gzip
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

_SLICE = 2**24  # bytes counted at a time
_IMAGES = 64  # counted at a time


def order_n_bits_per_byte(train: UInt8[np.ndarray, " train"], valid: UInt8[np.ndarray, " valid"], order: int) -> float:
    """Bits per byte on `valid` of a model that counted on `train` which byte follows the `order` bytes before it.

    Witten-Bell smoothing: `p(b | c) = (count(c b) + kinds(c) p(b | c')) / (count(c) + kinds(c))`, where `kinds` is the
    number of different bytes seen after the context `c`, and `c'` is `c` without its oldest byte. Below the empty
    context lies the uniform distribution; an unseen context costs what `c'` does. The first bytes of `valid`, which
    have no full context, are scored by the lower orders.

    Args:
        train: bytes that are counted.
        valid: bytes that are scored, each once.
        order: 0, 1 or 2; the table has 256 ** (order + 1) entries (128 MB for order 2).

    Returns:
        Bits per byte.

    Raises:
        ValueError: `order` is too large, or nothing is there to score.

    Source:
        Witten and Bell, "The zero-frequency problem", IEEE Transactions on Information Theory 37 (1991), method C.
    """
    if order not in (0, 1, 2):
        raise ValueError(f"order={order} must be 0, 1 or 2; the table grows by a factor of 256 with each.")
    _require_bytes(valid)
    tables = [count_grams(train, length) for length in range(1, order + 2)]
    bits = 0.0
    for length in range(1, order + 1):
        bits -= np.log2(probabilities(tables[:length], _gram_codes(valid[:length], length))).sum()
    bits += _bits_of_counts(tables, count_grams(valid, order + 1))
    return float(bits / len(valid))


def left_neighbour_bits_per_dim(train: Iterable[np.ndarray], valid: Iterable[np.ndarray]) -> float:
    """Bits per dim on `valid` of a model that counted on `train` which value stands right of which, in each channel.

    Smoothed as in `order_n_bits_per_byte`, with tables for each channel. The values of the first column, which have no
    left neighbour, are scored by their frequency in the whole channel.

    Args:
        train: images that are counted, uint8 `[side, side, 3]` each, all of one size.
        valid: images that are scored; each value once.

    Returns:
        Bits per value of a channel of a pixel.

    Raises:
        ValueError: nothing is there to score.
    """
    train_singles, train_pairs, _ = _count_neighbours(train)
    _, scored_pairs, scored_firsts = _count_neighbours(valid)
    bits = 0.0
    for singles, pairs, pair_scores, first_scores in zip(
        train_singles, train_pairs, scored_pairs, scored_firsts, strict=True
    ):
        bits += _bits_of_counts([singles], first_scores) + _bits_of_counts([singles, pairs], pair_scores)
    num_dims = scored_pairs.sum() + scored_firsts.sum()
    if not num_dims:
        raise ValueError("valid holds 0 images; bits per dim need at least one. Raise --config.data.valid_fraction.")
    return float(bits / num_dims)


def gzip_bits_per_byte(valid: UInt8[np.ndarray, " valid"]) -> float:
    """Bits per byte of `gzip -9` on `valid`; unlike the count models it has seen nothing before."""
    _require_bytes(valid)
    return 8 * len(gzip.compress(valid.tobytes(), 9)) / len(valid)


def count_grams(data: UInt8[np.ndarray, " bytes"], length: int) -> np.ndarray:
    """Counts, int64 `[256 ** length]`, of the `length` bytes long pieces of `data`; the first byte is the high one."""
    counts = np.zeros(256**length, np.int64)
    for start in range(0, len(data), _SLICE):
        codes = _gram_codes(data[start : start + _SLICE + length - 1], length)
        counts += np.bincount(codes, minlength=256**length)
    return counts


def probabilities(tables: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Probability of the last byte of each piece given the ones before it.

    Args:
        tables: counts of the pieces of 1, 2, ... bytes, as `count_grams` gives them; as many as the piece is long.
        codes: pieces as integers, `[n]`.

    Returns:
        Probabilities, float64 `[n]`; those of the 256 pieces of one context sum to 1.
    """
    result = np.full(len(codes), 1 / 256)
    for length, table in enumerate(tables, start=1):
        shortened = codes % 256**length
        by_context = table.reshape(-1, 256)
        total = by_context.sum(axis=1)[shortened // 256]
        kinds = np.maximum((by_context > 0).sum(axis=1), 1)[shortened // 256]
        result = (table[shortened] + kinds * result) / (total + kinds)
    return result


def _bits_of_counts(tables: list[np.ndarray], scored: np.ndarray) -> float:
    """Bits of all pieces together that `scored` counts, as long as `tables` are many."""
    codes = np.flatnonzero(scored)
    return float(-(scored[codes] * np.log2(probabilities(tables, codes))).sum())


def _count_neighbours(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of values, of pairs (left value * 256 + value), and of values in the first column, int64 `[3, counts]`."""
    singles, pairs, firsts = (np.zeros((3, num_codes), np.int64) for num_codes in (256, 256**2, 256))
    for stack in _stacks(iter(images)):
        for channel in range(3):
            values = stack[..., channel].astype(np.int32)
            singles[channel] += np.bincount(values.ravel(), minlength=256)
            pairs[channel] += np.bincount((values[:, :, :-1] * 256 + values[:, :, 1:]).ravel(), minlength=256**2)
            firsts[channel] += np.bincount(values[:, :, 0].ravel(), minlength=256)
    return singles, pairs, firsts


def _stacks(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    while stack := list(itertools.islice(images, _IMAGES)):
        yield np.stack(stack)


def _gram_codes(data: np.ndarray, length: int) -> np.ndarray:
    num_grams = max(len(data) - length + 1, 0)
    codes = np.zeros(num_grams, np.int32)
    for offset in range(length):
        codes = codes * 256 + data[offset : offset + num_grams]
    return codes


def _require_bytes(valid: np.ndarray) -> None:
    if not len(valid):
        raise ValueError("valid holds 0 bytes; bits per byte need at least one. Raise --config.data.valid_fraction.")
