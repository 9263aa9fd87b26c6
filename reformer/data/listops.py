"""ListOps: nested lists of digits under MIN, MAX, MED (median) and SM (sum modulo 10); the label is the result.

The generator's rules are those of the Long Range Arena: an expression is a digit with probability 3/4, or at depth 10,
else an operator over 2 to 10 expressions; those of 500 to 2,000 tokens are kept. A token is a digit, an operator with
its bracket, or a closing bracket; the parentheses of the published files, which their readers leave out, are not made.
Training examples are drawn as it goes, each new, where the published set has 96,000.

Source: Nangia and Bowman 2018, "ListOps" (arXiv 1804.06028); Tay et al. 2020, "Long Range Arena" (arXiv 2011.04006),
section 2.2.1.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int32

from reformer.data.source import Row, name_labels, pad

NUM_LABELS = 10
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = (*map(str, range(NUM_LABELS)), *OPERATORS, "]")  # by id
PADDING_ID = len(TOKENS)
SHORTEST, LONGEST = 500, 2000  # tokens of an expression

_SPLITS = {"train": 0, "valid": 1, "test": 2}
_NUM_HELD_OUT = 2000  # expressions of a split that is evaluated
_OPERATOR_RATE, _DEEPEST, _MOST_ARGUMENTS = 0.25, 10, 10


class Expression(NamedTuple):
    """An expression, and what it is worth."""

    tokens: Int32[np.ndarray, " tokens"]
    label: int


@dataclasses.dataclass(frozen=True)
class ListOpsData:
    """Expressions drawn at random, a `Source`; each split has its own, the same in every run.

    Attributes:
        length: of a row; expressions are padded to it.
        shortest: tokens of an expression.
    """

    length: int
    shortest: int = SHORTEST
    unit = "expression"
    labels = tuple(map(str, range(NUM_LABELS)))

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the trained parameters: the names of the labels."""
        return name_labels(self.labels)

    @property
    def description(self) -> str:
        """One line for people."""
        return f"ListOps of {self.shortest} to {self.length} tokens: {_NUM_HELD_OUT:,} held out for each split"

    @property
    def fingerprint(self) -> str:
        """Of what decides the expressions."""
        return f"listops-{self.shortest}-{self.length}"

    def training_examples(self, length: int, seed: int) -> grain.MapDataset:
        """Endless expressions, each new."""
        check_length(length)
        return grain.MapDataset.range(2**62).seed(seed).random_map(_RandomExpression(self))

    def num_examples(self, split: str, length: int) -> int:
        """Equally many in every split."""
        check_length(length)
        return _NUM_HELD_OUT

    def example(self, split: str, index: int, length: int) -> Expression:
        """The same expression in every run."""
        del length
        return draw(np.random.default_rng((_SPLITS[split], index)), self.shortest, self.length)

    def to_row(self, example: Expression, padded_length: int | None) -> Row:
        """As `Source.to_row` has it: `tokens` int32, `targets` int32 [], `mask` and, if padded, `weights` []."""
        row = {
            "tokens": pad(example.tokens, self.length, PADDING_ID),
            "targets": np.asarray(example.label, np.int32),
            "mask": np.arange(self.length) < len(example.tokens),
        }
        return row if padded_length is None else row | {"weights": np.ones((), np.float32)}

    def baselines(self, split: str, length: int, max_examples: int | None = None) -> dict[str, float]:
        """What guessing costs."""
        del split, length, max_examples
        return {"guessing": math.log2(NUM_LABELS)}


def check_length(length: int) -> None:
    """Raises a ValueError if no expression fits a row of this length."""
    if length < 4:
        raise ValueError(
            f"length={length} holds no expression. Set --config.model.max_length to {LONGEST}, or 4 at least."
        )


def load(config: Any, length: int) -> ListOpsData:
    """The task, for rows of `length` tokens: the published one has 2,000.

    Args:
        config: the `data` group; nothing of it is read.
        length: tokens of an example; expressions have a quarter of it at least.

    Raises:
        ValueError: no expression has this length.
    """
    del config
    check_length(length)
    return ListOpsData(length, min(SHORTEST, length // 4))


def vocab_size(config: Any) -> int:
    """Digits, operators, the closing bracket and padding."""
    del config
    return len(TOKENS) + 1


def draw(rng: np.random.Generator, shortest: int, longest: int) -> Expression:
    """Draws an expression of `shortest` to `longest` tokens."""
    while True:
        tokens: list[int] = []
        label = _append(tokens, rng, 1, longest)
        if label is not None and len(tokens) >= shortest:
            return Expression(np.array(tokens, np.int32), label)


def _append(tokens: list[int], rng: np.random.Generator, depth: int, longest: int) -> int | None:
    """Draws an expression, appends its tokens and returns its value; None as soon as there are too many."""
    if len(tokens) >= longest:
        return None
    if depth == _DEEPEST or rng.random() > _OPERATOR_RATE:
        tokens.append(int(rng.integers(NUM_LABELS)))
        return tokens[-1]
    operator = int(rng.integers(len(OPERATORS)))
    tokens.append(NUM_LABELS + operator)
    values = []
    for _ in range(int(rng.integers(2, _MOST_ARGUMENTS + 1))):
        value = _append(tokens, rng, depth + 1, longest)
        if value is None:
            return None
        values.append(value)
    tokens.append(TOKENS.index("]"))
    return None if len(tokens) > longest else evaluate(OPERATORS[operator], values)


def evaluate(operator: str, values: list[int]) -> int:
    """The value of a list; the median of an even number of values is rounded down."""
    functions: dict[str, Any] = {"[MIN": min, "[MAX": max, "[MED": np.median, "[SM": sum}
    return int(functions[operator](values)) % NUM_LABELS


@dataclasses.dataclass(frozen=True)
class _RandomExpression(grain.transforms.RandomMap):
    data: ListOpsData

    def random_map(self, _: int, rng: np.random.Generator) -> Expression:
        return draw(rng, self.data.shortest, self.data.length)
