"""What an experiment says of its data: which they are, by a class, and their options, by its fields."""

import abc
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from reformer.data.source import Source
from reformer.host import paths
from reformer.host.options import LocalPath, MaybeCount, Options, PositiveShare, Share


@dataclasses.dataclass(frozen=True)
class DataSet(Options, abc.ABC):
    """The `data` group of a config, of which a data set declares the fields that it reads."""

    GROUP: ClassVar[str] = "config.data"
    # What an example is, which decides on the tasks that take it: 'text' (bytes), 'tokens' (any ids), 'images',
    # 'pairs', 'labelled_text', 'labelled_images', or a word of one's own for a task of one's own.
    kind: ClassVar[str]

    length: MaybeCount = None  # tokens per example; None = model.max_length

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """How many ids the data need."""

    def check_length(self, length: int) -> None:
        """Raises a ValueError if no example can have `length` tokens; reads nothing."""

    def misfits(self, config: Any) -> Iterator[str]:
        """Yields a sentence for each thing of a whole config that does not fit these data; it reads nothing."""
        del config
        yield from ()

    @abc.abstractmethod
    def load(self, length: int) -> Source:
        """Reads the data.

        Args:
            length: tokens of an example.

        Raises:
            ValueError: the data are missing, too few or not what they should be.
        """


@dataclasses.dataclass(frozen=True)
class HeldOut(DataSet):
    """A data set of which a part is held out to evaluate on."""

    valid_fraction: PositiveShare = 0.05  # share of the files (or of the end of a single file) held out for validation
    test_fraction: Share = 0.05  # the same for the test split

    @property
    def fractions(self) -> tuple[float, float]:
        """Both."""
        return self.valid_fraction, self.test_fraction

    def problems(self) -> Iterator[str]:
        """Something must be left to train on."""
        yield from super().problems()
        if sum(self.fractions) >= 1:
            yield (
                f"{self.GROUP}.valid_fraction={self.valid_fraction} and {self.GROUP}.test_fraction="
                f"{self.test_fraction} leave nothing to train on. Their sum must be below 1."
            )


@dataclasses.dataclass(frozen=True)
class Cached(DataSet):
    """A data set of which something is prepared once and kept."""

    cache_dir: LocalPath = ""  # where prepared data is kept; '' = ~/.cache/reformer

    @property
    def cache(self) -> Path:
        """The folder."""
        return paths.local(self.cache_dir or "~/.cache/reformer")
