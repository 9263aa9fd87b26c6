"""Kills a small run with SIGKILL again and again, and compares what it comes to with a run that nobody killed.

python benchmarks/soak.py [--num_chains 5]     (`make soak`)

The points are those of benchmarks/kills.py. A chain is one workdir: the same command is started until it ends
by itself, and killed ten times on the way, twice each during compilation, training, a save, a restore and an
evaluation. Nothing is cleaned between two starts. At the end the parameters, the optimizer's state and the journal must
be those of the unbroken run bit for bit, with the same files in the workdir.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np

from benchmarks import kills, record
from configs import base
from reformer import sharding
from reformer.training import checkpoint, metrics, settings, step

SAVE_POINTS = ("save", "save_some", "save_files", "save_manifest", "save_commit", "save_committed", "save_delete")
OVERRIDES = {
    "model.max_length": 32,
    "model.num_layers": 1,
    "model.attention_pattern": ("lsh",),
    "model.embed_dim": 16,
    "model.mlp_dim": 32,
    "model.dropout_rate": 0.1,
    "training.log_every_steps": 1,
    "evaluation.every_steps": 3,
    "evaluation.num_hash_seeds": 1,
    "checkpoint.every_steps": 2,
}


def chains(num_chains: int) -> list[list[str]]:
    """Returns the kills of each chain, `POINT:N`; every start after one of them finds what it left."""
    return [
        [
            f"compile:{1 + number % 3}",
            *(kill for half in (2 * number, 2 * number + 1) for kill in _kills(half)),
            f"compile:{1 + number % 2}",
        ]
        for number in range(num_chains)
    ]


def _kills(number: int) -> list[str]:
    point, count = SAVE_POINTS[number % len(SAVE_POINTS)], 1 + number // len(SAVE_POINTS)
    return [f"train:{4 + number % 3}", f"{point}:{count}", f"restore:{1 + number % 4}", f"evaluate:{1 + number % 3}"]


class Soak:
    """A small experiment, its command, and what it comes to if nobody kills it."""

    def __init__(self, directory: Path, num_steps: int = 36):
        """Writes a text to train on and makes the unbroken run of some steps."""
        self.directory = directory
        words = ["the", "tree", "of", "a", "forest", "and", "its", "leaves", "in", "wind", "or", "rain"]
        (directory / "words.txt").write_text(" ".join(random.Random(0).choices(words, k=4000)))
        self._command = [
            sys.executable,
            str(record.ROOT / "benchmarks" / "kills.py"),
            f"--config={record.ROOT}/configs/text.py:tiny",
            f"--config.data.path={directory}/words.txt",
            *(f"--config.{name}={value}" for name, value in OVERRIDES.items()),
            f"--config.training.num_steps={num_steps}",
        ]
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.start("unbroken")
        self._expected = self._outcome("unbroken")

    def start(self, name: str, kill: str = "") -> float:
        """Runs the command in the workdir `name` and returns its seconds; it must end as `kill` says."""
        began = time.perf_counter()
        process = subprocess.run(
            [*self._command, f"--workdir={self.directory / name}"],
            env=self._environment | {kills.VARIABLE: kill},
            capture_output=True,
            text=True,
        )
        wanted = -signal.SIGKILL if kill else 0
        if process.returncode != wanted:
            raise AssertionError(f"{name}, {kill or 'no kill'}: exit code {process.returncode}\n{process.stderr}")
        if "damaged" in process.stderr:
            raise AssertionError(f"{name}: a kill left a damaged checkpoint\n{process.stderr}")
        return time.perf_counter() - began

    def chain(self, name: str, points: Sequence[str]) -> list[dict[str, Any]]:
        """Kills the run in the workdir `name` at each of `points`, lets it end, compares; returns a record of each."""
        records = []
        for kill in points:
            seconds = self.start(name, kill)
            records.append({"chain": name, "kill": kill, "seconds": round(seconds, 1), **self._progress(name)})
        self.start(name)
        outcome = self._outcome(name)
        for what, expected in self._expected.items():
            if outcome[what] != expected:
                raise AssertionError(f"{name}: other {what} than the unbroken run:\n{outcome[what]}\n{expected}")
        return records

    def _progress(self, name: str) -> dict[str, int]:
        """Returns the last step in the journal and the last one that is saved."""
        workdir = self.directory / name
        lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
        saved = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]
        return {"done": max((json.loads(line)["step"] for line in lines), default=0), "saved": max(saved, default=0)}

    def _outcome(self, name: str) -> dict[str, Any]:
        workdir = self.directory / name
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        journal = [{name: each[name] for name in each if name not in metrics.MACHINE_DEPENDENT} for each in records]
        files = sorted(str(path.relative_to(workdir)) for path in workdir.glob("*"))
        files += sorted(path.name for path in workdir.glob("checkpoints/*"))
        return {"arrays": _final_arrays(workdir), "journal": journal, "files": files}


def _final_arrays(workdir: Path) -> dict[str, bytes]:
    """Returns the bytes of every array of the latest checkpoint."""
    config = settings.update(base.get_config(), settings.read(workdir))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh), checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        target = step.make_programs(config, mesh).target
        state, _ = checkpoints.restore(checkpoint.choose(checkpoints, "latest"), target)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def main() -> None:
    """Makes the chains and appends the result to results/soak.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_chains", type=int, default=5, help="of ten kills each")
    num_chains = parser.parse_args().num_chains
    jax.config.update("jax_platforms", "cpu")
    origin, began, counts = record.provenance(), time.perf_counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(Path(directory))
        for number, points in enumerate(chains(num_chains)):
            for result in soak.chain(f"chain_{number}", points):
                counts[result["kill"].partition(":")[0]] += 1
                print(json.dumps(result), flush=True)
    total = sum(counts.values())
    record.append("soak", {
        **origin, "num_kills": total, "kills": dict(counts), "num_different": 0,
        "seconds": round(time.perf_counter() - began),
    })  # fmt: skip
    print(f"{total} kills in {num_chains} workdirs: every run came to the same arrays, journal and files.\n")
    print(record.markdown(["killed in", "times"], sorted(counts.items())))


if __name__ == "__main__":
    main()
