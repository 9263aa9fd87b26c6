"""Short documents, such as small files and JSON lines, in windows: whole ones packed together, kept apart if wanted.

A window of packed documents holds as many as fit, each with the separator behind it. One that is longer than a window
is cut into windows of its own, and its rest is packed as another one. What is left of a window is padding, which does
not count. Windows are filled by best fit, longest first.

Documents that are kept apart do not see each other: attention is within a document, and each begins with the begin id,
as a text does that is generated. Its positions are those of the window; they do not begin anew.

Source:
    Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830): best-fit packing.
"""

import bisect
import dataclasses
import functools

import grain
import numpy as np
from jaxtyping import Bool, Integer

from reformer.data.source import Example, NextToken, Row, assets, chosen_examples, next_token_row
from reformer.data.text import TextData, bits_of_simpler_models
from reformer.data.text_tokens import TextTokens

Places = list[tuple[int, int]]  # first token and the one behind the last


@dataclasses.dataclass(frozen=True, eq=False)
class Documents(NextToken):
    """A text whose windows heed its documents.

    Attributes:
        text: the text.
        are_packed: windows hold whole documents; if not, they are those of `text`.
        are_apart: tokens attend within their document only.
    """

    text: TextData
    are_packed: bool
    are_apart: bool

    @property
    def tokens(self) -> TextTokens:
        """What the text is made of."""
        return self.text.tokens

    @property
    def unit(self) -> str:
        """As the text has it."""
        return self.text.unit

    @property
    def begin_id(self) -> int:
        """As the text has it."""
        return self.text.begin_id

    @property
    def num_ids(self) -> int:
        """As the text has it."""
        return self.text.num_ids

    @property
    def description(self) -> str:
        """One line: that of the text, and how its documents are treated."""
        ways = ["whole in windows"] * self.are_packed + ["without attention to each other"] * self.are_apart
        return f"{self.text.description}; documents {' and '.join(ways)}"

    @property
    def fingerprint(self) -> str:
        """Of the text: the rest follows from it and from the config."""
        return self.text.fingerprint

    @property
    def assets(self) -> dict[str, bytes]:
        """Those of the text."""
        return assets(self.text)

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless windows; packed ones in random order, each once per epoch."""
        if not self.are_packed:
            return self.text.training_examples(length, seed)
        num_windows = len(self._windows("train", length))
        return grain.MapDataset.range(num_windows).seed(seed).shuffle().repeat().map(_ToExample(self, length))

    def num_examples(self, split: str, length: int) -> int:
        """Windows that cover the split."""
        return len(self._windows(split, length)) if self.are_packed else self.text.num_examples(split, length)

    def example(self, split: str, index: int, length: int) -> Example:
        """The window number `index`; the weights of padding are 0."""
        if not self.are_packed:
            return self.text.example(split, index, length)
        ids, num_bytes = getattr(self.text, split), self.text.bytes_per_token(split)
        targets, weights, sizes = (np.zeros(length, dtype) for dtype in (np.int32, np.float32, np.float32))
        start = 0
        for first, end in self._windows(split, length)[index]:
            place = slice(start, start := start + end - first)
            targets[place] = self.tokens.separator_id  # behind the last document of a text there is none to read
            targets[place][: len(ids) - first] = ids[first:end]
            weights[place], sizes[place] = 1, 1
            if num_bytes is not None:
                sizes[place][: len(ids) - first] = num_bytes[first:end]
        targets[start:] = self.tokens.separator_id
        return Example(targets, weights, None if num_bytes is None else sizes)

    def to_row(self, example: Example, padded_length: int | None) -> Row:
        """As `Source.to_row`; packed ones with a `mask`, those kept apart with `documents` int32, numbers from 0."""
        row = next_token_row(example, self.begin_id, padded_length)
        if self.are_packed:
            row |= {"mask": example.weights > 0}
        if self.are_apart:
            begins = begin_behind(row["targets"], self.tokens.separator_id)
            row |= {"tokens": np.where(begins, self.begin_id, row["tokens"]).astype(np.int32)}
            row |= {"documents": np.cumsum(begins, dtype=np.int32)}
        return row

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """As those of the text, on the same documents."""
        if not self.are_packed:
            return self.text.baselines(split, length, max_examples)
        chosen = chosen_examples(self, split, length, max_examples)
        places = [place for i in chosen for place in self._windows(split, length)[i]]
        ends, raw = self.text.byte_ends(split), self.text.bytes_of_split(split)
        last = len(ends) - 1
        scored = np.concatenate([raw[ends[first] : ends[min(end, last)]] for first, end in places])
        return bits_of_simpler_models(self.text.bytes_of_split("train"), scored)

    @functools.cache  # noqa: B019  # keeps the data, which a program reads once
    def _windows(self, split: str, length: int) -> list[Places]:
        return pack(document_ends(getattr(self.text, split), self.tokens.separator_id), length)


def document_ends(ids: Integer[np.ndarray, " tokens"], separator_id: int) -> Integer[np.ndarray, " documents"]:
    """Where each document ends, its separator included; the last one has none to read and ends a token behind all."""
    if not len(ids):
        return np.zeros(0, np.int64)
    return np.append(np.flatnonzero(np.asarray(ids) == separator_id), len(ids)) + 1


def begin_behind(targets: Integer[np.ndarray, " length"], separator_id: int) -> Bool[np.ndarray, " length"]:
    """Where another document begins than the first."""
    return np.append(False, targets[:-1] == separator_id)


def pack(ends: Integer[np.ndarray, " documents"], length: int) -> list[Places]:
    """Deals documents that lie one after another to windows of `length` tokens, as the module says.

    Returns:
        For each window the places of what it holds, in the order of the text.
    """
    starts = np.append(0, ends)[:-1]
    pieces = [
        (place, min(place + length, end))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for place in range(start, end, length)
    ]
    windows: list[Places] = []
    open_windows: dict[int, list[int]] = {}  # by the room that is left
    rooms: list[int] = []  # sorted
    for first, end in sorted(pieces, key=lambda piece: (piece[0] - piece[1], piece)):
        size = end - first
        found = bisect.bisect_left(rooms, size)
        if found == len(rooms):
            number, room = len(windows), length
            windows.append([])
        else:
            room = rooms[found]
            number = open_windows[room].pop(0)
            if not open_windows[room]:
                rooms.pop(found)
        windows[number].append((first, end))
        if room > size:
            if not open_windows.setdefault(room - size, []):
                bisect.insort(rooms, room - size)
            open_windows[room - size].append(number)
    return sorted(sorted(places) for places in windows)


@dataclasses.dataclass(frozen=True, eq=False)
class _ToExample(grain.transforms.Map):
    data: Documents
    length: int

    def map(self, index: int) -> Example:
        return self.data.example("train", index, self.length)


def wrap(text: TextData, are_packed: bool, are_apart: bool) -> TextData | Documents:
    """The text, or its documents where something of them is asked for."""
    return Documents(text, are_packed, are_apart) if are_packed or are_apart else text


def separator_of(tokens: TextTokens, are_packed: bool, are_apart: bool) -> int | None:
    """The id that ends a generated text: that of a run whose windows heed documents; None = nothing does."""
    return tokens.separator_id if are_packed or are_apart else None
