"""Registers, spills and shared memory of Pallas kernels for GPUs, from what XLA wrote while compiling them.

XLA writes PTX into the folder of `--xla_dump_to`; `ptxas`, which comes with JAX's CUDA packages, tells the rest.
"""

import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import files
from pathlib import Path
from typing import Any

_PTXAS_PACKAGE = "nvidia-cuda-nvcc-cu12"
_LAUNCH = re.compile(r"kCustomKernel.*\] (\S+) grid: .* threads: \[(\d+),.*shared_memory: (\d+) bytes")


def xla_flags(folder: Path) -> str:
    """Returns `XLA_FLAGS` with which `kernels` finds what it needs in `folder`."""
    return f"--xla_dump_to={folder} --xla_dump_hlo_as_text=false --xla_gpu_dump_llvmir=false"


def kernels(folder: Path, wanted: Iterable[str]) -> list[dict[str, Any]]:
    """Returns a row for every kernel with one of the names `wanted` that XLA wrote into `folder`, numbered or not."""
    wanted = set(wanted)
    launched = {}
    for listing in folder.glob("*thunk_sequence.txt"):
        for name, num_threads, shared in _LAUNCH.findall(listing.read_text()):
            if name.partition("__")[0] in wanted:
                launched[name] = {"threads": int(num_threads), "shared_bytes": int(shared)}
    rows = []
    for source in sorted(folder.glob("*.ptx")):
        text = source.read_text()
        names = [name for name in re.findall(r"\.entry (\w+)\(", text) if name in launched]
        if names:
            said = _assembled(source, re.search(r"^\.target (\w+)", text, re.MULTILINE)[1])
            rows += [{"kernel": name, **of_kernel(said, name), **launched[name]} for name in names]
    return sorted(rows, key=lambda row: row["kernel"])


def of_kernel(said: str, name: str) -> dict[str, int]:
    """Returns what `ptxas -v` said of one kernel."""
    own = said.partition(f"Function properties for {name}\n")[2].partition("Function properties for ")[0]
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", own)
    return {
        "registers": int(re.search(r"Used (\d+) registers", own)[1]),
        "spilled_bytes": max(map(int, spilled.groups())),
    }


def _assembled(source: Path, architecture: str) -> str:
    ptxas = next(file.locate() for file in files(_PTXAS_PACKAGE) if file.name == "ptxas")
    command = [ptxas, "-v", f"-arch={architecture}", source, "-o", source.with_suffix(".cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr
