"""Options of an experiment: frozen dataclasses that say by the types of their fields what a value may be.

`num_steps: Count = 1000` is an integer of at least 1; `Annotated[str, one_of(["adafactor", "adamw"])]` one of two. A
field of plain type bool, int, float or str may be any value of it.
"""

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeAlias, TypeVar

from ml_collections import ConfigDict

from reformer.config import is_integer, is_number
from reformer.host import own_code, paths


class Rule(NamedTuple):
    """What a value must be.

    Attributes:
      words: for people; they stand behind 'must be'.
      is_kept: whether a value is so.
    """

    words: str
    is_kept: Callable[[Any], bool]


def one_of(names: Collection[str]) -> Rule:
    """Returns the rule of a field that has few choices."""
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


Flag = Annotated[bool, Rule("True or False", lambda value: isinstance(value, bool))]
Text = Annotated[str, Rule("text in quotes", lambda value: isinstance(value, str))]
LocalPath = Annotated[
    str,
    Rule(
        f"text in quotes, and {paths.RULE.removesuffix('.')}",
        lambda value: isinstance(value, str) and not paths.is_address(value),
    ),
]
Count = Annotated[int, Rule("an integer of at least 1 and at most 2147483647", lambda value: is_integer(value, 1))]
AtLeastTwo = Annotated[int, Rule("an integer of at least 2 and at most 2147483647", lambda value: is_integer(value, 2))]
Natural = Annotated[int, Rule("an integer from 0 to 2147483647", lambda value: is_integer(value, 0))]
MaybeCount = Annotated[
    int | None, Rule("None or a positive integer", lambda value: value is None or is_integer(value, 1))
]
Positive = Annotated[float, Rule("a positive number that float32 holds", lambda value: is_number(value) and value > 0)]
MaybePositive = Annotated[
    float | None,
    Rule(
        "None or a positive number that float32 holds",
        lambda value: value is None or (is_number(value) and value > 0),
    ),
]
Share = Annotated[float, Rule("a number of at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)]
PositiveShare = Annotated[float, Rule("a number above 0 and below 1", lambda value: is_number(value) and 0 < value < 1)]

_OF_PLAIN_TYPES = {
    bool: typing.get_args(Flag)[1],
    int: Rule("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: Rule("a number that float32 holds", is_number),
    str: typing.get_args(Text)[1],
}
_ANYTHING = Rule("anything", lambda value: True)


Group: TypeAlias = ConfigDict | dict[str, Any]  # the second as read from config.json


class Field(NamedTuple):
    """A field of a group of a config: its default, whether None may stand there, and its rule."""

    default: Any
    may_be_none: bool
    rule: Rule

    def problem(self, name: str, value: Any) -> str:
        """Returns a sentence that begins with `name` if the value is not allowed, '' if it is."""
        return "" if self.rule.is_kept(value) else f"{name}={value!r} must be {self.rule.words}."


def fields_of(options: Any) -> dict[str, Field]:
    """Returns the fields of a dataclass by name."""
    hints = typing.get_type_hints(options, include_extras=True)
    return {field.name: _field(field.default, hints[field.name]) for field in dataclasses.fields(options)}


def _field(default: Any, hint: Any) -> Field:
    rules = [part for part in typing.get_args(hint) if isinstance(part, Rule)]
    plain = typing.get_args(hint)[0] if rules else hint
    rule = rules[0] if rules else _OF_PLAIN_TYPES.get(plain, _ANYTHING)
    return Field(default, type(None) in typing.get_args(plain), rule)


@dataclasses.dataclass(frozen=True)
class Options:
    """A group of a config, or the part of it that a task or a data set reads. It validates itself.

    What is not allowed is a ValueError at construction with one line for each problem: field, value, rule and repair.
    """

    GROUP: ClassVar[str] = "config"  # where the fields stand on the command line

    def __post_init__(self):
        problems = [*self.problems_of_fields()] or [*self.problems()]
        if problems:
            raise ValueError("\n".join(problems))

    @classmethod
    def read(cls, group: Group) -> Self:
        """Returns the options that a group of a config holds; other fields are not for this class.

        Args:
          group: values by name. A field that it lacks is younger than the run whose config it is: its default.

        Raises:
          ValueError: if a value is not allowed.
        """
        made = cls.unchecked(group)
        made.__post_init__()
        return made

    @classmethod
    def unchecked(cls, group: Group) -> Self:
        """Returns the same without a check, for who collects the problems of several groups."""
        made = object.__new__(cls)
        for name, field in fields_of(cls).items():
            value = group.get(name, field.default)
            object.__setattr__(made, name, tuple(value) if isinstance(value, list) else value)  # JSON has no tuples
        return made

    def problems_of_fields(self) -> Iterator[str]:
        """Yields a sentence for each field whose value is wrong by itself."""
        for name, field in fields_of(type(self)).items():
            if problem := field.problem(f"{self.GROUP}.{name}", getattr(self, name)):
                yield problem

    def problems(self) -> Iterator[str]:
        """Yields a sentence for each set of fields, right by themselves, that do not fit together."""
        yield from ()


Kind = TypeVar("Kind", bound=Options)


def rule_of_name(known: Mapping[str, type[Kind]]) -> Rule:
    """Returns the rule of a field that names a class: one of ours, or one's own."""
    return Rule(
        f"one of {', '.join(known)}, or FILE.py:CLASS of your own",
        lambda value: isinstance(value, str) and (value in known or own_code.is_reference(value)),
    )


def find_class(name: Any, known: Mapping[str, type[Kind]], base: Any) -> type[Kind]:
    """Returns the class that the `name` of a group stands for.

    Raises:
      ValueError: if there is none.
    """
    problem = Field(None, False, rule_of_name(known)).problem(f"{base.GROUP}.name", name)
    if problem:
        raise ValueError(problem)
    if name in known:
        return known[name]
    found = own_code.find(f"{base.GROUP}.name", name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{base.GROUP}.name={name!r} must be a class that has {base.__name__} as a base.")
    return found
