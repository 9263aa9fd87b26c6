"""ListOps: nested lists of digits under MIN, MAX, MED (median) and SM (sum modulo 10); the label is the result.

The generator's rules are those of the Long Range Arena: an expression is a digit with probability 3/4, or at depth 10,
else an operator over 2 to 10 expressions; those of 500 to 2,000 tokens are kept. A token is a digit, an operator with
its bracket, or a closing bracket; the parentheses of the published files, which their readers leave out, are not made.
Training examples are drawn as it goes, each new, where the published set has 96,000.

Source: Nangia and Bowman 2018, "ListOps" (arXiv 1804.06028); Tay et al. 2020, "Long Range Arena" (arXiv 2011.04006),
section 2.2.1.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int32

from reformer.data.made_up import MadeUp
from reformer.data.source import Row, name_labels, pad

NUM_LABELS = 10
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = (*map(str, range(NUM_LABELS)), *OPERATORS, "]")  # by id
PADDING_ID = len(TOKENS)
SHORTEST, LONGEST = 500, 2000  # tokens of an expression

_OPERATOR_RATE, _DEEPEST, _MOST_ARGUMENTS = 0.25, 10, 10


class Expression(NamedTuple):
    """An expression, and what it is worth."""

    tokens: Int32[np.ndarray, " tokens"]
    label: int


@dataclasses.dataclass(frozen=True)
class ListOps(MadeUp):
    """Expressions drawn at random and padded to `length`, of which they have a quarter at least."""

    kind: ClassVar[str] = "labelled_text"
    num_held_out: ClassVar[int] = 2000  # expressions
    unit: ClassVar[str] = "expression"
    labels: ClassVar[tuple[str, ...]] = tuple(map(str, range(NUM_LABELS)))
    num_outcomes: ClassVar[int] = NUM_LABELS
    vocab_size: ClassVar[int] = len(TOKENS) + 1  # digits, operators, the closing bracket and padding

    @property
    def shortest(self) -> int:
        """Tokens of an expression."""
        return min(SHORTEST, self.length // 4)

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the trained parameters: the names of the labels."""
        return name_labels(self.labels)

    @property
    def description(self) -> str:
        """One line for people."""
        return f"ListOps of {self.shortest} to {self.length} tokens: {self.num_held_out:,} held out for each split"

    @property
    def fingerprint(self) -> str:
        """Of what decides the expressions."""
        return f"listops-{self.shortest}-{self.length}"

    def check_length(self, length: int) -> None:
        """Raises a ValueError if no expression fits a row of this length."""
        if length < 4:
            raise ValueError(
                f"length={length} holds no expression. Set --config.model.max_length to {LONGEST}, or 4 at least."
            )

    def load(self, length: int) -> "ListOps":
        """The task for rows of `length` tokens: the published one has 2,000."""
        self.check_length(length)
        return dataclasses.replace(self, length=length)

    def draw(self, rng: np.random.Generator, length: int) -> Expression:
        """Draws expressions until one is neither too short nor too long."""
        while True:
            tokens: list[int] = []
            label = _append(tokens, rng, 1, length)
            if label is not None and len(tokens) >= self.shortest:
                return Expression(np.array(tokens, np.int32), label)

    def to_row(self, example: Expression, padded_length: int | None) -> Row:
        """As `Source.to_row` has it: `tokens` int32, `targets` int32 [], `mask` and, if padded, `weights` []."""
        row = {
            "tokens": pad(example.tokens, self.length, PADDING_ID),
            "targets": np.asarray(example.label, np.int32),
            "mask": np.arange(self.length) < len(example.tokens),
        }
        return row if padded_length is None else row | {"weights": np.ones((), np.float32)}


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
