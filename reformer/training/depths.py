"""Parameters of stacks by the depth of their layers, whatever the length of the pattern that a stack repeats.

A stack whose pattern has p kinds keeps its layers in `stack/layer_0` to `stack/layer_{p-1}`, arrays with one row for
each repetition: the layer of depth d is row d // p of `layer_{d % p}`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

_LAYER = re.compile(r"(?P<stack>(?:.*/)?stack)/layer_(?P<number>\d+)/(?P<name>.+)")

Shape = tuple[int, ...]


class Piece(NamedTuple):
    """A parameter of one layer, or one that belongs to no layer.

    Attributes:
      path: Of the array that holds it.
      row: In that array; None = it is the whole array.
      shape: Its own.
    """

    path: str
    row: int | None
    shape: Shape


def by_depth(shapes: Mapping[str, Shape]) -> dict[str, Piece]:
    """Returns every parameter by a name that does not depend on the pattern, `stack/depth_5/norm/scale`.

    Args:
      shapes: Of arrays by path.
    """
    matches = {path: _LAYER.fullmatch(path) for path in shapes}
    numbers = defaultdict(set)  # of the layers of each stack
    for match in filter(None, matches.values()):
        numbers[match["stack"]].add(match["number"])
    pieces = {}
    for path, match in matches.items():
        if match is None:
            pieces[path] = Piece(path, None, shapes[path])
            continue
        period = len(numbers[match["stack"]])
        num_rows, *shape = shapes[path]
        for row in range(num_rows):
            depth = row * period + int(match["number"])
            pieces[f"{match['stack']}/depth_{depth}/{match['name']}"] = Piece(path, row, tuple(shape))
    return pieces
