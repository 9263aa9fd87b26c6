"""Reads the optimized HLO text of a compiled program: what it launches, and how often.

`launches` walks a program from its entry as a device runs it: bodies of loops as often as their trip counts say, calls
and asynchronous parts in place, of a conditional the branch that launches most.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
PALLAS_GPU = "__gpu$xla.gpu.triton"  # what a Pallas kernel for GPUs is a custom call of
# Names and views of what is there already, which no device executes.
_NOT_EXECUTED = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_CALLS_OF_NOTHING = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "SPMDFullToShardShape",
    "Sharding",
}
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}  # of others the digits of the name say it
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO.

    Attributes:
      name: Unique within its computation.
      opcode: As 'fusion'.
      shape: Of the result, with layouts, as the text has it.
      operands: Names.
      arguments: The text between the brackets: the number of a parameter, the value of a constant.
      attributes: The text behind them.
      is_root: Whether it is what its computation returns.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool = False

    def called(self, attribute: str) -> str:
        """Returns the computation that an attribute names, '' if it has none."""
        return _first(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)

    @property
    def target(self) -> str:
        """What a custom call calls."""
        return _first(r'custom_call_target="([^"]*)"', self.attributes)

    @property
    def pallas_kernel(self) -> str:
        """The name of the Pallas kernel that a custom call launches on a GPU; '' for others."""
        return _first(r'[{ ]name = "([^"]*)"', self.attributes) if self.target == PALLAS_GPU else ""

    @property
    def declared_bytes(self) -> int:
        """What a Pallas kernel for GPUs says that it reads and writes; 0 for others."""
        found = _first(r"bytes_accessed\\22: \\22(\d+)", self.attributes) if self.target == PALLAS_GPU else ""
        return int(found or 0)

    @property
    def source(self) -> str:
        """The operation of JAX that it comes from."""
        return _first(r'op_name="([^"]*)"', self.attributes)

    @property
    def is_asynchronous_end(self) -> bool:
        """Whether it only waits for what another instruction started."""
        return self.opcode.endswith(("-done", "-update"))

    @property
    def collective(self) -> str:
        """The kind of collective that it is, or starts; '' for others."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations, each from names to instructions, and which of them is run."""

    entry: str
    computations: dict[str, Computation]

    def inside(self, instruction: Instruction) -> Computation:
        """Returns what a fusion computes; nothing for other instructions."""
        is_fusion = instruction.opcode == "fusion"
        return self.computations.get(instruction.called("calls"), {}) if is_fusion else {}


