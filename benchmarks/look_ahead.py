"""What look-ahead values cost: a training step with and without, taking turns in one process, and its memory by plan.

Both models have one projection for queries and keys in every layer; sizes are those of `train_step.py`.

Command: python benchmarks/look_ahead.py --length 4096 65536
"""

import argparse
import statistics
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from benchmarks.train_step import compile_step, make_config, make_step


def measure(length: int, num_steps: int, num_hashes: int) -> dict:
    """Returns the median of the ratios of neighbouring steps with their range, and both models' seconds and bytes."""
    steps = {}
    for name, looks_ahead in (("off", False), ("on", True)):
        config = make_config(length, look_ahead=looks_ahead, share_query_key=True, num_hashes=num_hashes)
        function, arguments = make_step(config)
        steps[name] = compile_step(function, arguments), arguments
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(1 + num_steps):
        for name, (compiled, (params, tokens, _)) in steps.items():
            rng = jax.random.key(i)
            seconds[name].append(record.seconds(lambda c=compiled, p=params, t=tokens, r=rng: c(p, t, r)))
    ratios = sorted(on / off for on, off in zip(seconds["on"][1:], seconds["off"][1:], strict=True))
    scratch = {name: compiled.memory_analysis().temp_size_in_bytes for name, (compiled, _) in steps.items()}
    return {
        "length": length,
        "num_hashes": num_hashes,
        "seconds_off": round(statistics.median(seconds["off"][1:]), 3),
        "seconds_on": round(statistics.median(seconds["on"][1:]), 3),
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "scratch_off_gb": round(scratch["off"] / 1e9, 3),
        "scratch_on_gb": round(scratch["on"] / 1e9, 3),
    }


def main() -> None:
    """Measures every length, prints a table and keeps its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[4096, 65_536])
    parser.add_argument("--num_hashes", type=int, default=1)
    parser.add_argument("--num_steps", type=int, default=9, help="timed pairs after one to warm up")
    arguments = parser.parse_args()
    origin = record.provenance()
    rows = [measure(length, arguments.num_steps, arguments.num_hashes) for length in arguments.length]
    for row in rows:
        record.append("look_ahead", row | origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
