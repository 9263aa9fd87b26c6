"""Text as bytes: where it comes from, random windows to train on, and all of it in order to evaluate.

A token is a byte (its id is its value) or one of three reserved ids. Documents that were separate files are joined by
one zero byte (`documents.SEPARATOR`), which is trained and evaluated like any other byte.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, Int32, UInt8

from reformer.data import documents
from reformer.data.enwik8 import read_enwik8

PADDING_ID, BEGIN_ID, MASK_ID, VOCAB_SIZE = 256, 257, 258, 259
SOURCES = ("stdlib", "enwik8", "text")

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class TextData:
    """Bytes of a text, `uint8 [bytes]` each; `test` may be empty."""

    source: str  # what it is, for people
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @property
    def description(self) -> str:
        """One line: the source and the bytes of each split."""
        return f"{self.source}: {len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test bytes"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the lengths and contents of the splits; another one means that the data were replaced."""
        digest = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            digest.update(len(split).to_bytes(8, "big"))
            digest.update(np.ascontiguousarray(split).data)
        return digest.hexdigest()[:32]


def load(config: Any) -> TextData:
    """Reads the text that the `data` group of the configuration names.

    Args:
        config: has `name` ('stdlib', 'enwik8' or 'text'), `path` (a file or folder; '' where none is needed),
            `cache_dir` ('' = ~/.cache/reformer), and `valid_fraction` and `test_fraction`, the part of the files (of
            the bytes, where it is a single file) that is held out; enwik8 has its own split.

    Returns:
        The bytes of the three splits.

    Raises:
        ValueError: a value is impossible, or the data are missing, too few or not what they should be.
    """
    path, fractions = config.path or "", (config.valid_fraction, config.test_fraction)
    if config.name not in SOURCES:
        raise ValueError(f"data.name={config.name!r} must be one of {', '.join(SOURCES)}.")
    if not (0 < fractions[0] < 1 and 0 <= fractions[1] < 1 and sum(fractions) < 1):
        raise ValueError(
            f"data.valid_fraction={fractions[0]} must be above 0, data.test_fraction={fractions[1]} at least 0, and "
            "their sum below 1."
        )
    if config.name == "enwik8":
        cache_dir = Path(config.cache_dir or "~/.cache/reformer").expanduser()
        source, splits = read_enwik8(path, cache_dir)
    elif config.name == "text":
        source, splits = documents.read_path(path, *fractions)
    elif path:
        raise ValueError(f"data.path={path!r} is not read by data.name='stdlib'. Use configs/text.py, or leave it out.")
    else:
        source, splits = documents.read_stdlib(*fractions)
    return TextData(source, *splits)


def encode(text: bytes) -> Int32[np.ndarray, " bytes"]:
    """Token ids of bytes."""
    return np.frombuffer(text, np.uint8).astype(np.int32)


def decode(tokens: Int[np.ndarray, " tokens"]) -> bytes:
    """Bytes of token ids; reserved ids give nothing."""
    tokens = np.asarray(tokens)
    return tokens[tokens < 256].astype(np.uint8).tobytes()


def train_iterator(
    data: TextData, *, length: int, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless batches of windows at uniformly random places of `data.train`.

    Args:
        data: the text.
        length: tokens of a window.
        batch_size: windows of a batch over all processes.
        seed: the same seed gives the same batches, whatever the number of processes.
        process_index: number of this process; it gets the rows `process_index::process_count` of each batch.
        process_count: number of processes.

    Returns:
        Iterator of `{'tokens', 'targets'}`, int32 `[batch_size / process_count, length]`: the window, and the same
        moved right by one behind `BEGIN_ID`. `get_state()` is `{'next_index': batches so far}`, on any number of
        processes; `set_state(...)` continues from there with the same batches as an unbroken run.

    Raises:
        ValueError: the text is shorter than a window, or the batch does not divide among the processes.
    """
    if len(data.train) < length:
        raise ValueError(
            f"length={length} exceeds the {len(data.train)} bytes there are to train on. Name more data by "
            "--config.data.path or lower --config.data.length."
        )
    rows = _rows_per_process(batch_size, process_count)
    # Rows are dealt out after the random choice: dealing out first would give every process the same windows.
    windows = grain.MapDataset.range(2**62).seed(seed).random_map(_RandomWindow(data.train, length))
    batches = windows[process_index::process_count].batch(rows, drop_remainder=True)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def eval_batches(
    array: UInt8[np.ndarray, " bytes"],
    *,
    length: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Sequence[Batch]:
    """Windows side by side over all of `array`, so that every byte is a target with weight 1 exactly once.

    Args:
        array: the bytes to evaluate on.
        length: tokens of a window; each begins with `BEGIN_ID` and sees nothing of the one before.
        batch_size: windows of a batch over all processes.
        process_index: number of this process; it gets the rows `process_index::process_count` of each batch.
        process_count: number of processes; all get equally many batches.

    Returns:
        Sequence of `{'tokens', 'targets'}` int32, `weights` float32 and `mask` bool (True = real),
        `[batch_size / process_count, length]`. Behind the end of the array: `PADDING_ID`, weight 0, mask False.

    Raises:
        ValueError: the array is empty, or the batch does not divide among the processes.
    """
    if not len(array):
        raise ValueError(
            "The split to evaluate on holds 0 bytes. Choose another by --split, or hold some out by "
            "--config.data.valid_fraction or --config.data.test_fraction."
        )
    rows = _rows_per_process(batch_size, process_count)
    return _EvalBatches(array, length, rows, process_index, process_count)


@dataclasses.dataclass(frozen=True, eq=False)
class _RandomWindow(grain.transforms.RandomMap):
    array: np.ndarray
    length: int

    def random_map(self, _: int, rng: np.random.Generator) -> Batch:
        start = rng.integers(len(self.array) - self.length + 1)
        targets = self.array[start : start + self.length].astype(np.int32)
        return {"tokens": _shift_right(targets), "targets": targets}


@dataclasses.dataclass(frozen=True, eq=False)
class _EvalBatches(Sequence):
    array: np.ndarray
    length: int
    rows: int  # of this process, in each batch
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-len(self.array) // (self.length * self.rows * self.process_count))

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch_bytes = self.length * self.rows * self.process_count
        content = self.array[index * batch_bytes : (index + 1) * batch_bytes]
        padded = np.full(batch_bytes, PADDING_ID, np.int32)
        padded[: len(content)] = content
        targets, mask = self._own_rows(padded), self._own_rows(np.arange(batch_bytes) < len(content))
        tokens = np.where(mask, _shift_right(targets), PADDING_ID).astype(np.int32)
        return {"tokens": tokens, "targets": targets, "weights": mask.astype(np.float32), "mask": mask}

    def _own_rows(self, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(-1, self.length)[self.process_index :: self.process_count]


def _shift_right(targets: np.ndarray) -> np.ndarray:
    begin = np.full((*targets.shape[:-1], 1), BEGIN_ID, targets.dtype)
    return np.concatenate([begin, targets[..., :-1]], axis=-1)


def _rows_per_process(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes. "
            "Change --config.training.batch_size or --config.evaluation.batch_size."
        )
    return batch_size // process_count