@dataclasses.dataclass(frozen=True)
class Launch:
    """An instruction that the device executes.

    Attributes:
      instruction: The same.
      computation: The name of the one that it stands in.
      trips: Of the loops around it, outermost first.
    """

    instruction: Instruction
    computation: str
    trips: tuple[int, ...]

    @property
    def times(self) -> int:
        """How often it is executed."""
        return math.prod(self.trips)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a program.

    Attributes:
      launches: All that is executed.
      num_iterations: Of all loops, those of inner loops multiplied out.
      num_unknown_loops: Loops whose trip count the text does not tell; they count as one trip.
    """

    launches: list[Launch]
    num_iterations: int = 0
    num_unknown_loops: int = 0


def parse(text: str) -> Module:
    """Returns the program that `compiled.as_text()` shows."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if not line.startswith(" "):
            if header := _HEADER.match(line):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif found := _LINE.match(line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    return Module(entry, computations)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    arguments = text[opening + 1 : closing - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, text[end:opening].strip(), text[:end], operands, arguments, text[closing:], is_root)


def _closing(text: str, start: int) -> int:
    """Returns the place behind the bracket that closes the one at `start`."""
    depth = 0
    for bracket in re.finditer(r"[()]", text[start:]):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return start + bracket.end()
    return len(text)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Returns (type, sizes, layout) of the arrays of a shape, which may be a tuple of tuples."""
    found = _ARRAY.findall(shape)
    return [(kind, tuple(int(size) for size in sizes.split(",") if size), layout) for kind, sizes, layout in found]


def sizes(shape: str) -> tuple[int, ...]:
    """Returns the sizes of the first array of a shape."""
    return arrays(shape)[0][1]


def num_elements(shape: str) -> int:
    """Returns how many numbers the first array of a shape has."""
    return math.prod(sizes(shape))


def is_scalar(shape: str) -> bool:
    """Whether a shape is that of a single number."""
    return [sizes for _, sizes, _ in arrays(shape)] == [()]


def num_bytes(shape: str, anywhere: bool = False) -> int:
    """Returns the bytes of all arrays of a shape.

    Args:
      shape: As the text has it.
      anywhere: Count arrays outside the device's main memory too, as `S(1)` in a layout of a TPU says.
    """
    found = arrays(shape)
    bits = sum(_bits(kind) * math.prod(sizes) for kind, sizes, layout in found if anywhere or "S(" not in layout)
    return bits // 8


def _bits(kind: str) -> int:
    return _BITS[kind] if kind in _BITS else int(_first(r"^[a-z]+([0-9]+)", kind) or 0)


def parts(shape: str) -> list[str]:
    """Returns the shapes that a tuple is made of."""
    found, depth, start = [], 0, 1
    for bracket in re.finditer(r"[(){}\[\],]", shape):
        if bracket[0] in "({[":
            depth += 1
        elif bracket[0] in ")}]":
            depth -= 1
        if (bracket[0] == "," and depth == 1) or depth == 0:
            found.append(shape[start : bracket.start()].strip())
            start = bracket.end()
    return found


def run(module: Module) -> Run:
    """Returns what one run of a program executes."""
    return _walk(module, module.entry, ())


def _walk(module: Module, name: str, trips: tuple[int, ...]) -> Run:
    found = Run([])
    for instruction in module.computations.get(name, {}).values():
        for part in _parts_of(module, name, instruction, trips):
            found = Run(
                found.launches + part.launches,
                found.num_iterations + part.num_iterations,
                found.num_unknown_loops + part.num_unknown_loops,
            )
    return found


def _parts_of(module: Module, name: str, instruction: Instruction, trips: tuple[int, ...]) -> Iterator[Run]:
    opcode = instruction.opcode
    if opcode == "while":
        count = trip_count(module, instruction)
        inner = (*trips, count or 1)
        yield Run([], math.prod(inner), int(count is None))
        yield _walk(module, instruction.called("body"), inner)
    elif opcode == "conditional":
        branches = [_walk(module, branch, trips) for branch in _branches(instruction)]
        yield max(branches, key=lambda branch: sum(launch.times for launch in branch.launches))
    elif opcode == "call":
        yield _walk(module, instruction.called("to_apply"), trips)
    elif opcode.endswith("-start") and instruction.called("calls"):
        yield _walk(module, instruction.called("calls"), trips)
    elif is_executed(instruction):
        yield Run([Launch(instruction, name, trips)])


def is_executed(instruction: Instruction) -> bool:
    """Whether a device has something to do for an instruction by itself."""
    is_name = instruction.opcode in _NOT_EXECUTED or instruction.is_asynchronous_end
    return not is_name and instruction.target not in _CALLS_OF_NOTHING


def _branches(instruction: Instruction) -> list[str]:
    listed = _first(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    pair = [instruction.called("true_computation"), instruction.called("false_computation")]
    return re.findall(r"[\w.\-]+", listed) or pair


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Returns how often the body of a loop is run; None if the text does not tell.

    XLA writes it down where it knows. Else a loop of `jax.lax.scan` compares its counter, which begins at 0, with the
    only number of its condition.
    """
    if known := _first(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known)
    condition = module.computations.get(loop.called("condition"), {})
    numbers = [x.arguments for x in condition.values() if x.opcode == "constant" and x.arguments.isdigit()]
    return int(numbers[0]) if len(numbers) == 1 else None
