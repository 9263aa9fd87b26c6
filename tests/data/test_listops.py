"""ListOps: expressions, their values, and the rows that a classifier takes."""

import numpy as np
import pytest

from reformer.data import listops, source

LENGTH = 200
DATA = listops.ListOps().load(LENGTH)


def _parse(tokens):
    """The value of the expression at the front, and what follows it; written anew from the definition."""
    name = listops.TOKENS[tokens[0]]
    if name.isdigit():
        return int(name), tokens[1:]
    values, rest = [], tokens[1:]
    while listops.TOKENS[rest[0]] != "]":
        value, rest = _parse(rest)
        values.append(value)
    assert 2 <= len(values) <= 10
    middle = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
    results = {"[MIN": min(values), "[MAX": max(values), "[MED": sum(middle) // len(middle), "[SM": sum(values) % 10}
    return results[name], rest[1:]


def test_labels_are_the_values_of_whole_expressions():
    seen = set()
    for index in range(40):
        example = DATA.example("valid", index, LENGTH)
        value, rest = _parse(list(example.tokens))
        assert value == example.label
        assert not rest
        assert 50 <= len(example.tokens) <= LENGTH
        seen |= set(example.tokens.tolist())
    assert seen == set(range(15))


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("[MIN", [4, 2, 9], 2),
        ("[MAX", [4, 2, 9], 9),
        ("[MED", [4, 1, 9, 9], 6),
        ("[MED", [3, 4], 3),
        ("[SM", [9, 4], 3),
    ],
)
def test_operators_have_their_hand_computed_values(operator, values, expected):
    assert listops.evaluate(operator, values) == expected


def test_rows_of_training_and_evaluation_are_padded_and_masked():
    batch = next(source.training_batches(DATA, length=LENGTH, batch_size=4, seed=0))
    assert batch["tokens"].shape == batch["mask"].shape == (4, LENGTH)
    assert np.all((batch["tokens"] == listops.PADDING_ID) == ~batch["mask"])
    held_out = source.evaluation_batches(DATA, "test", length=LENGTH, batch_size=4, max_examples=4)[0]
    assert held_out["weights"].tolist() == [1, 1, 1, 1]
    assert sorted(held_out) == ["mask", "targets", "tokens", "weights"]


def test_the_published_length_has_the_published_bounds():
    data = listops.ListOps().load(2000)
    assert (data.shortest, data.length) == (500, 2000)
    assert 500 <= len(data.example("valid", 0, 2000).tokens) <= 2000


def test_held_out_expressions_are_the_same_in_every_run_and_differ_between_splits():
    first, again, other = (DATA.example(split, 3, LENGTH).tokens for split in ("valid", "valid", "test"))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


def test_a_length_without_an_expression_is_refused():
    with pytest.raises(ValueError, match="length=3 holds no expression"):
        listops.ListOps().load(3)
