"""LSH, local and full attention alone, forward and backward: time against length and hash rounds, and the crossover.

What is timed is the gradient of sum(out * fixed) for random arrays of one example, causal, chunks of 64. LSH attention
hashes and sorts within that time. Full and local attention have keys of their own. All kinds take turns, so that what
else the machine does hits them alike. On a GPU also `jax.nn.dot_product_attention`: 'xla', which is its default, and
for 16-bit types 'cudnn', the one to beat.

Command: python benchmarks/attention.py
         python benchmarks/attention.py --length 512 1024 2048 4096 8192
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record, train_step
from reformer.ops import attention, hashing
from reformer.training import memory

NUM_HEADS, HEAD_DIM, CHUNK_LENGTH = 2, 64, 64
FULL_KINDS = {"full", "xla", "cudnn"}
LONGEST_XLA = 32_768  # its scores are an array of the square of the length
FEWEST_REPEATS, MOST_REPEATS, REPEATS_OF_VERY_LONG = 5, 21, 2
SECONDS_OF_REPEATS, SECONDS_OF_VERY_LONG = 20.0, 60.0


def attend(kind: str, query, key, value, rng):
    """Returns the output of attention of `kind`: 'lsh-ROUNDS', 'local', 'full', 'xla' or 'cudnn'; LSH without `key`."""
    if kind == "local":
        return attention.local_attention(query, key, value, chunk_length=CHUNK_LENGTH)
    if kind == "full":
        return attention.full_attention(query, key, value)
    if kind in ("xla", "cudnn"):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation=kind)
    factors = hashing.choose_num_buckets(query.shape[1], CHUNK_LENGTH)
    rotations = hashing.draw_rotations(rng, NUM_HEADS, HEAD_DIM, int(kind.removeprefix("lsh-")), factors)
    options = {"rotations": rotations, "num_buckets": factors, "chunk_length": CHUNK_LENGTH}
    return attention.lsh_attention(query, value, **options)


def make_call(kind: str, query, key, value, fixed) -> Callable:
    """Returns a compiled step over arrays [batch, length, heads, head_dim] to be timed."""

    def weighted_sum(inputs, fixed, rng):
        out = attend(kind, inputs["query"], inputs.get("key"), inputs["value"], rng)
        return jnp.sum(out * fixed, dtype=jnp.float32)

    inputs = {"query": query, "value": value}
    if not kind.startswith("lsh"):
        inputs["key"] = key
    arguments = (inputs, fixed, jax.random.key(1))
    compiled = train_step.compile_step(jax.value_and_grad(weighted_sum), arguments)
    return lambda: compiled(*arguments)


def time_in_turns(calls: dict[str, Callable]) -> dict[str, list[float]]:
    """Returns seconds of the calls of each kind, after one of each to warm up; few if they take very long.

    What does not fit into the memory is left out.
    """
    once = {}
    for kind, call in calls.items():
        try:
            once[kind] = record.seconds(call)
        except jax.errors.JaxRuntimeError as error:
            if not memory.is_exhausted(error):
                raise
            print(f"{kind}: the memory does not suffice", file=sys.stderr)
    repeats = num_repeats(sum(once.values()))
    times: dict[str, list[float]] = {kind: [] for kind in once}
    for _ in range(repeats):
        for kind in once:
            times[kind].append(record.seconds(calls[kind]))
    return times


def num_repeats(seconds_of_round: float) -> int:
    """Returns how many rounds of all kinds to time."""
    if seconds_of_round > SECONDS_OF_VERY_LONG:
        return REPEATS_OF_VERY_LONG
    return min(MOST_REPEATS, max(FEWEST_REPEATS, int(SECONDS_OF_REPEATS / seconds_of_round)))


def measure(kinds: Sequence[str], length: int, dtype: str) -> list[dict]:
    """Returns a row for every kind."""
    shape = (1, length, NUM_HEADS, HEAD_DIM)
    arrays = [jax.random.normal(rng, shape, dtype) for rng in jax.random.split(jax.random.key(0), 4)]
    rows = []
    for kind, times in time_in_turns({kind: make_call(kind, *arrays) for kind in kinds}).items():
        median = statistics.median(times)
        rows.append(
            {
                "kind": kind,
                "length": length,
                "dtype": dtype,
                "milliseconds": round(1e3 * median, 3),
                "ns_per_token_head": round(1e9 * median / length / NUM_HEADS, 1),
                "fastest_ms": round(1e3 * min(times), 3),
                "slowest_ms": round(1e3 * max(times), 3),
                "num_repeats": len(times),
            }
        )
    return rows


def find_crossover(times: dict[int, float], reference: dict[int, float]) -> dict:
    """Returns from which length on `times` are below `reference`, both by length, at the lengths that both have.

    Returns:
      'between': the last length that loses and the first of those that win, None where there is no such length;
      'tokens': where the times would be equal if both were powers of the length between the two.
    """
    lengths = sorted(times.keys() & reference.keys())
    gains = [math.log(reference[length] / times[length]) for length in lengths]
    first = 1 + max((i for i, gain in enumerate(gains) if gain <= 0), default=-1)
    last_lost = lengths[first - 1] if first else None
    if not first or first == len(lengths):
        return {"between": (last_lost, lengths[first] if first < len(lengths) else None), "tokens": None}
    share = gains[first - 1] / (gains[first - 1] - gains[first])
    tokens = last_lost * (lengths[first] / last_lost) ** share
    return {"between": (last_lost, lengths[first]), "tokens": round(tokens)}


def describe_crossovers(rows: list[dict]) -> str:
    """Returns a line for every kind of sparse and of full attention."""
    by_kind: dict[str, dict[int, float]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], {})[row["length"]] = row["milliseconds"]
    lines = []
    for reference in FULL_KINDS & by_kind.keys():
        for kind in by_kind.keys() - FULL_KINDS:
            found = find_crossover(by_kind[kind], by_kind[reference])
            lines.append(f"- {kind} beats {reference} {_describe(found)}")
    return "\n".join(sorted(lines))


def _describe(crossover: dict) -> str:
    lost, won = crossover["between"]
    if won is None:
        return f"at no measured length; it loses at {lost:,} tokens"
    if lost is None:
        return f"at all measured lengths, from {won:,} tokens on"
    return f"from about {crossover['tokens']:,} tokens on; it loses at {lost:,} and wins at {won:,}"


def main() -> None:
    """Measures against length and rounds, prints tables and appends JSON lines."""
    on_gpu = jax.default_backend() == "gpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[2**n for n in range(9, 21)])
    parser.add_argument("--longest_full", type=int, default=131_072 if on_gpu else 8192)
    parser.add_argument("--num_hashes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--sweep_num_hashes", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--sweep_length", type=int, default=16_384)
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    arguments = parser.parse_args()
    origin, rows = record.provenance(), []
    for length in arguments.length:
        kinds = [f"lsh-{count}" for count in arguments.num_hashes] + ["local"]
        kinds += full_kinds(length, arguments.longest_full, on_gpu, arguments.dtype)
        rows += keep("length", measure(kinds, length, arguments.dtype), origin)
    crossovers = describe_crossovers(rows)
    if arguments.sweep_num_hashes:
        kinds = [f"lsh-{count}" for count in arguments.sweep_num_hashes]
        rows += keep("num_hashes", measure(kinds, arguments.sweep_length, arguments.dtype), origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]) + "\n\n" + crossovers)


def keep(sweep: str, rows: list[dict], origin: dict) -> list[dict]:
    """Appends rows to the results, and returns them with the name of what varies."""
    rows = [{"sweep": sweep, **row} for row in rows]
    for row in rows:
        record.append("attention", row | origin)
    return rows


def full_kinds(length: int, longest: int, on_gpu: bool, dtype: str) -> list[str]:
    """Returns the kinds of full attention to time at a length."""
    kinds = ["full"] if length <= longest else []
    if on_gpu and length <= min(longest, LONGEST_XLA):
        kinds.append("xla")
    if on_gpu and dtype in ("bfloat16", "float16"):
        kinds.append("cudnn")
    return kinds


if __name__ == "__main__":
    main()
