"""Tiles of sorted slots: the programs of a kernel, what they can reach, and how they are launched.

A program has a tile of the slots of one row in one round. On a GPU it can reach all of the row and round. On a TPU it
gets its tile, and the ones around it, as blocks.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from reformer import sharding
from reformer.ops.masking import Rule

NEVER = 2**30  # a position, and a slot, that nothing is near to
_SMALLEST_SIZE = 16  # of features, for the matrix units
_WIDEST = 256  # features whose tiles fit the shared memory
_TILE, _LANES = 64, 128


class Operands(NamedTuple):
    """What a kernel reads: arrays [rows, 1 or rounds, slots, ...], or references to a part of one row and round."""

    query: Any
    key: Any
    value: Any
    place: Any
    bucket: Any
    scale: Any
    seed: Any
    out_gradient: Any = None
    delta: Any = None
    log_normalizer: Any = None


class Static(NamedTuple):
    """What the kernels know at compile time.

    Attributes:
      rule: who attends to whom.
      chunk_length: slots of a chunk.
      head_dim: before padding.
      is_sorted: whether the tokens stand in the order of their slots, instead of at their positions.
      reaches_all: whether a program can reach all of its row, instead of the blocks around its tile.
      num_slots: of a row, those behind the last token included.
      tile: slots of a program.
      step: slots that it visits at once.
      num_warps: of a program on a GPU.
    """

    rule: Rule
    chunk_length: int
    head_dim: int
    is_sorted: bool
    reaches_all: bool
    num_slots: int
    tile: int
    step: int
    num_warps: int

    @property
    def fits(self) -> bool:
        """Whether a program visits nothing but the chunks that its tokens see."""
        return self.reaches_all and self.chunk_length % self.tile == 0

    def neighbors(self, side: str) -> tuple[int, int]:
        """How many chunks before and after a token's own hold its 'keys', or its 'queries'."""
        before, after = self.rule.before, self.rule.after
        return (before, after) if side == "keys" else (after, before)

    def steps(self, tile, side: str):
        """The first step of the chunks that hold the keys, or queries, of a tile, and the first step behind them.

        They may lie beyond the ends of the row.
        """
        before, after = self.neighbors(side)
        first, size = tile * self.tile, self.chunk_length
        begin = (first // size - before) * size
        end = ((first + self.tile - 1) // size + 1 + after) * size
        return begin // self.step, (end + self.step - 1) // self.step

    def most_steps(self, side: str) -> int:
        """How many steps these are at most, whichever the tile."""
        tiles = range(min(self.num_slots // self.tile, self.chunk_length))  # after so many the chunks lie alike
        return max(end - begin for begin, end in (self.steps(tile, side) for tile in tiles))


class Tile(NamedTuple):
    """Some slots.

    Attributes:
      refs: what the program can reach.
      index: where in that the tokens of the slots stand.
      first: the first slot.
      place: of every slot the position of its token, or `hide(position)` if it may not be attended.
    """

    refs: Operands
    index: Any
    first: Any
    place: Array

    def vectors(self, ref) -> Array:
        """Reads [slots, features]."""
        return ref[self.index, :]

    def store(self, ref, x) -> None:
        """Writes an array [slots, ...]."""
        ref[(self.index, *(slice(None),) * (x.ndim - 1))] = x.astype(ref.dtype)


def hide(position):
    """Encodes the position of a key that may not be attended; its own inverse."""
    return -2 - position


def show(place):
    """The positions in `Tile.place`."""
    return jnp.where(place < 0, hide(place), place)


def plan(rule: Rule, chunk_length: int, tokens, *, is_sorted: bool, num_sums: int) -> Static:
    """Chooses the sizes of tiles; `num_sums` arrays like a tile of vectors are summed at the same time."""
    length, head_dim = tokens.query.shape[1:]
    on_tpu, width = sharding.target_platform() == "tpu", max(head_dim, tokens.value.shape[2])
    num_bytes = tokens.query.dtype.itemsize
    if sharding.target_platform() == "gpu" and (width > _WIDEST or num_bytes > 4):
        raise ValueError(
            f"head_dim={width} of {tokens.query.dtype} does not fit the kernel for GPUs, which takes up to "
            f"head_dim={_WIDEST} of at most 32 bits. Use implementation='plain'."
        )
    load = num_sums * width * num_bytes  # sums, scores and what is loaded share the registers
    tile, step = _TILE if load <= 512 else _TILE // 2, _TILE if load <= 256 else _TILE // 2
    num_warps = 4 if num_sums * width <= 128 else 8
    if num_bytes <= 2 and chunk_length >= 2 * _TILE and width <= 128:
        tile, num_warps = 2 * _TILE, 8
    if on_tpu:
        tile = step = _LANES
    num_slots = tile * math.ceil(length / tile)
    return Static(rule, chunk_length, head_dim, is_sorted, not on_tpu, num_slots, tile, step, num_warps)


def own_tile(static: Static, refs: Operands) -> Tile:
    """The tile of this program."""
    return _tile(static, refs, pl.program_id(0) * static.tile, static.tile)


def visit_tiles(static: Static, refs: Operands, blocks: dict, side: str, visit: Callable, carry):
    """Folds `visit`, from (carry, tile) to carry, over the tiles that hold the keys, or queries, of the own one."""
    begin, end = static.steps(pl.program_id(0), side)
    if static.reaches_all:
        begin, end = jnp.maximum(begin, 0), jnp.minimum(end, static.num_slots // static.step)
        tile = partial(_tile, static, refs, size=static.step)
        return jax.lax.fori_loop(begin, end, lambda i, carry: visit(carry, tile(first=i * static.step)), carry)
    for i, block in enumerate(blocks[side]):
        carry = visit(carry, _tile(static, block, (begin + i) * static.step, static.step))
    return carry


def _tile(static: Static, refs: Operands, first, size: int) -> Tile:
    if static.reaches_all:
        slots = pl.ds(first, size)
        place = refs.place[slots]
        return Tile(refs, slots if static.is_sorted else show(place), first, place)
    exists = (first >= 0) & (first < static.num_slots)  # else another block stands in its place, and nothing is near it
    place = jnp.where(exists, refs.place[...], hide(NEVER))
    return Tile(refs, slice(None), jnp.where(exists, first, NEVER), place)


def pad_slots(static: Static, x, fill=0):
    """Pads numbers [rows, ..., l] to whole tiles."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, static.num_slots - x.shape[-1])], constant_values=fill)


def pad_vectors(static: Static, x):
    """Pads vectors [rows, l, d] to whole tiles and a power of two, and gives them an axis of rounds."""
    features = max(_SMALLEST_SIZE, pl.next_power_of_2(x.shape[2]))
    return jnp.pad(x, [(0, 0), (0, static.num_slots - x.shape[1]), (0, features - x.shape[2])])[:, None]


def result_like(x, num_rounds: int, dtype) -> jax.ShapeDtypeStruct:
    """A result like an operand, for every round; it varies over the same mesh axes."""
    shape = (x.shape[0], num_rounds, *x.shape[2:])
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def launch(kernel: Callable, static: Static, operands: Operands, sides: tuple[str, ...], out_shapes):
    """Runs a kernel for every tile of every round of every row, on a CPU by the interpreter.

    Args:
      kernel: (`static`, own references, blocks for `visit_tiles`, *references to results).
      static: from `plan`.
      operands: arrays.
      sides: what the kernel visits.
      out_shapes: from `result_like`.
    """
    num_rows, num_rounds, _ = operands.place.shape
    own = partial(jax.tree.map, partial(_spec, static, lambda tile: tile))
    blocks = {}
    if not static.reaches_all:
        for side in sides:
            numbers = [partial(_block, static, side, i) for i in range(static.most_steps(side))]
            blocks[side] = [jax.tree.map(partial(_spec, static, number), operands) for number in numbers]
    run = partial(
        pl.pallas_call,
        partial(kernel, static),
        grid=(static.num_slots // static.tile, num_rounds, num_rows),
        in_specs=(own(operands), blocks),
        out_specs=own(out_shapes),
        out_shape=out_shapes,
        name=kernel.__name__.strip("_").replace("_kernel", "_chunks"),
        metadata={"bytes_accessed": str(_num_bytes((operands, out_shapes), num_rounds))},
    )
    params = triton.CompilerParams(num_warps=static.num_warps, num_stages=1)
    on_device = run(compiler_params=params) if static.reaches_all else run()
    arguments = operands, {side: [operands] * len(specs) for side, specs in blocks.items()}
    return jax.lax.platform_dependent(*arguments, cpu=run(interpret=True), default=on_device)


def _spec(static: Static, number: Callable, x) -> pl.BlockSpec:
    """What a program reaches of an array: all of the row and round, or the tile that `number` gives for its own."""
    is_whole = static.reaches_all or x.shape[2] == 1

    def index(tile, of_round, row):
        return row, of_round if x.shape[1] > 1 else 0, 0 if is_whole else number(tile), *(0,) * (x.ndim - 3)

    return pl.BlockSpec((None, None, x.shape[2] if is_whole else static.tile, *x.shape[3:]), index)


def _block(static: Static, side: str, i: int, tile):
    return jnp.clip(static.steps(tile, side)[0] + i, 0, static.num_slots // static.step - 1)


def _num_bytes(arrays, num_rounds: int) -> int:
    """What all programs read or write of their own tiles: arrays that the rounds share count once for each."""
    return sum(x.size * x.dtype.itemsize * num_rounds // x.shape[1] for x in jax.tree.leaves(arrays))
