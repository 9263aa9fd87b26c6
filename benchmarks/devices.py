"""What each device holds in a training step of one long sequence, when devices split its length.

Planned memory is what XLA's compiled program asks for on each device; nothing is allocated. The model is that of
`train_step.py` with eight heads.

Command: XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/devices.py
"""

import argparse
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record, train_step
from reformer import sharding


def plan(length: int, num_devices: int, num_layers: int, split_length: bool) -> dict[str, float]:
    """Returns planned bytes of each device.

    Args:
      length: tokens of the one sequence.
      num_devices: that share it.
      num_layers: of the model.
      split_length: whether they split its length, or heads and hidden units.
    """
    config = train_step.make_config(length, num_heads=8, head_dim=16, num_layers=num_layers)
    mesh = sharding.make_mesh(1, 1, num_devices, split_length, devices=jax.devices()[:num_devices])
    step, (params, tokens, rng) = train_step.abstract_step(config)
    places = sharding.parameter_shardings(params, mesh)
    params = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), params, places)
    tokens = tokens.update(sharding=sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        memory = train_step.compile_step(step, (params, tokens, rng)).memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {"scratch": memory.temp_size_in_bytes, "planned": memory.temp_size_in_bytes + arrays}


def main() -> None:
    """Plans, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[65_536, 1_048_576])
    parser.add_argument("--num_devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--num_layers", type=int, default=6)
    arguments = parser.parse_args()
    origin, rows = record.provenance(), []
    for length in arguments.length:
        for split_length in (True, False):
            for num_devices in arguments.num_devices:
                found = plan(length, num_devices, arguments.num_layers, split_length)
                sizes = {"length": length, "split": "length" if split_length else "heads", "devices": num_devices}
                rows.append(sizes | {f"{name}_gb": round(size / 1e9, 3) for name, size in found.items()})
                record.append("devices", rows[-1] | origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
