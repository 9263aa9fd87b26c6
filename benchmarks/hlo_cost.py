"""Bytes and operations of the instructions of optimized HLO, and how many kernels they are."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from benchmarks import hlo
from benchmarks.hlo import Computation, Instruction, Module

_VIEWS = {"bitcast", "copy", "reshape", "transpose"}
_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATES = {"dynamic-update-slice", "scatter"}  # in place: what they do not update is not touched
_SORTED_AT_ONCE = 2**11  # numbers that one kernel of XLA's sort for GPUs puts in order by itself


class Cost(NamedTuple):
    """Of one execution: bytes from and to memory, and operations of matrix products, those of 32-bit numbers apart."""

    bytes: float = 0.0
    flops: float = 0.0
    flops32: float = 0.0


def num_kernels(module: Module, instruction: Instruction, on_gpu: bool) -> int:
    """Returns how many kernels an instruction launches: one, but for a sort on a GPU and single numbers on a TPU.

    XLA's own sort is bitonic: one kernel for every comparison over a distance beyond those that a kernel holds. With a
    device at hand XLA uses a radix sort of CUB instead. Single numbers are computed by a TPU's scalar unit by the way.
    """
    if not on_gpu:
        is_work = instruction.opcode in ("fusion", "custom-call") or instruction.collective
        return 1 if is_work or not hlo.is_scalar(instruction.shape) else 0
    sort = next((x for x in (instruction, *module.inside(instruction).values()) if x.opcode == "sort"), None)
    if sort is None:
        return 1
    axis = int(re.search(r"dimensions=\{(\d+)\}", sort.attributes)[1])
    num_stages = math.ceil(math.log2(max(2, hlo.sizes(sort.shape)[axis])))
    inside = int(math.log2(_SORTED_AT_ONCE))
    return 1 + sum(stage - inside + 2 for stage in range(inside, num_stages))


class Costs:
    """Tells the cost of the instructions of one module, each fused computation worked out once."""

    def __init__(self, module: Module):
        """Takes a parsed module."""
        self._module = module
        self._of_fusions: dict[str, Cost] = {}
        self._users: dict[str, dict[str, list[tuple[Instruction, int]]]] = {}

    def of(self, computation: str, instruction: Instruction) -> Cost:
        """Returns the cost of one execution; slices and updates in place count what they touch."""
        if self._module.inside(instruction):
            return self._fusion(instruction.called("calls"))
        body = self._module.computations[computation]
        shapes = [body[name].shape for name in instruction.operands if name in body]
        return Cost(_bytes(instruction, shapes), *_flops(instruction, shapes))

    def _fusion(self, name: str) -> Cost:
        if name not in self._of_fusions:
            body = self._module.computations[name]
            read = sum(self._read(name, x) for x in body.values() if x.opcode == "parameter")
            costs = [self.of(name, x) for x in body.values() if x.opcode in ("dot", "convolution", "fusion")]
            self._of_fusions[name] = Cost(
                read + self._written(name, _root(body)), sum(x.flops for x in costs), sum(x.flops32 for x in costs)
            )
        return self._of_fusions[name]

    def _uses(self, computation: str) -> dict[str, list[tuple[Instruction, int]]]:
        if computation not in self._users:
            uses = self._users[computation] = defaultdict(list)
            for instruction in self._module.computations[computation].values():
                for place, operand in enumerate(instruction.operands):
                    uses[operand].append((instruction, place))
        return self._users[computation]

    def _read(self, computation: str, array: Instruction) -> int:
        """Returns the bytes of an array that a fused computation reads."""
        whole = hlo.num_bytes(array.shape)
        return min(whole, sum(self._read_by(computation, *use, whole) for use in self._uses(computation)[array.name]))

    def _read_by(self, computation: str, user: Instruction, place: int, whole: int) -> int:
        if user.opcode in _VIEWS:
            return self._read(computation, user)
        if user.opcode in _SLICES and place == 0:
            return hlo.num_bytes(user.shape, anywhere=True)
        if user.opcode in _UPDATES and place == 0:
            return 0
        if inner := self._module.inside(user):
            same = next(x for x in inner.values() if x.opcode == "parameter" and x.arguments == str(place))
            return self._read(user.called("calls"), same)
        return whole

    def _written(self, computation: str, result: Instruction) -> int:
        """Returns the bytes that a fused computation writes for a result; for updates also those that it reads."""
        body = self._module.computations[computation]
        if result.opcode == "tuple":
            return sum(self._written(computation, body[name]) for name in result.operands)
        if inner := self._module.inside(result):
            return self._written(result.called("calls"), _root(inner))
        if result.opcode in _VIEWS and result.operands[0] in body:
            source = body[result.operands[0]]
            if source.opcode in _UPDATES or source.opcode == "fusion":
                return self._written(computation, source)
        if result.opcode == "dynamic-update-slice":
            return hlo.num_bytes(body[result.operands[1]].shape, anywhere=True)
        if result.opcode == "scatter":
            return 2 * hlo.num_bytes(body[result.operands[-1]].shape, anywhere=True)
        return hlo.num_bytes(result.shape)


def _root(body: Computation) -> Instruction:
    return next(instruction for instruction in body.values() if instruction.is_root)


def _bytes(instruction: Instruction, shapes: list[str]) -> int:
    """Returns the bytes of an instruction that is no fusion."""
    opcode, result = instruction.opcode, hlo.num_bytes(instruction.shape)
    if declared := instruction.declared_bytes:
        return declared
    if opcode in _SLICES:
        return 2 * result + sum(hlo.num_bytes(shape) for shape in shapes[1:])
    if opcode == "dynamic-update-slice":
        return 2 * hlo.num_bytes(shapes[1])
    if opcode == "scatter":
        return 3 * hlo.num_bytes(shapes[-1]) + sum(hlo.num_bytes(shape) for shape in shapes[1:-1])
    if instruction.collective:
        return 2 * collective_bytes(instruction, shapes)
    if opcode.endswith("-start"):  # a copy between memories: the result stands second in (operand, result, ...)
        return hlo.num_bytes(hlo.parts(instruction.shape)[1], anywhere=True)
    return result + sum(hlo.num_bytes(shape) for shape in shapes)


def collective_bytes(instruction: Instruction, shapes: list[str]) -> int:
    """Returns the bytes of a collective on one device: of the larger of what goes in and what comes out.

    Args:
      instruction: The collective, or what starts it.
      shapes: Of its operands.
    """
    given = sum(hlo.num_bytes(shape, anywhere=True) for shape in shapes)
    result = hlo.num_bytes(instruction.shape, anywhere=True)
    if instruction.opcode.endswith("-start") and instruction.collective in ("all-gather", "collective-permute"):
        result -= given  # they return (operands, results)
    return max(given, result)


def _flops(instruction: Instruction, shapes: list[str]) -> tuple[float, float]:
    """Returns (operations of 16-bit products, of 32-bit products) of an instruction that is no fusion."""
    if instruction.opcode == "convolution":
        flops = _convolution_flops(instruction, *(hlo.sizes(shape) for shape in shapes[:2]))
    elif instruction.opcode == "dot" or instruction.target.startswith("__cublas"):
        pattern = r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d,"]*)'
        found = re.search(pattern, instruction.attributes)
        axes = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else []
        depth = math.prod(hlo.sizes(shapes[0])[axis] for axis in axes)
        flops = 2.0 * hlo.num_elements(instruction.shape) * depth
    else:
        return 0.0, 0.0
    return (0.0, flops) if hlo.arrays(shapes[0])[0][0] in ("f32", "f64") else (flops, 0.0)


def _convolution_flops(instruction: Instruction, image: tuple[int, ...], kernel: tuple[int, ...]) -> float:
    """Counts the products of a convolution that are not with padding: a TPU writes batched products as such."""
    of_image, of_kernel = re.search(r"dim_labels=(\w+)_(\w+)->", instruction.attributes).groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    flops = 2.0 * hlo.num_elements(instruction.shape) * kernel[of_kernel.index("i")]
    taps = [int(size) for size in fields.get("size", "").split("x") if size]

    def numbers(field: str, default: str) -> list[list[int]]:
        texts = fields[field].split("x") if field in fields else [default] * len(taps)
        return [[int(number) for number in text.split("_")] for text in texts]

    rows = zip(taps, numbers("stride", "1"), numbers("pad", "0_0"), numbers("lhs_dilate", "1"), strict=True)
    for axis, (size, (stride,), (low, high), (dilate,)) in enumerate(rows):
        flops *= _mean_terms(image[of_image.index(str(axis))], size, stride, low, high, dilate)
    return flops


def _mean_terms(length: int, taps: int, stride: int, low: int, high: int, dilate: int) -> float:
    """Returns how many numbers of the image an output of a convolution along one axis sums, on average."""
    end = (length - 1) * dilate + 1  # of the image with gaps between its numbers
    starts = np.arange(0, end + low + high - taps + 1, stride) - low
    first, last = np.maximum(starts, 0), np.minimum(starts + taps, end)
    return float(np.maximum(0, -(-last // dilate) - -(-first // dilate)).mean())
